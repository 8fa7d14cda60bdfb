package import LinuxCalls
package import MigrationEngine

/// Where a migration goes to or comes from, as QMP's `uri` has it.
package enum ChannelAddress: Hashable, Sendable, CustomStringConvertible {
    /// A path, or with a leading `@` a name in Linux's abstract space.
    case unix(path: String)
    case tcp(host: String, port: UInt16)
    /// A descriptor by number, or by the name `getfd` gave it.
    case descriptor(name: String)
    /// Run by `/bin/sh -c`; the stream is its standard input or output.
    case command(String)
    case file(path: String, offset: Int)

    /// Parses a URI.
    package init(uri: String) throws(MigrationError) {
        func refused(_ why: String) -> MigrationError {
            MigrationError(.invalidConfiguration, in: .setup, "\(why): \(uri)")
        }
        guard let colon = uri.firstIndex(of: ":") else {
            throw refused("Parameter 'uri' expects a valid migration protocol")
        }
        let rest = String(uri[uri.index(after: colon)...])
        guard !rest.isEmpty else { throw refused("nothing after the protocol") }
        switch uri[..<colon] {
        case "unix": self = .unix(path: rest)
        case "tcp":
            guard let last = rest.lastIndex(of: ":"), let port = UInt16(rest[rest.index(after: last)...]) else {
                throw refused("tcp: expects a host and a port")
            }
            var host = String(rest[..<last])
            if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
            self = .tcp(host: host, port: port)
        case "fd": self = .descriptor(name: rest)
        case "exec": self = .command(rest)
        case "file":
            guard let comma = rest.lastIndex(of: ","), rest[comma...].hasPrefix(",offset=") else {
                self = .file(path: rest, offset: 0)
                return
            }
            guard let offset = Self.size(rest[comma...].dropFirst(8)) else {
                throw refused("offset expects a number of bytes")
            }
            self = .file(path: String(rest[..<comma]), offset: offset)
        default: throw refused("unknown migration protocol")
        }
    }

    /// A number of bytes, decimal or hexadecimal, with a suffix of k, M, G or none.
    private static func size(_ text: Substring) -> Int? {
        var digits = text
        var factor = 1
        switch text.last {
        case "k", "K": factor = 1 << 10
        case "M", "m": factor = 1 << 20
        case "G", "g": factor = 1 << 30
        default: break
        }
        if factor > 1 { digits = digits.dropLast() }
        let value = digits.hasPrefix("0x") ? Int(digits.dropFirst(2), radix: 16) : Int(digits)
        guard let value, value >= 0 else { return nil }
        let (product, overflow) = value.multipliedReportingOverflow(by: factor)
        return overflow ? nil : product
    }

    package var description: String {
        switch self {
        case .unix(let path): "unix:\(path)"
        case .tcp(let host, let port): "tcp:\(host.contains(":") ? "[\(host)]" : host):\(port)"
        case .descriptor(let name): "fd:\(name)"
        case .command(let command): "exec:\(command)"
        case .file(let path, let offset): offset == 0 ? "file:\(path)" : "file:\(path),offset=\(offset)"
        }
    }

    private func failure(_ error: SystemCallError) -> MigrationError {
        MigrationError(.channelFailed, in: .setup, "\(self) cannot be opened", cause: error)
    }

    /// Opens the channel for a source.
    /// - Parameter descriptor: Finds what `getfd` was given; nil means there is none of that name.
    package func connect(
        descriptor: (String) -> OwnedDescriptor? = ChannelAddress.inherited
    ) throws(MigrationError) -> DescriptorTransport {
        do throws(SystemCallError) {
            switch self {
            case .unix(let path):
                return try DescriptorTransport(
                    name: description, socket: try StreamSocket.connect(to: .unix(path: path)))
            case .tcp(let host, let port):
                let socket = try StreamSocket.connect(to: .tcp(host: host, port: port))
                return try DescriptorTransport(name: description, socket: socket)
            case .descriptor(let name):
                guard let found = descriptor(name) else {
                    throw SystemCallError("fd", .badFileDescriptor, subject: name)
                }
                return try Self.transport(description, over: found, sending: true)
            case .command(let command):
                let pipe = try OwnedDescriptor.pipe()
                let child = try ChildProcess(
                    path: "/bin/sh", arguments: ["-c", command], descriptors: [0: pipe.readEnd])
                return try DescriptorTransport(
                    name: description, reading: nil, writing: pipe.writeEnd,
                    onFinish: { () throws(SystemCallError) in
                        guard child.wait() == .exited(status: 0) else {
                            throw SystemCallError("exec", .ioError, subject: command)
                        }
                    },
                    onClose: { if child.wait(timeoutMilliseconds: 0) == nil { child.kill(); _ = child.wait() } })
            case .file(let path, let offset):
                let file = try OwnedDescriptor.open(path, flags: 0o101)  // O_WRONLY | O_CREAT
                try GatheredIO.truncate(file, to: offset)
                try GatheredIO.seek(file, to: offset)
                return try DescriptorTransport(name: description, reading: nil, writing: file)
            }
        } catch { throw failure(error) }
    }

    /// Opens the channel for a destination, or a listener that will.
    package func listen(
        descriptor: (String) -> OwnedDescriptor? = ChannelAddress.inherited
    ) throws(MigrationError) -> ChannelListener {
        do throws(SystemCallError) {
            switch self {
            case .unix(let path):
                return ChannelListener(self, .listening(try StreamSocket.listen(at: .unix(path: path))))
            case .tcp(let host, let port):
                return ChannelListener(self, .listening(try StreamSocket.listen(at: .tcp(host: host, port: port))))
            case .descriptor(let name):
                guard let found = descriptor(name) else {
                    throw SystemCallError("fd", .badFileDescriptor, subject: name)
                }
                return ChannelListener(self, .open(try Self.transport(description, over: found, sending: false)))
            case .command(let command):
                let pipe = try OwnedDescriptor.pipe()
                let child = try ChildProcess(
                    path: "/bin/sh", arguments: ["-c", command], descriptors: [1: pipe.writeEnd])
                let transport = try DescriptorTransport(
                    name: description, reading: pipe.readEnd, writing: nil,
                    onClose: { if child.wait(timeoutMilliseconds: 0) == nil { child.kill(); _ = child.wait() } })
                return ChannelListener(self, .open(transport))
            case .file(let path, let offset):
                let file = try OwnedDescriptor.open(path, flags: 0)  // O_RDONLY
                try GatheredIO.seek(file, to: offset)
                return ChannelListener(
                    self, .open(try DescriptorTransport(name: description, reading: file, writing: nil)))
            }
        } catch { throw failure(error) }
    }

    private static func transport(
        _ name: String, over descriptor: OwnedDescriptor, sending: Bool
    ) throws(SystemCallError) -> DescriptorTransport {
        if try descriptor.status().type == .socket { return try DescriptorTransport(name: name, socket: descriptor) }
        return sending
            ? try DescriptorTransport(name: name, reading: nil, writing: descriptor)
            : try DescriptorTransport(name: name, reading: descriptor, writing: nil)
    }

    /// A descriptor of this process by its number: a duplicate, so that the original stays its owner's.
    package static func inherited(_ name: String) -> OwnedDescriptor? {
        guard let number = Int32(name), number >= 0 else { return nil }
        return try? OwnedDescriptor.duplicate(of: number)
    }
}

