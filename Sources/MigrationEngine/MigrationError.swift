/// Why a migration did not do what it was asked to. The phase tells where the guest is; see ``MigrationOutcome``.
package struct MigrationError: Error, Sendable, CustomStringConvertible {
    package enum Code: String, Hashable, Sendable, CaseIterable {
        /// Parameters or capabilities that contradict each other; nothing was started.
        case invalidConfiguration
        /// The other end closed the channel.
        case channelClosed
        /// A system call on the channel failed.
        case channelFailed
        /// The other end did nothing for longer than allowed.
        case timedOut
        /// The other end said that it failed, or that it cannot do this.
        case peerRefused
        /// Bytes that are no migration stream, or break its rules.
        case streamMalformed
        /// The stream is for another machine.
        case machineMismatch
        /// A capability is on at one end only.
        case capabilityMismatch
        /// RAM blocks differ in name, order of size, or number.
        case ramMismatch
        /// A section that no component answers to.
        case unknownSection
        /// A section that came twice.
        case doubledSection
        /// Components whose section never came.
        case missingSection
        /// A component did not take its state.
        case stateRejected
        /// A number from outside is beyond what is allowed.
        case limitExceeded
        /// Asked to stop.
        case cancelled
        /// The guest could not be paused, resumed or tracked.
        case guestFailed
        /// Everything was sent and the other end went silent: it may or may not run the guest.
        case undecided
    }

    package var code: Code
    package var phase: MigrationPhase
    /// For people: names what it is about.
    package var message: String
    /// What the layer below said.
    package var cause: (any Error)?

    package init(_ code: Code, in phase: MigrationPhase, _ message: String, cause: (any Error)? = nil) {
        self.code = code
        self.phase = phase
        self.message = message
        self.cause = cause
    }

    /// The same, naming the section that it happened in unless the message has said it.
    func inSection(_ name: String) -> MigrationError {
        guard [.streamMalformed, .channelClosed, .limitExceeded, .ramMismatch].contains(code),
            !message.contains("section \(name)")
        else { return self }
        var error = self
        error.message = "in section \(name), \(message)"
        return error
    }

    package var description: String {
        var text = "migration failed in phase \(phase.rawValue): \(message)"
        if let cause { text += ": \(cause)" }
        return text
    }
}

/// Where the guest is after a migration ended. Exactly one holds.
package enum MigrationOutcome: String, Hashable, Sendable {
    /// The destination has it; the source must never run it again.
    case guestMoved
    /// The source has it, as it was; the destination must never run it.
    case guestStayed
    /// Nobody can know from here; the source keeps it paused and an operator decides.
    case undecided
}
