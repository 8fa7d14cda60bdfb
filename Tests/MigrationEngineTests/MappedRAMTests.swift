import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationStream
import MigrationTestKit
import ProcessTestKit
import Synchronization
import Testing

@Suite("A file with a place for every page (mapped-ram)") struct MappedRAMTests {
    /// - Parameter channels: Threads that write and read; 0 is none of their own.
    static func configuration(channels: Int = 0) -> MigrationConfiguration {
        var configuration = Rig.configuration
        configuration.capabilities = channels > 0 ? [.mappedRAM, .multifd] : [.mappedRAM]
        if channels > 0 { configuration.parameters.multifdChannels = UInt64(channels) }
        return configuration
    }

    static func source(
        _ rig: Rig, _ transport: any MigrationTransport, _ configuration: MigrationConfiguration,
        observer: (@Sendable (MigrationProgress) -> Void)? = nil
    ) throws -> MigrationSource {
        MigrationSource(
            guest: rig.source, transport: transport, configuration: configuration,
            hooks: try MappedRAMSource(transport: transport, guest: rig.source, configuration: configuration),
            observer: observer)
    }

    static func destination(
        _ guest: ScriptedGuest, _ transport: any MigrationTransport, _ configuration: MigrationConfiguration
    ) -> MigrationDestination {
        MigrationDestination(
            guest: guest, transport: transport, configuration: configuration,
            hooks: MappedRAMDestination(configuration: configuration))
    }

    /// A file of a guest that stood still.
    static func saved(_ rig: Rig, to path: String, channels: Int = 0) throws {
        #expect(
            try source(rig, DescriptorTransport.file(path, writing: true), configuration(channels: channels)).run()
                == .guestMoved)
    }

    @Test(
        "a guest that writes all the time is saved and comes back whole; the file is no longer than RAM and its frame",
        arguments: [0, 1, 3], [0, 8192])
    func roundTrip(channels: Int, offset: Int) throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/file"
        let rig = try Rig(backend: channels == 1 ? .anonymous : .memfd)
        defer { rig.end() }
        try rig.source.resume()
        var configuration = Self.configuration(channels: channels)
        configuration.parameters.downtimeLimitMilliseconds = 0
        configuration.parameters.roundLimit = 4
        let head = try OwnedDescriptor.open(path, flags: O_WRONLY | O_CREAT)
        try head.writeAll([UInt8](repeating: 0x5a, count: 3 * offset))
        let source = try Self.source(
            rig, DescriptorTransport.file(path, offset: offset, writing: true), configuration,
            observer: rig.writesInEachRound)
        #expect(source.run() == .guestMoved, "\(String(describing: source.progress.error))")
        #expect(!rig.source.isRunning)
        #expect(source.progress.timing.roundNanoseconds.count > 1)
        #expect(source.progress.ram.normalPages > 500 && source.progress.ram.zeroPages > 100)
        let file = try OwnedDescriptor.open(path, flags: O_RDONLY)
        // Each block's pages begin at a whole megabyte.
        #expect(try file.status().byteCount < 1703 * guestPageSize + 4 << 20)
        var kept = [UInt8](repeating: 0, count: offset)
        _ = try kept.withUnsafeMutableBytes { try file.read(at: 0, into: $0) }
        #expect(kept.allSatisfy { $0 == 0x5a })

        let reading = try DescriptorTransport.file(path, offset: offset, writing: false)
        #expect(MappedRAMDestination.isAnnounced(in: reading))
        let destination = Self.destination(rig.destination, reading, configuration)
        #expect(destination.run() == .guestMoved, "\(String(describing: destination.progress.error))")
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test("memory that held something before is wiped where the file has no page")
    func wiped() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/file"
        for backend in [MemoryBackend.memfd, .anonymous] {
            let rig = try Rig(backend: backend)
            defer { rig.end() }
            try Self.saved(rig, to: path)
            for block in rig.destination.ramBlocks { memset(block.base, 0xa5, block.byteCount) }
            #expect(
                Self.destination(
                    rig.destination, try DescriptorTransport.file(path, writing: false), Self.configuration()
                ).run() == .guestMoved)
            #expect(rig.destination.flaws() == [])
        }
    }

    @Test("it is a file or nothing: a pipe and a socket are refused before a byte is sent")
    func needsFile() throws {
        let rig = try Rig()
        defer { rig.end() }
        let (left, _) = try Rig.pair()
        #expect(throws: MigrationError.self) {
            try MappedRAMSource(transport: left, guest: rig.source, configuration: Self.configuration())
        }
        let source = MigrationSource(guest: rig.source, transport: left, configuration: Self.configuration())
        #expect(source.run() == .guestStayed)
        #expect(source.progress.error?.message.contains("mapped-ram needs a file") == true)
    }

    @Test("a destination without the capability refuses the file by its name")
    func capability() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/file"
        let rig = try Rig()
        defer { rig.end() }
        try Self.saved(rig, to: path)
        var plain = Rig.configuration
        plain.capabilities = []
        let destination = MigrationDestination(
            guest: rig.destination, transport: try DescriptorTransport.file(path, writing: false), configuration: plain)
        #expect(destination.run() == .guestStayed)
        #expect(destination.progress.error?.code == .capabilityMismatch)
        #expect(destination.progress.error?.message.contains("mapped-ram") == true)
    }

    // MARK: What may be wrong with a file

    /// The file with something else at a place.
    static func edit(_ path: String, at offset: UInt64, _ bytes: [UInt8]) throws {
        let file = try OwnedDescriptor.open(path, flags: O_WRONLY)
        let written = try bytes.withUnsafeBytes { try file.write(at: offset, $0) }
        #expect(written == bytes.count)
    }

    private static func bigEndian<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
        withUnsafeBytes(of: value.bigEndian) { Array($0) }
    }

    /// Where the first block's header stands, and the header.
    static func firstHeader(_ path: String) throws -> (UInt64, MappedRAMHeader) {
        let file = try OwnedDescriptor.open(path, flags: O_RDONLY)
        var bytes = [UInt8](repeating: 0, count: 512)
        _ = try bytes.withUnsafeMutableBytes { try file.read(at: 0, into: $0) }
        let name = Array("\u{6}block0".utf8)
        let start = try #require((0..<400).first { Array(bytes[$0..<$0 + name.count]) == name })
        let place = start + name.count + 8
        var cursor = StreamCursor(Array(bytes[place...]), at: UInt64(place), isFinal: true)
        return (
            UInt64(place),
            try MappedRAMHeader.decode(
                from: &cursor, byteCount: UInt64(1500 * guestPageSize), pageSize: UInt64(guestPageSize))
        )
    }

    @Test(
        "hostile headers, bitmaps and files that were cut are refused in words that name what is wrong; no guest runs")
    func hostile() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/file"
        let rig = try Rig()
        defer { rig.end() }
        typealias Case = (words: String, edit: (UInt64, MappedRAMHeader) throws -> Void)
        let cases: [Case] = [
            ("version", { at, _ in try Self.edit(path, at: at, Self.bigEndian(UInt32(2))) }),
            ("page of 8192 bytes", { at, _ in try Self.edit(path, at: at + 4, Self.bigEndian(UInt64(8192))) }),
            ("mapped-ram areas", { at, _ in try Self.edit(path, at: at + 12, Self.bigEndian(UInt64(3))) }),
            ("mapped-ram areas", { at, _ in try Self.edit(path, at: at + 12, Self.bigEndian(UInt64.max - 7)) }),
            (
                "mapped-ram areas",
                { at, header in
                    try Self.edit(path, at: at + 20, Self.bigEndian(header.bitmapOffset))
                }
            ),
            (
                "mapped-ram areas",
                { at, header in
                    try Self.edit(path, at: at + 20, Self.bigEndian(header.pagesOffset + 1))
                }
            ),
            ("mapped-ram areas", { at, _ in try Self.edit(path, at: at + 20, Self.bigEndian(UInt64.max & ~4095)) }),
            (
                "pages of RAM block block0",
                { at, _ in
                    try Self.edit(path, at: at + 20, Self.bigEndian(UInt64(1) << 40))
                }
            ),
            (
                "bitmap of RAM block block0",
                { at, _ in
                    try Self.edit(path, at: at + 12, Self.bigEndian(UInt64(1) << 40))
                    try Self.edit(path, at: at + 20, Self.bigEndian(UInt64(1) << 41))
                }
            ),
            (
                "bitmap of RAM block block0",
                { _, header in
                    try Self.edit(path, at: header.bitmapOffset + 1500 / 64 * 8, [UInt8](repeating: 0xff, count: 8))
                }
            ),
            (
                "pages of RAM block block0",
                { _, header in
                    #expect(truncate(path, off_t(header.pagesOffset + 4096 * 900 + 17)) == 0)
                }
            ),
            (
                "ended too early",
                { _, header in
                    #expect(truncate(path, off_t(header.end(byteCount: UInt64(1500 * guestPageSize)) + 3)) == 0)
                }
            ),
        ]
        for channels in [0, 2] {
            for (index, wrong) in cases.enumerated() {
                try Self.saved(rig, to: path, channels: channels)
                let (place, header) = try Self.firstHeader(path)
                try wrong.edit(place, header)
                let destination = Self.destination(
                    rig.destination, try DescriptorTransport.file(path, writing: false),
                    Self.configuration(channels: channels))
                #expect(destination.run() == .guestStayed, "case \(index)")
                let text = destination.progress.error?.description ?? "no error"
                #expect(text.contains(wrong.words), "case \(index): \(text)")
                #expect(!rig.destination.isRunning)
            }
        }
    }

    @Test(
        "the channel fails at every call: the guest runs on, whole, and is saved by the next attempt",
        arguments: [0, 2])
    func faults(channels: Int) throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/file"
        let rig = try Rig(script: Rig.script(threads: 1, rate: 20_000), pages: [300, 20])
        defer { rig.end() }
        var configuration = Self.configuration(channels: channels)
        configuration.parameters.roundLimit = 2
        for isCut in [false, true] {
            try Rig.walk(callCountMin: 10) { call in
                try rig.source.resume()
                let faulty = FaultyTransport(
                    try DescriptorTransport.file(path, writing: true),
                    isCut ? .cut(atCall: call) : .closed(atCall: call))
                let source = try Self.source(rig, faulty, configuration)
                let outcome = source.run()
                guard faulty.hasBroken else {
                    #expect(outcome == .guestMoved)
                    return false
                }
                #expect(outcome == .guestStayed && rig.source.isRunning, "call \(call)")
                #expect(source.progress.error != nil)
                try rig.source.pause()
                #expect(rig.source.flaws() == [])
                return true
            }
        }
        // What the last attempt saved is whole, whatever the others left in the file.
        #expect(
            Self.destination(rig.destination, try DescriptorTransport.file(path, writing: false), configuration).run()
                == .guestMoved)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
        for isCut in [false, true] {
            try Rig.walk(callCountMin: 5) { call in
                let fresh = try Rig(script: rig.script, pages: [300, 20])
                defer { fresh.end() }
                let faulty = FaultyTransport(
                    try DescriptorTransport.file(path, writing: false),
                    isCut ? .cut(atCall: call) : .closed(atCall: call))
                let destination = Self.destination(fresh.destination, faulty, configuration)
                let outcome = destination.run()
                guard faulty.hasBroken else {
                    #expect(outcome == .guestMoved)
                    return false
                }
                // A guest that was complete when the channel broke has arrived.
                #expect((outcome == .guestMoved) == fresh.destination.isRunning, "call \(call)")
                if outcome == .guestMoved {
                    try fresh.destination.pause()
                    #expect(fresh.destination.flaws() == [])
                }
                return true
            }
        }
    }

    @Test("cancelled in the middle, it leaves no thread and no descriptor, and the guest runs on", arguments: [0, 3])
    func cancelled(channels: Int) throws {
        let directory = try TemporaryDirectory()
        let rig = try Rig()
        defer { rig.end() }
        try rig.source.resume()
        var configuration = Self.configuration(channels: channels)
        configuration.parameters.downtimeLimitMilliseconds = 0
        configuration.parameters.roundLimit = 0
        weak var left: DescriptorTransport?
        weak var hooks: MappedRAMSource?
        try {
            let transport = try DescriptorTransport.file(directory.path + "/file", writing: true)
            let mapped = try MappedRAMSource(
                transport: transport, guest: rig.source, configuration: configuration)
            left = transport
            hooks = mapped
            let source = MigrationSource(
                guest: rig.source, transport: transport, configuration: configuration, hooks: mapped,
                observer: rig.writesInEachRound)
            let canceller = try HostThread(name: "cancel") {
                while source.progress.timing.roundNanoseconds.count < 2 { sched_yield() }
                source.cancel()
            }
            #expect(source.run() == .guestStayed)
            canceller.join()
            #expect(source.progress.status == .cancelled)
        }()
        #expect(left == nil && hooks == nil)
        try FailureTests.expectUnharmed(rig)
    }
}
