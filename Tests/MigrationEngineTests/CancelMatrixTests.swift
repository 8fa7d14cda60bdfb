import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit

import Synchronization
import Testing

@Suite("Cancelled at every call of a channel, which is every state it is in") struct CancelMatrixTests {
    enum Side: CaseIterable, Sendable { case source, destination }
    enum Way: CaseIterable, Sendable {
        case socket, flip, flipGivingAway, multifd, multifdChannel, postcopy, postcopyFlip

        var configuration: MigrationConfiguration {
            var configuration: MigrationConfiguration =
                switch self {
                case .socket: Rig.configuration
                case .flip: Rig.flipping(.precopy)
                case .flipGivingAway: Rig.flipping(.stopAndCopy)
                case .multifd, .multifdChannel: MultiFDRig.configuration(channels: 2)
                case .postcopy: Rig.postcopy()
                case .postcopyFlip: Rig.postcopy(.postcopy, [.unixPageFlipping])
                }
            configuration.parameters.roundLimit = 2
            return configuration
        }
        var usesMultifd: Bool { self == .multifd || self == .multifdChannel }
    }

    /// Both ends, with something around one end of the stream, or of the first channel beside it.
    private static func ends(
        _ rig: Rig, _ way: Way, to guest: ScriptedGuest,
        wrap: @escaping (Side, DescriptorTransport) -> any MigrationTransport
    ) throws -> Rig.Ends {
        let configuration = way.configuration
        if way.usesMultifd {
            let watched = way == .multifd ? 0 : 1
            func around(_ side: Side) -> (Int, DescriptorTransport) -> any MigrationTransport {
                { index, transport in
                    guard index == watched else { return transport }
                    return wrap(side, transport)
                }
            }
            return try MultiFDRig(
                rig, configuration, to: guest, wrapSource: around(.source), wrapDestination: around(.destination)
            ).ends
        }
        let (left, right) = try Rig.pair()
        let flips = configuration.has(.unixPageFlipping)
        return try rig.ends(
            configuration, transports: (wrap(.source, left), wrap(.destination, right)),
            hooks: (
                flips ? PageFlipSource(transport: left, guest: rig.source, configuration: configuration) : nil,
                flips ? PageFlipDestination(transport: right, configuration: configuration) : nil
            ), to: guest)
    }

    /// One migration that is cancelled before a call; answers whether it came to that.
    private static func attempt(_ side: Side, _ way: Way, call: Int) throws -> Bool {
        let pages = [1100, 20]
        let rig = try Rig(script: Rig.script(threads: 1, rate: 20_000), pages: pages)
        defer { rig.end() }
        try rig.source.resume()
        let made = Mutex<Rig.Ends?>(nil)
        let isCancelled = Atomic<Bool>(false)
        let ends = try Self.ends(rig, way, to: rig.destination) { own, transport in
            guard own == side else { return transport }
            return FaultyTransport(
                transport, .delayed(yields: 0),
                onCall: { number in
                    guard number == call, let ends = made.withLock({ $0 }) else { return }
                    isCancelled.store(true, ordering: .relaxed)
                    if side == .source { ends.source.cancel() } else { ends.destination.cancel() }
                })
        }
        made.withLock { $0 = ends }
        defer { made.withLock { $0 = nil } }
        let recoveries = Mutex(0)
        let outcome = try Rig.run(ends) { PostcopyRecoveryTests.lookAfter(ends, recoveries) }
        let wasCancelled = isCancelled.load(ordering: .relaxed)
        let place = "\(side) \(way) call \(call): \(outcome), \(String(describing: ends.source.progress.error))"
        switch outcome.source {
        case .guestMoved: #expect(!rig.source.isRunning && rig.destination.isRunning, "\(place)")
        case .guestStayed: #expect(rig.source.isRunning && !rig.destination.isRunning, "\(place)")
        case .undecided: #expect(!rig.source.isRunning && wasCancelled, "\(place)")
        }
        #expect(outcome.destination == (rig.destination.isRunning ? .guestMoved : .guestStayed), "\(place)")
        #expect(wasCancelled || outcome.source == .guestMoved, "\(place)")
        if side == .source, outcome.source == .guestStayed {
            #expect(
                ends.source.progress.status == .cancelled && ends.source.progress.error?.code == .cancelled, "\(place)")
        }
        if outcome.source == .undecided && !rig.destination.isRunning { ends.source.settle(.guestStayed) }
        let holder = rig.destination.isRunning ? rig.destination : rig.source
        #expect(holder.waitForWrites(20), "\(place)")
        try holder.pause()
        #expect(holder.flaws() == [], "\(place)")
        if outcome.source == .guestStayed {
            try rig.source.resume()
            let fresh = try Rig(script: rig.script, pages: pages)
            defer { fresh.end() }
            let next = try Self.ends(rig, way, to: fresh.destination) { $1 }
            #expect(try Rig.run(next).source == .guestMoved, "\(place), second attempt")
            try fresh.destination.pause()
            #expect(fresh.destination.flaws() == [], "\(place), second attempt")
        }
        return wasCancelled
    }

    @Test(
        "the guest is in exactly one place, whole, and one that stayed moves at the next attempt",
        arguments: Side.allCases,
        Way.allCases)
    func walk(side: Side, way: Way) throws {
        var call = 1
        while try Self.attempt(side, way, call: call) {
            call += 1
            guard call < 400 else {
                Issue.record("no end of calls")
                return
            }
        }
        #expect(call > 3)
    }

    @Test("a save to a mapped-ram file too, with threads of its own and without", arguments: [0, 2])
    func saves(channels: Int) throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/file"
        let rig = try Rig(script: Rig.script(threads: 1, rate: 20_000), pages: [300, 20])
        defer { rig.end() }
        var configuration = MappedRAMTests.configuration(channels: channels)
        configuration.parameters.roundLimit = 2
        var call = 1
        while call < 400 {
            try rig.source.resume()
            let made = Mutex<MigrationSource?>(nil)
            let isCancelled = Atomic<Bool>(false)
            let number = call
            let watched = FaultyTransport(
                try MappedRAMTests.transport(path, writing: true), .delayed(yields: 0),
                onCall: { call in
                    guard call == number else { return }
                    isCancelled.store(true, ordering: .relaxed)
                    made.withLock { $0 }?.cancel()
                })
            let source = try MappedRAMTests.source(rig, watched, configuration)
            made.withLock { $0 = source }
            defer { made.withLock { $0 = nil } }
            let outcome = source.run()
            // A cancel at the last calls may come too late: then the file is complete.
            #expect(isCancelled.load(ordering: .relaxed) || outcome == .guestMoved, "call \(call)")
            #expect(outcome == (rig.source.isRunning ? .guestStayed : .guestMoved), "call \(call)")
            if rig.source.isRunning { try rig.source.pause() }
            #expect(rig.source.flaws() == [], "call \(call)")
            if outcome == .guestMoved {
                let fresh = try Rig(script: rig.script, pages: [300, 20])
                defer { fresh.end() }
                let destination = MappedRAMTests.destination(
                    fresh.destination, try MappedRAMTests.transport(path, writing: false), configuration)
                #expect(destination.run() == .guestMoved, "call \(call)")
                try fresh.destination.pause()
                #expect(fresh.destination.flaws() == [], "call \(call)")
            }
            guard isCancelled.load(ordering: .relaxed) else { break }
            call += 1
        }
        #expect(call > 10 && call < 400)
    }
}
