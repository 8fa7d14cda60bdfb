import ComponentState
import GuestMemory
import MigrationStream
import Synchronization

/// The source of a hand-over: moves a running guest into a channel, or gives it back unharmed.
///
/// Make one per attempt. ``run()`` blocks on a thread of its own; everything else may be called from any thread.
package final class MigrationSource: Sendable {
    let guest: any MigratableGuest
    let configuration: MigrationConfiguration
    let hooks: (any SourceRAMHooks)?
    let ownership: (any GuestOwnership)?
    let orders: Gate<MigrationOrders>
    private let current = Mutex(MigrationProgress())
    private let observer: (@Sendable (MigrationProgress) -> Void)?
    private let pageObserver: (@Sendable (RAMProgress) -> Void)?

    /// - Parameters:
    ///   - hooks: How the channel takes part in sending RAM; nil sends everything through the stream.
    ///   - ownership: Who runs the guest, when both ends share memory.
    ///   - observer: Called on the migration's thread at each change of status and each round.
    ///   - pageObserver: Called on the migration's thread whenever pages are accounted for.
    package init(
        guest: any MigratableGuest, transport: any MigrationTransport,
        configuration: MigrationConfiguration = MigrationConfiguration(), hooks: (any SourceRAMHooks)? = nil,
        ownership: (any GuestOwnership)? = nil, observer: (@Sendable (MigrationProgress) -> Void)? = nil,
        pageObserver: (@Sendable (RAMProgress) -> Void)? = nil
    ) {
        self.guest = guest
        self.configuration = configuration
        self.hooks = hooks
        self.ownership = ownership
        self.observer = observer
        self.pageObserver = pageObserver
        orders = Gate(MigrationOrders(transport: transport))
    }

    /// Runs the migration to its end and answers where the guest is; why, and how long it took, is in ``progress``.
    package func run() -> MigrationOutcome {
        let driver = SourceDriver(self)
        let outcome = driver.run()
        if outcome == .undecided || (outcome == .guestMoved && configuration.keepsWayBack) {
            undecided.withLock { $0 = Undecided(driver: driver) }
        }
        return outcome
    }

    /// What an undecided migration, or one that keeps its way back, leaves behind: the guest, paused, and what it takes to run it again.
    // SAFETY: the driver's thread has ended; whoever takes it out of the lock is alone with it.
    private struct Undecided: @unchecked Sendable {
        let driver: SourceDriver
    }
    private let undecided = Mutex<Undecided?>(nil)

    /// After ``MigrationOutcome/undecided``, or with ``MigrationConfiguration/keepsWayBack``: says where the guest is.
    /// `guestStayed` makes its memory whole and lets it run on here, which is only right if the destination is dead or
    /// never took it; `guestMoved` lets go.
    package func settle(_ outcome: MigrationOutcome) {
        guard outcome != .undecided, let left = undecided.withLock({ $0.take() }) else { return }
        left.driver.settle(outcome)
    }

    package var progress: MigrationProgress { current.withLock { $0 } }

    /// Gives up, if the guest is still here. Takes effect at once, also in the middle of a system call.
    package func cancel() { orders.cancel() }

    /// Changes the limits of a migration that runs: bandwidth, downtime, rounds and throttle. What decides how it was set up
    /// (the number of channels, the size of a cache) stays as it was.
    package func adjust(_ parameters: MigrationParameters) { orders.update { $0.parameters = parameters } }

    /// Switches over to postcopy as soon as possible, if the guest is still here; needs capability `postcopy-ram`.
    package func startPostcopy() { orders.update { $0.wantsPostcopy = true } }

    /// Breaks the channel of a postcopy off, so that it can be recovered over another.
    package func breakChannel() { orders.read { $0.transport }.close() }

    /// Goes on over another channel, when the postcopy's own is lost.
    package func recover(over transport: any MigrationTransport) { orders.recover(over: transport) }

    /// There is no channel to go on over yet; the postcopy stays paused.
    package func recoveryFailed(_ reason: String) {
        report { $0.error = MigrationError(.channelFailed, in: .postcopy, reason) }
    }

    /// Ends a postcopy whose channel is lost, now or when it comes to that; one that works goes on to its end.
    package func abandon() { orders.update { $0.isAbandoned = true } }

    /// Lets a migration with `pause-before-switchover` go on.
    package func continueSwitchover() { orders.update { $0.continues = true } }

    func report(notify: Bool = true, _ change: (inout MigrationProgress) -> Void) {
        let copy = current.withLock { progress in
            change(&progress)
            return progress
        }
        if notify { observer?(copy) }
        pageObserver?(copy.ram)
    }
}

