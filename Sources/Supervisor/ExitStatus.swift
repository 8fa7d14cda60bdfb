/// What the tool's exit status means. Stable: scripts depend on it. `sidestep exit-status` prints this table.
///
/// `sidestep run` ends with the status the guest gave to the test finisher (0 for 0x5555), unless one of these applies.
package enum ExitStatus: Int32, Error, Hashable, Sendable, CaseIterable {
    case done = 0
    /// The arguments or the configuration file make no sense.
    case usage = 64
    /// Something is missing, of the wrong kind or in use; nothing was started or changed.
    case refused = 65
    /// No guest of that name runs.
    case noSuchGuest = 66
    /// The guest's process answered with an error.
    case commandFailed = 67
    /// Something of the host failed while the guest ran.
    case hostFailure = 70
    /// The guest's processor stopped for good: a fault we cannot go on from.
    case guestFailure = 71
    /// The guest was to move and did not; it runs on at the source, unharmed.
    case rolledBack = 80
    /// The guest is gone.
    case lost = 81
    /// Cancelled on request; the guest runs on at the source.
    case cancelled = 82
    /// The move neither ended nor failed within the limit; nobody knows yet.
    case undecided = 83
    /// An incoming guest did not arrive; nothing ran here.
    case incomingFailed = 84
    /// Of several guests some moved and some did not; those run on at the source.
    case partlyRolledBack = 85
    /// Check: the guest cannot move as it is.
    case guestUnfit = 90
    /// Check: this host does not allow what the move needs.
    case hostUnfit = 91
    /// Check: the destination cannot take the guest.
    case destinationUnfit = 92
    /// SIGINT ended the command; the move that it had begun was cancelled. As shells say it of a signal: 128 more.
    case interrupted = 130
    /// The same by SIGTERM.
    case terminated = 143

    package var meaning: String {
        switch self {
        case .done: "done; for run: the guest powered off"
        case .usage: "the arguments or the configuration file make no sense"
        case .refused: "refused before start: something is missing, of the wrong kind or in use; nothing was changed"
        case .noSuchGuest: "no guest of that name runs"
        case .commandFailed: "the guest's process answered with an error"
        case .hostFailure: "the host failed while the guest ran"
        case .guestFailure: "the guest's processor stopped for good"
        case .rolledBack: "the move failed; the guest runs on at the source"
        case .lost: "the guest is gone"
        case .cancelled: "the move was cancelled; the guest runs on at the source"
        case .undecided: "the move neither ended nor failed within the limit"
        case .partlyRolledBack: "of several guests some moved; the others run on at the source"
        case .guestUnfit: "check: the guest cannot move as it is"
        case .hostUnfit: "check: this host does not allow what the move needs"
        case .destinationUnfit: "check: the destination is not there or cannot take the guest"
        case .interrupted: "interrupted (Ctrl-C); the guest runs on at the source"
        case .terminated: "ended by SIGTERM; the guest runs on at the source"
        case .incomingFailed: "the incoming guest did not arrive; nothing ran here"
        }
    }
}

/// Why something was refused: one line for people, and the exit status for scripts.
package struct Refusal: Error, Hashable, Sendable, CustomStringConvertible {
    package var status: ExitStatus
    package var description: String

    package init(_ status: ExitStatus, _ description: String) {
        self.status = status
        self.description = description
    }

    /// Refused before anything was changed.
    package init(_ description: String) { self.init(.refused, description) }
}
