import ComponentState
import Machine
import MigrationEngine

/// What will have to be done while the guest stands still, done right before while it still runs: a processor of the host that has not done
/// a thing for a while takes it several times as long.
struct UpgradeRehearsal {
    private let guest: VirtGuest
    private let backends: GuestBackends
    /// In the place of the guest's processors, whose state is nobody's to read while they run.
    private let spares: [any StatefulComponent]

    /// - Throws: When there is no memory for it.
    init(_ guest: VirtGuest, backends: GuestBackends) throws {
        self.guest = guest
        self.backends = backends
        spares = try guest.machine.makeSpareProcessor()
    }

    /// - Throws: What the hand-over itself would throw.
    func run() throws {
        try backends.rehearseHandover()
        _ = try ComponentsAhead(of: guest.components)
        _ = try SavedComponents.encode(spares)
    }
}
