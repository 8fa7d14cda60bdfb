import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit
import ProcessTestKit
import Synchronization
import Testing

@Suite("Cancelled at every call of a channel, which is every state it is in") struct CancelMatrixTests {
    /// One migration that is cancelled before a call; answers whether it came to that.
    private static func attempt(_ side: Side, _ way: Way, call: Int) throws -> Bool {
        let rig = try Rig(script: Rig.script(threads: 1, rate: 20_000), pages: [1100, 20])
        defer { rig.end() }
        try rig.source.resume()
        let made = Mutex<Rig.Ends?>(nil)
        let isCancelled = Atomic<Bool>(false)
        let ends = try way.ends(rig, to: rig.destination) { own, transport in
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
        let place = "\(side) \(way) call \(call)"
        if side == .source, outcome.source == .guestStayed {
            let progress = ends.source.progress
            #expect(
                progress.status == .cancelled && progress.error?.code == .cancelled,
                "\(place): \(String(describing: progress.error))")
        }
        try rig.judge(ends, outcome, isDisturbed: wasCancelled, place: place) { try way.ends(rig, to: $0) }
        return wasCancelled
    }

    @Test(
        "the guest is in exactly one place, whole, and one that stayed moves at the next attempt",
        arguments: Side.allCases,
        Way.allCases)
    func walk(side: Side, way: Way) throws {
        try Rig.walk(callCountMin: 3) { try Self.attempt(side, way, call: $0) }
    }

    @Test("a save to a mapped-ram file too, with threads of its own and without", arguments: [0, 2])
    func saves(channels: Int) throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/file"
        let rig = try Rig(script: Rig.script(threads: 1, rate: 20_000), pages: [300, 20])
        defer { rig.end() }
        var configuration = MappedRAMTests.configuration(channels: channels)
        configuration.parameters.roundLimit = 2
        try Rig.walk(callCountMin: 10) { number in
            try rig.source.resume()
            let made = Mutex<MigrationSource?>(nil)
            let isCancelled = Atomic<Bool>(false)
            let watched = FaultyTransport(
                try DescriptorTransport.file(path, writing: true), .delayed(yields: 0),
                onCall: { call in
                    guard call == number else { return }
                    isCancelled.store(true, ordering: .relaxed)
                    made.withLock { $0 }?.cancel()
                })
            let source = try MappedRAMTests.source(rig, watched, configuration)
            made.withLock { $0 = source }
            defer { made.withLock { $0 = nil } }
            let outcome = source.run()
            let wasCancelled = isCancelled.load(ordering: .relaxed)
            // A cancel at the last calls may come too late: then the file is complete.
            #expect(wasCancelled || outcome == .guestMoved, "call \(number)")
            #expect(outcome == (rig.source.isRunning ? .guestStayed : .guestMoved), "call \(number)")
            if rig.source.isRunning { try rig.source.pause() }
            #expect(rig.source.flaws() == [], "call \(number)")
            if outcome == .guestMoved {
                let fresh = try Rig(script: rig.script, pages: [300, 20])
                defer { fresh.end() }
                let destination = MappedRAMTests.destination(
                    fresh.destination, try DescriptorTransport.file(path, writing: false), configuration)
                #expect(destination.run() == .guestMoved, "call \(number)")
                try fresh.destination.pause()
                #expect(fresh.destination.flaws() == [], "call \(number)")
            }
            return wasCancelled
        }
    }
}
