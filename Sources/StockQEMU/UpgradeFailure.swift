/// Why a QEMU process was not replaced.
package struct UpgradeFailure: Error, Hashable, Sendable, CustomStringConvertible {
    /// What holds after it.
    package enum Kind: String, Hashable, Sendable {
        /// The request makes no sense.
        case usage
        /// Refused before anything was changed.
        case refused
        /// There is no such process, or it does not answer.
        case noSuchGuest = "no-such-guest"
        /// It was tried; the guest runs on in the old process.
        case rolledBack = "rolled-back"
        /// The guest is gone.
        case lost
        /// It stands still, and who may run it cannot be told.
        case undecided
    }

    package var kind: Kind
    /// One line: what was found, and what to do.
    package var description: String

    package init(_ kind: Kind, _ description: String) {
        self.kind = kind
        self.description = description
    }
}
