/// What can be switched on for a migration; raw values are QEMU's names, ours last.
package enum MigrationCapability: String, Hashable, Sendable, CaseIterable {
    /// Slow the guest down when it writes faster than pages can be sent.
    case autoConverge = "auto-converge"
    /// Report status changes and rounds as events.
    case events
    case postcopyRAM = "postcopy-ram"
    /// Free pages at the source once they were sent.
    case releaseRAM = "release-ram"
    case returnPath = "return-path"
    /// Send what has changed in a page since it was last sent.
    case xbzrle
    case pauseBeforeSwitchover = "pause-before-switchover"
    case multifd
    case lateBlockActivate = "late-block-activate"
    /// Blocks whose memory both ends share are not sent.
    case ignoreShared = "x-ignore-shared"
    case validateUUID = "validate-uuid"
    /// Pages at fixed places of a file.
    case mappedRAM = "mapped-ram"
    case switchoverAck = "switchover-ack"
    /// Page addresses on the unix socket, page contents in a pipe beside it. Ours; both ends must have it.
    case unixPageFlipping = "unix-page-flipping"

    /// The engine does this; the others are known by name and refused.
    package var isImplemented: Bool {
        switch self {
        case .switchoverAck: false
        default: true
        }
    }

    /// Those with a say in how pages cross, and the channel that each needs.
    static let channels: [(MigrationCapability, String)] = [
        (.unixPageFlipping, "a unix socket"), (.mappedRAM, "a file"), (.multifd, "a unix or tcp socket"),
    ]

    /// Announced in the CONFIGURATION record, so that an end without it refuses by name before anything is at risk.
    package var isAnnounced: Bool {
        switch self {
        case .ignoreShared, .mappedRAM, .unixPageFlipping: true
        default: false
        }
    }

    /// What must also be on.
    package var prerequisites: [MigrationCapability] {
        switch self {
        case .unixPageFlipping, .postcopyRAM, .switchoverAck: [.returnPath]
        default: []
        }
    }

    /// What cannot be on together with it.
    package var exclusions: [MigrationCapability] {
        switch self {
        case .multifd: [.postcopyRAM, .unixPageFlipping]
        case .mappedRAM: [.postcopyRAM, .unixPageFlipping, .ignoreShared, .returnPath, .releaseRAM]
        case .ignoreShared: [.unixPageFlipping]
        // Pages that go beside the stream go whole.
        case .xbzrle: [.multifd, .mappedRAM, .unixPageFlipping]
        default: []
        }
    }
}

extension Set<MigrationCapability> {
    /// Throws when capabilities contradict each other.
    package func validate() throws(MigrationError) {
        for capability in self.sorted(by: { $0.rawValue < $1.rawValue }) {
            for needed in capability.prerequisites where !contains(needed) {
                throw MigrationError(
                    .invalidConfiguration, in: .setup, "\(capability.rawValue) requires \(needed.rawValue)")
            }
            for other in capability.exclusions where contains(other) {
                throw MigrationError(
                    .invalidConfiguration, in: .setup, "\(capability.rawValue) does not work with \(other.rawValue)")
            }
        }
    }
}
