import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit
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
}
