import Glibc
import LinuxCalls
import MigrationChannels
import QMPProtocol

/// Opens channels. Connecting and opening may block: on the migration's thread only.
enum MigrationOpening {
    struct Opened: Sendable {
        var transport: DescriptorTransport
        /// That the stream comes from.
        var command: ChildProcess?
        /// Connections beside the main one, for multifd.
        var channels: [DescriptorTransport] = []
    }

    /// Towards the destination.
    /// - Parameters:
    ///   - descriptor: What `fd:` names, taken on the monitor's thread.
    ///   - byReference: Whether pages may go so: not where they are given back while they are on their way, since the kernel overwrites
    ///     what it gives back of a huge page.
    static func outgoing(
        _ address: MigrationAddress, descriptor: OwnedDescriptor?, channelCount: Int = 0, byReference: Bool = false
    ) throws(SystemCallError) -> Opened {
        let name = address.description
        switch address {
        case .unix(let path):
            let opened = try sockets(name, .unix(path: path), channelCount)
            if byReference { opened.transport.sendByReference() }
            return opened
        case .tcp(let host, let port): return try sockets(name, .tcp(host: host, port: port), channelCount)
        case .descriptor: return Opened(transport: try over(descriptor, name, writing: true))
        case .exec(let words):
            let pipe = try OwnedDescriptor.pipe()
            let child = try ChildProcess(
                path: words[0], arguments: Array(words.dropFirst()), descriptors: [0: pipe.readEnd])
            return Opened(
                transport: try DescriptorTransport(
                    name: name, reading: nil, writing: pipe.writeEnd, command: child))
        case .file(let path, let offset):
            let file = try OwnedDescriptor.open(path, flags: O_WRONLY | O_CREAT)
            // What is before the stream stays, as in QEMU; what would be behind it goes.
            try? GatheredIO.truncate(file, to: Int(clamping: offset))
            try GatheredIO.seek(file, to: Int(clamping: offset))
            return Opened(transport: try DescriptorTransport(name: name, reading: nil, writing: file))
        }
    }

    /// From the source, for what needs no listening; nil for a socket that must be listened on.
    static func incoming(_ address: MigrationAddress, descriptor: OwnedDescriptor?) throws(SystemCallError) -> Opened? {
        let name = address.description
        switch address {
        case .unix, .tcp: return nil
        case .descriptor: return Opened(transport: try over(descriptor, name, writing: false))
        case .exec(let words):
            let pipe = try OwnedDescriptor.pipe()
            let child = try ChildProcess(
                path: words[0], arguments: Array(words.dropFirst()), descriptors: [1: pipe.writeEnd])
            return Opened(
                transport: try DescriptorTransport(name: name, reading: pipe.readEnd, writing: nil), command: child)
        case .file(let path, let offset):
            let file = try OwnedDescriptor.open(path, flags: O_RDONLY)
            try GatheredIO.seek(file, to: Int(clamping: offset))
            return Opened(transport: try DescriptorTransport(name: name, reading: file, writing: nil))
        }
    }

    /// A listening socket for an incoming migration, and the address it has.
    static func listen(_ address: MigrationAddress) throws(SystemCallError) -> (OwnedDescriptor, MigrationAddress)? {
        switch address {
        case .unix(let path): return (try UnixListener.bind(path: path), address)
        case .tcp(let host, let port):
            let listener = try StreamSocket.listen(at: .tcp(host: host, port: port))
            return (listener, .tcp(host: host, port: try StreamSocket.localPort(of: listener)))
        default: return nil
        }
    }

    private static func sockets(
        _ name: String, _ address: LinuxCalls.SocketAddress, _ channelCount: Int
    ) throws(SystemCallError) -> Opened {
        // The main one first: QEMU may take the order for what tells them apart.
        var opened = Opened(
            transport: try DescriptorTransport(name: name, socket: try StreamSocket.connect(to: address)))
        for _ in 0..<channelCount {
            opened.channels.append(
                try DescriptorTransport(name: name, socket: try StreamSocket.connect(to: address)))
        }
        return opened
    }

    private static func over(_ descriptor: OwnedDescriptor?, _ name: String, writing: Bool) throws(SystemCallError)
        -> DescriptorTransport
    {
        guard let descriptor else { throw SystemCallError("migrate", .badFileDescriptor, subject: name) }
        if try descriptor.status().type == .socket { return try DescriptorTransport(name: name, socket: descriptor) }
        return try DescriptorTransport(
            name: name, reading: writing ? nil : descriptor, writing: writing ? descriptor : nil)
    }
}
