import CLinuxShims
import Glibc
import SystemPackage

/// Where a stream socket is, or should be.
package enum SocketAddress: Hashable, Sendable, CustomStringConvertible {
    /// A path of the file system, or, with a leading `@`, a name in Linux's abstract space.
    case unix(path: String)
    /// A numeric IPv4 or IPv6 address, or `localhost`, and a port; port 0 lets the kernel choose.
    case tcp(host: String, port: UInt16)

    package var description: String {
        switch self {
        case .unix(let path): "unix:\(path)"
        case .tcp(let host, let port): "tcp:\(host.contains(":") ? "[\(host)]" : host):\(port)"
        }
    }
}

/// What one receive brought.
package struct ReceivedMessage: Sendable {
    /// Bytes received; 0 is end of stream.
    package let byteCount: Int
    /// Descriptors that came with these bytes, close-on-exec.
    package let descriptors: [OwnedDescriptor]
    /// The kernel dropped ancillary data for which there was no room: treat the peer as broken.
    package let isTruncated: Bool
}

/// Stream sockets, unix and TCP. All descriptors are close-on-exec; no call raises SIGPIPE.
package enum StreamSocket {
    /// Most descriptors one message can carry here.
    package static let descriptorsMax = Int(SHIM_DESCRIPTORS_MAX)

    /// A connected pair that nobody else can reach. The corresponding C function is `socketpair`.
    package static func pair() throws(SystemCallError) -> (OwnedDescriptor, OwnedDescriptor) {
        var ends: [CInt] = [-1, -1]
        _ = try retrying("socketpair") {
            unsafe socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends)
        }
        return (OwnedDescriptor(adopting: ends[0]), OwnedDescriptor(adopting: ends[1]))
    }

    /// Both ends are on this host (`AF_UNIX`). The corresponding option is `SO_DOMAIN`.
    package static func isLocal(_ socket: OwnedDescriptor) -> Bool {
        var domain: CInt = 0
        var size = socklen_t(MemoryLayout<CInt>.size)
        return unsafe getsockopt(socket.rawValue, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX
    }

    /// What was sent into a unix socket and is still in memory because nobody has received it: 0 when everything was. Source:
    /// unix(7), SIOCOUTQ; the kernel answers in bytes of its own accounting.
    package static func unreceivedByteCount(of socket: OwnedDescriptor) -> Int {
        var count: CInt = 0
        let request = UInt(TIOCOUTQ)  // SIOCOUTQ is the same number.
        return unsafe shim_ioctl_pointer(socket.rawValue, request, &count) == 0 ? Int(count) : 0
    }

    /// Connects, waiting until it is established.
    /// - Parameter waits: Without, a unix listener whose queue is full is an error (`EAGAIN`).
    package static func connect(to address: SocketAddress, waits: Bool = true) throws(SystemCallError)
        -> OwnedDescriptor
    {
        try unsafe withResolved(address, forListening: false) { (socket, pointer, length) throws(SystemCallError) in
            if !waits { try socket.setNonBlocking(true) }
            _ = try retrying("connect", subject: "\(address)") {
                unsafe Glibc.connect(socket.rawValue, pointer, length)
            }
            if !waits { try socket.setNonBlocking(false) }
            return socket
        }
    }

    /// Binds and listens. A unix path is made with mode 0600; an existing file there is an error (`EADDRINUSE`).
    package static func listen(at address: SocketAddress, backlog: CInt = 64) throws(SystemCallError) -> OwnedDescriptor
    {
        try unsafe withResolved(address, forListening: true) { (socket, pointer, length) throws(SystemCallError) in
            if case .tcp = address {
                var one: CInt = 1
                _ = unsafe setsockopt(
                    socket.rawValue, SOL_SOCKET, SO_REUSEADDR, &one, socklen_t(MemoryLayout<CInt>.size))
            } else {
                _ = fchmod(socket.rawValue, 0o600)  // the file made by bind takes the socket's own mode, less the umask
            }
            _ = try retrying("bind", subject: "\(address)") { unsafe Glibc.bind(socket.rawValue, pointer, length) }
            _ = try retrying("listen", subject: "\(address)") { Glibc.listen(socket.rawValue, backlog) }
            return socket
        }
    }

    /// Takes one connection; waits unless the listener is non-blocking (then `EAGAIN`).
    package static func accept(from listener: OwnedDescriptor) throws(SystemCallError) -> OwnedDescriptor {
        let accepted = OwnedDescriptor(
            adopting: try retrying("accept") { Glibc.accept(listener.rawValue, nil, nil) })
        try accepted.setCloseOnExec(true)
        return accepted
    }

    /// Port a TCP listener got from the kernel.
    package static func localPort(of socket: OwnedDescriptor) throws(SystemCallError) -> UInt16 {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        _ = try retrying("getsockname") {
            unsafe withUnsafeMutablePointer(to: &storage) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe getsockname(socket.rawValue, $0, &length)
                }
            }
        }
        return unsafe withUnsafePointer(to: storage) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr_in.self, capacity: 1) {
                unsafe UInt16(bigEndian: $0.pointee.sin_port)  // the port stands at the same place for IPv6
            }
        }
    }

    /// Sends bytes, with descriptors attached to the first of them; answers how many bytes were taken (at least 1 when
    /// there are any). The descriptors cross with the first byte or, on error, not at all.
    package static func send(
        _ bytes: UnsafeRawBufferPointer, descriptors: [OwnedDescriptor] = [], to socket: OwnedDescriptor,
        nonBlocking: Bool = false
    ) throws(SystemCallError) -> Int {
        let numbers = descriptors.map(\.rawValue)
        defer { withExtendedLifetime(descriptors) {} }
        return try retrying("sendmsg") {
            unsafe shim_send_with_descriptors(
                socket.rawValue, bytes.baseAddress, bytes.count, numbers, numbers.count,
                nonBlocking ? CInt(MSG_DONTWAIT) : 0)
        }
    }

    /// Sends everything, waiting as long as it takes; descriptors go with the first byte, which must exist.
    package static func sendAll(_ bytes: [UInt8], descriptors: [OwnedDescriptor] = [], to socket: OwnedDescriptor)
        throws(SystemCallError)
    {
        precondition(descriptors.isEmpty || !bytes.isEmpty, "descriptors need a byte to travel with")
        var failure: SystemCallError?
        unsafe bytes.withUnsafeBytes { all in
            var done = 0
            do throws(SystemCallError) {
                while done < all.count {
                    do throws(SystemCallError) {
                        done += unsafe try send(
                            UnsafeRawBufferPointer(rebasing: all[done...]), descriptors: done == 0 ? descriptors : [],
                            to: socket)
                    } catch  where error.errno == .wouldBlock {
                        _ = try socket.waitUntilReady(for: Int16(POLLOUT), timeoutMilliseconds: -1)
                    }
                }
            } catch { failure = error }
        }
        if let failure { throw failure }
    }

    /// One receive. Descriptors arrive with the bytes they were sent with; more than `descriptorsMax` sets
    /// ``ReceivedMessage/isTruncated``.
    package static func receive(
        into buffer: UnsafeMutableRawBufferPointer, descriptorsMax: Int, from socket: OwnedDescriptor,
        nonBlocking: Bool = false
    ) throws(SystemCallError) -> ReceivedMessage {
        precondition(descriptorsMax <= Self.descriptorsMax)
        var numbers = [CInt](repeating: -1, count: max(descriptorsMax, 1))
        var count = descriptorsMax
        var truncated: CInt = 0
        var piece = unsafe iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
        let received = try retrying("recvmsg") {
            count = descriptorsMax
            return unsafe shim_receive_with_descriptors(
                socket.rawValue, &piece, 1, &numbers, &count, &truncated, nonBlocking ? CInt(MSG_DONTWAIT) : 0)
        }
        return ReceivedMessage(
            byteCount: received, descriptors: numbers[..<count].map { OwnedDescriptor(adopting: $0) },
            isTruncated: truncated != 0)
    }

    /// The first four bytes that wait to be received, big-endian; they stay. Nil while there are fewer, 0 at the end.
    /// Source: recv(2), MSG_PEEK.
    package static func peekInteger(from socket: OwnedDescriptor) throws(SystemCallError) -> UInt32? {
        var bytes: UInt32 = 0
        do throws(SystemCallError) {
            let count = try retrying("recv") {
                unsafe recv(socket.rawValue, &bytes, 4, CInt(MSG_PEEK) | CInt(MSG_DONTWAIT))
            }
            return count == 4 ? UInt32(bigEndian: bytes) : count == 0 ? 0 : nil
        } catch {
            if error.errno == .wouldBlock { return nil }
            throw error
        }
    }

    /// What waits to be received, as much as the buffer takes; it stays. Nil while nothing waits, 0 bytes at the end.
    /// Source: recv(2), MSG_PEEK.
    package static func peek(into buffer: UnsafeMutableRawBufferPointer, from socket: OwnedDescriptor)
        throws(SystemCallError) -> Int?
    {
        do throws(SystemCallError) {
            return try retrying("recv") {
                unsafe recv(socket.rawValue, buffer.baseAddress, buffer.count, CInt(MSG_PEEK) | CInt(MSG_DONTWAIT))
            }
        } catch {
            if error.errno == .wouldBlock { return nil }
            throw error
        }
    }

    /// shutdown(2) of the sending side: the peer sees end of stream.
    package static func shutDownWriting(_ socket: OwnedDescriptor) { _ = shutdown(socket.rawValue, CInt(SHUT_WR)) }

    /// shutdown(2) of both sides: wakes whoever is blocked on it.
    package static func shutDown(_ socket: OwnedDescriptor) { _ = shutdown(socket.rawValue, CInt(SHUT_RDWR)) }

    /// Process, user and group at the other end of a unix socket, as of connect time. Source: unix(7), SO_PEERCRED.
    package static func peerCredentials(of socket: OwnedDescriptor) throws(SystemCallError)
        -> (process: CInt, user: UInt32, group: UInt32)
    {
        var process: CInt = 0
        var user: UInt32 = 0
        var group: UInt32 = 0
        _ = try retrying("getsockopt(SO_PEERCRED)") {
            unsafe shim_peer_credentials(socket.rawValue, &process, &user, &group)
        }
        return (process, user, group)
    }

    private static func withResolved(
        _ address: SocketAddress, forListening: Bool,
        _ body: (OwnedDescriptor, UnsafePointer<sockaddr>, socklen_t) throws(SystemCallError) -> OwnedDescriptor
    ) throws(SystemCallError) -> OwnedDescriptor {
        switch address {
        case .unix(let path):
            return try unsafe withUnix(SOCK_STREAM, path: path, body)
        case .tcp(let host, let port):
            var hints = unsafe addrinfo()
            unsafe hints.ai_socktype = CInt(SOCK_STREAM.rawValue)
            unsafe hints.ai_flags = AI_NUMERICSERV | (forListening ? AI_PASSIVE : 0)
            var list: UnsafeMutablePointer<addrinfo>?
            let status = unsafe getaddrinfo(host.isEmpty ? nil : host, "\(port)", &hints, &list)
            guard status == 0, let first = unsafe list else {
                throw SystemCallError("getaddrinfo", .noSuchAddressOrDevice, subject: host)
            }
            defer { unsafe freeaddrinfo(first) }
            var failure = SystemCallError("connect", .connectionRefused, subject: "\(address)")
            var entry: UnsafeMutablePointer<addrinfo>? = unsafe first
            while let current = unsafe entry {
                do {
                    let socket = OwnedDescriptor(
                        adopting: try retrying("socket") {
                            unsafe Glibc.socket(
                                current.pointee.ai_family, CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
                        })
                    return try unsafe body(socket, current.pointee.ai_addr, current.pointee.ai_addrlen)
                } catch { failure = error }
                unsafe entry = current.pointee.ai_next
            }
            throw failure
        }
    }

    /// A fresh unix socket, and the address of a path, or, with a leading `@`, of a name in Linux's abstract space.
    static func withUnix<Result>(
        _ type: __socket_type, path: String,
        _ body: (OwnedDescriptor, UnsafePointer<sockaddr>, socklen_t) throws(SystemCallError) -> Result
    ) throws(SystemCallError) -> Result {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        var name = Array(path.utf8)
        let isAbstract = name.first == UInt8(ascii: "@")
        if isAbstract { name[0] = 0 }
        guard !name.isEmpty, name.count < MemoryLayout.size(ofValue: address.sun_path) else {
            throw SystemCallError("bind", .fileNameTooLong, subject: path)
        }
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: name) }
        let length = socklen_t(MemoryLayout<sa_family_t>.size + name.count + (isAbstract ? 0 : 1))
        let socket = OwnedDescriptor(
            adopting: try retrying("socket") {
                Glibc.socket(AF_UNIX, CInt(type.rawValue | SOCK_CLOEXEC.rawValue), 0)
            })
        return try unsafe withUnsafePointer(to: &address) { (pointer) throws(SystemCallError) in
            try unsafe body(socket, UnsafeRawPointer(pointer).assumingMemoryBound(to: sockaddr.self), length)
        }
    }
}

