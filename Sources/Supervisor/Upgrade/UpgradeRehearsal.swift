import ComponentState
import HostBackends
import Machine
import MigrationEngine

/// A machine with the guest's devices that never runs: its state is written down right before the guest's is. What a processor of the
/// host has not done for a while takes it several times as long, so it does it once more while the guest still runs.
struct UpgradeRehearsal {
    private let components: [any StatefulComponent]
    private let backends: GuestBackends

    /// - Parameters:
    ///   - configuration: The guest's.
    ///   - backends: The guest's. Nothing is read from its disks or written to them.
    /// - Throws: When there is no memory or no thread for it.
    init(_ configuration: MachineConfiguration, backends: GuestBackends) throws {
        var small = configuration
        small.hartCount = 1
        small.memoryByteCount = MachineConfiguration.memoryByteCountRange.lowerBound
        small.memoryBackend = .anonymous
        var inert = backends.machineBackends
        inert.serial = NullConsole()
        inert.consoles = inert.consoles.mapValues { _ in NullConsole() }
        inert.networks = inert.networks.mapValues { _ in UnpluggedNetwork() }
        components = try VirtMachine(configuration: small, backends: inert).components
        self.backends = backends
    }

    /// - Throws: What the hand-over itself would throw.
    func run() throws {
        try backends.rehearseHandover()
        _ = try SavedComponents.encode(components)
    }
}
