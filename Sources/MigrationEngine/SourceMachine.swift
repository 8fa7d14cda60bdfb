/// The source's side of a hand-over as states and transitions: an event in, one action out, no I/O and no clock.
///
/// ```
/// setup ─ready→ iterating ─(converged)→ pausing ─paused→ [preSwitchover ─continued→] switchover ─stateSent→ committed ─destinationRuns→ guestMoved
///                   └─postcopy asked→ pausing ─paused→ packaging ─packageSent→ postcopyDevice ─stateTaken→ postcopy ─pagesSent→ settling ─destinationRuns→ guestMoved
///    postcopy ─channelLost→ postcopyPaused ─recoveryBegun→ postcopyRecovering ─recovered→ postcopy
/// ```
/// Up to `switchover` (and `packaging`) every failure ends in ``MigrationOutcome/guestStayed``. From `committed` the
/// guest is the source's only if the destination says so, and in `postcopyDevice` as well; from `postcopy` it never is.
package struct SourceMachine: Hashable, Sendable {
    package enum State: Hashable, Sendable {
        case setup
        case iterating(round: Int)
        /// The guest was told to stop.
        case pausing
        /// Stopped, waiting to be told to go on (`pause-before-switchover`).
        case preSwitchover
        /// Stopped, sending what is left and the device state.
        case switchover
        /// Stopped, sending the device state for a postcopy.
        case packaging
        /// Everything was sent; the destination has not said yet that it has the guest.
        case committed
        /// The package is on its way; the destination has not said that it took the state, and runs nothing before it does.
        case postcopyDevice
        /// The guest runs at the destination, pages go there.
        case postcopy
        /// The same, with the channel lost.
        case postcopyPaused
        /// Another channel is there, and what the destination has is being found out.
        case postcopyRecovering
        /// The destination has all pages of a postcopy and the end was sent; waiting for its last word, which changes nothing
        /// but for one that failed.
        case settling
        case finished(MigrationOutcome)
    }

    package enum Event: Hashable, Sendable {
        /// The destination can take pages.
        case ready
        /// A round is over: everything that was dirty at its start was sent.
        case roundEnded(Convergence.Decision)
        /// The guest touches nothing any more.
        case paused
        /// An operator let it go on.
        case continued
        /// The last byte of the stream is on its way.
        case stateSent
        /// The package with POSTCOPY_RUN goes on its way.
        case packageSent
        /// The destination has taken the state and will run the guest.
        case stateTaken
        /// Postcopy: the destination has said that it has every page, and the end of the stream has gone.
        case pagesSent
        /// SHUT 0, or the ownership word says so.
        case destinationRuns
        /// SHUT with an error, or the source took the guest back.
        case destinationRefused
        /// The channel ended without a last word.
        case channelLost
        /// There is a new channel for a postcopy.
        case recoveryBegun
        /// Postcopy goes on over a new channel.
        case recovered
        /// Nobody recovers a postcopy of which the destination has said that it has every page.
        case nothingMissing
        /// Something failed here: a system call, the guest, a broken rule.
        case failed
        case cancelRequested
        case postcopyRequested
    }

    package enum Action: Hashable, Sendable {
        case sendRound(throttlePercent: Int)
        case pauseGuest
        case waitForContinue
        /// Remaining pages, device state, end of stream.
        case sendRemainder
        case sendPackage
        case awaitVerdict
        case streamPages
        case waitForRecovery
        /// Ask what the destination has, and agree to go on.
        case recover
        /// The migration is over and the guest ours: let it run on if it ran before.
        case giveBackGuest
        /// The migration is over and the guest is not ours to run.
        case releaseGuest
        /// The migration is over and nobody knows: keep the guest paused.
        case holdGuest
        /// Too late or too early; nothing changes.
        case ignore
    }

    package struct Options: Hashable, Sendable {
        /// Stop the guest before the first page.
        package var stopsFirst = false
        package var pausesBeforeSwitchover = false
        /// The destination says when it has the guest.
        package var expectsVerdict = true

        package init() {}
    }

    package private(set) var state = State.setup
    private let options: Options
    private var wantsPostcopy = false

    package init(options: Options = Options()) { self.options = options }

    package mutating func handle(_ event: Event) -> Action {
        if event == .postcopyRequested {
            switch state {
            case .setup, .iterating: wantsPostcopy = true  // seen when the round ends or is broken off
            default: break
            }
            return .ignore
        }
        switch state {
        case .finished: return .ignore
        case .setup, .iterating, .pausing, .preSwitchover, .switchover, .packaging:
            return handleBeforePointOfNoReturn(event)
        case .committed: return handleCommitted(event)
        case .postcopyDevice: return handlePostcopyDevice(event)
        case .postcopy, .postcopyPaused, .postcopyRecovering, .settling: return handlePostcopy(event)
        }
    }

    private mutating func handleBeforePointOfNoReturn(_ event: Event) -> Action {
        switch event {
        case .cancelRequested, .failed, .channelLost, .destinationRefused:
            return enter(.finished(.guestStayed), .giveBackGuest)
        // The destination claims a guest whose state it cannot have: its mistake, the guest is still here.
        case .destinationRuns: return handle(.failed)
        case .ready where state == .setup:
            if options.stopsFirst { return enter(.pausing, .pauseGuest) }
            return enter(.iterating(round: 1), .sendRound(throttlePercent: 0))
        case .roundEnded(let decision):
            guard case .iterating(let round) = state else { break }
            if !wantsPostcopy, case .iterate(let throttle) = decision {
                return enter(.iterating(round: round + 1), .sendRound(throttlePercent: throttle))
            }
            return enter(.pausing, .pauseGuest)
        case .paused where state == .pausing:
            if options.pausesBeforeSwitchover { return enter(.preSwitchover, .waitForContinue) }
            return goOn()
        case .continued: return state == .preSwitchover ? goOn() : .ignore
        case .stateSent where state == .switchover:
            if options.expectsVerdict { return enter(.committed, .awaitVerdict) }
            return enter(.finished(.guestMoved), .releaseGuest)
        case .packageSent where state == .packaging: return enter(.postcopyDevice, .streamPages)
        default: break
        }
        preconditionFailure("\(event) in \(state)")  // our own driver's order
    }

    private mutating func goOn() -> Action {
        wantsPostcopy ? enter(.packaging, .sendPackage) : enter(.switchover, .sendRemainder)
    }

    private mutating func handleCommitted(_ event: Event) -> Action {
        switch event {
        case .destinationRuns: return enter(.finished(.guestMoved), .releaseGuest)
        case .destinationRefused: return enter(.finished(.guestStayed), .giveBackGuest)
        case .channelLost, .failed: return enter(.finished(.undecided), .holdGuest)
        case .cancelRequested, .continued: return .ignore  // too late: the guest may be at the destination
        default: preconditionFailure("\(event) in \(state)")
        }
    }

    private mutating func handlePostcopyDevice(_ event: Event) -> Action {
        switch event {
        case .stateTaken: return enter(.postcopy, .streamPages)
        // It says that it did not take the guest, or is known to have ended before it did.
        case .destinationRefused: return enter(.finished(.guestStayed), .giveBackGuest)
        // It may have taken it and be unable to say so.
        case .channelLost, .failed, .destinationRuns: return enter(.postcopyPaused, .waitForRecovery)
        case .cancelRequested, .continued: return .ignore
        default: preconditionFailure("\(event) in \(state)")
        }
    }

    private mutating func handlePostcopy(_ event: Event) -> Action {
        switch (event, state) {
        case (.pagesSent, .postcopy): return enter(.settling, .awaitVerdict)
        case (.destinationRuns, .settling): return enter(.finished(.guestMoved), .releaseGuest)
        // The guest and all of its memory are there: without a last word too there is nothing to wait for.
        case (.channelLost, .settling), (.nothingMissing, .postcopyPaused):
            return enter(.finished(.guestMoved), .releaseGuest)
        // It has the guest and says it is done, but pages are missing there.
        case (.destinationRuns, _), (.failed, _), (.channelLost, _): return enter(.postcopyPaused, .waitForRecovery)
        case (.recoveryBegun, .postcopyPaused): return enter(.postcopyRecovering, .recover)
        case (.recovered, .postcopyRecovering): return enter(.postcopy, .streamPages)
        // The destination lost the guest: it is nowhere, and the source's copy is older than what ran there.
        case (.destinationRefused, _): return enter(.finished(.undecided), .holdGuest)
        // The only way out of a postcopy that nobody will recover, and that lacks pages.
        case (.cancelRequested, .postcopyPaused): return enter(.finished(.undecided), .holdGuest)
        case (.cancelRequested, _), (.continued, _): return .ignore
        default: preconditionFailure("\(event) in \(state)")
        }
    }

    private mutating func enter(_ state: State, _ action: Action) -> Action {
        self.state = state
        return action
    }

    /// Still ours after any failure.
    package var isBeforePointOfNoReturn: Bool {
        switch state {
        case .setup, .iterating, .pausing, .preSwitchover, .switchover, .packaging: true
        default: false
        }
    }

    /// What `query-migrate` says; `cancelling` and the reason for an end are the driver's to add.
    package var phase: MigrationPhase {
        switch state {
        case .setup: .setup
        case .iterating: .precopy
        case .pausing, .preSwitchover: .paused
        case .switchover, .packaging, .postcopyDevice: .switchover
        case .committed: .commit
        case .postcopy, .postcopyPaused, .postcopyRecovering, .settling: .postcopy
        case .finished: .finished
        }
    }
}
