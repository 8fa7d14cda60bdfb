import Foundation
import LinuxCalls
import Testing

@Suite("Datagrams") struct DatagramSocketTests {
    @Test(
        "a datagram comes in our name, or in another process's where the kernel allows it",
        .enabled(if: geteuid() == 0, "another process's name is root's right"))
    func sender() throws {
        let path = NSTemporaryDirectory() + "sidestep-datagram-\(UUID().uuidString)"
        let receiver = OwnedDescriptor(
            adopting: socket(AF_UNIX, CInt(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0))
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        try #require(path.utf8.count < MemoryLayout.size(ofValue: address.sun_path))
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        let status = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(receiver.rawValue, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(status == 0, "bind: \(errno)")
        defer { unlink(path) }
        var one: CInt = 1
        try #require(
            setsockopt(receiver.rawValue, SOL_SOCKET, SO_PASSCRED, &one, socklen_t(MemoryLayout<CInt>.size)) == 0)
        let other = try ChildProcess(path: "/bin/sleep", arguments: ["100"])
        // Waited for: one that nobody waits for keeps all exit tests of this process from ending.
        defer {
            other.kill()
            _ = other.wait()
        }
        for (name, sender) in [(nil, getpid()), (other.processIdentifier, other.processIdentifier)] {
            try DatagramSocket.send(Array("hello".utf8), to: path, as: name)
            var bytes = [UInt8](repeating: 0, count: 64)
            var control = [UInt8](repeating: 0, count: 64)
            let count = bytes.withUnsafeMutableBytes { bytes in
                control.withUnsafeMutableBytes { control in
                    var piece = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
                    return withUnsafeMutablePointer(to: &piece) { piece in
                        var message = msghdr()
                        message.msg_iov = piece
                        message.msg_iovlen = 1
                        message.msg_control = control.baseAddress
                        message.msg_controllen = control.count
                        return recvmsg(receiver.rawValue, &message, 0)
                    }
                }
            }
            #expect(String(decoding: bytes.prefix(max(count, 0)), as: UTF8.self) == "hello")
            // struct ucred behind struct cmsghdr; the process comes first.
            #expect(control.withUnsafeBytes { $0.load(fromByteOffset: 16, as: Int32.self) } == sender)
        }
    }
}