/// Does what ``SourceMachine`` says. Lives on the migration's thread.
final class SourceDriver {
    let owner: MigrationSource
    let configuration: MigrationConfiguration
    var machine: SourceMachine
    var output: StreamOutput
    let sender: RAMSender
    var returnPath: ReturnPathReader?
    /// As they are by now.
    private(set) var parameters: MigrationParameters
    private var convergence: Convergence
    private var bandwidth: BandwidthLimit
    private var wasRunning = false
    var failure: MigrationError?
    var pausedAt: UInt64?
    var ramSectionID: UInt32 = 1
    private var pingValue: UInt32 = 1 << 16
    var postcopy = PostcopyPieces(blocks: [])

    init(_ owner: MigrationSource) {
        self.owner = owner
        configuration = owner.configuration
        let transport = owner.orders.read { $0.transport }
        output = StreamOutput(transport: transport)
        sender = RAMSender(guest: owner.guest, configuration: configuration, hooks: owner.hooks)
        var options = SourceMachine.Options()
        // A postcopy over a channel that gives pages away begins with it: a round before would have RAM twice.
        options.stopsFirst =
            configuration.strategy == .stopAndCopy
            || (configuration.strategy == .postcopy && owner.hooks?.disposition == .givesAway)
        options.pausesBeforeSwitchover = configuration.has(.pauseBeforeSwitchover)
        options.expectsVerdict = configuration.has(.returnPath) || owner.ownership != nil
        machine = SourceMachine(options: options)
        if configuration.strategy == .postcopy { _ = machine.handle(.postcopyRequested) }
        parameters = configuration.parameters
        convergence = Convergence(parameters: parameters, autoConverge: configuration.has(.autoConverge))
        bandwidth = BandwidthLimit(
            bytesPerSecond: parameters.maxBandwidthBytesPerSecond, nowNanoseconds: now())
        if configuration.has(.returnPath) {
            returnPath = ReturnPathReader(transport: transport)
            returnPath?.pageCounts = sender.pageCounts
        }
        transport.setStallLimit(milliseconds: configuration.parameters.stallLimitMilliseconds)
    }

    var phase: MigrationPhase { machine.phase }

    func run() -> MigrationOutcome {
        let start = now()
        owner.report {
            $0 = MigrationProgress()
            $0.status = .setup
            $0.timing.startNanoseconds = start
            $0.ram = sender.progress
        }
        wasRunning = owner.guest.isRunning
        var action = attempt(then: .ready) { () throws(MigrationError) in try setUp() }
        owner.report(notify: false) { $0.timing.setupNanoseconds = now() - start }
        while true {
            output.phase = machine.phase
            switch action {
            case .sendRound(let throttle): action = round(throttlePercent: throttle)
            case .pauseGuest: action = attempt(then: .paused) { () throws(MigrationError) in try pauseGuest() }
            case .waitForContinue:
                action = attempt(then: .continued) { () throws(MigrationError) in try waitForContinue() }
            case .sendRemainder:
                action = attempt(then: .stateSent) { () throws(MigrationError) in try sendRemainder() }
            case .sendPackage: action = sendPackage()
            case .streamPages: action = streamPages()
            case .waitForRecovery: action = waitForRecovery()
            case .recover: action = recover()
            case .awaitVerdict: action = awaitVerdict()
            case .giveBackGuest: return end(.guestStayed, start)
            case .releaseGuest: return end(.guestMoved, start)
            case .holdGuest: return end(.undecided, start)
            case .ignore:
                // Nothing to do in this state but to wait for the end it already promised.
                if case .finished(let outcome) = machine.state { return end(outcome, start) }
                action = machine.state == .committed || machine.state == .settling ? .awaitVerdict : .waitForRecovery
            }
        }
    }

