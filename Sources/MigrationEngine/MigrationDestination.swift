import ComponentState
package import GuestMemory
import MigrationStream
import Synchronization

/// The destination of a hand-over: takes a guest out of a channel and runs it, or leaves no trace.
///
/// The guest it is given must be complete but for its state: memory mapped, components made, nothing running. Make one
/// per attempt. ``run()`` blocks on a thread of its own; everything else may be called from any thread.
package final class MigrationDestination: Sendable {
    let guest: any MigratableGuest
    let configuration: MigrationConfiguration
    let hooks: (any DestinationRAMHooks)?
    let ownership: (any GuestOwnership)?
    let faults: UserFaultOpener
    let orders: Gate<MigrationOrders>
    private let current = Mutex(MigrationProgress())
    private let observer: (@Sendable (MigrationProgress) -> Void)?
    private let pageObserver: (@Sendable (RAMProgress) -> Void)?

    /// - Parameters:
    ///   - hooks: How the channel takes part in receiving RAM; nil takes everything from the stream.
    ///   - ownership: Who runs the guest, when both ends share memory.
    ///   - faults: Where a postcopy gets this process's page faults from.
    ///   - observer: Called on the migration's thread at each change of status.
    ///   - pageObserver: Called on the migration's thread whenever pages are accounted for.
    package init(
        guest: any MigratableGuest, transport: any MigrationTransport,
        configuration: MigrationConfiguration = MigrationConfiguration(), hooks: (any DestinationRAMHooks)? = nil,
        ownership: (any GuestOwnership)? = nil, faults: UserFaultOpener = .kernel,
        observer: (@Sendable (MigrationProgress) -> Void)? = nil,
        pageObserver: (@Sendable (RAMProgress) -> Void)? = nil
    ) {
        self.guest = guest
        self.faults = faults
        self.configuration = configuration
        self.hooks = hooks
        self.ownership = ownership
        self.observer = observer
        self.pageObserver = pageObserver
        orders = Gate(MigrationOrders(transport: transport))
    }

    /// Runs the migration to its end. ``MigrationOutcome/guestMoved``: the guest is here, and runs if it ran at the
    /// source. ``MigrationOutcome/guestStayed``: this guest must never be run.
    package func run() -> MigrationOutcome { DestinationDriver(self).run() }

    package var progress: MigrationProgress { current.withLock { $0 } }

    /// Gives up, if the guest does not run here yet.
    package func cancel() { orders.cancel() }

    /// Breaks the channel of a postcopy off, so that it can be recovered over another.
    package func breakChannel() { orders.read { $0.transport }.close() }

    /// Goes on over another channel, when the postcopy's own is lost.
    package func recover(over transport: any MigrationTransport) { orders.recover(over: transport) }

    /// A postcopy waits for a channel, and for nothing else: no page is missing, only the source's last word.
    package var lacksNothing: Bool {
        let progress = progress
        return progress.status == .postcopyPaused && progress.ram.remainingByteCount == 0
    }

    /// Ends at once. A guest that runs here with pages missing ends with it: whoever waits for a page sleeps until the
    /// process is gone. One that lacks nothing has arrived.
    package func abandon() {
        orders.update { orders in
            orders.isAbandoned = true
            orders.transport.interrupt()
        }
    }

    func report(notify: Bool = true, _ change: (inout MigrationProgress) -> Void) {
        let copy = current.withLock { progress in
            change(&progress)
            return progress
        }
        if notify { observer?(copy) }
        pageObserver?(copy.ram)
    }
}

/// Does what ``DestinationMachine`` says. Lives on the migration's thread.
final class DestinationDriver {
    let owner: MigrationDestination
    let configuration: MigrationConfiguration
    var machine: DestinationMachine
    var input: StreamInput
    var output: StreamOutput?
    var reader: StreamReader
    let receiver: RAMReceiver
    var register: SectionRegister
    let globalState: GlobalState
    var failure: MigrationError?
    var loadNanoseconds: UInt64 = 0
    /// Once a postcopy was announced.
    var missing: MissingPages?
    var returnPath: ReturnPathWriter?
    var postcopy: (memory: PostcopyMemory, pages: PostcopyReceiver)?

