import LinuxCalls
import MonitorClient
import QMPProtocol

/// What an upgrade did.
package struct ReplacementReport: Sendable {
    package var oldProcess: CInt
    package var newProcess: CInt
    package var strategy: ReplacementStrategy
    package var reason: String
    /// From the guest's stop in the old process to its start in the new one, as both QEMUs tell it; 0 for a guest that was paused.
    package var pauseMicroseconds: Int64
    package var startMicroseconds: Int64
    /// From the first command of the move to the guest running in the new process.
    package var totalMicroseconds: Int64
    package var notes: [String]
}

/// Moves a running guest of QEMU to another QEMU process on the same host.
package final class Replacement {
    private let request: ReplacementRequest
    private let plan: ReplacementPlan
    private let token: String
    private let progress: (String) -> Void
    private var names = MovingNames()

    /// - Parameter progress: Is told of each step, in a few words.
    package init(_ request: ReplacementRequest, progress: @escaping (String) -> Void) throws(UpgradeFailure) {
        self.request = request
        self.progress = progress
        token = String(UInt32.random(in: 0...UInt32.max), radix: 36)
        plan = try ReplacementPlan(request, token: token)
    }

    /// - Throws: ``UpgradeFailure``; its kind says where the guest is.
    package func run() throws(UpgradeFailure) -> ReplacementReport {
        if let failure = plan.findings.first(where: { $0.grade == .fail }) {
            throw UpgradeFailure(.refused, "\(failure.subject): \(failure.text)")
        }
        do throws(SystemCallError) { try makeNames() } catch {
            names.removePrivate()
            throw UpgradeFailure(.refused, "beside the guest's sockets nothing can be made: \(error)")
        }
        let discovery = plan.discovery
        progress("starting \(request.binary)")
        let start = monotonicNanoseconds()
        let socket: OwnedDescriptor
        let destination: ChildProcess
        let control: OwnedDescriptor
        do throws(SystemCallError) {
            (socket, destination, control) = try startProcesses()
        } catch {
            names.removePrivate()
            throw UpgradeFailure(.rolledBack, "the new process cannot be started: \(error)")
        }
        var rescue = Rescue(
            source: discovery.monitor, sourceProcess: discovery.processDescriptor,
            destination: QMPConnection(resuming: control, identifierPrefix: "upgrade-"),
            destinationProcess: destination.processDescriptor, wasRunning: discovery.status == "running", names: names,
            capabilities: [], parameters: [:])
        do {
            rescue.capabilities = try capabilities(of: rescue.source)
            let known = try rescue.source.run("query-migrate-parameters")
            rescue.parameters["max-bandwidth"] = known["max-bandwidth"]
            rescue.parameters["downtime-limit"] = known["downtime-limit"]
            try ReplacementGuard.arm(rescue, over: socket)
            try awaitDestination(rescue.destination, destination)
            let started = monotonicNanoseconds()
            progress("moving the guest (\(plan.strategy.rawValue))")
            let pause = try move(rescue)
            let moved = monotonicNanoseconds()
            // From here on the guest is the new process's, and nothing is left that could fail for it.
            if request.keepSourceSeconds > 0 {
                progress("keeping the old process, paused, for \(request.keepSourceSeconds) s")
                ProcessSignal.sleep(milliseconds: UInt32(clamping: request.keepSourceSeconds) &* 1000)
            }
            guard rescue.finish() == .moved else {
                throw UpgradeFailure(
                    .undecided,
                    "the guest runs in process \(destination.processIdentifier), but the old one does not end")
            }
            ReplacementGuard.disarm(socket)
            return ReplacementReport(
                oldProcess: discovery.process.identifier, newProcess: destination.processIdentifier,
                strategy: plan.strategy, reason: plan.reason, pauseMicroseconds: pause,
                startMicroseconds: (started - start) / 1000, totalMicroseconds: (moved - started) / 1000,
                notes: plan.newCommandLine.notes)
        } catch {
            var text = (error as? UpgradeFailure)?.description ?? "\(error)"
            if Rescue.hasEnded(destination.processDescriptor), let explanation = explain() {
                text += ": \(explanation)"
            }
            let outcome = rescue.resolve()
            ReplacementGuard.disarm(socket)
            switch outcome {
            case .stayed:
                throw UpgradeFailure(
                    .rolledBack,
                    "\(text); the guest \(rescue.wasRunning ? "runs on" : "stays") in process \(discovery.process.identifier)"
                )
            case .moved:
                throw UpgradeFailure(
                    .undecided, "\(text); yet the guest runs in process \(destination.processIdentifier)")
            case .undecided:
                let isLost = Rescue.hasEnded(rescue.sourceProcess) && Rescue.hasEnded(rescue.destinationProcess)
                throw UpgradeFailure(isLost ? .lost : .undecided, text)
            }
        }
    }

    private func makeNames() throws(SystemCallError) {
        for name in plan.newCommandLine.names {
            let status = try FileNames.status(of: name.publicPath)
            names.entries.append(
                .init(publicPath: name.publicPath, privatePath: name.privatePath, inode: status.inode))
        }
        let own = "/tmp/\(SourceFacts.privatePrefix)\(token)"
        let beside = plan.newCommandLine.names.map {
            String($0.privatePath.prefix(upTo: $0.privatePath.lastIndex(of: "/")!))
        }
        for directory in [own] + Set(beside).subtracting([own]).sorted() {
            try FileNames.makeDirectory(directory)
            names.directories.append(directory)
        }
    }

    private var channel: String { "unix:/tmp/\(SourceFacts.privatePrefix)\(token)/m" }

    /// The guard first, so that there is no moment without it.
    private func startProcesses() throws(SystemCallError) -> (OwnedDescriptor, ChildProcess, OwnedDescriptor) {
        let (ours, guards) = try StreamSocket.pair()
        let nothing = try OwnedDescriptor.open("/dev/null", flags: 2)
        let errors = try OwnedDescriptor.duplicate(of: 2)
        _ = try ChildProcess(
            path: request.guardProgram, arguments: ["qemu", "guard", "3"],
            descriptors: [0: nothing, 1: nothing, 2: errors, 3: guards], newSession: true)
        let (control, far) = try StreamSocket.pair()
        return (ours, try startDestination(control: far, errors: nil), control)
    }

    private func startDestination(control: OwnedDescriptor, errors: OwnedDescriptor?) throws(SystemCallError)
        -> ChildProcess
    {
        let discovery = plan.discovery
        var descriptors: [CInt: OwnedDescriptor] = [NewCommandLine.controlDescriptor: control]
        for (number, source) in plan.newCommandLine.inherited {
            descriptors[number] = try discovery.process.take(source, from: discovery.processDescriptor)
        }
        let nothing = try OwnedDescriptor.open("/dev/null", flags: 2)
        for number: CInt in 0...1 where descriptors[number] == nil { descriptors[number] = nothing }
        // Where the old process's messages went, the new one's go.
        descriptors[2] = errors ?? (try? discovery.process.take(2, from: discovery.processDescriptor)) ?? nothing
        let incoming = plan.strategy == .cpr ? [] : ["-incoming", "defer"]
        return try ChildProcess(
            path: request.binary, arguments: plan.newCommandLine.words + incoming, descriptors: descriptors,
            newSession: true, directory: discovery.facts.workingDirectory)
    }

    /// What the new program says when it is started like that; it ended without our having read it.
    private func explain() -> String? {
        guard let (ours, theirs) = try? OwnedDescriptor.pipe(), let (control, far) = try? StreamSocket.pair() else {
            return nil
        }
        StreamSocket.shutDown(control)
        guard let child = try? startDestination(control: far, errors: theirs) else { return nil }
        let text = HelpText.collect(child, ours, seconds: 1)
        let lines = text.split(separator: "\n").filter { !$0.contains("warning:") }
        return lines.last.map(String.init)
    }

    private func awaitDestination(_ destination: QMPConnection, _ process: ChildProcess) throws {
        for _ in 0..<300 {
            if Rescue.hasEnded(process.processDescriptor) {
                throw UpgradeFailure(.rolledBack, "the new process ended before it was ready")
            }
            do {
                _ = try destination.run("qmp_capabilities", timeoutMilliseconds: 30_000)
                return
            } catch {
                if Rescue.hasEnded(process.processDescriptor, withinMilliseconds: 1000) { continue }
                throw UpgradeFailure(.rolledBack, "the new process's monitor does not answer: \(error)")
            }
        }
    }

    private func capabilities(of monitor: QMPConnection) throws -> [String] {
        (try monitor.run("query-migrate-capabilities").arrayValue ?? []).filter { $0["state"]?.boolValue == true }
            .compactMap { $0["capability"]?.stringValue }
    }

    /// The move itself. - Returns: the guest's pause in microseconds.
    private func move(_ rescue: Rescue) throws -> Int64 {
        let (source, destination) = (rescue.source, rescue.destination)
        var wanted = ["events", "return-path"]
        switch plan.strategy {
        case .shared: wanted.append("x-ignore-shared")
        case .postcopy: wanted += ["postcopy-ram", "release-ram"]
        case .precopy: break
        case .cpr: throw UpgradeFailure(.rolledBack, "cpr is not driven by this version")
        }
        try Rescue.setCapabilities(wanted, on: source)
        // The new process touches no disk before it is told to run.
        try Rescue.setCapabilities(wanted.filter { $0 != "release-ram" } + ["late-block-activate"], on: destination)
        _ = try source.run("migrate-set-parameters", ["max-bandwidth": 1_000_000_000_000, "downtime-limit": 300])
        _ = try destination.run("migrate-incoming", ["uri": .string(channel)])
        var watch = MoveWatch(rescue, limitSeconds: request.limitSeconds)
        _ = try source.run("migrate", ["uri": .string(channel)])
        if plan.strategy == .postcopy {
            _ = try source.run("migrate-start-postcopy")
        }
        try watch.awaitCompletion()
        try names.exchange()
        guard rescue.wasRunning else { return 0 }
        _ = try destination.run("cont")
        return try watch.pauseMicroseconds()
    }
}

