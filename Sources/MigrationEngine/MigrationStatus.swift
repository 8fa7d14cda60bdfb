/// State of a migration as `query-migrate` shows it; raw values are QEMU's `MigrationStatus`.
package enum MigrationStatus: String, Hashable, Sendable, CaseIterable {
    case none
    case setup
    case cancelling
    case cancelled
    case active
    case postcopyDevice = "postcopy-device"
    case postcopyActive = "postcopy-active"
    case postcopyPaused = "postcopy-paused"
    case postcopyRecover = "postcopy-recover"
    case completed
    case failed
    case preSwitchover = "pre-switchover"
    case device

    /// Nothing more will happen to this migration.
    package var isFinal: Bool {
        switch self {
        case .none, .cancelled, .completed, .failed: true
        default: false
        }
    }
}

/// Where a migration was when something happened to it. In the order in which the phases come.
package enum MigrationPhase: String, Hashable, Sendable, CaseIterable, Comparable {
    /// Header, configuration, return path, block list; the guest runs at the source.
    case setup
    /// Pages while the guest runs at the source.
    case precopy
    /// The source's guest is stopped, nothing final was sent.
    case paused
    /// Remaining pages and device state.
    case switchover
    /// Everything was sent (source) or read (destination); who runs the guest is being settled.
    case commit
    /// The guest runs at the destination, pages still follow.
    case postcopy
    /// Over.
    case finished

    package static func < (left: Self, right: Self) -> Bool {
        allCases.firstIndex(of: left)! < allCases.firstIndex(of: right)!
    }
}
