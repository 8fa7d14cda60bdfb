import ComponentState
import GuestMemory
import MigrationEngine

/// The guest as the engine has it while it moves: the same, and the supervisor hears of each pause and resume.
final class MigratingGuest: MigratableGuest {
    private let supervisor: Supervisor
    private var guest: any SupervisedGuest { supervisor.guest }

    /// Its RAM came by descriptor.
    private let memory: ArrivingMemory?

    init(of supervisor: Supervisor, memory: ArrivingMemory? = nil) {
        self.supervisor = supervisor
        self.memory = memory
    }

    var machineName: String { guest.machineName }
    var ramBlocks: [RAMBlock] { guest.ramBlocks }
    func guestAddress(of block: RAMBlock) -> UInt64 { guest.guestAddress(of: block) }
    func restartDirtyTracking() throws { try guest.restartDirtyTracking() }
    func setThrottle(percent: Int) { guest.setThrottle(percent: percent) }
    var isRunning: Bool { guest.isRunning }
    var components: [any StatefulComponent] { guest.components }
    var surplusBlocks: [String: Int] { guest.surplusBlocks }

    /// At the destination: from here on the images are ours, before the source is told that the guest is.
    func finishLoading() throws {
        try memory?.fillRest(of: guest.ramBlocks)
        try guest.finishLoading()
        if let reason = guest.obstacle(to: .native) { throw Refusal(reason) }
        try guest.claimImages()
    }

    func pause() throws {
        let wasRunning = guest.isRunning
        try guest.pause()
        try guest.releaseImages()
        if wasRunning { supervisor.loop.perform { [supervisor] in supervisor.guestWasMoved(isRunning: false) } }
    }

    func resume() throws {
        try supervisor.expect(
            .resumed, then: { [supervisor] in supervisor.guestWasMoved(isRunning: true) }, of: { try guest.resume() })
    }
}
