import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit
import Synchronization
import Testing

@Suite("Precopy between two scripted guests") struct PrecopyTests {
    @Test("a running guest arrives with every page right and runs on", arguments: [MemoryBackend.memfd, .anonymous])
    func moves(backend: MemoryBackend) throws {
        let rig = try Rig(backend: backend)
        defer { rig.end() }
        try rig.source.resume()
        let ends = try rig.ends(observer: rig.writesInEachRound)
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(ends.source.progress.error == nil && ends.destination.progress.error == nil)
        #expect(!rig.source.isRunning && rig.destination.isRunning)
        #expect(rig.destination.waitForWrites(200))
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
        #expect(rig.source.writeCount > 0, "nothing was written while pages were sent")
        #expect(ends.source.progress.status == .completed)
        #expect(ends.source.progress.ram.zeroPages > 0 && ends.source.progress.ram.normalPages > 0)
    }

    @Test("a paused guest arrives paused")
    func paused() throws {
        let rig = try Rig()
        defer { rig.end() }
        let outcome = try Rig.run(try rig.ends())
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(!rig.source.isRunning && !rig.destination.isRunning)
        #expect(rig.destination.flaws() == [])
    }

    @Test("a migration that would never end does when its limits are raised while it runs")
    func adjusted() throws {
        let rig = try Rig()
        defer { rig.end() }
        try rig.source.resume()
        var configuration = Rig.configuration
        configuration.parameters.downtimeLimitMilliseconds = 0
        configuration.parameters.roundLimit = 0
        let ends = try rig.ends(configuration, observer: rig.writesInEachRound)
        let raised = Mutex(configuration.parameters)
        let outcome = try Rig.run(ends) {
            let deadline = ContinuousClock.now + .seconds(60)
            while ends.source.progress.timing.roundNanoseconds.count < 3, ContinuousClock.now < deadline {
                usleep(1000)
            }
            // One limit that slows it down so much that it cannot end, and one that would let it: the last word holds.
            ends.source.adjust(
                raised.withLock {
                    $0.maxBandwidthBytesPerSecond = 1000; return $0
                })
            usleep(50_000)
            ends.source.adjust(
                raised.withLock {
                    $0.maxBandwidthBytesPerSecond = 0
                    $0.downtimeLimitMilliseconds = 2_000_000
                    return $0
                })
        }
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(ends.source.progress.timing.roundNanoseconds.count >= 3)
        #expect(rig.destination.waitForWrites(200))
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }
}
