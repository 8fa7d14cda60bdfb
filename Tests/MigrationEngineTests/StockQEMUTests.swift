import ComponentState
import Foundation
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationStream
import ProcessTestKit
import Synchronization
import Testing

/// A machine of RAM and a clock, as QEMU's `none`.
final class EmptyMachine: MigratableGuest {
    let machineName = "none"
    let ramBlocks: [RAMBlock]
    let components: [any StatefulComponent] = [Clock()]
    private let running = Mutex(false)

    init(byteCount: Int) throws {
        ramBlocks = [try RAMBlock(name: "ram", byteCount: byteCount, backend: .memfd)]
    }

    func restartDirtyTracking() {}
    func setThrottle(percent: Int) {}
    func pause() { running.withLock { $0 = false } }
    func resume() { running.withLock { $0 = true } }
    var isRunning: Bool { running.withLock { $0 } }
    func finishLoading() {}

    /// Section `timer`: ticks, nothing, clock.
    final class Clock: StatefulComponent {
        let sectionName = "timer"
        let instance: UInt32 = 0
        let readableVersions: ClosedRange<UInt32> = 2...2
        let nanoseconds = Mutex<Int64>(0)
        func sectionVersion(for layout: StateLayout) -> UInt32? { 2 }
        func codeState(with coder: inout any StateCoder) throws(StateError) {
            var ticks: Int64 = 0
            var clock = nanoseconds.withLock { $0 }
            try coder.int64("cpu_ticks_offset", &ticks)
            try coder.unused(8)
            try coder.int64("cpu_clock_offset", &clock)
            nanoseconds.withLock { $0 = clock }
        }
    }
}

/// A QEMU without a board, driven over its monitor.
final class EmptyQEMU {
    /// QEMU 10.0 beside the installed one, if it was fetched.
    static let ten = [
        ProcessInfo.processInfo.environment["SIDESTEP_CACHE"],
        URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../.cache").standardized.path(),
    ].compactMap { $0.map { $0 + "/qemu-10.0/qemu-system-x86_64" } }.first { (path: String) in
        FileManager.default.isExecutableFile(atPath: path)
    }
    static let path = ["/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-riscv64"].first { (path: String) in
        FileManager.default.isExecutableFile(atPath: path)
    }
    let process: ChildProcess
    private let monitor: OwnedDescriptor
    private var buffer: [UInt8] = []

    init(_ program: String = EmptyQEMU.path!, incoming: String? = nil, megabytes: Int = 8) throws {
        let (near, far) = try StreamSocket.pair()
        var arguments = [
            "-S", "-M", "none", "-accel", "tcg", "-m", "\(megabytes)", "-display", "none", "-nodefaults",
            "-chardev", "socket,id=m,fd=3", "-mon", "chardev=m,mode=control",
        ]
        if let incoming { arguments += ["-incoming", incoming] }
        process = try ChildProcess(path: program, arguments: arguments, descriptors: [3: far])
        monitor = near
        _ = try line()
        _ = try command("qmp_capabilities")
    }

    deinit {
        process.kill()
        _ = process.wait()
    }

    private func line() throws -> [String: Any] {
        while true {
            if let end = buffer.firstIndex(of: 10) {
                let object = try JSONSerialization.jsonObject(with: Data(buffer[..<end])) as? [String: Any]
                buffer.removeFirst(end + 1)
                return object ?? [:]
            }
            var chunk = [UInt8](repeating: 0, count: 4096)
            let count = try chunk.withUnsafeMutableBytes { try monitor.read(into: $0) }
            if count == 0 { throw SystemCallError("read", .brokenPipe, subject: "monitor") }
            buffer += chunk[..<count]
        }
    }

    @discardableResult func command(_ name: String, _ arguments: [String: Any] = [:]) throws -> Any {
        let data = try JSONSerialization.data(withJSONObject: ["execute": name, "arguments": arguments])
        try monitor.writeAll([UInt8](data) + [10])
        while true {
            let answer = try line()
            if let result = answer["return"] { return result }
            if let error = answer["error"] { throw Refused(text: "\(error)") }
        }
    }
    struct Refused: Error { let text: String }

