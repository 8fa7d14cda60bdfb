import CLinuxShims
import Glibc
import SystemPackage

/// Unix datagrams: one message, nobody waited for.
package enum DatagramSocket {
    /// Sends one datagram to a path, or to a name of the abstract space when it begins with `@`.
    /// - Parameters:
    ///   - process: Who the receiver is told has sent it; another process than ours is root's right. Source: unix(7).
    ///   - descriptor: Goes along, unless another process is named.
    /// - Throws: `EAGAIN` when too much waits for the receiver already.
    package static func send(
        _ bytes: [UInt8], to path: String, as process: CInt? = nil, with descriptor: OwnedDescriptor? = nil
    ) throws(SystemCallError) {
        try unsafe StreamSocket.withUnix(SOCK_DGRAM, path: path) {
            (socket, address, length) throws(SystemCallError) in
            _ = try retrying("connect", subject: path) { unsafe Glibc.connect(socket.rawValue, address, length) }
            let descriptors = descriptor.map { [$0.rawValue] } ?? []
            _ = try retrying("sendmsg", subject: path) {
                if let process { return unsafe shim_send_as(socket.rawValue, bytes, bytes.count, process) }
                return unsafe shim_send_with_descriptors(
                    socket.rawValue, bytes, bytes.count, descriptors, descriptors.count, CInt(MSG_DONTWAIT))
            }
        }
        withExtendedLifetime(descriptor) {}
    }
}
