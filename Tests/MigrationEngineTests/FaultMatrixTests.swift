import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit
import Testing

@Suite("The channel breaks at every call") struct FaultMatrixTests {
    enum Side: CaseIterable, Sendable { case source, destination }
    enum Kind: CaseIterable, Sendable { case closed, cut }
    enum Way: CaseIterable, Sendable { case socket, flip, flipGivingAway }

    static func configuration(_ way: Way) -> MigrationConfiguration {
        var configuration: MigrationConfiguration =
            switch way {
            case .socket: Rig.configuration
            case .flip: Rig.flipping(.precopy)
            case .flipGivingAway: Rig.flipping(.stopAndCopy)
            }
        configuration.parameters.roundLimit = 2
        return configuration
    }

    /// One migration with a fault; answers whether the fault happened.
    static func attempt(
        _ side: Side, _ way: Way, _ fault: FaultyTransport.Fault, pages: [Int] = [1100, 20]
    ) throws -> Bool {
        let rig = try Rig(script: Rig.script(threads: 1, rate: 20_000), pages: pages)
        defer { rig.end() }
        try rig.source.resume()
        let configuration = configuration(way)
        let (left, right) = try Rig.pair()
        let faulty = FaultyTransport(side == .source ? left : right, fault)
        do {
            var hooks: (any SourceRAMHooks)?
            if way != .socket {
                hooks = PageFlipSource(transport: left, guest: rig.source, configuration: configuration)
            }
            let ends = try rig.ends(
                configuration, transports: side == .source ? (faulty, right) : (left, faulty),
                hooks: (
                    hooks, way == .socket ? nil : PageFlipDestination(transport: right, configuration: configuration)
                ))
            let outcome = try Rig.run(ends)
            let place = "\(side) \(way) \(fault): \(outcome), \(String(describing: ends.source.progress.error))"
            // Exactly one runs, unless nobody can know.
            switch outcome.source {
            case .guestMoved: #expect(!rig.source.isRunning && rig.destination.isRunning, "\(place)")
            case .guestStayed: #expect(rig.source.isRunning && !rig.destination.isRunning, "\(place)")
            case .undecided:
                #expect(!rig.source.isRunning, "\(place)")
                #expect(faulty.hasBroken, "\(place)")
            }
            #expect(outcome.destination == (rig.destination.isRunning ? .guestMoved : .guestStayed), "\(place)")
            #expect(faulty.hasBroken || outcome.source == .guestMoved, "\(place)")
            #expect(outcome.source == .guestMoved || ends.source.progress.error != nil, "\(place)")
            // Whoever has it, has it whole.
            if outcome.source == .undecided && !rig.destination.isRunning {
                ends.source.settle(.guestStayed)
                #expect(rig.source.isRunning, "\(place)")
            }
            let holder = rig.destination.isRunning ? rig.destination : rig.source
            if holder.isRunning { #expect(holder.waitForWrites(20)) }
            try holder.pause()
            #expect(holder.flaws() == [], "\(place)")
            if outcome.source == .guestStayed {
                // And it moves at the next attempt.
                try rig.source.resume()
                let fresh = try Rig(script: rig.script, pages: pages)
                defer { fresh.end() }
                let next = try rig.flippingEnds(Rig.flipping(.stopAndCopy), to: fresh.destination)
                #expect(try Rig.run(next).source == .guestMoved, "\(place)")
                try fresh.destination.pause()
                #expect(fresh.destination.flaws() == [], "\(place), second attempt")
            }
        }
        return faulty.hasBroken
    }

    @Test(
        "the guest is in exactly one place, whole, and moves at the next attempt", arguments: Side.allCases,
        Way.allCases)
    func walk(side: Side, way: Way) throws {
        for kind in Kind.allCases {
            var call = 1
            while try Self.attempt(side, way, kind == .closed ? .closed(atCall: call) : .cut(atCall: call)) {
                call += 1
                guard call < 400 else {
                    Issue.record("no end of calls")
                    return
                }
            }
            #expect(call > 5)
        }
    }

    @Test("bytes in any portions and threads in any order make no difference", arguments: Way.allCases)
    func portions(way: Way) throws {
        for fault in [
            FaultyTransport.Fault.short(byteCount: 1), .short(byteCount: 7), .short(byteCount: 4095),
            .short(byteCount: 4097), .delayed(yields: 20),
        ] {
            for side in Side.allCases { #expect(try !Self.attempt(side, way, fault, pages: [150, 5])) }
        }
    }

    @Test("nothing of a migration is left behind, however it ended", arguments: Way.allCases)
    func leftBehind(way: Way) throws {
        for fault in [FaultyTransport.Fault.delayed(yields: 1), .closed(atCall: 5), .cut(atCall: 2)] {
            weak var left: DescriptorTransport?
            weak var right: DescriptorTransport?
            weak var hooks: PageFlipSource?
            weak var block: RAMBlock?
            try {
                let rig = try Rig(script: Rig.script(threads: 1), pages: [600])
                defer { rig.end() }
                try rig.source.resume()
                let configuration = Self.configuration(way)
                let pair = try Rig.pair()
                let flip = PageFlipSource(transport: pair.0, guest: rig.source, configuration: configuration)
                left = pair.0
                right = pair.1
                hooks = flip
                block = rig.source.ramBlocks[0]
                let ends = try rig.ends(
                    configuration, transports: (FaultyTransport(pair.0, fault), pair.1),
                    hooks: (flip, PageFlipDestination(transport: pair.1, configuration: configuration)))
                _ = try Rig.run(ends)
            }()
            // Descriptors, mappings and pipes are owned by these; the engine starts no thread of its own.
            #expect(left == nil && right == nil && hooks == nil && block == nil, "\(way) \(fault)")
        }
    }
}
