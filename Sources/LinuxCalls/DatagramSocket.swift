import CLinuxShims
import Glibc
import SystemPackage

/// Unix datagrams: one message, nobody waited for.
package enum DatagramSocket {
    /// Sends one datagram to a path, or to a name of the abstract space when it begins with `@`.
    /// - Parameters:
    ///   - process: Who the receiver is told has sent it; another process than ours is root's right. Source: unix(7).
    ///   - descriptor: Goes along.
    /// - Throws: `EAGAIN` when too much waits for the receiver already.
    package static func send(
        _ bytes: [UInt8], to path: String, as process: CInt? = nil, with descriptor: OwnedDescriptor? = nil
    ) throws(SystemCallError) {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        var name = Array(path.utf8)
        let isAbstract = name.first == UInt8(ascii: "@")
        if isAbstract { name[0] = 0 }
        guard !name.isEmpty, name.count < MemoryLayout.size(ofValue: address.sun_path) else {
            throw SystemCallError("sendto", .fileNameTooLong, subject: path)
        }
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: name) }
        let length = socklen_t(MemoryLayout<sa_family_t>.size + name.count + (isAbstract ? 0 : 1))
        let socket = OwnedDescriptor(
            adopting: try retrying("socket") {
                Glibc.socket(AF_UNIX, CInt(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            })
        if let process {
            _ = try retrying("sendmsg", subject: path) {
                unsafe shim_send_datagram_as(
                    socket.rawValue, bytes, bytes.count, &address, Int(length), process)
            }
            return
        }
        _ = try retrying("connect", subject: path) {
            unsafe withUnsafePointer(to: &address) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe Glibc.connect(socket.rawValue, $0, length)
                }
            }
        }
        let descriptors = descriptor.map { [$0.rawValue] } ?? []
        _ = try retrying("sendmsg", subject: path) {
            unsafe shim_send_with_descriptors(
                socket.rawValue, bytes, bytes.count, descriptors, descriptors.count, CInt(MSG_DONTWAIT))
        }
        withExtendedLifetime(descriptor) {}
    }
}
