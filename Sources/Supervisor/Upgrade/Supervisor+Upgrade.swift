import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import QMPProtocol

/// What a process needs to be upgraded, besides its supervisor.
struct UpgradeEquipment: Sendable {
    let guest: VirtGuest
    let backends: GuestBackends
    let keeper: ProcessKeeper?
    let preference = ProcessorPreference()
    /// The file this process was started from.
    let program: String
}

extension Supervisor {
    /// Hands the guest over to a new process. When that succeeds this process ends, and the successor answers whoever
    /// asked; `refuse` is called when the guest stays here, unharmed.
    func upgrade(_ request: UpgradeRequest, refuse: @escaping @Sendable (QMPError) -> Void) {
        precondition(loop.isLoopThread)
        operate { [self] ended in
            let failed: @Sendable (String) -> Void = { [self] text in
                loop.perform {
                    refuse(QMPError(text))
                    ended()
                }
            }
            guard let equipment = upgradeEquipment else { return failed("this guest cannot change process") }
            guard runState == .running || runState == .paused || runState == .prelaunch else {
                return failed("the guest is in state '\(runState.rawValue)'; it must be running or paused")
            }
            do {
                _ = try HostThread(name: "upgrade") { [self] in
                    carryOut(request, equipment) {
                        equipment.preference.end()
                        failed($0)
                    }
                }
            } catch { failed("no thread for the upgrade: \(error); the guest runs on, unharmed") }
        }
    }

    /// On a thread of its own: the whole hand-over.
    private func carryOut(
        _ request: UpgradeRequest, _ equipment: UpgradeEquipment, failed: @Sendable (String) -> Void
    ) {
        // Before it could stand still behind processors that are preferred, in the middle of something, and be waited for.
        BackgroundPopulation.endAll()
        let processors = equipment.guest.machine.processorThreadIdentifiers
        let preference = equipment.preference
        var taken: [CInt] = []
        if preference.isSensible(forProcessors: processors.count) {
            taken = ProcessFiles.own.processors(ofThreads: processors)
            HostThread.avoiding(taken) { preference.prepare() }
            preference.begin(processors)
            preference.limit()
        } else {
            preference.end()
        }
        let program = request.binary ?? equipment.program
        let process: ChildProcess
        let socket: OwnedDescriptor
        let room = UpgradeRoom()
        do throws(Refusal) { try room.requireSuccessor() } catch {
            return failed("\(error); the guest runs on, unharmed")
        }
        // Should memory run out all the same, the kernel takes the other process, and then, where we may say so, rather none
        // than this one: it does not take one that is being started, and finds one's shared memory in use until that is quite gone.
        let priority = OutOfMemoryPriority.setLast()
        do {
            // A process that is started goes where the fewest others wait, and would wait there for those that are preferred.
            (socket, process) = try HostThread.avoiding(preference.isOn ? taken : []) { () throws(SystemCallError) in
                try HandoverSource.start(
                    path: program, name: Product.name,
                    outOfMemoryPriority: priority == nil ? nil : OutOfMemoryPriority.first,
                    // A service manager does not wait for a main process that was no child of its own when it was told of it:
                    // asked to stop the unit, systemd sends SIGKILL right behind SIGTERM.
                    isOrphan: ServiceManager.isPresent
                ) { ["adopt", "\($0)"] }
            }
        } catch {
            if let priority { OutOfMemoryPriority.set(priority) }
            return failed("\(program) cannot be started: \(error); the guest runs on, unharmed")
        }
        let source = UpgradeSource(
            self, equipment, request, room: room, outOfMemoryPriority: priority,
            successor: ProcessFiles(process.processIdentifier))
        let outcome = HandoverSource(
            socket: socket, destination: process.processDescriptor, atStep: HandoverFault.order(for: "source"),
            isCancelled: { self.isToEnd }
        ).run(source)
        if case .moved = outcome {
        } else {
            process.kill()
            _ = process.wait()
            if let priority { OutOfMemoryPriority.set(priority) }
        }
        switch outcome {
        case .moved:
            // For a service manager the end of the main process is the service's: it must know of the other one before.
            ServiceManager.awaitReading(limitMilliseconds: 10_000)
            // Who asked this process to end meanwhile meant the guest, and so does who asks until it has ended.
            SignalDescriptor.stopTaking()
            loop.barrier()
            SignalDescriptor.passOn(GuestProcess.endingSignals, to: process.processDescriptor, as: SIGTERM)
            if isToEnd { process.signal(SIGTERM) }
            HandoverFault.beforeExit()
            // Everything is the successor's. Nothing of ours may be tidied up: not the terminal, not the run directory.
            _exit(ExitStatus.done.rawValue)
        case .stayed(let error):
            failed("\(error); the guest runs on here, unharmed")
        case .stayedPaused(let error):
            loop.sync { self.noteStopped() }
            failed("\(error); the guest is here, paused")
        }
    }
}

