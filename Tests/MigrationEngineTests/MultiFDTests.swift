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

/// Both ends of a multifd migration between scripted guests.
struct MultiFDRig {
    let rig: Rig
    let source: MigrationSource
    let destination: MigrationDestination

    static func configuration(
        channels: Int = 3, layout: StateLayoutName = .native
    ) -> MigrationConfiguration {
        var configuration = Rig.configuration
        configuration.capabilities.insert(.multifd)
        configuration.parameters.multifdChannels = UInt64(channels)
        if layout == .old { configuration.layout = .qemu7_2 }
        return configuration
    }

    enum StateLayoutName: CaseIterable, Sendable { case native, old }

    /// - Parameter wrap: May put something around the n-th end; 0 is the main channel.
    init(
        _ rig: Rig, _ configuration: MigrationConfiguration, to guest: ScriptedGuest? = nil,
        wrapSource: (Int, DescriptorTransport) -> any MigrationTransport = { $1 },
        wrapDestination: (Int, DescriptorTransport) -> any MigrationTransport = { $1 },
        tooMany: @escaping @Sendable () -> Bool = { false },
        observer: (@Sendable (MigrationProgress) -> Void)? = nil
    ) throws {
        self.rig = rig
        let pairs = try (0...Int(configuration.parameters.multifdChannels)).map { _ in try Rig.pair() }
        let left = pairs.enumerated().map { wrapSource($0.offset, $0.element.0) }
        let right = pairs.enumerated().map { wrapDestination($0.offset, $0.element.1) }
        let sourceHooks = MultiFDSource(
            main: left[0], channels: Array(left.dropFirst()), configuration: configuration)
        let destinationHooks = MultiFDDestination(
            main: right[0], channels: Array(right.dropFirst()), configuration: configuration, tooMany: tooMany)
        source = MigrationSource(
            guest: rig.source, transport: sourceHooks.transport, configuration: configuration, hooks: sourceHooks,
            observer: observer)
        destination = MigrationDestination(
            guest: guest ?? rig.destination, transport: destinationHooks.transport, configuration: configuration,
            hooks: destinationHooks)
    }

    var ends: Rig.Ends { Rig.Ends(source: source, destination: destination) }
}

