import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import QMPProtocol

/// What a process needs to be upgraded, besides its supervisor.
struct UpgradeEquipment: Sendable {
    let guest: VirtGuest
    let backends: GuestBackends
    let keeper: ProcessKeeper?
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
            if let block = equipment.guest.ramBlocks.first(where: { $0.file == nil }) {
                return failed(
                    "RAM block \(block.name) is anonymous memory, which has no descriptor to hand over; "
                        + "start the guest with --memory-backend memfd")
            }
            do {
                _ = try HostThread(name: "upgrade") { [self] in
                    carryOut(request, equipment, failed: failed)
                }
            } catch { failed("\(error)") }
        }
    }

    /// On a thread of its own: the whole hand-over.
    private func carryOut(
        _ request: UpgradeRequest, _ equipment: UpgradeEquipment, failed: @Sendable (String) -> Void
    ) {
        let program = request.binary ?? equipment.program
        let reason = request.channel == .auto ? "RAM is in memory files, which cross by descriptor" : "asked for"
        let process: ChildProcess
        let socket: OwnedDescriptor
        do {
            (socket, process) = try HandoverSource.start(path: program, name: Product.name) { ["adopt", "\($0)"] }
        } catch {
            return failed("\(program) cannot be started: \(error); the guest runs on, unharmed")
        }
        var limits = HandoverSource.Limits()
        limits.takingOverMilliseconds = request.limitMilliseconds
        let source = UpgradeSource(
            self, guest: equipment.guest, backends: equipment.backends, keeper: equipment.keeper, reason: reason)
        let outcome = HandoverSource(
            socket: socket, destination: process.processDescriptor, limits: limits,
            atStep: HandoverFault.order(for: "source")
        ).run(source)
        switch outcome {
        case .moved:
            // Everything is the successor's. Nothing of ours may be tidied up: not the terminal, not the run directory.
            _exit(ExitStatus.done.rawValue)
        case .stayed(let error):
            process.kill()
            _ = process.wait()
            failed("\(error); the guest runs on here, unharmed")
        case .stayedPaused(let error):
            process.kill()
            _ = process.wait()
            loop.sync { self.noteStopped() }
            failed("\(error); the guest is here, paused")
        }
    }
}

/// For tests: ends or stops this process at a step of the hand-over, as `SIDESTEP_HANDOVER_FAULT=source:9:kill` says.
enum HandoverFault {
    static func order(for side: String) -> (HandoverPhase) -> Void {
        guard let value = unsafe getenv("SIDESTEP_HANDOVER_FAULT"), let text = unsafe String(validatingCString: value)
        else { return { _ in } }
        let words = text.split(separator: ":")
        guard words.count == 3, words[0] == side, let step = Int(words[1]) else { return { _ in } }
        let signal = words[2] == "stop" ? SIGSTOP : SIGKILL
        return { if $0.rawValue == step { kill(getpid(), signal) } }
    }
}

extension CommandTable {
    static let upgrade: [CommandEntry] = [
        CommandEntry(
            "x-sidestep-upgrade",
            [
                .optional("binary", .string),
                .optional("channel", .enumeration("SidestepChannel", UpgradeChannel.allCases.map(\.rawValue))),
                .optional("limit", .integer),
            ], returns: UpgradeReport.type
        ) { supervisor, invocation throws(QMPError) in
            var request = UpgradeRequest()
            request.binary = invocation.arguments["binary"]?.stringValue
            if let word = invocation.arguments["channel"]?.stringValue, let channel = UpgradeChannel(rawValue: word) {
                request.channel = channel
            }
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
