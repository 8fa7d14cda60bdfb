import Glibc
package import LinuxCalls
import MigrationEngine
package import QMPProtocol
import Synchronization

/// Owns a running guest: its machine, its run directory, its monitor. The one place where machine and migration meet.
///
/// The monitor has one thread, `loop`, and nothing blocks there: what takes time runs on `worker` (stopping processors,
/// writing files) or on a thread of its own (moving the guest), and comes back to the loop to tell.
///
/// SAFETY: what changes is touched on the loop's thread only, or stands behind a lock.
package final class Supervisor: @unchecked Sendable {
    // SAFETY: mutable members without a lock are touched only on the loop's thread; entry points check it.

    package let loop: EventLoop
    let worker: SerialWorker
    package let guest: any SupervisedGuest
    /// What the guest was made from, with every default filled in.
    package let configuration: RunConfiguration
    package let directory: RunDirectory
    /// The QMP server; made in init, never changed.
    package private(set) var server: QMPServer!
    var descriptorStore = DescriptorStore()
    /// Set before the guest runs.
    var history = GuestHistory()
    /// Moves the guest out of this process and into it; made in init, never changed.
    private(set) var migration: MigrationControl!
    /// Tells the network where the guest is; made in init, never changed.
    let announcer: NetworkAnnouncer
    /// Set before the guest runs, by whoever can hand it over.
    var upgradeEquipment: UpgradeEquipment?
    /// What `query-chardev` and `inspect` say of the console.
    package let consoleDescription: String

    package private(set) var runState: RunState
    /// Operations on the machine's life, one at a time, in the order in which they were asked for.
    private var operations: [@Sendable () -> Void] = []
    private var isOperating = false
    /// What is done as soon as the guest says that something happened which is being made to happen.
    private var expectations: [Expectation] = []
    private var isQuitting = false
    /// What waits for a guest that is about to come; nil when none is.
    private var untilArrival: [@Sendable () -> Void]?
    private let endIsWanted = Atomic<Bool>(false)
    /// Somebody wants the guest's end, or it has ended itself. Any thread.
    var isToEnd: Bool { endIsWanted.load(ordering: .acquiring) }

    private let ended = HostSemaphore()
    private let exitStatus = Mutex<Int32>(ExitStatus.done.rawValue)

    /// Takes over a machine that was built and does not run yet.
    package init(
        loop: EventLoop, guest: any SupervisedGuest, configuration: RunConfiguration, directory: RunDirectory,
        consoleDescription: String, runState: RunState = .prelaunch
    ) throws(SystemCallError) {
        self.loop = loop
        self.guest = guest
        self.configuration = configuration
        self.directory = directory
        self.consoleDescription = consoleDescription
        self.runState = runState
        worker = try SerialWorker(name: "life-cycle")
        announcer = NetworkAnnouncer(loop: loop, guest: guest)
        server = QMPServer(loop: loop, version: Product.qmpVersion, executor: self)
        migration = MigrationControl(supervisor: self, loop: loop)
        if let layout = configuration.compatibility { migration.settings.layout = layout }
        guest.setEventHandler { [weak self] event in
            guard let self else { return }
            self.loop.perform { self.afterArrival { self.handle(event) } }
        }
    }

    package var name: String { configuration.name ?? directory.name }

    package var qmpAddresses: [ListenAddress] { server.addresses }

    /// Waits for the end of the guest and answers the process's exit status. For the main thread.
    package func waitForEnd() -> Int32 {
        ended.wait()
        ended.signal()  // whoever asks again gets the same answer
        return exitStatus.withLock { $0 }
    }

    // MARK: Events

    /// Tells every QMP client.
    func announce(_ event: SupervisorEvent, _ data: JSONObject? = nil) {
        var now = timespec()
        unsafe clock_gettime(CLOCK_REALTIME, &now)
        server.broadcast(
            QMPEvent(
                name: event.rawValue, data: data,
                microseconds: Int64(now.tv_sec) * 1_000_000 + Int64(now.tv_nsec) / 1000))
    }

    private func handle(_ event: GuestEvent) {
        switch event {
        case .poweredOff(let code):
            runState = .shutdown
            quit(cause: .guestShutdown, status: Self.exitStatus(ofGuest: code))
        case .reset: announce(.reset, ["guest": true, "reason": .string(ShutdownCause.guestReset.rawValue)])
        case .failed(let reason):
            Diagnostics.write("the guest cannot go on: \(reason)")
            runState = .internalError
            announce(.stop)
            quit(cause: .guestPanic, status: ExitStatus.guestFailure.rawValue)
        case .resumed, .wasReset:
            guard let index = expectations.firstIndex(where: { $0.event == event }) else { return }
            expectations.remove(at: index).then()
        }
    }

    private final class Expectation: Sendable {
        let event: GuestEvent?
        let then: @Sendable () -> Void
        init(_ event: GuestEvent?, _ then: @escaping @Sendable () -> Void) {
            self.event = event
            self.then = then
        }
    }

    /// Does what makes the guest say `event`, if anything; `then` runs on the loop when the guest says so, before what it does afterwards is
    /// heard of: a guest may reset itself, or end, before `work` has returned. It runs at the latest when `work` has succeeded. Not on the
    /// loop's thread.
    func expect(
        _ event: GuestEvent?, then: @escaping @Sendable () -> Void, of work: () throws -> Void
    ) throws {
        let expectation = Expectation(event, then)
        loop.perform { [self] in expectations.append(expectation) }
        let result = Result { try work() }
        loop.perform { [self] in
            guard let index = expectations.firstIndex(where: { $0 === expectation }) else { return }
            expectations.remove(at: index)
            if case .success = result { then() }
        }
        try result.get()
    }

    /// A process has eight bits of exit status; a failure must not become success by losing the others.
    static func exitStatus(ofGuest code: Int32) -> Int32 {
        let status = code & 0xFF
        return status == 0 && code != 0 ? 255 : status
    }

    // MARK: Life cycle

    /// Queues an operation that calls its argument when it has ended.
    func operate(_ operation: @escaping @Sendable (_ ended: @escaping @Sendable () -> Void) -> Void) {
        operations.append { [self] in
            operation { [self] in
                loop.perform { [self] in
                    isOperating = false
                    beginNextOperation()
                }
            }
        }
        beginNextOperation()
    }

    private func beginNextOperation() {
        guard !isOperating, !operations.isEmpty else { return }
        isOperating = true
        operations.removeFirst()()
    }

    /// Runs `work` on the worker and `then` with its result on the loop, as one operation.
    private func operate(
        _ begin: @escaping @Sendable () -> Operation?,
        then done: @escaping @Sendable (Result<Void, QMPError>) -> Void
    ) {
        operate { [self] ended in
            guard let operation = begin() else {
                done(.success(()))
                return ended()
            }
            if let refusal = operation.refusal {
                done(.failure(refusal))
                return ended()
            }
            worker.perform { [self] in
                let result: Result<Void, QMPError>
                do {
                    try expect(operation.event, then: operation.then, of: operation.work)
                    result = .success(())
                } catch {
                    result = .failure(QMPError("\(error)"))
                }
                loop.perform {
                    done(result)
                    ended()
                }
            }
        }
    }

    private struct Operation: Sendable {
        var refusal: QMPError?
        var work: @Sendable () throws -> Void = {}
        /// What the guest says when ``then`` is due; nil when that is the end of ``work``.
        var event: GuestEvent?
        var then: @Sendable () -> Void = {}
    }

    /// Starts a guest that was built, unless it is to wait for `cont`.
    package func start() {
        precondition(loop.isLoopThread)
        if runState == .prelaunch && !configuration.isPaused {
            continueGuest { [weak self] result in
                guard case .failure(let error) = result else { return }
                Diagnostics.write("the guest does not start: \(error)")
                self?.quit(cause: .hostError, status: ExitStatus.hostFailure.rawValue)
            }
        }
    }

    /// Waits for a guest from elsewhere: at a URI, or until `migrate-incoming` names one (`defer`).
    package func awaitGuest(from uri: String) throws(QMPError) {
        precondition(loop.isLoopThread)
        if uri != "defer" { try migration.receive(from: MigrationAddress(argument: uri), exitsOnError: true) }
    }

    /// `stop`.
    func stopGuest(_ done: @escaping @Sendable (Result<Void, QMPError>) -> Void) {
        operate(
            { [self] in
                guard runState == .running else { return nil }
                return Operation(
                    work: { [self] in try guest.pause() },
                    then: { [self] in
                        if runState == .running { runState = .paused }
                        announce(.stop)
                    })
            }, then: done)
    }

    /// `cont`.
    func continueGuest(_ done: @escaping @Sendable (Result<Void, QMPError>) -> Void) {
        operate(
            { [self] in
                if runState == .running { return nil }
                if runState == .inmigrate { return nil }
                if runState == .postmigrate && migration.hasGivenAway {
                    return Operation(refusal: QMPError("the guest has left and its memory was given away"))
                }
                guard runState.canContinue else {
                    return Operation(
                        refusal: QMPError("the guest cannot run on: it is in state '\(runState.rawValue)'"))
                }
                return Operation(
                    work: { [self] in try guest.resume() },
                    event: .resumed,
                    then: { [self] in
                        runState = .running
                        announce(.resume)
                    })
            }, then: done)
    }

    /// `system_reset`.
    func resetGuest(cause: ShutdownCause, _ done: @escaping @Sendable (Result<Void, QMPError>) -> Void) {
        operate(
            { [self] in
                guard runState == .running || runState.canContinue else {
                    return Operation(
                        refusal: QMPError("the guest cannot be reset: it is in state '\(runState.rawValue)'"))
                }
                let wasRunning = runState == .running
                return Operation(
                    work: { [self] in
                        if wasRunning { try guest.pause() }
                        try guest.reset()
                        if wasRunning { try guest.resume() }
                    },
                    event: .wasReset,
                    then: { [self] in
                        announce(.reset, ["guest": .bool(cause.isGuest), "reason": .string(cause.rawValue)])
                    })
            }, then: done)
    }

    /// Registers as text; stops the guest for a moment if it runs.
    func registerDump(_ answer: @escaping @Sendable (String) -> Void) {
        let text = Mutex("")
        operate(
            { [self] in
                let wasRunning = runState == .running
                return Operation(work: { [self] in
                    if wasRunning { try guest.pause() }
                    let dump = guest.registerDump()
                    text.withLock { $0 = dump }
                    if wasRunning { try guest.resume() }
                })
            },
            then: { result in
                switch result {
                case .success: answer(text.withLock { $0 })
                case .failure(let error): answer("Error: \(error)\r\n")
                }
            })
    }

    /// The guest stands still here though nobody stopped it: a move failed, and so did going on.
    func noteStopped() {
        runState = .paused
        announce(.stop)
    }

    /// The guest will come from another process, with clients that wait for what became of it: until ``arrive(as:telling:)`` nothing that
    /// it does, and nobody's wish for its end, is heard here. Before it runs.
    func awaitArrival() {
        precondition(loop.isLoopThread)
        untilArrival = []
    }

    /// The guest has come and is in `state` here, which `tell` tells the world; what has happened to it since then comes after that.
    func arrive(as state: RunState, telling tell: () -> Void) {
        precondition(loop.isLoopThread)
        runState = state
        tell()
        let waiting = untilArrival ?? []
        untilArrival = nil
        for action in waiting { action() }
    }

    private func afterArrival(_ action: @escaping @Sendable () -> Void) {
        if untilArrival == nil { action() } else { untilArrival?.append(action) }
    }

    /// Ends the guest and then the process.
    func quit(cause: ShutdownCause, status: Int32) {
        precondition(loop.isLoopThread)
        guard !isQuitting else { return }
        isQuitting = true
        endIsWanted.store(true, ordering: .releasing)
        announce(.shutdown, ["guest": .bool(cause.isGuest), "reason": .string(cause.rawValue)])
        migration.abandon(guestEnded: cause.isGuest) { [self] in endGuest(status) }
    }

    private func endGuest(_ status: Int32) {
        if migration.guestIsIncomplete { return endIncompleteGuest() }
        operate { [self] _ in
            worker.perform { [self] in
                try? guest.pause()
                guest.shutDown()
                loop.perform { [self] in
                    server.close()
                    worker.stop()
                    exitStatus.withLock { $0 = status }
                    ended.signal()
                }
            }
        }
    }

    /// Processors and devices may sleep for ever over pages that will not come: nothing waits for them.
    private func endIncompleteGuest() {
        Diagnostics.write("the guest is lost: it ran here, and not all of its memory came")
        server.close()
        directory.remove()
        exitStatus.withLock { $0 = ExitStatus.lost.rawValue }
        // What the end of the process tidies up may have to wait for one of them.
        _ = try? HostThread(name: "end") {
            sleep(2)
            _exit(ExitStatus.lost.rawValue)
        }
        ended.signal()
    }

    /// From outside of QMP: a signal, the console's own keys. Any thread.
    package func requestQuit(bySignal: Bool) {
        endIsWanted.store(true, ordering: .releasing)
        loop.perform { [self] in
            afterArrival { [self] in
                quit(cause: bySignal ? .hostSignal : .hostUI, status: ExitStatus.done.rawValue)
            }
        }
    }

    // MARK: Migration

    /// The engine has paused or resumed the guest. On the loop's thread.
    func guestWasMoved(isRunning: Bool) {
        if isRunning {
            runState = .running
            announce(.resume)
        } else {
            runState = .finishMigrate
            announce(.stop)
        }
    }

    /// A migration is over. On the loop's thread.
    func migrationEnded(side: MigrationReport.Side, outcome: MigrationOutcome) {
        switch (side, outcome) {
        case (.source, .guestMoved): runState = .postmigrate
        case (.source, .guestStayed):
            runState = guest.isRunning ? .running : runState == .finishMigrate ? .paused : runState
        case (.source, .undecided): runState = migration.hasGivenAway ? .postmigrate : .paused
        case (.destination, .guestMoved): runState = guest.isRunning ? .running : .paused
        case (.destination, _): runState = .inmigrate
        }
    }

    /// 16 bytes, or nil without a UUID.
    var uuidBytes: [UInt8]? {
        guard let text = configuration.uuid?.filter({ $0 != "-" }), text.utf8.count == 32 else { return nil }
        let digits = Array(text)
        let bytes = stride(from: 0, to: 32, by: 2).compactMap { UInt8(String(digits[$0..<$0 + 2]), radix: 16) }
        return bytes.count == 16 ? bytes : nil
    }

    // MARK: Inspection

    var inspection: JSONValue {
        var result: JSONObject = [
            "name": .string(name), "status": .string(runState.rawValue), "process": JSONValue(getpid()),
            "version": .string(Product.version), "configuration": configuration.json,
            "console": .string(consoleDescription), "qmp": .array(qmpAddresses.map { .string($0.argument) }),
            "clients": JSONValue(server.clientCount), "moves": JSONValue(history.moves),
            "instructions": JSONValue(guest.processors.reduce(0) { $0 &+ $1.retiredInstructions }),
        ]
        result["started-by"] = history.startedBy.map { .string($0) }
        return .object(result)
    }
}

extension Supervisor: QMPCommandExecutor {
    package func execute(
        _ command: QMPCommand, from client: QMPClient, reply: @escaping @Sendable (Result<JSONValue, QMPError>) -> Void
    ) {
        run(command, client: client, reply: reply)
    }

    /// Judges and runs a command. On the loop's thread.
    func run(
        _ command: QMPCommand, client: QMPClient?, reply: @escaping @Sendable (Result<JSONValue, QMPError>) -> Void
    ) {
        precondition(loop.isLoopThread)
        do throws(QMPError) {
            guard let entry = CommandTable.byName[command.name] else { throw .commandNotFound(command.name) }
            if command.isOutOfBand && !entry.allowsOutOfBand {
                throw QMPError("The command \(command.name) does not support OOB")
            }
            try entry.arguments.check(arguments: command.arguments)
            let invocation = CommandInvocation(arguments: command.arguments, client: client, reply: reply)
            if let value = try entry.body(self, invocation) { reply(.success(value)) }
        } catch {
            reply(.failure(error))
        }
    }
}