    /// Does a step and tells the machine how it went.
    private func attempt(
        then event: SourceMachine.Event, _ step: () throws(MigrationError) -> Void
    ) -> SourceMachine.Action {
        do throws(MigrationError) {
            try step()
            return machine.handle(event)
        } catch {
            return fail(error)
        }
    }

    func fail(_ error: MigrationError) -> SourceMachine.Action {
        var error = error
        if error.code == .channelClosed || error.code == .channelFailed, machine.isBeforePointOfNoReturn {
            // The other end may have said why before it left.
            if let status = returnPath?.lastWord() {
                error = MigrationError(
                    .peerRefused, in: error.phase, "the destination reports that it failed (\(status))", cause: error)
            }
        }
        let isPeersDoing = [.channelClosed, .channelFailed, .peerRefused].contains(error.code)
        if isPeersDoing, error.phase == .setup, let names = configuration.announcedCapabilities {
            error.message += "; does it have the capability \(names.joined(separator: ", "))?"
        }
        if failure == nil { failure = error }
        let event: SourceMachine.Event =
            switch error.code {
            case .cancelled: .cancelRequested
            case .peerRefused: .destinationRefused
            case .channelClosed, .channelFailed, .timedOut: .channelLost
            default: .failed
            }
        return machine.handle(event)
    }

    var lastPing: UInt32 { pingValue }

    func nextPing() -> UInt32 {
        pingValue &+= 1
        return pingValue
    }

    /// An operator asked for postcopy.
    private var wantsPostcopy: Bool { configuration.has(.postcopyRAM) && owner.orders.read { $0.wantsPostcopy } }

    /// Throws when somebody wants the migration to stop.
    func checkOrders() throws(MigrationError) {
        if owner.orders.read({ $0.isCancelled }) {
            throw MigrationError(.cancelled, in: phase, "cancelled")
        }
    }

    // MARK: Setup

    private func setUp() throws(MigrationError) {
        try configuration.validate()
        try checkOrders()
        if configuration.has(.returnPath) && !output.transport.hasReturnPath {
            throw MigrationError(
                .invalidConfiguration, in: .setup, "\(output.transport.name) has no way back for return-path")
        }
        for (capability, needed) in MigrationCapability.channels
        where configuration.has(capability) && owner.hooks == nil {
            throw MigrationError(
                .invalidConfiguration, in: .setup,
                "\(capability.rawValue) needs \(needed), not \(output.transport.name)")
        }
        let writer = output.writer
        writer.writeHeader()
        writer.writeConfiguration(
            StreamConfiguration(
                machineName: owner.guest.machineName, capabilities: configuration.announcedCapabilities,
                uuid: configuration.has(.validateUUID) ? configuration.uuid : nil))
        if configuration.has(.returnPath) {
            writer.writeCommand(.openReturnPath)
            writer.writeCommand(.ping(1))
        }
        if configuration.has(.postcopyRAM) {
            writer.writeCommand(
                .postcopyAdvise(
                    StreamCommand.PostcopyAdvice(
                        pageSizeSummary: UInt64(guestPageSize), targetPageSize: UInt64(guestPageSize))))
        }
        writer.beginSection(SectionHeader(.start, id: ramSectionID, name: "ram", version: 4))
        try sender.writeSetup(to: output)
        writer.endSection(id: ramSectionID)
        try output.flush()
        try owner.hooks?.confirmSetup { (value) throws(MigrationError) in try exchange(value) }
        try returnPath?.poll()
        try sender.begin()
        publish()
    }

