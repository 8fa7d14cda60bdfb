import LinuxCalls
import MigrationChannels
import MigrationEngine
import QMPProtocol
import Synchronization

/// The supervisor's migrations, one at a time: out of this process, or into it. Lives on the monitor's thread; the
/// migration itself has a thread of its own.
///
/// SAFETY: every member is touched on the monitor's thread only.
final class MigrationControl: @unchecked Sendable {
    // SAFETY: mutable members are touched only on the loop's thread; entry points check it.

    unowned let supervisor: Supervisor
    let loop: EventLoop
    var settings = MigrationSettings()
    /// The latest migration, running or over.
    var report: MigrationReport?
    var source: MigrationSource?
    var destination: MigrationDestination?
    private var thread: HostThread?
    /// From `migrate` until its thread has ended.
    private(set) var isActive = false
    private var isCancelled = false
    var listener: (descriptor: OwnedDescriptor, token: EventLoop.Token, path: String?)?
    /// Waits for the connections of a multifd source.
    private var acceptor: MultiFDAcceptor?
    /// `migrate-start-postcopy` came before there was a source to tell.
    var wantsPostcopy = false
    /// A guest that ran here with pages missing, and will not get them.
    private(set) var guestIsIncomplete = false
    /// The memory of the guest that left was given away: it can never run here again.
    private(set) var hasGivenAway = false
    private var exitsOnError = true
    /// In, RAM that came by descriptor.
    private var arriving: ArrivingMemory?
    /// Out, the channel over which descriptors go before there is a migration to cancel.
    private var opening: DescriptorTransport?
    private var lastEvent: (status: MigrationStatus, pass: UInt64) = (.none, 0)

    init(supervisor: Supervisor, loop: EventLoop) {
        self.supervisor = supervisor
        self.loop = loop
    }

    /// `query-migrate`.
    var query: JSONValue {
        guard var report else { return [:] }
        // That it is over is said by `finish`: whoever hears of it may give the next command at once.
        if let progress = source?.progress ?? destination?.progress, isActive, progress.status != .none,
            !progress.status.isFinal
        {
            report.progress = progress
        }
        return report.json(nowNanoseconds: monotonicNanoseconds())
    }

    var status: MigrationStatus { source.map { $0.progress.status } ?? report?.progress.status ?? .none }

    // MARK: Out

    func migrate(to route: MigrationRoute) throws(QMPError) {
        precondition(loop.isLoopThread)
        guard !isActive else { throw QMPError("There's a migration process in progress") }
        switch supervisor.runState {
        case .inmigrate: throw QMPError("Guest is waiting for an incoming migration")
        case .running, .paused, .prelaunch: break
        case .postmigrate where !hasGivenAway: break
        case let state: throw QMPError("Can't migrate the vm that is in state '\(state.rawValue)'")
        }
        let configuration = settings.configuration(uuid: supervisor.uuidBytes)
        do throws(MigrationError) { try configuration.validate() } catch { throw QMPError(error.message) }
        if configuration.layout != .native, let reason = supervisor.guest.obstacle(to: configuration.layout) {
            throw QMPError(
                "\(reason); start a guest that is to go there with --compat \(configuration.layout.rawValue)")
        }
        if configuration.handsOverMemory, route.cpr == nil {
            throw QMPError("missing 'cpr' migration channel, which mode cpr-transfer needs")
        }
        if !configuration.handsOverMemory, route.cpr != nil {
            throw QMPError("a 'cpr' migration channel needs mode cpr-transfer (migrate-set-parameters)")
        }
        let address = route.main
        try MigrationEquipment.judge(address, configuration)
        let descriptor = try descriptor(for: address)
        begin(.source, channel: address.description, configuration)
        run(name: "migration") { [self] in
            if let cpr = route.cpr {
                do throws(MigrationError) { try handOverMemory(to: cpr) } catch {
                    return finish(Self.failure(error), .guestStayed)
                }
            }
            let opened: MigrationOpening.Opened
            do throws(SystemCallError) {
                opened = try MigrationOpening.outgoing(
                    address, descriptor: descriptor, channelCount: MigrationEquipment.channelCount(configuration),
                    byReference: !configuration.has(.releaseRAM))
            } catch {
                return finish(Self.failure("cannot connect to \(address): \(error)", cause: error), .guestStayed)
            }
            emigrate(over: opened, configuration)
        }
    }

