/// The destination's side of a hand-over as states and transitions. It holds the source to the order of things;
/// bytes are the stream reader's business, sections the ``SectionRegister``'s.
package struct DestinationMachine: Hashable, Sendable {
    package enum State: Hashable, Sendable {
        case awaitingHeader
        case awaitingConfiguration
        /// Sections and commands.
        case loading
        /// Postcopy was announced.
        case advised
        case discarding
        /// Pages may come at any time, from now on placed as they come.
        case listening
        /// The guest runs here, pages are missing.
        case postcopyRunning
        /// The same, with the channel lost.
        case postcopyPaused
        /// There is another channel, and the source asks what is here.
        case postcopyRecovering
        /// The stream has ended, everything was judged complete, the guest may be claimed.
        case loaded
        case finished(MigrationOutcome)
    }

    package enum Event: Hashable, Sendable {
        case header
        case configuration
        case ramSection
        case deviceSection
        case postcopyAdvise
        case postcopyDiscard
        case postcopyListen
        /// POSTCOPY_RUN, with every component loaded.
        case postcopyRun
        case endOfStream
        /// The guest was claimed and runs, or stays paused as it was at the source.
        case claimed
        /// The source took the guest back.
        case withdrawn
        case channelLost
        /// There is a new channel for a postcopy.
        case recoveryBegun
        /// POSTCOPY_RESUME.
        case recovered
        /// Nobody will bring the pages that are missing: the guest ends with this process.
        case gaveUp
        /// Nobody will recover the channel, and no page is missing.
        case nothingMissing
        case failed
        case cancelRequested
    }

    package enum Action: Hashable, Sendable {
        case proceed
        /// Check that everything came, prepare, claim the guest.
        case claimGuest
        /// Claim and run the guest with pages missing.
        case claimGuestEarly
        /// All pages are here: tell the source, clean up.
        case complete
        case waitForRecovery
        /// Drop everything; the guest is not ours.
        case abandon
        /// What came may not come here.
        case refuse
        case ignore
    }

    package private(set) var state = State.awaitingHeader
    private let allowsPostcopy: Bool

    package init(allowsPostcopy: Bool = false) { self.allowsPostcopy = allowsPostcopy }

    package mutating func handle(_ event: Event) -> Action {
        switch state {
        case .finished: return .ignore
        case .postcopyRunning, .postcopyPaused, .postcopyRecovering: return handlePostcopy(event)
        default: break
        }
        switch event {
        case .failed, .channelLost, .cancelRequested, .withdrawn, .gaveUp:
            return enter(.finished(.guestStayed), .abandon)
        default: break
        }
        switch (state, event) {
        case (.awaitingHeader, .header): return enter(.awaitingConfiguration, .proceed)
        case (.awaitingConfiguration, .configuration): return enter(.loading, .proceed)
        case (.loading, .ramSection), (.loading, .deviceSection), (.advised, .ramSection), (.advised, .deviceSection):
            return .proceed
        case (.loading, .postcopyAdvise): return allowsPostcopy ? enter(.advised, .proceed) : .refuse
        case (.advised, .postcopyDiscard), (.discarding, .postcopyDiscard): return enter(.discarding, .proceed)
        case (.advised, .postcopyListen), (.discarding, .postcopyListen): return enter(.listening, .proceed)
        case (.listening, .deviceSection), (.listening, .ramSection): return .proceed
        case (.listening, .postcopyRun): return enter(.postcopyRunning, .claimGuestEarly)
        case (.loading, .endOfStream), (.advised, .endOfStream): return enter(.loaded, .claimGuest)
        case (.loaded, .claimed): return enter(.finished(.guestMoved), .complete)
        case (_, .claimed), (_, .recoveryBegun): preconditionFailure("\(event) in \(state)")  // our own driver's order
        default: return .refuse
        }
    }

    /// The guest runs here: there is nothing to go back to.
    private mutating func handlePostcopy(_ event: Event) -> Action {
        switch (event, state) {
        case (.ramSection, .postcopyRunning): return .proceed
        case (.endOfStream, .postcopyRunning), (.nothingMissing, _):
            return enter(.finished(.guestMoved), .complete)
        case (.withdrawn, _): return enter(.finished(.guestStayed), .abandon)
        case (.channelLost, _), (.failed, _): return enter(.postcopyPaused, .waitForRecovery)
        case (.recoveryBegun, .postcopyPaused): return enter(.postcopyRecovering, .proceed)
        case (.recovered, .postcopyRecovering): return enter(.postcopyRunning, .proceed)
        case (.gaveUp, _): return enter(.finished(.undecided), .abandon)
        case (.cancelRequested, _): return .ignore
        default: return .refuse
        }
    }

    private mutating func enter(_ state: State, _ action: Action) -> Action {
        self.state = state
        return action
    }

    package var phase: MigrationPhase {
        switch state {
        case .awaitingHeader, .awaitingConfiguration: .setup
        case .loading, .advised, .discarding, .listening: .switchover
        case .postcopyRunning, .postcopyPaused, .postcopyRecovering: .postcopy
        case .loaded: .commit
        case .finished: .finished
        }
    }
}