    /// Sends a PING and returns when its PONG is here.
    func exchange(_ value: UInt32) throws(MigrationError) {
        guard let returnPath else {
            throw MigrationError(.invalidConfiguration, in: phase, "this needs return-path")
        }
        output.writer.writeCommand(.ping(value))
        try output.flush()
        while !returnPath.takePong(value) { try returnPath.wait(in: phase) }
    }

    // MARK: While the guest runs

    private func round(throttlePercent: Int) -> SourceMachine.Action {
        let start = now()
        let sentBefore = crossedByteCount
        owner.guest.setThrottle(percent: throttlePercent)
        owner.report {
            $0.status = .active
            $0.throttlePercent = throttlePercent
        }
        do throws(MigrationError) {
            try sendPending()
            let nanoseconds = max(1, now() - start)
            let sent = crossedByteCount - sentBefore
            let added = try sender.synchronise(phase: .precopy)
            let decision = convergence.roundEnded(
                sentByteCount: sent, nanoseconds: nanoseconds, dirtyByteCount: sender.pendingByteCount,
                newlyDirtyByteCount: UInt64(added) * UInt64(guestPageSize))
            owner.report(notify: false) { progress in
                progress.timing.roundNanoseconds.append(nanoseconds)
                progress.expectedDowntimeMilliseconds = convergence.expectedDowntimeMilliseconds
                progress.ram.dirtyPagesPerSecond = UInt64(Double(added) * 1e9 / Double(nanoseconds))
                progress.ram.bytesPerSecond = UInt64(convergence.bandwidthBytesPerSecond)
                progress.ram.precopyByteCount += sent
            }
            publish()
            if wantsPostcopy { _ = machine.handle(.postcopyRequested) }
            return machine.handle(.roundEnded(decision))
        } catch {
            return fail(error)
        }
    }

    /// Bytes handed to the channel, in the stream and beside it.
    var crossedByteCount: UInt64 { output.byteCount + (owner.hooks?.sideByteCount ?? 0) }

    /// PARTs until nothing is pending, within the bandwidth limit.
    private func sendPending() throws(MigrationError) {
        var accounted = crossedByteCount
        while sender.pendingPageCount > 0, !wantsPostcopy {
            takeParameters()
            var window = PartWindow(of: self)
            try sendPart { () throws(MigrationError) in window.room(self) }
            try returnPath?.poll()
            publish()
            // What threads of the channel sent since the last time counts too.
            let crossed = crossedByteCount
            let wait = bandwidth.sent(byteCount: crossed - accounted, nowNanoseconds: now())
            accounted = crossed
            if wait > 0 {
                owner.orders.wait(timeoutNanoseconds: wait) {
                    $0.isCancelled || $0.wantsPostcopy || $0.parameters != nil
                }
            }
            try checkOrders()
        }
        takeParameters()
    }

    /// What one PART may hold: what goes in 50 ms, as QEMU's, and no more than the bandwidth limit has for a window.
    private struct PartWindow {
        private let start = now()
        private let crossedBefore: UInt64
        private let sidePagesBefore: UInt64
        /// 0 is no limit.
        private let quota: UInt64
        private var hasBegun = false

        init(of run: SourceDriver) {
            crossedBefore = run.crossedByteCount
            sidePagesBefore = run.sender.sidePageCount
            quota = run.bandwidth.windowByteCount
        }

        /// Pages that may go next. However little a window has, the first page goes.
        mutating func room(_ run: SourceDriver) -> Int {
            defer { hasBegun = true }
            if hasBegun, now() - start > 50_000_000 { return 0 }
            guard quota > 0 else { return .max }
            // Contents that a channel holds back for a moment are as good as sent.
            let beside = (run.sender.sidePageCount - sidePagesBefore) * UInt64(guestPageSize)
            let used = max(run.crossedByteCount - crossedBefore, beside)
            if used >= quota { return hasBegun ? 0 : 1 }
            return max(1, Int((quota - used) / UInt64(guestPageSize)))
        }
    }

