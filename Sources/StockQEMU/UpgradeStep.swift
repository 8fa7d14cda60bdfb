import Glibc
import LinuxCalls

/// How far an upgrade has come.
package enum UpgradeStep: String, Hashable, Sendable, CaseIterable {
    /// The guard is started and knows the old process.
    case guarded
    /// Private directories are there.
    case named
    /// The new process is started.
    case started
    /// The new process is complete and answers.
    case ready
    /// Both know how to move.
    case prepared
    /// The old process was told to move.
    case moving
    /// All of the guest was sent to the new process, which runs it by itself or waits for orders, and the old one is stopped.
    case moved
    /// The new process has the names, before it has the guest (postcopy) or its orders (a paused guest).
    case renamed
    /// The new process is about to be told to take the clients and to run.
    case handed
    /// The new process runs the guest, and has the names.
    case running
    /// The old process is gone.
    case ended

    /// For tests: stops this process (SIGSTOP) at the step that `SIDESTEP_QEMU_FAULT` names, so that they can do their worst.
    func reached() {
        if let value = unsafe getenv("SIDESTEP_QEMU_FAULT"), unsafe String(validatingCString: value) == rawValue {
            ProcessSignal.stopSelf()
        }
    }
}
