import CLinuxShims
import Glibc
import SystemPackage

/// Unix datagrams: one message, nobody waited for.
package enum DatagramSocket {
    /// Sends one datagram to a path, or to a name of the abstract space when it begins with `@`.
    /// - Parameter process: Who the receiver is told has sent it; another process than ours is root's right. Source: unix(7).
    package static func send(_ bytes: [UInt8], to path: String, as process: CInt? = nil) throws(SystemCallError) {
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
        _ = try retrying("sendto", subject: path) {
            unsafe withUnsafePointer(to: &address) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe sendto(
                        socket.rawValue, bytes, bytes.count, CInt(MSG_NOSIGNAL) | CInt(MSG_DONTWAIT), $0,
                        length)
                }
            }
        }
    }
}