/// Follows a move by both QEMUs' events.
struct MoveWatch {
    private let rescue: Rescue
    private let deadline: Int64
    private var stop: Int64?
    private var start: Int64?

    init(_ rescue: Rescue, limitSeconds: Int) {
        self.rescue = rescue
        deadline = monotonicNanoseconds() + Int64(limitSeconds) * 1_000_000_000
    }

    /// Waits until both ends say that all has arrived.
    mutating func awaitCompletion() throws {
        var isSent = false
        var isLoaded = false
        while !isSent || !isLoaded {
            while let event = try rescue.source.nextEvent(timeoutMilliseconds: 0) {
                if event.name == "STOP" { stop = event.microseconds }
                guard event.name == "MIGRATION" else { continue }
                let status = event.data?["status"]?.stringValue ?? ""
                if status == "completed" { isSent = true }
                if ["failed", "cancelled", "postcopy-paused"].contains(status) {
                    let reason = (try? rescue.source.run("query-migrate"))?["error-desc"]?.stringValue
                    throw UpgradeFailure(
                        .rolledBack, "QEMU gave the move up (\(status)\(reason.map { ": \($0)" } ?? ""))")
                }
            }
            while let event = try rescue.destination.nextEvent(timeoutMilliseconds: 0) {
                guard event.name == "MIGRATION" else { continue }
                let status = event.data?["status"]?.stringValue ?? ""
                if status == "completed" { isLoaded = true }
                if status == "failed" { throw UpgradeFailure(.rolledBack, "the new process refused the guest's state") }
            }
            if isSent && isLoaded { return }
            if Rescue.hasEnded(rescue.destinationProcess) {
                throw UpgradeFailure(.rolledBack, "the new process ended during the move")
            }
            if Rescue.hasEnded(rescue.sourceProcess) {
                throw UpgradeFailure(.lost, "the old process ended during the move")
            }
            guard monotonicNanoseconds() < deadline else {
                throw UpgradeFailure(.rolledBack, "the move did not end within its limit")
            }
            Readiness.awaitAny(
                [
                    rescue.source.socket, rescue.destination.socket, rescue.destinationProcess, rescue.sourceProcess,
                ], timeoutMilliseconds: 1000)
        }
    }

    /// From the source's stop to the destination's start; both stamp their events by the host's clock.
    mutating func pauseMicroseconds() throws -> Int64 {
        while stop == nil, let event = try rescue.source.nextEvent(timeoutMilliseconds: 1000) {
            if event.name == "STOP" { stop = event.microseconds }
        }
        while start == nil, let event = try rescue.destination.nextEvent(timeoutMilliseconds: 1000) {
            if event.name == "RESUME" { start = event.microseconds }
        }
        guard let start, let stop else { return 0 }
        return start - stop
    }
}
