import Glibc
import LinuxCalls
import MigrationChannels
import MigrationEngine
import ProcessTestKit
import Testing

extension DescriptorTransport {
    static func connected(to address: SocketAddress) throws -> DescriptorTransport {
        try DescriptorTransport(name: "\(address)", socket: try StreamSocket.connect(to: address))
    }

    /// Of the next who connects.
    static func accepted(from listener: OwnedDescriptor) throws -> DescriptorTransport {
        try DescriptorTransport(name: "listener", socket: try StreamSocket.accept(from: listener))
    }

    static func file(_ path: String, offset: Int = 0, writing: Bool) throws -> DescriptorTransport {
        let file = try OwnedDescriptor.open(path, flags: writing ? O_WRONLY | O_CREAT : O_RDONLY)
        if writing { try GatheredIO.truncate(file, to: offset) }
        try GatheredIO.seek(file, to: offset)
        return try DescriptorTransport(name: path, reading: writing ? nil : file, writing: writing ? file : nil)
    }
}

@Suite("What a stream may go through") struct TransportTests {
    private static func configuration(_ capabilities: Set<MigrationCapability>) -> MigrationConfiguration {
        var configuration = Rig.configuration
        configuration.capabilities = capabilities
        return configuration
    }

    private static func expectMoved(_ rig: Rig) throws {
        #expect(!rig.source.isRunning && rig.destination.isRunning)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    /// Moves a guest, both ends at once.
    private static func move(
        _ transports: (DescriptorTransport, DescriptorTransport), _ capabilities: Set<MigrationCapability>
    ) throws {
        let rig = try Rig(pages: [700, 30])
        defer { rig.end() }
        try rig.source.resume()
        let ends = try rig.ends(configuration(capabilities), transports: transports)
        let outcome = try Rig.run(ends)
        #expect(
            outcome.source == .guestMoved && outcome.destination == .guestMoved,
            "\(String(describing: ends.source.progress.error))")
        try expectMoved(rig)
    }

    @Test("a guest moves over unix sockets, by path and by abstract name, and over TCP")
    func sockets() throws {
        let directory = try TemporaryDirectory()
        let ways: [(SocketAddress, Set<MigrationCapability>)] = [
            (.unix(path: directory.file("socket")), [.returnPath]),
            (.unix(path: "@sidestep-test-\(getpid())"), [.returnPath]),
            (.tcp(host: "127.0.0.1", port: 0), [.returnPath]), (.tcp(host: "127.0.0.1", port: 0), []),
        ]
        for (address, capabilities) in ways {
            let listener = try StreamSocket.listen(at: address)
            var actual = address
            if case .tcp(let host, _) = address {
                actual = .tcp(host: host, port: try StreamSocket.localPort(of: listener))
            }
            let near = try DescriptorTransport.connected(to: actual)
            try Self.move((near, try .accepted(from: listener)), capabilities)
        }
    }

    @Test("and through a pipe")
    func pipe() throws {
        let pipe = try OwnedDescriptor.pipe()
        try Self.move(
            (
                try DescriptorTransport(name: "source", reading: nil, writing: pipe.writeEnd),
                try DescriptorTransport(name: "destination", reading: pipe.readEnd, writing: nil)
            ), [])
    }

    @Test("a guest is saved to a file and comes back from it, at any offset", arguments: [0, 12345])
    func files(offset: Int) throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("state")
        let rig = try Rig(pages: [700, 30])
        defer { rig.end() }
        try rig.source.resume()
        let source = MigrationSource(
            guest: rig.source, transport: try DescriptorTransport.file(path, offset: offset, writing: true),
            configuration: Self.configuration([]))
        #expect(source.run() == .guestMoved, "\(String(describing: source.progress.error))")
        let destination = MigrationDestination(
            guest: rig.destination, transport: try DescriptorTransport.file(path, offset: offset, writing: false),
            configuration: Self.configuration([]))
        #expect(destination.run() == .guestMoved, "\(String(describing: destination.progress.error))")
        try Self.expectMoved(rig)
    }
}