    /// Limits somebody has changed in the meantime.
    /// - Returns: Whether there were any.
    @discardableResult func takeParameters() -> Bool {
        guard let changed = owner.orders.read({ $0.parameters }) else { return false }
        owner.orders.update { orders in
            if orders.parameters == changed { orders.parameters = nil }
        }
        if changed.maxBandwidthBytesPerSecond != parameters.maxBandwidthBytesPerSecond {
            bandwidth = BandwidthLimit(bytesPerSecond: changed.maxBandwidthBytesPerSecond, nowNanoseconds: now())
        }
        parameters = changed
        convergence.parameters = changed
        return true
    }

    /// One PART.
    @discardableResult
    func sendPart(_ room: () throws(MigrationError) -> Int) throws(MigrationError) -> [PageRun] {
        output.writer.beginSection(SectionHeader(.part, id: ramSectionID, name: "ram", version: 4))
        let runs = try sender.writePages(to: output, .round) { () throws(MigrationError) in
            try checkOrders()
            return try room()
        }
        output.writer.endSection(id: ramSectionID)
        try output.flush()
        return runs
    }

    func publish() {
        owner.report(notify: false) { progress in
            let kept = progress.ram
            progress.ram = sender.progress
            progress.ram.transferredByteCount = output.sentByteCount + (owner.hooks?.sideByteCount ?? 0)
            progress.ram.remainingByteCount = sender.pendingByteCount
            progress.ram.dirtyPagesPerSecond = kept.dirtyPagesPerSecond
            progress.ram.bytesPerSecond = kept.bytesPerSecond
            progress.ram.precopyByteCount = kept.precopyByteCount
            progress.ram.downtimeByteCount = kept.downtimeByteCount
            progress.ram.postcopyByteCount = kept.postcopyByteCount
            progress.ram.postcopyRequests = kept.postcopyRequests
            progress.ram.multifdByteCount = configuration.has(.multifd) ? owner.hooks?.sideByteCount ?? 0 : 0
        }
    }

    // MARK: Stopped

    private func pauseGuest() throws(MigrationError) {
        try checkOrders()
        let start = now()
        pausedAt = start
        do { try owner.guest.pause() } catch {
            throw MigrationError(.guestFailed, in: .paused, "the guest cannot be stopped", cause: error)
        }
        try sender.synchronise(phase: .paused)
        owner.report(notify: false) { $0.timing.pauseNanoseconds = now() - start }
    }

    private func waitForContinue() throws(MigrationError) {
        owner.report { $0.status = .preSwitchover }
        while !owner.orders.wait(timeoutNanoseconds: 50_000_000, until: { $0.continues || $0.isCancelled }) {
            try returnPath?.poll()
        }
        try checkOrders()
    }

    private func sendRemainder() throws(MigrationError) {
        owner.report { $0.status = .device }
        let start = now()
        let before = output.byteCount + (owner.hooks?.sideByteCount ?? 0)
        if owner.hooks?.disposition == .givesAway { try sendAndGiveAway() }
        if configuration.writesSwitchoverStart { output.writer.writeCommand(.switchoverStart) }
        output.writer.beginSection(SectionHeader(.end, id: ramSectionID, name: "ram", version: 4))
        try sender.writePages(to: output, .finish) { () throws(MigrationError) in
            try checkOrders()
            return .max
        }
        output.writer.endSection(id: ramSectionID)
        let paged = now()
        let description = try writeComponents(to: output.writer)
        output.writer.writeEndOfStream()
        output.writer.writeDescription(description)
        let saved = now()
        try checkOrders()
        try returnPath?.poll()
        try output.flush()
        if !configuration.has(.returnPath) {
            do throws(TransportError) { try output.transport.finishSending() } catch {
                throw error.migrationError(in: .switchover, "finishing")
            }
        }
        let sent = now()
        owner.report(notify: false) { progress in
            progress.timing.finalPagesNanoseconds = paged - start
            progress.timing.saveNanoseconds = saved - paged
            progress.timing.sendNanoseconds = sent - saved
            progress.ram.downtimeByteCount = output.byteCount + (owner.hooks?.sideByteCount ?? 0) - before
        }
        publish()
    }