/// Waits for the one connection a migration comes by.
package final class ChannelListener: Sendable {
    enum Source: Sendable {
        case listening(OwnedDescriptor)
        case open(DescriptorTransport)
    }

    package let address: ChannelAddress
    private let source: Source
    private let wake: OwnedDescriptor?

    init(_ address: ChannelAddress, _ source: Source) {
        self.address = address
        self.source = source
        wake = try? .event()
    }

    /// Where it really listens: with the port the kernel chose.
    package var localAddress: ChannelAddress {
        guard case .tcp(let host, 0) = address, case .listening(let socket) = source,
            let port = try? StreamSocket.localPort(of: socket)
        else { return address }
        return .tcp(host: host, port: port)
    }

    /// Makes a waiting ``accept()`` throw. Any thread.
    package func cancel() { wake?.signal() }

    /// Blocks until somebody connects.
    package func accept() throws(MigrationError) -> DescriptorTransport {
        switch source {
        case .open(let transport): return transport
        case .listening(let listener):
            do throws(SystemCallError) {
                guard let wake else { throw SystemCallError("eventfd", .tooManyOpenFiles) }
                while true {
                    let ready = try GatheredIO.wait(for: 1, on: listener, wake: wake, timeoutMilliseconds: -1)
                    if ready.isWoken {
                        throw SystemCallError("accept", .canceled, subject: address.description)
                    }
                    if ready.isReady {
                        return try DescriptorTransport(
                            name: address.description, socket: try StreamSocket.accept(from: listener))
                    }
                }
            } catch {
                let code: MigrationError.Code = error.errno == .canceled ? .cancelled : .channelFailed
                throw MigrationError(code, in: .setup, "no connection at \(address)", cause: error)
            }
        }
    }
}
