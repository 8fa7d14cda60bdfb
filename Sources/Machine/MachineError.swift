package import ComponentState
package import LinuxCalls

/// Why a machine could not be built, loaded or run.
package enum MachineError: Error, Sendable, CustomStringConvertible {
    /// The configuration asks for what this machine cannot be.
    case configuration(String)
    /// A file that the guest starts from cannot be used.
    case image(path: String, role: ImageRole, reason: String)
    /// The RAM is too small for what is to be loaded.
    case tooLittleMemory(String)
    /// A call to the host failed.
    case system(SystemCallError)
    /// The guest has been powered off, or has failed, and does not run again.
    case shutDown
    /// A state that was loaded does not fit together.
    case state(StateError)

    /// What a file is to the guest.
    package enum ImageRole: String, Sendable { case firmware, kernel, initrd }

    package var description: String {
        switch self {
        case .configuration(let text): text
        case .image(let path, let role, let reason): "\(role.rawValue) \(path): \(reason)"
        case .tooLittleMemory(let text): text
        case .system(let error): error.description
        case .shutDown: "the guest is powered off"
        case .state(let error): error.description
        }
    }
}

/// What a running machine tells its owner, in the order in which it happened, on the machine's own control thread or a caller's.
/// Whoever makes it happen finds it told when the call returns.
package enum MachineEvent: Hashable, Sendable {
    /// The guest powered itself off. 0 unless it reported a failure.
    case powerOff(exitCode: Int32)
    /// The guest was started anew: it asked for that itself, or whoever owns the machine did.
    case reset(byGuest: Bool)
    /// The guest cannot go on.
    case failed(String)
    case paused
    case resumed
}

/// Where a machine is in its life.
package enum MachineState: String, Sendable {
    /// Built, and has not run yet.
    case created
    case running
    case paused
    /// Powered off or failed; nothing runs any more.
    case shutdown
}
