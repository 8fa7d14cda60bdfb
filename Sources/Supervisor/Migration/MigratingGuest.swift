import ComponentState
import GuestMemory
import MigrationEngine

/// The guest as the engine has it while it moves: the same, and the supervisor hears of each pause and resume.
final class MigratingGuest: MigratableGuest {
    private let guest: any SupervisedGuest
    private let told: @Sendable (_ isRunning: Bool) -> Void

    /// Its RAM came by descriptor.
    private let memory: ArrivingMemory?

    init(
        _ guest: any SupervisedGuest, memory: ArrivingMemory? = nil,
        told: @escaping @Sendable (_ isRunning: Bool) -> Void
    ) {
        self.guest = guest
        self.memory = memory
        self.told = told
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
        if wasRunning { told(false) }
    }

    func resume() throws {
        try guest.resume()
        told(true)
    }
}
