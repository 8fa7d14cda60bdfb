import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationStream
import MigrationTestKit
import Synchronization
import Testing

@Suite("A stream whose machine is built from it") struct StreamArrivalTests {
    /// A source like QEMU 7.2 with two multifd channels, and the ends of its connections.
    private struct Source {
        let rig: Rig
        let source: MigrationSource
        /// The source's ends: the main channel's first.
        let sockets: [OwnedDescriptor]
        /// The destination's.
        let main: DescriptorTransport
        let hooks: MultiFDDestination
        let configuration = MultiFDRig.configuration(channels: 2, layout: .old)

        init(_ rig: Rig) throws {
            self.rig = rig
            let pairs = try (0...2).map { _ in try StreamSocket.pair() }
            sockets = pairs.map(\.0)
            let left = try pairs.map { try DescriptorTransport(name: "source", socket: $0.0) }
            let right = try pairs.map { try DescriptorTransport(name: "destination", socket: $0.1) }
            main = right[0]
            hooks = MultiFDDestination(
                main: right[0], channels: Array(right.dropFirst()), configuration: configuration)
            let hooks = MultiFDSource(
                main: left[0], channels: Array(left.dropFirst()), configuration: configuration)
            source = MigrationSource(
                guest: rig.source, transport: hooks.transport, configuration: configuration, hooks: hooks)
        }

        func arrival(_ makeBlocks: @escaping ([RAMBlockDescription]) throws -> [RAMBlock]) -> StreamArrival {
            StreamArrival(
                transport: hooks.transport, configuration: configuration, hooks: hooks, makeBlocks: makeBlocks)
        }

        /// What QEMU 7.2 may send when RAM has ended: a packet without a page, over each channel.
        /// - Returns: Whether each was taken.
        func sendLatePackets(_ flags: MultiFDFlags) -> Bool {
            sockets.dropFirst().allSatisfy { socket in
                let packet = MultiFDTests.packet(MultiFDPacket(flags: flags, number: 99, allocatedPageCount: 128))
                do { try StreamSocket.sendAll(packet, to: socket) } catch { return false }
                return true
            }
        }
    }

    private static func makeBlocks(_ list: [RAMBlockDescription]) throws -> [RAMBlock] {
        try list.map { try RAMBlock(name: $0.name, byteCount: Int($0.byteCount), backend: .memfd) }
    }

    @Test(
        "multifd channels stay open for late packets until the source is told that its guest is here, and no longer",
        arguments: [MultiFDFlags(), .synchronise])
    func latePackets(flags: MultiFDFlags) throws {
        let rig = try Rig(script: Rig.script(threads: 1), pages: [200, 3])
        defer { rig.end() }
        try rig.source.resume()
        let source = try Source(rig)
        let arrived = Mutex<(guest: ScriptedGuest, outcome: MigrationOutcome)?>(nil)
        let taken = Mutex<[Bool]>([])
        let thread = try HostThread(name: "destination") {
            do {
                let contents = try source.arrival(Self.makeBlocks).run()
                // All of RAM is here, and nobody has been told yet.
                taken.withLock { $0.append(source.sendLatePackets(flags)) }
                let blocks = try contents.blocks.map {
                    try RAMBlock(name: $0.name, byteCount: $0.byteCount, adopting: $0.file!)
                }
                let guest = ScriptedGuest(script: rig.script, blocks: blocks, fills: false)
                let main = WatchedTransport(source.main) { call in
                    // SHUT, type 1 of the return path, is about to go. Source: docs/devel/migration/main.rst
                    if case .send(let start) = call, start.starts(with: [0, 1]) {
                        taken.withLock { $0.append(source.sendLatePackets(flags)) }
                    }
                    return true
                }
                let outcome = MigrationDestination(
                    guest: guest, transport: contents.replay(over: main), configuration: Rig.configuration
                ).run()
                arrived.withLock { $0 = (guest, outcome) }
            } catch { Issue.record("\(error)") }
        }
        #expect(source.source.run() == .guestMoved, "\(String(describing: source.source.progress.error))")
        thread.join()
        let (guest, outcome) = try #require(arrived.withLock { $0 })
        defer { guest.end() }
        #expect(outcome == .guestMoved && guest.isRunning)
        #expect(taken.withLock { $0 } == [true, true])
        // It is over: nobody holds the channels any more.
        #expect(!source.sendLatePackets(flags))
        #expect(guest.waitForWrites(20))
        try guest.pause()
        #expect(guest.flaws() == [])
    }

    @Test("a guest that no machine here can have stays at the source, and the channels are closed")
    func refused() throws {
        let rig = try Rig(script: Rig.script(threads: 1), pages: [200])
        defer { rig.end() }
        try rig.source.resume()
        let source = try Source(rig)
        let thread = try HostThread(name: "destination") {
            let error = #expect(throws: MigrationError.self) {
                _ = try source.arrival { _ in throw TransportError.closed }.run()
            }
            #expect(error?.code == .ramMismatch)
        }
        #expect(source.source.run() == .guestStayed)
        thread.join()
        #expect(!source.sendLatePackets([]))
        try FailureTests.expectUnharmed(rig)
    }
}
