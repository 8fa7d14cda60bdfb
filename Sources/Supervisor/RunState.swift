/// State of the machine as `query-status` tells it; raw values are QEMU's.
package enum RunState: String, Hashable, Sendable, Codable, CaseIterable {
    case debug
    case inmigrate
    case internalError = "internal-error"
    case ioError = "io-error"
    case paused
    case postmigrate
    case prelaunch
    case finishMigrate = "finish-migrate"
    case restoreVM = "restore-vm"
    case running
    case saveVM = "save-vm"
    case shutdown
    case suspended
    case watchdog
    case guestPanicked = "guest-panicked"
    case colo

    /// `cont` lets the guest run from here.
    package var canContinue: Bool {
        switch self {
        case .paused, .prelaunch, .postmigrate, .debug, .ioError, .suspended, .watchdog: true
        default: false
        }
    }
}