@Suite("Pages over channels of their own (multifd)") struct MultiFDTests {
    @Test(
        "a guest that writes all the time moves over any number of channels, to old and new", arguments: [1, 2, 5],
        MultiFDRig.StateLayoutName.allCases)
    func moves(channels: Int, layout: MultiFDRig.StateLayoutName) throws {
        let rig = try Rig(backend: channels == 2 ? .anonymous : .memfd)
        defer { rig.end() }
        try rig.source.resume()
        var configuration = MultiFDRig.configuration(channels: channels, layout: layout)
        configuration.parameters.downtimeLimitMilliseconds = 0
        configuration.parameters.roundLimit = 4
        let multifd = try MultiFDRig(rig, configuration, observer: rig.writesInEachRound)
        let outcome = try Rig.run(multifd.ends)
        #expect(
            outcome.source == .guestMoved && outcome.destination == .guestMoved,
            "\(String(describing: multifd.source.progress.error)), \(String(describing: multifd.destination.progress.error))"
        )
        let progress = multifd.source.progress
        #expect(progress.timing.roundNanoseconds.count > 1)
        #expect(progress.ram.normalPages > 500 && progress.ram.zeroPages > 100)
        #expect(progress.ram.multifdByteCount > 500 * 4096)
        // Pages are nowhere but there.
        #expect(progress.ram.transferredByteCount - progress.ram.multifdByteCount < 1 << 20)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test(
        "a guest that stops first moves in one pass; memory that held something is wiped",
        arguments: MultiFDRig.StateLayoutName.allCases)
    func stopAndCopy(layout: MultiFDRig.StateLayoutName) throws {
        for backend in [MemoryBackend.memfd, .anonymous] {
            let rig = try Rig(backend: backend)
            defer { rig.end() }
            try rig.source.resume()
            for block in rig.destination.ramBlocks { memset(block.base, 0xa5, block.byteCount) }
            var configuration = MultiFDRig.configuration(layout: layout)
            configuration.strategy = .stopAndCopy
            let multifd = try MultiFDRig(rig, configuration)
            #expect(try Rig.run(multifd.ends).source == .guestMoved)
            try rig.destination.pause()
            #expect(rig.destination.flaws() == [])
        }
    }

    @Test("a page of zeroes that was not zero before arrives as one", arguments: MultiFDRig.StateLayoutName.allCases)
    func becomesZero(layout: MultiFDRig.StateLayoutName) throws {
        var script = Rig.script()
        script.zeroEvery = 2  // every second write of a page makes it zero
        script.filledPercent = 100
        let rig = try Rig(script: script, pages: [400])
        defer { rig.end() }
        try rig.source.resume()
        let multifd = try MultiFDRig(
            rig, MultiFDRig.configuration(layout: layout),
            observer: { if $0.status == .active { _ = rig.source.waitForWrites(300) } })
        #expect(try Rig.run(multifd.ends).source == .guestMoved)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test("pages of zeroes do not fill the destination's memory", arguments: MultiFDRig.StateLayoutName.allCases)
    func staysEmpty(layout: MultiFDRig.StateLayoutName) throws {
        var script = Rig.script()
        script.filledPercent = 10
        let rig = try Rig(script: script, pages: [2000])
        defer { rig.end() }
        // Zeroes that are there, not holes.
        for page in 0..<2000 {
            let address = rig.source.ramBlocks[0].base + page * guestPageSize
            if address.load(as: UInt64.self) == 0 { memset(address, 0, guestPageSize) }
        }
        let multifd = try MultiFDRig(rig, MultiFDRig.configuration(layout: layout))
        #expect(try Rig.run(multifd.ends).source == .guestMoved)
        var status = stat()
        fstat(rig.destination.ramBlocks[0].file!.rawValue, &status)
        #expect(status.st_blocks * 512 < 600 * guestPageSize)
        #expect(rig.destination.flaws() == [])
    }

    // MARK: What may go wrong

    /// One migration with a fault on one of the connections; answers whether it happened.
    static func attempt(
        _ side: Side, connection: Int, _ layout: MultiFDRig.StateLayoutName, _ fault: FaultyTransport.Fault,
        pages: [Int] = [500, 20]
    ) throws -> Bool {
        let rig = try Rig(script: Rig.script(threads: 1, rate: 20_000), pages: pages)
        defer { rig.end() }
        try rig.source.resume()
        var configuration = MultiFDRig.configuration(channels: 2, layout: layout)
        configuration.parameters.roundLimit = 2
        let faulty = Mutex<FaultyTransport?>(nil)
        func wrap(_ own: Side) -> (Int, DescriptorTransport) -> any MigrationTransport {
            { index, transport in
                guard own == side, index == connection else { return transport }
                let wrapped = FaultyTransport(transport, fault)
                faulty.withLock { $0 = wrapped }
                return wrapped
            }
        }
        let multifd = try MultiFDRig(
            rig, configuration, wrapSource: wrap(.source), wrapDestination: wrap(.destination))
        let outcome = try Rig.run(multifd.ends)
        let hasBroken = faulty.withLock { $0!.hasBroken }
        try rig.judge(
            multifd.ends, outcome, isDisturbed: hasBroken, place: "\(side) \(connection) \(layout) \(fault)"
        ) { try MultiFDRig(rig, configuration, to: $0).ends }
        return hasBroken
    }

    @Test(
        "a connection breaks at every call: the guest is in exactly one place, whole, and moves at the next attempt",
        arguments: Side.allCases, [0, 1])
    func faults(side: Side, connection: Int) throws {
        for layout in MultiFDRig.StateLayoutName.allCases {
            for isCut in [false, true] {
                try Rig.walk(callCountMin: 3) {
                    try Self.attempt(
                        side, connection: connection, layout, isCut ? .cut(atCall: $0) : .closed(atCall: $0))
                }
            }
        }
    }

    @Test("bytes in any portions and threads in any order make no difference", arguments: [0, 1])
    func portions(connection: Int) throws {
        for fault in [
            FaultyTransport.Fault.short(byteCount: 1), .short(byteCount: 1345), .short(byteCount: 4097),
            .delayed(yields: 20),
        ] {
            for side in Side.allCases {
                #expect(try !Self.attempt(side, connection: connection, .native, fault, pages: [30, 5]))
            }
        }
    }

    @Test("nothing is left behind, however it ended: no thread, no descriptor, no memory")
    func leftBehind() throws {
        for fault in [FaultyTransport.Fault.delayed(yields: 1), .closed(atCall: 3), .cut(atCall: 2)] {
            weak var transport: DescriptorTransport?
            weak var channel: DescriptorTransport?
            weak var block: RAMBlock?
            try {
                let rig = try Rig(script: Rig.script(threads: 1), pages: [600])
                defer { rig.end() }
                try rig.source.resume()
                block = rig.source.ramBlocks[0]
                let seen = Mutex<[DescriptorTransport]>([])
                let multifd = try MultiFDRig(
                    rig, MultiFDRig.configuration(),
                    wrapSource: { index, transport in
                        seen.withLock { $0.append(transport) }
                        return index == 2 ? FaultyTransport(transport, fault) : transport
                    })
                transport = seen.withLock { $0[0] }
                channel = seen.withLock { $0[2] }
                seen.withLock { $0 = [] }
                _ = try Rig.run(multifd.ends)
            }()
            #expect(transport == nil && channel == nil && block == nil, "\(fault)")
        }
    }

    @Test(
        "a channel that hangs is given up after the stall limit, and a cancel breaks any wait",
        arguments: [true, false])
    func hanging(byLimit: Bool) throws {
        let rig = try Rig(pages: [8000])
        defer { rig.end() }
        try rig.source.resume()
        var configuration = MultiFDRig.configuration(channels: 2)
        configuration.parameters.stallLimitMilliseconds = byLimit ? 100 : 0
        let pairs = try (0..<3).map { _ in try Rig.pair() }  // nobody reads the right ends
        let hooks = MultiFDSource(
            main: pairs[0].0, channels: [pairs[1].0, pairs[2].0], configuration: configuration)
        let source = MigrationSource(
            guest: rig.source, transport: hooks.transport, configuration: configuration, hooks: hooks)
        try FailureTests.expectGivenUp(source, of: rig, byLimit: byLimit)
        withExtendedLifetime(pairs) {}
    }

    @Test("a destination that is cancelled while it waits for a channel ends, and the source keeps its guest")
    func destinationCancelled() throws {
        let rig = try Rig()
        defer { rig.end() }
        try rig.source.resume()
        var configuration = MultiFDRig.configuration(channels: 2)
        configuration.parameters.downtimeLimitMilliseconds = 0
        configuration.parameters.roundLimit = 0
        let multifd = try MultiFDRig(rig, configuration, observer: rig.writesInEachRound)
        let outcome = try Rig.run(multifd.ends) {
            while multifd.source.progress.timing.roundNanoseconds.count < 2 { sched_yield() }
            multifd.destination.cancel()
        }
        #expect(outcome.source == .guestStayed && outcome.destination == .guestStayed)
        #expect(multifd.destination.progress.status == .cancelled)
        try FailureTests.expectUnharmed(rig)
    }

    /// Plays a source: the main stream up to the end of RAM's START, and what the test puts on the channels.
    static func play(
        channels: Int = 1, _ body: (_ main: OwnedDescriptor, _ channels: [OwnedDescriptor]) throws -> Void,
        tooMany: @escaping @Sendable () -> Bool = { false }
    ) throws -> String {
        let rig = try Rig(pages: [64])
        defer { rig.end() }
        let pairs = try (0...channels).map { _ in try StreamSocket.pair() }
        let configuration = MultiFDRig.configuration(channels: channels)
        let ours = try pairs.map { try DescriptorTransport(name: "destination", socket: $0.1) }
        let hooks = MultiFDDestination(
            main: ours[0], channels: Array(ours.dropFirst()), configuration: configuration, tooMany: tooMany)
        let destination = MigrationDestination(
            guest: rig.destination, transport: hooks.transport, configuration: configuration, hooks: hooks)
        let thread = try HostThread(name: "destination") { _ = destination.run() }
        try body(pairs[0].0, pairs.dropFirst().map(\.0))
        thread.join()
        #expect(!rig.destination.isRunning)
        #expect(destination.progress.outcome == .guestStayed)
        return destination.progress.error?.description ?? "no error"
    }

    static func bytes(_ body: (StreamWriter) -> Void) -> [UInt8] {
        let writer = StreamWriter()
        body(writer)
        return writer.bytes
    }

    /// Header, configuration, START with its flush, and whole sections behind it.
    static func stream(_ flushes: [(SectionKind, Int)] = [(.start, 1)]) -> [UInt8] {
        bytes { writer in
            writer.writeHeader()
            writer.writeConfiguration(StreamConfiguration(machineName: "scripted"))
            let ram = RAMEncoder(blocks: [RAMBlockDescription(name: "block0", byteCount: UInt64(64 * guestPageSize))])
            for (kind, count) in flushes {
                writer.beginSection(SectionHeader(kind, id: 1, name: "ram", version: 4))
                if kind == .start { ram.writeBlockList(to: writer) }
                for _ in 0..<count { ram.writeMultifdFlush(to: writer) }
                ram.writeEndOfSection(to: writer)
                writer.endSection(id: 1)
            }
        }
    }

    static func hello(_ number: UInt8) -> [UInt8] { bytes { MultiFDHello(channel: number).encode(to: $0) } }

    static func packet(_ packet: MultiFDPacket) -> [UInt8] {
        bytes { packet.encode(to: $0, pageSize: UInt64(guestPageSize), pagesPerPacket: 128) }
    }

    static let synchronisation = packet(MultiFDPacket(flags: .synchronise, number: 0, allocatedPageCount: 0))
    static let page =
        packet(MultiFDPacket(number: 1, block: "block0", pages: [4096])) + [UInt8](repeating: 7, count: 4096)

    @Test("what a hostile source sends is refused by name, and no guest runs")
    func hostile() throws {
        func refusal(_ main: [UInt8], _ channel: [UInt8], closes: Bool = false) throws -> String {
            try Self.play { mainSocket, channels in
                try? StreamSocket.sendAll(main, to: mainSocket)
                try? StreamSocket.sendAll(channel, to: channels[0])
                if closes { StreamSocket.shutDownWriting(channels[0]) }
            }
        }
        let start = Self.stream()
        let whole = Self.stream([(.start, 1), (.end, 1)])
        #expect(try refusal(start, [UInt8](repeating: 9, count: 64)).contains("multifd channel 0 is malformed"))
        #expect(try refusal(start, Self.hello(1)).contains("channel number 1 of 1"))
        #expect(
            try refusal(start, Self.hello(0) + [UInt8](repeating: 1, count: 1344)).contains(
                "multifd channel 0 is malformed"))
        for wrong in [
            MultiFDPacket(number: 1, block: "block9", pages: [0]),
            MultiFDPacket(number: 1, block: "block0", pages: [UInt64(64 * guestPageSize)]),
            MultiFDPacket(number: 1, block: "block0", zeroPages: [UInt64.max & ~4095]),
        ] {
            #expect(
                try refusal(start, Self.hello(0) + Self.synchronisation + Self.packet(wrong)).contains(
                    "multifd channel 0 is malformed"))
        }
        // Cut in a packet; closed before what it owes; a page behind the end.
        #expect(try refusal(start, Self.hello(0) + Self.page.dropLast(9), closes: true).contains("closed"))
        #expect(try refusal(whole, Self.hello(0) + Self.synchronisation, closes: true).contains("multifd channel"))
        // One that comes just before the end is read counts as before it; those that follow do not.
        let late = try Self.play { main, channels in
            try? StreamSocket.sendAll(whole, to: main)
            try? StreamSocket.sendAll(Self.hello(0) + Self.synchronisation + Self.synchronisation, to: channels[0])
            for _ in 0..<10_000 {
                guard (try? StreamSocket.sendAll(Self.page, to: channels[0])) != nil else { break }
                usleep(1000)
            }
        }
        #expect(late.contains("after the end of RAM"))
        // The source has more channels than are set here.
        let text = try Self.play { main, channels in
            try? StreamSocket.sendAll(start, to: main)
            try? StreamSocket.sendAll(Self.hello(0) + Self.synchronisation, to: channels[0])
        } tooMany: {
            true
        }
        #expect(text.contains("more than the 1 multifd-channels"))
    }

    @Test("what was wrong with a channel is the reason, though the main channel breaks in answer to it")
    func reason() throws {
        let rig = try Rig()
        defer { rig.end() }
        let (mainSource, main) = try StreamSocket.pair()
        let (source, channel) = try StreamSocket.pair()
        let hooks = MultiFDDestination(
            main: try DescriptorTransport(name: "main", socket: main),
            channels: [try DescriptorTransport(name: "channel", socket: channel)],
            configuration: MultiFDRig.configuration(channels: 1))
        hooks.prepare(rig.destination.ramBlocks, holdsData: [])
        try StreamSocket.sendAll(Self.hello(7), to: source)
        // It is closed when what came over it was judged.
        var byte: UInt8 = 0
        #expect(try withUnsafeMutableBytes(of: &byte) { try source.read(into: $0) } == 0)
        StreamSocket.shutDown(mainSource)
        let error = #expect(throws: TransportError.self) {
            try withUnsafeMutableBytes(of: &byte) { bytes in
                var piece = iovec(iov_base: bytes.baseAddress, iov_len: 1)
                try withUnsafeMutablePointer(to: &piece) {
                    try hooks.transport.send(UnsafeMutableBufferPointer(start: $0, count: 1))
                }
            }
        }
        #expect(error?.description.contains("multifd-channels differs at the source") == true, "\(error as Any)")
        hooks.end()
    }

    @Test("a source with multifd is refused by a destination without it, in words that say so")
    func mismatch() throws {
        let rig = try Rig(pages: [64])
        defer { rig.end() }
        let (left, right) = try StreamSocket.pair()
        let destination = MigrationDestination(
            guest: rig.destination, transport: try DescriptorTransport(name: "destination", socket: right),
            configuration: Rig.configuration)
        try StreamSocket.sendAll(Self.stream(), to: left)
        #expect(destination.run() == .guestStayed)
        #expect(destination.progress.error?.message.contains("switch multifd on at both ends") == true)
    }

    // MARK: Connections

    @Test(
        "connections come in any order and are told apart by what they say first",
        arguments: [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
    func accepted(order: [Int]) throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/socket"
        let listener = try StreamSocket.listen(at: .unix(path: path))
        let acceptor = try MultiFDAcceptor(listener: listener, name: "unix", channelCount: 2)
        let sockets = try order.map { _ in try StreamSocket.connect(to: .unix(path: path)) }
        for (place, kind) in order.enumerated() {
            try StreamSocket.sendAll(
                kind == 0 ? [0x51, 0x45, 0x56, 0x4d] : Self.hello(UInt8(kind)), to: sockets[place])
        }
        let (main, channels) = try acceptor.accept(first: nil)
        #expect(channels.count == 2 && !acceptor.hasAnother())
        main.close()
        let more = try StreamSocket.connect(to: .unix(path: path))
        #expect(acceptor.hasAnother())
        withExtendedLifetime((sockets, more)) {}
    }

    @Test("one connection too many is known of, whether it has come first, and silent, or last")
    func oneTooMany() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/socket"
        let acceptor = try MultiFDAcceptor(
            listener: try StreamSocket.listen(at: .unix(path: path)), name: "unix", channelCount: 1)
        let sockets = try (0..<3).map { _ in try StreamSocket.connect(to: .unix(path: path)) }
        try StreamSocket.sendAll([0x51, 0x45, 0x56, 0x4d], to: sockets[1])
        try StreamSocket.sendAll(Self.hello(0), to: sockets[2])
        let (_, channels) = try acceptor.accept(first: nil)
        #expect(channels.count == 1 && acceptor.hasAnother())
        // And it is not closed.
        #expect(try sockets[0].waitUntilReady(for: Int16(POLLIN), timeoutMilliseconds: 0) == 0)
    }

    @Test("who waits for connections can be told to stop")
    func acceptCancelled() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/socket"
        let acceptor = try MultiFDAcceptor(
            listener: try StreamSocket.listen(at: .unix(path: path)), name: "unix:x", channelCount: 2)
        let socket = try StreamSocket.connect(to: .unix(path: path))
        let thread = try HostThread(name: "cancel") {
            usleep(20_000)
            acceptor.cancel()
        }
        let error = #expect(throws: MigrationError.self) { try acceptor.accept(first: nil) }
        #expect(error?.code == .cancelled && error?.message.contains("0 of 2 multifd-channels") == true)
        thread.join()
        withExtendedLifetime(socket) {}
    }
}