    /// On the migration's thread: the descriptors of RAM, before the main channel opens. The guest runs on.
    private func handOverMemory(to address: MigrationAddress) throws(MigrationError) {
        let transport: DescriptorTransport
        do throws(SystemCallError) {
            guard case .unix = address else { throw SystemCallError("connect", .notSocket, subject: "\(address)") }
            transport = try MigrationOpening.outgoing(address, descriptor: nil).transport
        } catch {
            throw MigrationError(
                .channelFailed, in: .setup, "descriptors cannot be sent to \(address)", cause: error)
        }
        defer { transport.close() }
        transport.setStallLimit(milliseconds: Self.silenceMilliseconds)
        loop.sync { [self] in
            opening = transport
            if isCancelled { transport.interrupt() }
        }
        defer { loop.sync { [self] in opening = nil } }
        // What a failed page flip left in foreign files must be in the blocks' own.
        do { try supervisor.guest.makeMemoryWhole() } catch {
            throw MigrationError(.guestFailed, in: .setup, "the guest's memory cannot be made whole", cause: error)
        }
        if let reason = CPRChannel.obstacle(to: supervisor.guest.ramBlocks) {
            throw MigrationError(.invalidConfiguration, in: .setup, reason)
        }
        try CPRChannel.send(supervisor.guest.ramBlocks, over: transport)
    }

    /// How long the other end may take to build its machine.
    private static let silenceMilliseconds: UInt64 = 60_000

    /// On the migration's thread.
    private func emigrate(over opened: MigrationOpening.Opened, _ configuration: MigrationConfiguration) {
        let configuration = withSharedBlocks(configuration)
        let guest = MigratingGuest(of: supervisor)
        let equipment: MigrationEquipment.Source
        do throws(MigrationError) {
            equipment = try MigrationEquipment.source(opened, guest: guest, configuration)
        } catch { return finish(Self.failure(error), .guestStayed) }
        let source = MigrationSource(
            guest: guest, transport: equipment.transport, configuration: configuration, hooks: equipment.hooks,
            observer: { [weak self] in self?.observe($0) })
        let started = HostSemaphore()
        loop.perform { [self] in
            self.source = source
            if isCancelled { source.cancel() }
            if wantsPostcopy { source.startPostcopy() }
            source.adjust(settings.parameters)
            started.signal()
        }
        started.wait()
        let outcome = source.run()
        var progress = source.progress
        if let refusal = opened.transport.referenceRefusal {
            progress.notices.append("pages were copied into the socket: \(refusal)")
        }
        if outcome == .guestStayed, let error = progress.error {
            let hints = supervisor.guest.startHints(for: configuration.layout)
            if !hints.isEmpty, error.code != .cancelled {
                progress.error?.message += "; \(hints.joined(separator: "; "))"
            }
        }
        let releases = configuration.has(.releaseRAM) && progress.hasLeft
        // What has run elsewhere in part is in no state to run here.
        let isStale = progress.hasLeft && outcome == .undecided
        // Memory that the other end has too, it writes to.
        let gaveAway = equipment.givesAway || configuration.handsOverMemory || !configuration.sharedBlocks.isEmpty
        finish(progress, outcome, gaveAway: gaveAway || releases || isStale)
    }

    func cancel() throws(QMPError) {
        precondition(loop.isLoopThread)
        // A guest that has everything need not wait for a source that is gone.
        if isActive, let destination, destination.lacksNothing {
            closeListener()
            return destination.abandon()
        }
        guard isActive, report?.side == .source else { return }
        try refuseCancelInPostcopy()
        isCancelled = true
        opening?.interrupt()
        source?.cancel()
    }

