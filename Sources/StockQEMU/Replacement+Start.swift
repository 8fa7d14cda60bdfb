import LinuxCalls
import MonitorClient
import QMPProtocol

extension Replacement {
    /// Starts the new process, which waits for the guest, and tells the guard of it.
    func startDestination(_ guarding: OwnedDescriptor) throws(SystemCallError) -> ChildProcess {
        let (control, far) = try StreamSocket.pair()
        // A service manager that is told of a main process that is another's child does not wait for it when the unit is stopped:
        // systemd sends SIGKILL right behind SIGTERM. An orphan becomes the manager's child.
        let destination = try spawn(control: far, errors: nil, isOrphan: plan.service.unit != nil)
        rescue.destination = QMPConnection(resuming: control, identifierPrefix: "u")
        rescue.destinationProcess = destination.processDescriptor
        UpgradeStep.started.reached()
        try ReplacementGuard.tellOf(destination.processDescriptor, monitor: control, over: guarding)
        for failure in discovery.process.shareControlGroups(with: destination.processIdentifier) {
            notes.append("the new process is not in the old one's control group: \(failure)")
        }
        return destination
    }

    private func spawn(
        control: OwnedDescriptor, errors: OwnedDescriptor?, isOrphan: Bool = false
    ) throws(SystemCallError) -> ChildProcess {
        var descriptors: [CInt: OwnedDescriptor] = [NewCommandLine.controlDescriptor: control]
        for (number, source) in plan.newCommandLine.inherited {
            descriptors[number] = try discovery.process.take(source, from: discovery.processDescriptor)
            if let backend = discovery.facts.memory.first(where: { $0.descriptor == source }),
                let size = try descriptors[number]?.status().byteCount, UInt64(size) < backend.byteCount
            {
                throw SystemCallError(
                    "fstat", .badAddress, subject: "memory \(backend.identifier) has shrunk to \(size) bytes")
            }
        }
        let nothing = try OwnedDescriptor.open("/dev/null", flags: 2)
        for number: CInt in 0...1 where descriptors[number] == nil { descriptors[number] = nothing }
        // Where the old process's messages went, the new one's go.
        descriptors[2] = errors ?? (try? discovery.process.take(2, from: discovery.processDescriptor)) ?? nothing
        var arguments = plan.newCommandLine.words + ["-incoming", "defer"]
        if plan.strategy == .cpr { arguments += ["-incoming", channel.descriptorsArgument] }
        return try ChildProcess(
            path: request.binary, arguments: arguments, environment: environment(), descriptors: descriptors,
            newSession: true, directory: discovery.facts.workingDirectory, isOrphan: isOrphan)
    }

    /// The old process's, but for what tells a program where its own parts are: that is ours.
    private func environment() -> [String] {
        func isOfProgram(_ variable: String) -> Bool {
            variable.hasPrefix("LD_") || variable.hasPrefix("QEMU_MODULE_DIR=") || variable.hasPrefix("PATH=")
        }
        let passing = discovery.environment.filter {
            !isOfProgram($0) && !$0.hasPrefix("SYSTEMD_EXEC_PID=") && !$0.hasPrefix("\(ReplacementGuard.variable)=")
                && !$0.hasPrefix("\(ServiceUnit.mainVariable)=")
        }
        let own = ((try? ProcessFiles.own.environment()) ?? []).filter(isOfProgram)
        let service = plan.service.unit.map { ["\(ServiceUnit.mainVariable)=\($0)"] } ?? []
        return passing + own + service + ["\(ReplacementGuard.variable)=\(token)"]
    }

    /// What the new program says when it is started like that; it ended without our having read it.
    func explain() -> String? {
        guard plan.strategy != .cpr, let (ours, theirs) = try? OwnedDescriptor.pipe(),
            let (control, far) = try? StreamSocket.pair()
        else { return nil }
        StreamSocket.shutDown(control)
        guard let child = try? spawn(control: far, errors: theirs) else { return nil }
        let text = HelpText.collect(child, ours, seconds: 1)
        rescue.taps.forEach { $0.restore() }
        return text.split(separator: "\n").last { !$0.contains("warning:") }.map(String.init)
    }

    /// The longest that a new process may take until it answers, in milliseconds.
    private static let startMillisecondsMax: Int64 = 30_000

    /// Waits until the new process's monitor answers: it is complete then. Taps are kept as the guest knows them meanwhile.
    func awaitDestination(_ process: ChildProcess) throws {
        guard let destination = rescue.destination else { return }
        let deadline = monotonicNanoseconds() + Self.startMillisecondsMax * 1_000_000
        let answer: JSONValue?
        do { answer = try destination.send("qmp_capabilities") } catch {
            throw UpgradeFailure(.rolledBack, "the new process ended before it was ready")
        }
        while true {
            rescue.taps.forEach { $0.keep() }
            if Rescue.hasEnded(process.processDescriptor) {
                throw UpgradeFailure(.rolledBack, "the new process ended before it was ready")
            }
            do {
                _ = try destination.awaitAnswer(timeoutMilliseconds: rescue.taps.isEmpty ? 50 : 2, to: answer)
                rescue.taps.forEach { $0.restore() }
                return
            } catch QMPConnection.Failure.timedOut {
                guard monotonicNanoseconds() < deadline else {
                    throw UpgradeFailure(
                        .rolledBack,
                        "the new process's monitor does not answer within \(Self.startMillisecondsMax / 1000) s")
                }
            } catch {
                if Rescue.hasEnded(process.processDescriptor, withinMilliseconds: 1000) { continue }
                throw UpgradeFailure(.rolledBack, "the new process's monitor does not answer: \(error)")
            }
        }
    }
}