/// For tests: ends or stops this process at a step of the hand-over, as `SIDESTEP_HANDOVER_FAULT=source:9:kill` says, when so many
/// pages have crossed, as `destination:memory+4096:stop` says, or as the last thing that a source does (`source:exit:stop`). A path behind it makes it happen once: whoever
/// makes that file first.
enum HandoverFault {
    static func order(for side: String) -> (HandoverPhase) -> Void {
        guard let (place, signal) = words(for: side), let step = Int(place) else { return { _ in } }
        return { if $0.rawValue == step { happen(signal) } }
    }

    static func beforeExit() { if let (place, signal) = words(for: "source"), place == "exit" { happen(signal) } }

    private static func happen(_ signal: CInt) {
        if let value = unsafe getenv("SIDESTEP_HANDOVER_FAULT"), let text = unsafe String(validatingCString: value),
            let path = text.split(separator: ":").dropFirst(3).first
        {
            let mark = unsafe open(String(path), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
            guard mark >= 0 else { return }
            close(mark)
        }
        // To this very thread, which otherwise may go on for a while until another has taken the signal.
        raise(signal)
    }

    /// What looks at the pages that have crossed, on the thread that moves them; nil when nothing is to happen.
    static func inMemory(_ side: String) -> (@Sendable (RAMProgress) -> Void)? {
        guard let (place, signal) = words(for: side), place.hasPrefix("memory+"), let limit = UInt64(place.dropFirst(7))
        else { return nil }
        return { if $0.normalPages >= limit { happen(signal) } }
    }

    private static func words(for side: String) -> (place: Substring, signal: CInt)? {
        guard let value = unsafe getenv("SIDESTEP_HANDOVER_FAULT"), let text = unsafe String(validatingCString: value)
        else { return nil }
        let words = text.split(separator: ":")
        guard words.count >= 3, words[0] == side else { return nil }
        return (words[1], words[2] == "stop" ? SIGSTOP : SIGKILL)
    }
}

extension CommandTable {
    static let upgrade: [CommandEntry] = [
        CommandEntry(
            "x-sidestep-upgrade",
            [
                .optional("binary", .string),
                .optional("channel", .enumeration("SidestepChannel", UpgradeChannel.allCases.map(\.rawValue))),
                .optional("strategy", .enumeration("SidestepStrategy", UpgradeStrategy.allCases.map(\.rawValue))),
                .optional("limit", .integer),
            ], returns: UpgradeReport.type
        ) { supervisor, invocation throws(QMPError) in
            var request = UpgradeRequest()
            request.binary = invocation.arguments["binary"]?.stringValue
            if let word = invocation.arguments["channel"]?.stringValue, let channel = UpgradeChannel(rawValue: word) {
                request.channel = channel
            }
            request.strategy = invocation.arguments["strategy"]?.stringValue.flatMap { UpgradeStrategy(rawValue: $0) }
            if let limit = invocation.arguments["limit"]?.integerValue {
                guard (1...3_600_000).contains(limit) else {
                    throw .invalidValue(parameter: "limit", expected: "milliseconds from 1 to 3600000")
                }
                request.limitMilliseconds = Int(limit)
            }
            supervisor.upgrade(request) { invocation.reply(.failure($0)) }
            return nil  // the successor answers
        }
    ]
}