    /// Every component's section; answers the self-description.
    func writeComponents(to writer: StreamWriter) throws(MigrationError) -> [UInt8] {
        var description: VMDescription? = configuration.writesDescription ? VMDescription() : nil
        var id = ramSectionID + 1
        var components = owner.guest.components
        if !components.contains(where: { $0.sectionName == GlobalState.name }) {
            components.append(GlobalState(runState: configuration.runState ?? (wasRunning ? "running" : "paused")))
        }
        for component in components {
            do throws(StateError) {
                try SectionEncoder.encode(
                    component, id: id, layout: configuration.layout, to: writer, description: &description)
            } catch {
                throw MigrationError(
                    .stateRejected, in: .switchover, "\(component.sectionName) has no state that can be written",
                    cause: error)
            }
            id += 1
        }
        return description?.json ?? Array("{}".utf8)
    }

    /// PARTs of a few megabytes, each followed by a PING: when its PONG is here the destination has the pages, and they
    /// are freed. So many pieces are on their way at once.
    private func sendAndGiveAway() throws(MigrationError) {
        guard let hooks = owner.hooks, let returnPath else { return }
        var unconfirmed: [(value: UInt32, runs: [PageRun])] = []
        while sender.pendingPageCount > 0 {
            var pages = 0
            let pagesBefore = sender.pendingPageCount
            let runs = try sendPart { () throws(MigrationError) in
                pages = pagesBefore - sender.pendingPageCount
                return pages >= Self.piecePages ? 0 : .max
            }
            pingValue &+= 1
            output.writer.writeCommand(.ping(pingValue))
            try output.flush()
            unconfirmed.append((pingValue, runs))
            try returnPath.poll()
            while let oldest = unconfirmed.first {
                if returnPath.takePong(oldest.value) {
                    unconfirmed.removeFirst()
                    try hooks.destinationHas(oldest.runs)
                } else if unconfirmed.count >= Self.piecesInFlight {
                    try returnPath.wait(in: phase)
                } else {
                    break
                }
            }
            publish()
        }
        while let oldest = unconfirmed.first {
            if returnPath.takePong(oldest.value) {
                unconfirmed.removeFirst()
                try hooks.destinationHas(oldest.runs)
            } else {
                try returnPath.wait(in: phase)
            }
        }
    }

    /// 8 MiB per piece, two of them: well below the 32 MiB that may exist twice. Shorter ones would have the destination's
    /// readers wait for each other more often.
    static let piecePages = 2048
    static let piecesInFlight = 2

    // MARK: The end

    private func awaitVerdict() -> SourceMachine.Action {
        let start = now()
        let limit = configuration.verdictLimitMilliseconds
        do throws(MigrationError) {
            if owner.ownership == nil {
                let isInterrupted = owner.orders.update { orders in
                    orders.isCommitted = true
                    return orders.isCancelled
                }
                // The order came between the last byte and here: nobody can hear the verdict any more.
                if isInterrupted {
                    throw MigrationError(.channelClosed, in: phase, "cancelled when everything had been sent")
                }
            }
            if machine.state == .committed, let ownership = owner.ownership {
                do { try ownership.offer() } catch {
                    throw MigrationError(.guestFailed, in: .commit, "the guest cannot be offered", cause: error)
                }
            }
            while true {
                if owner.ownership?.isTaken == true { break }
                if let status = returnPath?.shutStatus {
                    guard status == 0 else {
                        throw MigrationError(
                            .peerRefused, in: phase, "the destination reports that it failed (\(status))")
                    }
                    break
                }
                if limit > 0, now() - start > limit * 1_000_000 {
                    throw MigrationError(.timedOut, in: phase, "the destination does not say that it has the guest")
                }
                if owner.ownership != nil { try checkOrders() }
                if let returnPath {
                    try returnPath.wait(in: phase, timeoutMilliseconds: limit > 0 || owner.ownership != nil ? 10 : 200)
                } else {
                    owner.orders.wait(timeoutNanoseconds: 1_000_000) { $0.isCancelled }
                }
            }
        } catch {
            // Whoever has the word, has the guest.
            if machine.state == .committed, let ownership = owner.ownership {
                if ownership.withdraw() {
                    if failure == nil { failure = error }
                    return machine.handle(.destinationRefused)
                }
                owner.report(notify: false) { $0.timing.resumeNanoseconds = now() - start }
                return machine.handle(.destinationRuns)
            }
            // A channel that was broken off here is lost in a postcopy, not a cancel that comes too late: waiting on it
            // again would fail again at once, for ever.
            return machine.state == .settling ? failInPostcopy(error) : fail(error)
        }
        owner.report(notify: false) { $0.timing.resumeNanoseconds = now() - start }
        return machine.handle(.destinationRuns)
    }