    /// `migrate-set-parameters`: for the next migration, and limits also for the one that runs.
    func set(parameters: JSONObject) throws(QMPError) {
        precondition(loop.isLoopThread)
        try settings.set(parameters: parameters)
        source?.adjust(settings.parameters)
    }

    func continueSwitchover(from state: String) throws(QMPError) {
        guard let source, isActive, source.progress.status.rawValue == state, state == "pre-switchover" else {
            throw QMPError("Migration not in expected state: \(status.rawValue)")
        }
        source.continueSwitchover()
    }

    // MARK: In

    /// RAM came by descriptor already; the stream will name it and send none.
    func expect(_ memory: ArrivingMemory) {
        precondition(loop.isLoopThread)
        arriving = memory
        settings.handsOverMemory = true
    }

    func receive(from address: MigrationAddress, exitsOnError: Bool) throws(QMPError) {
        precondition(loop.isLoopThread)
        guard supervisor.runState == .inmigrate else {
            throw QMPError("'-incoming' was not specified on the command line")
        }
        guard !isActive, listener == nil, report == nil else {
            throw QMPError("The incoming migration has already been started")
        }
        self.exitsOnError = exitsOnError
        let configuration = settings.configuration(uuid: supervisor.uuidBytes)
        do throws(MigrationError) { try configuration.validate() } catch { throw QMPError(error.message) }
        try MigrationEquipment.judge(address, configuration)
        do throws(SystemCallError) {
            if let (descriptor, actual) = try MigrationOpening.listen(address) {
                try descriptor.setNonBlocking(true)
                let token = try loop.watch(descriptor, for: .readable) { [weak self] _ in self?.accept() }
                var path: String?
                if case .unix(let text) = actual, !text.hasPrefix("@") { path = text }
                listener = (descriptor, token, path)
                report = newReport(.destination, channel: actual.description, configuration)
                report?.socketAddress = actual.socketAddress
                report?.progress.status = .setup
                tell(.setup)
                arriving?.letSourceGoOn()
                return
            }
        } catch { throw QMPError("cannot listen at \(address): \(error)") }
        let descriptor = try descriptor(for: address)
        begin(.destination, channel: address.description, configuration)
        arriving?.letSourceGoOn()
        run(name: "migration") { [self] in
            do throws(SystemCallError) {
                guard let opened = try MigrationOpening.incoming(address, descriptor: descriptor) else { return }
                immigrate(over: opened.transport, configuration)
                _ = opened.command?.wait(timeoutMilliseconds: 10_000)
            } catch {
                finish(Self.failure("cannot open \(address): \(error)", cause: error), .guestStayed)
            }
        }
    }

    /// A guest whose RAM is here already, and whose state is to be read from `transport`.
    func receive(over transport: any MigrationTransport) {
        precondition(loop.isLoopThread)
        let configuration = settings.configuration(uuid: supervisor.uuidBytes)
        begin(.destination, channel: transport.name, configuration)
        run(name: "migration") { [self] in immigrate(over: transport, configuration) }
    }

    private func accept() {
        guard let listener, let socket = try? StreamSocket.accept(from: listener.descriptor) else { return }
        let configuration = settings.configuration(uuid: supervisor.uuidBytes)
        let channelCount = MigrationEquipment.channelCount(configuration)
        // Its other connections come to the same address.
        let path = listener.path
        closeListener(keepsPath: channelCount > 0)
        let channel = report?.channel ?? ""
        let address = report?.socketAddress
        begin(.destination, channel: channel, configuration)
        report?.socketAddress = address
        if channelCount > 0 {
            do throws(SystemCallError) {
                let acceptor = try MultiFDAcceptor(
                    listener: listener.descriptor, name: channel, channelCount: channelCount)
                self.acceptor = acceptor
                run(name: "migration") { [self] in
                    do throws(MigrationError) {
                        let connected = Result { () throws(MigrationError) in try acceptor.accept(first: socket) }
                        if let path { FileInformation.remove(path) }
                        let (main, channels) = try connected.get()
                        immigrate(over: main, channels: channels, acceptor: acceptor, configuration)
                    } catch { finish(Self.failure(error), .guestStayed) }
                }
            } catch { finish(Self.failure("\(error)", cause: error), .guestStayed) }
            return
        }
        run(name: "migration") { [self] in
            do throws(SystemCallError) {
                immigrate(over: try DescriptorTransport(name: channel, socket: socket), configuration)
            } catch {
                finish(Self.failure("\(error)", cause: error), .guestStayed)
            }
        }
    }