/// What a socket that somebody else made is: whether it listens, and where it and its peer are.
package struct SocketFacts: Hashable, Sendable {
    package let isListening: Bool
    /// Nil for kinds of socket that are neither unix nor internet, and for unnamed ends.
    package let local: SocketAddress?
    package let peer: SocketAddress?

    /// Asks the kernel. Nil when the descriptor is no socket. The corresponding C functions are `getsockname`, `getpeername`.
    package init?(of socket: OwnedDescriptor) {
        var listens: CInt = 0
        var length = socklen_t(MemoryLayout<CInt>.size)
        guard unsafe getsockopt(socket.rawValue, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 else { return nil }
        isListening = listens != 0
        local = unsafe Self.address { unsafe getsockname(socket.rawValue, $0, $1) }
        peer = unsafe Self.address { unsafe getpeername(socket.rawValue, $0, $1) }
    }

    private static func address(
        _ ask: (UnsafeMutablePointer<sockaddr>, UnsafeMutablePointer<socklen_t>) -> CInt
    ) -> SocketAddress? {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let status = unsafe withUnsafeMutablePointer(to: &storage) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe ask($0, &length) }
        }
        guard status == 0 else { return nil }
        let bytes = unsafe withUnsafeBytes(of: &storage) { unsafe Array($0.prefix(Int(length))) }
        switch CInt(storage.ss_family) {
        case AF_UNIX:
            var name = Array(bytes.dropFirst(MemoryLayout<sa_family_t>.size))
            if name.isEmpty { return nil }
            if name[0] == 0 { name[0] = UInt8(ascii: "@") } else { name = Array(name.prefix { $0 != 0 }) }
            return .unix(path: String(decoding: name, as: UTF8.self))
        case AF_INET, AF_INET6:
            // The port stands at the same place for both.
            let port = UInt16(bytes[2]) << 8 | UInt16(bytes[3])
            var host = [CChar](repeating: 0, count: 64)
            let isSix = CInt(storage.ss_family) == AF_INET6
            let raw = Array(bytes.dropFirst(isSix ? 8 : 4))
            guard unsafe inet_ntop(CInt(storage.ss_family), raw, &host, socklen_t(host.count)) != nil else {
                return nil
            }
            let text = String(decoding: host.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            return .tcp(host: text, port: port)
        default: return nil
        }
    }
}