    private func end(_ outcome: MigrationOutcome, _ start: UInt64) -> MigrationOutcome {
        var status: MigrationStatus = outcome == .guestMoved ? .completed : .failed
        switch outcome {
        case .guestMoved:
            // What broke a postcopy's channel when the destination had everything was no failure of the migration.
            if let failure {
                owner.report(notify: false) {
                    $0.notices.append(
                        "the destination has the guest and all of its memory; its last word did not come: \(failure)")
                }
            }
            failure = nil
        case .undecided where owner.progress.hasLeft && postcopy.isConfirmed:
            failure = MigrationError(
                .undecided, in: .postcopy,
                "the guest has left with all of its memory, and the destination reports that it failed: what is here is "
                    + "older than what ran there", cause: failure)
        case .undecided where owner.progress.hasLeft:
            failure = MigrationError(
                .undecided, in: .postcopy,
                "the guest has left, and not all of its pages are known to have arrived: it cannot go on here, and not at "
                    + "the destination beyond what it has", cause: failure)
        case .undecided:
            failure = MigrationError(
                .undecided, in: .commit,
                "everything was sent and the destination went silent: it may or may not run the guest", cause: failure)
        case .guestStayed:
            if failure?.code == .cancelled {
                owner.report { $0.status = .cancelling }
                status = .cancelled
            }
            giveBack()
        }
        output.transport.close()
        if outcome == .guestStayed || (outcome == .guestMoved && !configuration.keepsWayBack) { owner.hooks?.end() }
        let end = now()
        owner.report { progress in
            publishCounts(&progress)
            progress.status = status
            progress.outcome = outcome
            progress.error = failure
            progress.throttlePercent = 0
            if outcome == .guestMoved {
                progress.ram.remainingByteCount = 0
                progress.ram.dirtyPagesPerSecond = 0
            }
            if let pausedAt, progress.timing.downtimeNanoseconds == nil {
                progress.timing.downtimeNanoseconds = end - pausedAt
            }
            progress.timing.totalNanoseconds = end - start
        }
        return outcome
    }

    func settle(_ outcome: MigrationOutcome) {
        if outcome == .guestStayed { giveBack() }
        owner.hooks?.end()
        owner.report { progress in
            progress.outcome = outcome
            progress.status = outcome == .guestMoved ? .completed : .failed
            progress.error = outcome == .guestMoved ? nil : failure
        }
    }

    private func publishCounts(_ progress: inout MigrationProgress) {
        progress.ram.transferredByteCount = output.sentByteCount + (owner.hooks?.sideByteCount ?? 0)
    }

    /// The guest as it was: memory whole, marks put back, full speed, running if it ran.
    private func giveBack() {
        do throws(MigrationError) {
            try owner.hooks?.takeBack()
        } catch {
            // Without its memory it must not run.
            failure = MigrationError(
                .guestFailed, in: phase, "the guest's memory could not be made whole again: \(error.message)",
                cause: failure)
            return
        }
        sender.putBack()
        owner.guest.setThrottle(percent: 0)
        guard wasRunning, pausedAt != nil else { return }
        do { try owner.guest.resume() } catch {
            failure = MigrationError(
                .guestFailed, in: phase, "the guest could not be resumed: \(error)", cause: failure)
        }
    }
}