    func closeListener(keepsPath: Bool = false) {
        guard let listener else { return }
        loop.remove(listener.token)
        if !keepsPath, let path = listener.path { FileInformation.remove(path) }
        self.listener = nil
    }

    /// On the migration's thread.
    private func immigrate(
        over transport: any MigrationTransport, channels: [DescriptorTransport] = [],
        acceptor: MultiFDAcceptor? = nil, _ configuration: MigrationConfiguration
    ) {
        var configuration = withSharedBlocks(configuration)
        configuration.staysPaused = supervisor.configuration.isPaused
        for block in supervisor.guest.ramBlocks where configuration.sharedBlocks.contains(block.name) {
            if let file = block.file { PageTables.populateSoon(block.mapping, of: file) }
        }
        // A file says by itself where its pages are.
        if MappedRAMDestination.isAnnounced(in: transport) { configuration.capabilities.insert(.mappedRAM) }
        let memory = loop.sync { [self] in arriving }
        let guest = MigratingGuest(of: supervisor, memory: memory)
        let equipment = MigrationEquipment.destination(
            transport, channels: channels, acceptor: acceptor, configuration)
        let destination = MigrationDestination(
            guest: guest, transport: equipment.transport, configuration: configuration, hooks: equipment.hooks,
            observer: { [weak self] in self?.observe($0) })
        loop.perform { [self] in
            self.destination = destination
            if isCancelled { destination.cancel() }
        }
        loop.barrier()
        let outcome = destination.run()
        finish(destination.progress, outcome)
    }

    // MARK: Both

    /// With `x-ignore-shared`, memory that has a name is there at both ends.
    private func withSharedBlocks(_ configuration: MigrationConfiguration) -> MigrationConfiguration {
        guard configuration.has(.ignoreShared) else { return configuration }
        var configuration = configuration
        configuration.sharedBlocks = Set(supervisor.guest.ramBlocks.filter(\.isNamed).map(\.name))
        return configuration
    }

    func descriptor(for address: MigrationAddress) throws(QMPError) -> OwnedDescriptor? {
        guard case .descriptor(let name) = address else { return nil }
        if let descriptor = supervisor.descriptorStore.take(name: name) { return descriptor }
        guard let number = CInt(name), number > 2, let copy = try? OwnedDescriptor.duplicate(of: number) else {
            throw QMPError("File descriptor named '\(name)' has not been found")
        }
        return copy
    }

    private func newReport(
        _ side: MigrationReport.Side, channel: String, _ configuration: MigrationConfiguration
    ) -> MigrationReport {
        MigrationReport(
            side: side, progress: MigrationProgress(), startNanoseconds: monotonicNanoseconds(),
            isAutoConverging: configuration.has(.autoConverge), channel: channel, strategy: configuration.strategy,
            capabilities: configuration.capabilities, handsOverMemory: configuration.handsOverMemory,
            sharesMemory: !withSharedBlocks(configuration).sharedBlocks.isEmpty)
    }

    private func begin(_ side: MigrationReport.Side, channel: String, _ configuration: MigrationConfiguration) {
        isActive = true
        isCancelled = false
        wantsPostcopy = false
        source = nil
        destination = nil
        lastEvent = report == nil ? (.none, 0) : (lastEvent.status == .setup ? .setup : .none, 0)
        report = newReport(side, channel: channel, configuration)
        report?.progress.status = .setup
        tell(.setup)
    }