    init(_ owner: MigrationDestination) {
        self.owner = owner
        configuration = owner.configuration
        let transport = owner.orders.read { $0.transport }
        input = StreamInput(transport: transport)
        reader = StreamReader(
            limits: configuration.limits, configurationIsOptional: configuration.configurationIsOptional,
            hasFooters: configuration.hasFooters)
        receiver = RAMReceiver(guest: owner.guest, configuration: configuration, hooks: owner.hooks)
        // Capabilities are the source's to choose where the stream announces what follows, as here.
        machine = DestinationMachine(allowsPostcopy: true)
        var components = owner.guest.components
        if let own = components.first(where: { $0 is GlobalState }) as? GlobalState {
            globalState = own
        } else {
            globalState = GlobalState()
            components.append(globalState)
        }
        register = SectionRegister(components: components)
        transport.setStallLimit(milliseconds: configuration.parameters.stallLimitMilliseconds)
    }

    func run() -> MigrationOutcome {
        let start = now()
        owner.report {
            $0 = MigrationProgress()
            $0.status = .setup
            $0.timing.startNanoseconds = start
        }
        do throws(MigrationError) {
            try configuration.validate()
            try judgeOwnMemory()
            try receiveStream()
        } catch {
            abandon(error)
        }
        guard case .finished(let outcome) = machine.state else { preconditionFailure("\(machine.state) at the end") }
        input.transport.close()
        owner.hooks?.end()
        owner.report { progress in
            progress.ram = postcopy?.pages.progress ?? receiver.progress
            progress.ram.postcopyRequests = postcopy?.memory.requestCount ?? 0
            progress.ram.transferredByteCount = input.receivedByteCount
            progress.outcome = outcome
            progress.error = failure
            progress.status =
                outcome == .guestMoved ? .completed : failure?.code == .cancelled ? .cancelled : .failed
            progress.timing.loadNanoseconds = loadNanoseconds
            progress.timing.totalNanoseconds = now() - start
        }
        return outcome
    }

    /// Pages must not come into memory that the source's guest is using.
    private func judgeOwnMemory() throws(MigrationError) {
        guard !configuration.handsOverMemory, !configuration.has(.ignoreShared),
            let block = owner.guest.ramBlocks.first(where: \.isShared)
        else { return }
        throw MigrationError(
            .invalidConfiguration, in: .setup,
            "RAM block \(block.name) is a file that another process has as its memory too, the source maybe: what it sends "
                + "would be written over what its guest uses; switch x-ignore-shared on at both ends, or give this end a "
                + "file of its own")
    }

    private func abandon(_ error: MigrationError) {
        if failure == nil { failure = error }
        let event: DestinationMachine.Event =
            switch error.code {
            case .cancelled: owner.orders.read { $0.isAbandoned } ? .gaveUp : .cancelRequested
            case .channelClosed, .channelFailed, .timedOut: .channelLost
            default: .failed
            }
        guard machine.handle(event) == .abandon, error.code != .channelClosed else { return }
        // The source would find out from the closed channel, but not that it was for a reason.
        // A source that was refused before it opened the return path may have sent everything by now, and waits.
        if let output = output ?? (input.transport.hasReturnPath ? StreamOutput(transport: input.transport) : nil) {
            ReturnPathMessage.shut(status: 1).encode(to: output.writer)
            try? output.flush()
        }
    }

    private func checkOrders() throws(MigrationError) {
        if owner.orders.read({ $0.isCancelled || $0.isAbandoned }) {
            throw MigrationError(.cancelled, in: machine.phase, "cancelled")
        }
    }

    // MARK: The stream

    private func receiveStream() throws(MigrationError) {
        while true {
            input.phase = machine.phase
            try checkOrders()
            let record = try input.decode { (cursor: inout StreamCursor) throws(StreamError) in
                try reader.next(&cursor)
            }
            switch record {
            case .header: try advance(.header, "a header")
            case .configuration(let received):
                try advance(.configuration, "CONFIGURATION")
                try judge(received)
                owner.report { $0.status = .active }
            case .section(let header): try receiveSection(header)
            case .command(.packaged(let byteCount)): return try receivePostcopy(packageByteCount: byteCount)
            case .command(let command): try obey(command)
            case .endOfStream:
                if try advance(.endOfStream, "the end") == .claimGuest {
                    try takeDescription()
                    try claimGuest()
                }
                return
            case .description: break
            }
            if machine.state == .awaitingConfiguration && configuration.configurationIsOptional,
                let next = try? peekByte(), next != RecordType.configuration.rawValue
            {
                try advance(.configuration, "the first section")
            }
        }
    }

