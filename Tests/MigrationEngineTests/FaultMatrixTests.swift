import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit
import Synchronization
import Testing

@Suite("The channel breaks at every call") struct FaultMatrixTests {
    static let ways: [Way] = [.socket, .socketByReference, .flip, .flipGivingAway]

    /// One migration with a fault; answers whether the fault happened.
    static func attempt(
        _ side: Side, _ way: Way, _ fault: FaultyTransport.Fault, pages: [Int] = [1100, 20]
    ) throws -> Bool {
        let rig = try Rig(script: Rig.script(threads: 1, rate: 20_000), pages: pages)
        defer { rig.end() }
        try rig.source.resume()
        let broken = Mutex<FaultyTransport?>(nil)
        let ends = try way.ends(rig, to: rig.destination) { own, transport in
            guard own == side else { return transport }
            let faulty = FaultyTransport(transport, fault)
            broken.withLock { $0 = faulty }
            return faulty
        }
        let outcome = try Rig.run(ends)
        let hasBroken = broken.withLock { $0!.hasBroken }
        try rig.judge(ends, outcome, isDisturbed: hasBroken, place: "\(side) \(way) \(fault)") {
            try way.ends(rig, to: $0)
        }
        return hasBroken
    }

    @Test(
        "the guest is in exactly one place, whole, and moves at the next attempt", arguments: Side.allCases,
        ways)
    func walk(side: Side, way: Way) throws {
        for isCut in [false, true] {
            try Rig.walk(callCountMin: 5) {
                try Self.attempt(side, way, isCut ? .cut(atCall: $0) : .closed(atCall: $0))
            }
        }
    }

    // Portions of what goes by reference are ReferenceTests' business.
    @Test(
        "bytes in any portions and threads in any order make no difference",
        arguments: ways.filter { $0 != .socketByReference })
    func portions(way: Way) throws {
        for fault in [
            FaultyTransport.Fault.short(byteCount: 1), .short(byteCount: 7), .short(byteCount: 4095),
            .short(byteCount: 4097), .delayed(yields: 20),
        ] {
            for side in Side.allCases { #expect(try !Self.attempt(side, way, fault, pages: [150, 5])) }
        }
    }

    @Test("nothing of a migration is left behind, however it ended", arguments: ways)
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
                let configuration = way.configuration
                let pair = try Rig.pair()
                if way == .socketByReference { pair.0.sendByReference() }
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