    /// Waits until a migration has ended and says how.
    func waitForMigration() throws -> String {
        for _ in 0..<30_000 {
            let status = (try command("query-migrate") as? [String: Any])?["status"] as? String ?? "none"
            if ["completed", "failed", "cancelled"].contains(status) { return status }
            usleep(2000)
        }
        return "never ended"
    }
}

@Suite("With a stock QEMU at the other end", .enabled(if: EmptyQEMU.path != nil)) struct StockQEMUTests {
    static let byteCount = 8 << 20

    static func configuration(returnPath: Bool) -> MigrationConfiguration {
        var configuration = Rig.configuration
        configuration.capabilities = returnPath ? [.returnPath] : []
        configuration.layout = .qemu7_2
        return configuration
    }

    static func pattern(_ machine: EmptyMachine) {
        let words = machine.ramBlocks[0].base.assumingMemoryBound(to: UInt64.self)
        for page in stride(from: 0, to: byteCount / 4096, by: 3) {
            for index in 0..<512 { words[page * 512 + index] = UInt64(page) &* 0x1234_5678_9abc &+ UInt64(index) }
        }
    }

    @Test("QEMU takes what we send, and we take the same memory back from it", arguments: [true, false])
    func roundTrip(returnPath: Bool) throws {
        let directory = try TemporaryDirectory()
        let there = directory.path + "/there"
        let back = directory.path + "/back"
        let machine = try EmptyMachine(byteCount: Self.byteCount)
        Self.pattern(machine)
        (machine.components[0] as! EmptyMachine.Clock).nanoseconds.withLock { $0 = 123_456_789 }
        let qemu = try EmptyQEMU(incoming: "unix:" + there)
        let source = MigrationSource(
            guest: machine, transport: try DescriptorTransport.connected(to: .unix(path: there)),
            configuration: Self.configuration(returnPath: returnPath))
        #expect(source.run() == .guestMoved, "\(String(describing: source.progress.error))")
        #expect(try qemu.waitForMigration() == "completed")

        // A QEMU that took a guest in sends it on.
        let twin = try EmptyMachine(byteCount: Self.byteCount)
        let listener = try StreamSocket.listen(at: .unix(path: back))
        try qemu.command(
            "migrate-set-capabilities",
            ["capabilities": [["capability": "return-path", "state": returnPath]]])
        try qemu.command("migrate", ["uri": "unix:" + back])
        let destination = MigrationDestination(
            guest: twin, transport: try DescriptorTransport.accepted(from: listener),
            configuration: Self.configuration(returnPath: returnPath))
        #expect(destination.run() == .guestMoved, "\(String(describing: destination.progress.error))")
        #expect(try qemu.waitForMigration() == "completed")
        #expect(memcmp(machine.ramBlocks[0].base, twin.ramBlocks[0].base, Self.byteCount) == 0)
        #expect(!twin.isRunning)
    }

    @Test("QEMU restores the file we saved, and we the one it saved")
    func files() throws {
        let directory = try TemporaryDirectory()
        let machine = try EmptyMachine(byteCount: Self.byteCount)
        Self.pattern(machine)
        let ours = directory.path + "/ours"
        let source = MigrationSource(
            guest: machine, transport: try DescriptorTransport.file(ours, writing: true),
            configuration: Self.configuration(returnPath: false))
        #expect(source.run() == .guestMoved)
        let qemu = try EmptyQEMU(incoming: "exec:cat \(ours)")
        #expect(try qemu.waitForMigration() == "completed")
        let theirs = directory.path + "/theirs"
        try qemu.command("migrate", ["uri": "exec:cat >\(theirs)"])
        #expect(try qemu.waitForMigration() == "completed")
        let twin = try EmptyMachine(byteCount: Self.byteCount)
        let destination = MigrationDestination(
            guest: twin, transport: try DescriptorTransport.file(theirs, writing: false),
            configuration: Self.configuration(returnPath: false))
        #expect(destination.run() == .guestMoved, "\(String(describing: destination.progress.error))")
        #expect(memcmp(machine.ramBlocks[0].base, twin.ramBlocks[0].base, Self.byteCount) == 0)
    }

    @Test("a QEMU refuses a page flip by name before a page moves, and the guest stays")
    func flip() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/socket"
        let qemu = try EmptyQEMU(incoming: "unix:" + path)
        let machine = try EmptyMachine(byteCount: Self.byteCount)
        machine.resume()
        var configuration = Self.configuration(returnPath: true)
        configuration.capabilities.insert(.unixPageFlipping)
        let transport = try DescriptorTransport.connected(to: .unix(path: path))
        let source = MigrationSource(
            guest: machine, transport: transport, configuration: configuration,
            hooks: PageFlipSource(transport: transport, guest: machine, configuration: configuration))
        #expect(source.run() == .guestStayed)
        #expect(source.progress.error?.message.contains("unix-page-flipping") == true)
        #expect(source.progress.ram.normalPages == 0)
        #expect(machine.isRunning)
        withExtendedLifetime(qemu) {}
    }

    /// Both releases, where they are.
    static let releases: [(program: String, layout: StateLayout)] =
        [(EmptyQEMU.path, StateLayout.qemu7_2), (EmptyQEMU.ten, .qemu10_0)].compactMap { program, layout in
            program.map { ($0, layout) }
        }

    static func switchOn(_ qemu: EmptyQEMU, _ names: [String], channels: Int = 3) throws {
        try qemu.command(
            "migrate-set-capabilities",
            ["capabilities": names.map { ["capability": $0, "state": true] as [String: Any] }])
        if names.contains("multifd") { try qemu.command("migrate-set-parameters", ["multifd-channels": channels]) }
    }

    @Test(
        "pages cross over channels of their own, to each release and from it", arguments: releases.indices, [1, 3])
    func multifd(release: Int, channels: Int) throws {
        let (program, layout) = Self.releases[release]
        let directory = try TemporaryDirectory()
        let there = directory.path + "/there"
        let back = directory.path + "/back"
        let machine = try EmptyMachine(byteCount: Self.byteCount)
        Self.pattern(machine)
        var configuration = Self.configuration(returnPath: true)
        configuration.layout = layout
        configuration.capabilities.insert(.multifd)
        configuration.parameters.multifdChannels = UInt64(channels)
        let qemu = try EmptyQEMU(program, incoming: "defer")
        try Self.switchOn(qemu, ["multifd"], channels: channels)
        try qemu.command("migrate-incoming", ["uri": "unix:" + there])
        let address = SocketAddress.unix(path: there)
        let main = try DescriptorTransport.connected(to: address)
        let hooks = MultiFDSource(
            main: main, channels: try (0..<channels).map { _ in try DescriptorTransport.connected(to: address) },
            configuration: configuration)
        let source = MigrationSource(
            guest: machine, transport: hooks.transport, configuration: configuration, hooks: hooks)
        #expect(source.run() == .guestMoved, "\(String(describing: source.progress.error))")
        #expect(try qemu.waitForMigration() == "completed")
        #expect(source.progress.ram.multifdByteCount > UInt64(Self.byteCount / 3))

        let twin = try EmptyMachine(byteCount: Self.byteCount)
        // What was there before must not stay where QEMU says zero.
        memset(twin.ramBlocks[0].base, 0xa5, Self.byteCount)
        let acceptor = try MultiFDAcceptor(
            listener: try StreamSocket.listen(at: .unix(path: back)), name: back, channelCount: channels)
        try Self.switchOn(qemu, ["return-path"])
        try qemu.command("migrate", ["uri": "unix:" + back])
        let (incoming, others) = try acceptor.accept(first: nil)
        let receiving = MultiFDDestination(
            main: incoming, channels: others, configuration: configuration, tooMany: { acceptor.hasAnother() })
        let destination = MigrationDestination(
            guest: twin, transport: receiving.transport, configuration: configuration, hooks: receiving)
        #expect(destination.run() == .guestMoved, "\(String(describing: destination.progress.error))")
        #expect(try qemu.waitForMigration() == "completed")
        #expect(memcmp(machine.ramBlocks[0].base, twin.ramBlocks[0].base, Self.byteCount) == 0)
    }

    @Test(
        "a QEMU with more channels than are set here is refused by name, and keeps its guest",
        arguments: releases.indices)
    func tooManyChannels(release: Int) throws {
        let (program, _) = Self.releases[release]
        let directory = try TemporaryDirectory()
        let path = directory.path + "/socket"
        let qemu = try EmptyQEMU(program)
        var configuration = Self.configuration(returnPath: true)
        configuration.capabilities.insert(.multifd)
        configuration.parameters.multifdChannels = 2
        let acceptor = try MultiFDAcceptor(
            listener: try StreamSocket.listen(at: .unix(path: path)), name: path, channelCount: 2)
        try Self.switchOn(qemu, ["multifd", "return-path"], channels: 4)
        // Refused in the middle of its completion, 7.2 may wait for its channels for ever, its monitor too: so it is slow to
        // come to that.
        try qemu.command("migrate-set-parameters", ["max-bandwidth": 4096])
        try qemu.command("migrate", ["uri": "unix:" + path])
        // Which of its connections come first is chance.
        var text = ""
        do {
            let (incoming, others) = try acceptor.accept(first: nil)
            let hooks = MultiFDDestination(
                main: incoming, channels: others, configuration: configuration, tooMany: { acceptor.hasAnother() })
            let machine = try EmptyMachine(byteCount: Self.byteCount)
            let destination = MigrationDestination(
                guest: machine, transport: hooks.transport, configuration: configuration, hooks: hooks)
            #expect(destination.run() == .guestStayed)
            text = destination.progress.error?.description ?? "no error"
        } catch { text = "\(error)" }
        #expect(text.contains("multifd-channels"), "\(text)")
        #expect(try qemu.waitForMigration() == "failed")
    }

    @Test(
        "QEMU 10.0 restores our mapped-ram file, and we the one it saved, each with threads and without",
        .enabled(if: EmptyQEMU.ten != nil), arguments: [true, false], [true, false])
    func mappedRAM(here: Bool, there: Bool) throws {
        let directory = try TemporaryDirectory()
        let machine = try EmptyMachine(byteCount: Self.byteCount)
        Self.pattern(machine)
        var configuration = Self.configuration(returnPath: false)
        configuration.layout = .qemu10_0
        configuration.capabilities = here ? [.mappedRAM, .multifd] : [.mappedRAM]
        let ours = directory.path + "/ours"
        let transport = try DescriptorTransport.file(ours, offset: 4096, writing: true)
        let source = MigrationSource(
            guest: machine, transport: transport, configuration: configuration,
            hooks: try MappedRAMSource(transport: transport, guest: machine, configuration: configuration))
        #expect(source.run() == .guestMoved, "\(String(describing: source.progress.error))")
        let qemu = try EmptyQEMU(EmptyQEMU.ten!, incoming: "defer")
        try Self.switchOn(qemu, there ? ["mapped-ram", "multifd"] : ["mapped-ram"])
        try qemu.command("migrate-incoming", ["uri": "file:\(ours),offset=4096"])
        #expect(try qemu.waitForMigration() == "completed")
        let theirs = directory.path + "/theirs"
        try qemu.command("migrate", ["uri": "file:\(theirs),offset=8192"])
        #expect(try qemu.waitForMigration() == "completed")
        let twin = try EmptyMachine(byteCount: Self.byteCount)
        memset(twin.ramBlocks[0].base, 0xa5, Self.byteCount)
        let reading = try DescriptorTransport.file(theirs, offset: 8192, writing: false)
        #expect(MappedRAMDestination.isAnnounced(in: reading))
        let destination = MigrationDestination(
            guest: twin, transport: reading, configuration: configuration,
            hooks: MappedRAMDestination(configuration: configuration))
        #expect(destination.run() == .guestMoved, "\(String(describing: destination.progress.error))")
        #expect(memcmp(machine.ramBlocks[0].base, twin.ramBlocks[0].base, Self.byteCount) == 0)
    }
}
