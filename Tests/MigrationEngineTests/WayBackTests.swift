import GuestMemory
import MigrationEngine
import MigrationTestKit
import Testing

@Suite("A migration that keeps its way back") struct WayBackTests {
    /// RAM only, as inside a hand-over that decides by itself who runs.
    static func configuration() -> MigrationConfiguration {
        var configuration = Rig.flipping(.stopAndCopy)
        configuration.keepsWayBack = true
        return configuration
    }

    @Test("after everything was sent and given away the guest can still be taken back")
    func takenBack() throws {
        let rig = try Rig(pages: [3000])
        defer { rig.end() }
        try rig.source.resume()
        var other = Self.configuration()
        other.staysPaused = true
        let ends = try rig.flippingEnds(Self.configuration(), destination: other)
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(!rig.destination.isRunning && !rig.source.isRunning)
        ends.source.settle(.guestStayed)
        #expect(rig.source.isRunning)
        #expect(rig.source.waitForWrites(200))
        try rig.source.pause()
        #expect(rig.source.flaws() == [])
        ends.source.settle(.guestMoved)  // has been settled: changes nothing
        #expect(ends.source.progress.outcome == .guestStayed)
    }

    @Test("let go, the guest is the destination's alone")
    func letGo() throws {
        let rig = try Rig(pages: [3000])
        defer { rig.end() }
        try rig.source.resume()
        var other = Self.configuration()
        other.staysPaused = true
        let ends = try rig.flippingEnds(Self.configuration(), destination: other)
        #expect(try Rig.run(ends).destination == .guestMoved)
        ends.source.settle(.guestMoved)
        try rig.destination.resume()
        #expect(rig.destination.waitForWrites(200))
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
        #expect(!rig.source.isRunning)
    }
}