    private func peekByte() throws(MigrationError) -> UInt8 {
        if input.buffer.count == 0 { try input.fill(minimum: 1) }
        let cursor = input.buffer.cursor(isFinal: input.isAtEnd)
        do throws(StreamError) { return try cursor.peekByte() } catch {
            throw StreamInput.migrationError(error, in: input.phase, input.isAtEnd)
        }
    }

    @discardableResult
    func advance(_ event: DestinationMachine.Event, _ what: String) throws(MigrationError)
        -> DestinationMachine.Action
    {
        let action = machine.handle(event)
        if action == .refuse {
            throw MigrationError(.streamMalformed, in: machine.phase, "\(what) may not come here")
        }
        return action
    }

    private func judge(_ received: StreamConfiguration) throws(MigrationError) {
        guard received.machineName == owner.guest.machineName else {
            throw MigrationError(
                .machineMismatch, in: .setup,
                "the stream is for machine \(received.machineName), this is \(owner.guest.machineName); start both sides "
                    + "with the same machine")
        }
        if let bits = received.pageBits, bits != guestPageSize.trailingZeroBitCount {
            throw MigrationError(.machineMismatch, in: .setup, "the source has pages of 2^\(bits) bytes")
        }
        let announced = received.capabilities ?? []
        for name in announced {
            guard let capability = MigrationCapability(rawValue: name), capability.isAnnounced else {
                throw MigrationError(
                    .capabilityMismatch, in: .setup, "the source has a capability that is not known here: \(name)")
            }
            guard configuration.has(capability) else {
                throw MigrationError(.capabilityMismatch, in: .setup, "\(name) is on at the source and off here")
            }
        }
        for capability in MigrationCapability.allCases
        where capability.isAnnounced && configuration.has(capability) && !announced.contains(capability.rawValue) {
            throw MigrationError(
                .capabilityMismatch, in: .setup, "\(capability.rawValue) is on here and off at the source")
        }
        if configuration.has(.validateUUID), let own = configuration.uuid, let other = received.uuid, own != other {
            throw MigrationError(.machineMismatch, in: .setup, "the guest at the source has another uuid")
        }
    }

    private func receiveSection(_ header: SectionHeader) throws(MigrationError) {
        if header.name == "ram" {
            guard header.instance == 0 else {
                throw MigrationError(
                    .unknownSection, in: machine.phase, "this machine has no section ram \(header.instance)")
            }
            try advance(.ramSection, "section ram")
            do throws(MigrationError) { try receiver.receiveSection(header, from: input) } catch {
                throw error.inSection("ram")
            }
            publish()
        } else {
            guard header.kind == .full else {
                throw MigrationError(
                    .unknownSection, in: machine.phase, "this machine has no iterating section \(header.name)")
            }
            try advance(.deviceSection, "section \(header.name)")
            try receiveComponent(header)
        }
        do throws(MigrationError) {
            try input.decode { (cursor: inout StreamCursor) throws(StreamError) in try reader.endSection(&cursor) }
        } catch {
            var error = error
            if error.code == .streamMalformed {
                error.message =
                    "section \(header.name) \(header.instance) has another size here; it is from a release that is not "
                    + "understood, or damaged"
            } else if error.code == .channelClosed {
                error.message = "the stream ended inside section \(header.name) \(header.instance)"
            }
            throw error
        }
    }

    private func receiveComponent(_ header: SectionHeader) throws(MigrationError) {
        let start = now()
        let component = try register.begin(name: header.name, instance: header.instance, version: header.version)
        let layout = register.layout
        do throws(MigrationError) {
            try input.decode { (cursor: inout StreamCursor) throws(StreamError) in
                try SectionDecoder.decode(
                    component, header: header, layout: layout, from: &cursor, limits: configuration.limits)
            }
        } catch {
            var error = error
            if error.code == .stateRejected {
                error.message = "section \(header.name) \(header.instance) was not taken"
            } else if error.code == .streamMalformed {
                error.message =
                    "section \(header.name) \(header.instance) was not taken; it is from a release that is not "
                    + "understood, or damaged"
            } else if error.code == .channelClosed {
                error.message =
                    "the stream ended inside section \(header.name) \(header.instance); take it from the source again"
            }
            throw error
        }
        loadNanoseconds += now() - start
    }

