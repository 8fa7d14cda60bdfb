import LinuxCalls
import QMPProtocol

/// What is asked for.
package struct ReplacementRequest: Sendable {
    package var qmpPath: String?
    package var process: CInt?
    /// The program that takes over.
    package var binary: String
    /// Options that replace or join the guest's.
    package var settings: [CommandLine.Option] = []
    /// Nil chooses.
    package var strategy: ReplacementStrategy?
    /// How long the old process is kept, paused, after success.
    package var keepSourceSeconds = 0
    /// Longest wait for the move itself, in seconds.
    package var limitSeconds = 120
    /// Go on even where libvirt started the guest.
    package var ignoresLibvirt = false
    /// Postcopy even where a guest's timers are lost by it.
    package var ignoresTimers = false
    /// This tool's own program, which is started as the guard.
    package var guardProgram: String
    /// Passes the guest's state from one process to the other, timers mended.
    package var mender: StateMender

    package init(
        qmpPath: String?, process: CInt?, binary: String, guardProgram: String, mender: @escaping StateMender
    ) {
        self.mender = mender
        self.qmpPath = qmpPath
        self.process = process
        self.binary = binary
        self.guardProgram = guardProgram
    }
}

/// Everything that is known before anything happens: what `sidestep qemu check` prints, and what an upgrade follows.
package struct ReplacementPlan {
    package let discovery: Discovery
    package private(set) var findings: [Finding]
    package private(set) var strategy = ReplacementStrategy.precopy
    package private(set) var reason = ""
    package private(set) var newCommandLine = NewCommandLine()
    let service: ServiceUnit
    package private(set) var destinationVersion = QEMUVersion(0, 0)

    package var canMove: Bool { !findings.contains { $0.grade == .fail } }

    private let ignoresTimers: Bool

    /// Whether the guest's state must be mended on the way.
    var mendsTimers: Bool { discovery.facts.losesTimers && strategy != .postcopy }

    /// Whether the new process runs the guest as soon as it has all of it, with nothing done in between. (With postcopy it runs it
    /// before.)
    var startsByItself: Bool { newCommandLine.startsByItself && strategy != .postcopy }

    /// From this version on `x-ignore-shared` passes over files alone, and would copy a memfd onto itself while the guest writes.
    static let sharesFilesOnly = QEMUVersion(8, 1)

    package init(_ request: ReplacementRequest, token: String) throws(UpgradeFailure) {
        ignoresTimers = request.ignoresTimers
        discovery = try Discovery(qmpPath: request.qmpPath, process: request.process)
        findings = discovery.findings
        let facts = discovery.facts
        let program = HostThread.avoiding(discovery.processors) { ProgramSurvey(request.binary, for: facts) }
        destinationVersion = program.version
        findings += program.findings
        service = ServiceUnit(
            arguments: discovery.facts.commandLine, process: discovery.process.identifier,
            controlGroups: discovery.controlGroups, environment: discovery.environment,
            ignoresLibvirt: request.ignoresLibvirt)
        findings += service.findings
        choose(request.strategy)
        if mendsTimers {
            findings.append(
                Finding(
                    .ok, "timers",
                    "QEMU \(discovery.facts.version) does not set a riscv guest's timers again where it arrives: its state passes "
                        + "through Sidestep, which has them fire there at once"))
        }
        var rewriter = CommandRewriter(
            facts: discovery.facts, strategy: strategy, destinationVersion: destinationVersion,
            settings: request.settings,
            token: token)
        do throws(UpgradeFailure) {
            newCommandLine = try rewriter.rewrite()
            findings.append(Finding(.ok, "command line", "understood"))
            for note in newCommandLine.notes { findings.append(Finding(.warn, "command line", note)) }
            for name in newCommandLine.names { lookAt(name) }
        } catch {
            if error.kind == .usage { throw error }
            findings.append(Finding(.fail, "command line", error.description))
        }
    }

    private func obstacle(to strategy: ReplacementStrategy) -> String? {
        let facts = discovery.facts
        let backends = facts.commandLine.arguments("object").compactMap { try? OptionText($0) }
            .filter { $0.leading("qom-type")?.hasPrefix("memory-backend-") == true }
        switch strategy {
        case .shared:
            if facts.memory.contains(where: { !$0.isShared || $0.descriptor == nil }) {
                return "its RAM is not shareable (share=on)"
            }
            if facts.version >= Self.sharesFilesOnly,
                backends.contains(where: { $0.leading("qom-type") != "memory-backend-file" })
            {
                return "QEMU \(facts.version) passes over shared RAM only when it is a memory-backend-file"
            }
        case .cpr:
            if facts.version < QEMUVersion(10, 0) || destinationVersion < QEMUVersion(10, 0) {
                return "cpr-transfer needs QEMU 10.0 on both sides"
            }
            if !facts.commandLine.arguments("machine").contains(where: { $0.contains("aux-ram-share=on") }) {
                return "cpr-transfer needs -machine aux-ram-share=on from the start"
            }
            if facts.memory.contains(where: { !$0.isShared }) { return "its RAM is not shareable (share=on)" }
        case .postcopy:
            if facts.losesTimers, !ignoresTimers {
                return
                    "QEMU \(facts.version) loses a riscv guest's timers on the way, which cannot be mended in the middle of RAM (--ignore-timers goes on)"
            }
        case .precopy: break
        }
        return nil
    }

    /// Bytes that are needed beside the guest's RAM.
    private func need(_ strategy: ReplacementStrategy) -> UInt64 {
        let process: UInt64 = 64 << 20
        switch strategy {
        case .shared, .cpr: return process
        case .postcopy:
            // What other processes may map is not freed as it goes (`release-ram` lets go of a process's own pages alone).
            return discovery.facts.memory.reduce(process) { $0 + ($1.isShared ? $1.byteCount : $1.byteCount / 8) }
        case .precopy: return process + discovery.ramByteCount
        }
    }

    private mutating func choose(_ wanted: ReplacementStrategy?) {
        let available = HostMemory.availableByteCount ?? .max
        var reasons: [String] = []
        for candidate in wanted.map({ [$0] }) ?? [.shared, .cpr, .precopy, .postcopy] {
            if let obstacle = obstacle(to: candidate) {
                reasons.append("\(candidate.rawValue): \(obstacle)")
                continue
            }
            if need(candidate) > available {
                reasons.append("\(candidate.rawValue): needs \(need(candidate) >> 20) MiB, \(available >> 20) are free")
                continue
            }
            strategy = candidate
            reason = "needs \(need(candidate) >> 20) MiB of memory"
            if candidate == .postcopy { reason += "; there is no way back once the guest runs in the new process" }
            if !reasons.isEmpty { reason += " (" + reasons.joined(separator: "; ") + ")" }
            findings.append(Finding(.ok, "strategy", "\(candidate.rawValue): \(reason)"))
            return
        }
        findings.append(Finding(.fail, "strategy", reasons.joined(separator: "; ")))
    }

    private mutating func lookAt(_ name: NewCommandLine.Name) {
        do {
            let status = try FileNames.status(of: name.publicPath)
            guard status.type == .socket || status.type == .regular else {
                findings.append(Finding(.fail, "name", "\(name.publicPath) is neither a socket nor a file"))
                return
            }
            if name.privatePath.utf8.count > 107 {
                findings.append(Finding(.fail, "name", "\(name.publicPath) is too long to have another beside it"))
            }
        } catch {
            findings.append(Finding(.fail, "name", "\(name.publicPath) is on the command line and not there: \(error)"))
        }
    }
}