    private func run(name: String, _ body: @escaping @Sendable () -> Void) {
        do { thread = try HostThread(name: name, body) } catch {
            finish(Self.failure("\(error)", cause: error), .guestStayed)
        }
    }

    private static func failure(_ message: String, cause: SystemCallError) -> MigrationProgress {
        failure(MigrationError(.channelFailed, in: .setup, message))
    }

    private static func failure(_ error: MigrationError) -> MigrationProgress {
        var progress = MigrationProgress()
        progress.status = error.code == .cancelled ? .cancelled : .failed
        progress.error = error
        progress.outcome = .guestStayed
        return progress
    }

    /// On the migration's thread: changes of status and rounds become events.
    private func observe(_ progress: MigrationProgress) {
        guard !progress.status.isFinal else { return }  // told by finish, when the run state is right
        loop.perform { [self] in
            report?.progress = progress
            tell(progress.status)
            if progress.status == .postcopyPaused, !waiters.isEmpty { destination?.abandon() }
            if progress.ram.dirtySyncCount > lastEvent.pass {
                lastEvent.pass = progress.ram.dirtySyncCount
                if settings.capabilities.contains(.events), report?.side == .source {
                    supervisor.announce(.migrationPass, ["pass": JSONValue(progress.ram.dirtySyncCount)])
                }
            }
        }
    }

    private func tell(_ status: MigrationStatus) {
        guard status != lastEvent.status else { return }
        lastEvent.status = status
        if settings.capabilities.contains(.events) {
            supervisor.announce(.migration, ["status": .string(status.rawValue)])
        }
    }

    /// The end, from the migration's thread or the loop's.
    private func finish(_ progress: MigrationProgress, _ outcome: MigrationOutcome, gaveAway: Bool = false) {
        loop.perform { [self] in
            let side = report?.side ?? .source
            var progress = progress
            if isCancelled && outcome == .guestStayed { progress.status = .cancelled }
            report?.progress = progress
            thread = nil
            acceptor = nil
            // Its channels are closed with it; one that is undecided still has what it takes to settle it.
            if outcome != .undecided { source = nil }
            destination = nil
            isActive = false
            if outcome != .guestStayed && side == .source { hasGivenAway = gaveAway }
            if outcome == .undecided && side == .destination { guestIsIncomplete = true }
            if outcome == .guestStayed && side == .source {
                // A guest that stood still before has not been resumed, and so its images are nobody's.
                do { try supervisor.guest.claimImages() } catch { Diagnostics.write("after the migration: \(error)") }
            }
            if outcome == .guestStayed && side == .destination { try? supervisor.guest.releaseImages() }
            if outcome == .guestMoved && side == .destination {
                for notice in progress.notices { Diagnostics.write(notice) }
            }
            supervisor.migrationEnded(side: side, outcome: outcome)
            if outcome == .guestMoved && side == .destination {
                try? supervisor.announcer.announce(settings.announceParameters)
            }
            tell(progress.status)
            if side == .destination, outcome != .guestMoved {
                let text = progress.error?.description ?? "the incoming guest did not arrive"
                Diagnostics.write(text)
                if exitsOnError {
                    supervisor.quit(cause: .hostError, status: ExitStatus.incomingFailed.rawValue)
                }
            }
            for waiter in waiters { waiter() }
            waiters = []
        }
    }

    private var waiters: [@Sendable () -> Void] = []

    /// Gives up whatever runs; `done` is called on the loop when nothing does any more.
    /// - Parameter guestEnded: The guest itself has: a postcopy that works may come to its end, for the source's sake.
    func abandon(guestEnded: Bool = false, _ done: @escaping @Sendable () -> Void) {
        precondition(loop.isLoopThread)
        closeListener()
        guard isActive else { return done() }
        isCancelled = true
        exitsOnError = false
        opening?.interrupt()
        acceptor?.cancel()
        waiters.append(done)
        source?.cancel()
        source?.abandon()
        guard let destination else { return }
        if !guestEnded || destination.progress.status != .postcopyActive { destination.abandon() }
    }
}
