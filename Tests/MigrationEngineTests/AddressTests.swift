import Foundation
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit
import Synchronization
import Testing

@Suite("Addresses of a migration") struct AddressTests {
    @Test("a URI is what QEMU takes it for")
    func parse() throws {
        #expect(try ChannelAddress(uri: "unix:/a/b:c") == .unix(path: "/a/b:c"))
        #expect(try ChannelAddress(uri: "unix:@name") == .unix(path: "@name"))
        #expect(try ChannelAddress(uri: "tcp:localhost:4444") == .tcp(host: "localhost", port: 4444))
        #expect(try ChannelAddress(uri: "tcp:[::1]:0") == .tcp(host: "::1", port: 0))
        #expect(try ChannelAddress(uri: "fd:7") == .descriptor(name: "7"))
        #expect(try ChannelAddress(uri: "exec:cat >a:b") == .command("cat >a:b"))
        #expect(try ChannelAddress(uri: "file:/a,offset=0x10") == .file(path: "/a", offset: 16))
        #expect(try ChannelAddress(uri: "file:/a,offset=2M") == .file(path: "/a", offset: 2 << 20))
        for bad in [
            "", "unix", "unix:", "tcp:host", "tcp:host:70000", "rdma:x", "file:/a,offset=-1",
            "file:/a,offset=9999999999G",
        ] {
            #expect(throws: MigrationError.self) { try ChannelAddress(uri: bad) }
        }
    }

    /// Moves a guest over an address.
    static func move(
        _ address: ChannelAddress, _ capabilities: Set<MigrationCapability>, sequentially: Bool,
        listenAt other: ChannelAddress? = nil
    ) throws {
        let rig = try Rig(pages: [700, 30])
        defer { rig.end() }
        try rig.source.resume()
        let configuration = {
            var configuration = Rig.configuration
            configuration.capabilities = capabilities
            return configuration
        }()
        @Sendable func receive(_ listener: ChannelListener) throws -> MigrationDestination {
            MigrationDestination(
                guest: rig.destination, transport: try listener.accept(), configuration: configuration)
        }
        if sequentially {
            let source = MigrationSource(
                guest: rig.source, transport: try address.connect(), configuration: configuration)
            #expect(source.run() == .guestMoved, "\(String(describing: source.progress.error))")
            let destination = try receive(try (other ?? address).listen())
            #expect(destination.run() == .guestMoved, "\(String(describing: destination.progress.error))")
        } else {
            let listener = try address.listen()
            let result = Mutex<MigrationOutcome?>(nil)
            let thread = try HostThread(name: "destination") {
                guard let destination = try? receive(listener) else { return }
                let outcome = destination.run()
                result.withLock { $0 = outcome }
            }
            let source = MigrationSource(
                guest: rig.source, transport: try listener.localAddress.connect(), configuration: configuration)
            #expect(source.run() == .guestMoved, "\(String(describing: source.progress.error))")
            thread.join()
            #expect(result.withLock { $0 } == .guestMoved)
        }
        #expect(!rig.source.isRunning && rig.destination.isRunning)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test("a guest moves over unix sockets, by path and by abstract name, and over TCP")
    func sockets() throws {
        let directory = try TemporaryDirectory()
        try Self.move(.unix(path: directory.path + "/socket"), [.returnPath], sequentially: false)
        try Self.move(.unix(path: "@sidestep-test-\(getpid())"), [.returnPath], sequentially: false)
        try Self.move(.tcp(host: "127.0.0.1", port: 0), [.returnPath], sequentially: false)
        try Self.move(.tcp(host: "127.0.0.1", port: 0), [], sequentially: false)
    }

    @Test("a guest is saved to and restored from a file, at any offset, and through commands")
    func files() throws {
        let directory = try TemporaryDirectory()
        try Self.move(.file(path: directory.path + "/state", offset: 0), [], sequentially: true)
        try Self.move(.file(path: directory.path + "/state", offset: 12345), [], sequentially: true)
        try Self.move(
            .command("cat >\(directory.path)/piped"), [], sequentially: true,
            listenAt: .command("cat \(directory.path)/piped"))
    }

    @Test("a command that fails leaves the guest here")
    func failingCommand() throws {
        let rig = try Rig(pages: [50])
        defer { rig.end() }
        try rig.source.resume()
        var configuration = Rig.configuration
        configuration.capabilities = []
        for command in ["cat >/dev/null; exit 3", "exit 0", "head -c 100 >/dev/null"] {
            let source = MigrationSource(
                guest: rig.source, transport: try ChannelAddress.command(command).connect(),
                configuration: configuration)
            // A command that ends before it has read everything may do so after the last byte was taken by the pipe.
            let outcome = source.run()
            if command.contains("exit 3") { #expect(outcome == .guestStayed) }
            if outcome == .guestStayed { #expect(rig.source.isRunning) } else { try rig.source.resume() }
        }
        try rig.source.pause()
        #expect(rig.source.flaws() == [])
    }

    @Test("a listener can be told to stop waiting")
    func listener() throws {
        let listener = try ChannelAddress.tcp(host: "127.0.0.1", port: 0).listen()
        let thread = try HostThread(name: "cancel") { listener.cancel() }
        #expect(throws: MigrationError.self) { try listener.accept() }
        thread.join()
    }
}

/// A directory that goes away with its owner.
final class TemporaryDirectory: Sendable {
    let path: String
    init() throws {
        path = NSTemporaryDirectory() + "sidestep-" + UUID().uuidString
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }
    deinit { try? FileManager.default.removeItem(atPath: path) }
}