    private func publish() {
        owner.report(notify: false) { progress in
            progress.ram = receiver.progress
            progress.ram.transferredByteCount = input.receivedByteCount
        }
    }

    private func obey(_ command: StreamCommand) throws(MigrationError) {
        switch command {
        case .openReturnPath:
            guard input.transport.hasReturnPath else {
                throw MigrationError(
                    .invalidConfiguration, in: machine.phase, "\(input.transport.name) has no return path")
            }
            if output == nil {
                output = StreamOutput(transport: input.transport)
                if configuration.has(.switchoverAck) {
                    ReturnPathMessage.switchoverAcknowledged.encode(to: output!.writer)
                    try output!.flush()
                }
            }
        case .ping(let value):
            guard let output else {
                throw MigrationError(.streamMalformed, in: machine.phase, "a PING without a return path")
            }
            if let hooks = owner.hooks, try hooks.answerPing(value, output) { return }
            ReturnPathMessage.pong(value).encode(to: output.writer)
            try output.flush()
        case .switchoverStart: break
        case .postcopyAdvise(let advice):
            try advance(.postcopyAdvise, "POSTCOPY_ADVISE")
            try judgeAdvice(advice)
            if advice != nil { try preparePostcopy() }
        case .postcopyDiscard(let block, let ranges):
            try advance(.postcopyDiscard, "POSTCOPY_RAM_DISCARD")
            try discard(block, ranges)
        case .packaged, .postcopyListen, .postcopyRun, .postcopyResume, .receivedBitmap, .enableColo:
            throw MigrationError(.streamMalformed, in: machine.phase, "command \(command.number) may not come here")
        }
    }

    private func judgeAdvice(_ advice: StreamCommand.PostcopyAdvice?) throws(MigrationError) {
        guard let advice else { return }
        guard advice.pageSizeSummary == UInt64(guestPageSize), advice.targetPageSize == UInt64(guestPageSize) else {
            throw MigrationError(.ramMismatch, in: machine.phase, "the source has other page sizes")
        }
    }

    // MARK: The end

    /// How long a self-description may be late. Stock sources send one, but not every stream has it.
    private static let descriptionMilliseconds = 1000

    private func takeDescription() throws(MigrationError) {
        while reader.isAwaitingDescription {
            if input.buffer.count == 0 {
                guard try input.fill(timeoutMilliseconds: Self.descriptionMilliseconds) else { return }
                if input.isAtEnd { return }
            }
            // After the end nothing that comes can make the state wrong.
            do throws(MigrationError) {
                _ = try input.decode { (cursor: inout StreamCursor) throws(StreamError) in try reader.next(&cursor) }
            } catch {
                if error.code == .cancelled { throw error }
                owner.report(notify: false) { $0.notices.append("no self-description after the end: \(error)") }
                return
            }
        }
    }

    private func claimGuest() throws(MigrationError) {
        let start = now()
        input.phase = .commit
        try receiver.requireComplete()
        try register.requireAll()
        let surplus =
            register.surplus + receiver.surplus.map { "RAM block \($0) was left out: it is not the guest's own" }
        if !surplus.isEmpty { owner.report(notify: false) { $0.notices += surplus } }
        do { try owner.guest.finishLoading() } catch {
            throw MigrationError(.stateRejected, in: .commit, "the loaded state does not fit together", cause: error)
        }
        try checkOrders()
        if let ownership = owner.ownership, !ownership.claim() {
            _ = machine.handle(.withdrawn)
            failure = MigrationError(.cancelled, in: .commit, "the source took the guest back")
            return
        }
        if globalState.isRunning && !configuration.staysPaused {
            do { try owner.guest.resume() } catch {
                throw MigrationError(.guestFailed, in: .commit, "the guest cannot be resumed", cause: error)
            }
        }
        owner.report(notify: false) { $0.timing.resumeNanoseconds = now() - start }
        _ = machine.handle(.claimed)
        // The guest runs; that the source hears of it is for the source's sake only.
        if let output {
            ReturnPathMessage.shut(status: 0).encode(to: output.writer)
            do throws(MigrationError) { try output.flush() } catch {
                owner.report(notify: false) {
                    $0.notices.append("the source did not hear that the guest runs: \(error)")
                }
            }
        }
    }
}
