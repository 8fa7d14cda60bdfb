package import LinuxCalls
package import MonitorClient
package import QMPProtocol

/// Ends an upgrade in one of its two ways, from whatever state it was left in: used by the upgrade itself when something fails,
/// and by its guard when the upgrade's own process died.
///
/// Whether the guest has run in the new process is what decides. QEMU says so (`RESUME`) on its monitor before the first
/// instruction, and as long as the old process is there that word is left unread in the monitor's socket, where the guard finds it
/// too, also when the new process has died. With postcopy it is the old process's word that counts: from when RAM begins to leave
/// there is one way only. See `Documentation/decisions/0007-who-runs-the-guest.md`.
package struct Rescue {
    package var source: QMPConnection
    package var sourceProcess: OwnedDescriptor
    /// Nil before the new process is started.
    package var destination: QMPConnection?
    package var destinationProcess: OwnedDescriptor?
    /// The guest ran before the upgrade.
    package var wasRunning: Bool
    /// RAM leaves the old process for good while the guest runs in the new one.
    package var isPostcopy = false
    package var names: MovingNames
    /// Capabilities that were on at the source.
    package var capabilities: [String] = []
    /// Parameters of the source as they were.
    package var parameters: JSONObject = [:]
    package var taps: [HeldTap] = []

    package init(
        source: QMPConnection, sourceProcess: OwnedDescriptor, wasRunning: Bool, isPostcopy: Bool = false,
        names: MovingNames
    ) {
        self.source = source
        self.sourceProcess = sourceProcess
        self.wasRunning = wasRunning
        self.isPostcopy = isPostcopy
        self.names = names
    }

    /// Where the guest is.
    package enum Outcome: String, Sendable { case stayed, moved, lost, undecided }

    /// The longest that a guest's memory may follow it, in seconds.
    private static let postcopySecondsMax = 3600

    package func resolve() -> Outcome {
        if Self.hasEnded(sourceProcess) { return adopt() }
        if isPostcopy {
            if let outcome = followPostcopy() { return outcome }
        } else if let destinationProcess {
            // It stands still meanwhile, so that what is found stays true.
            ProcessSignal.stop(destinationProcess, awaitMilliseconds: 5000)
            if destinationHasStarted {
                if destinationHasEnded { return giveUp() }
                ProcessSignal.resume(destinationProcess)
                return finish()
            }
        }
        return rollBack()
    }

    /// The event with which QEMU tells that the guest is about to run.
    static let start = "RESUME"

    /// Whether the guest may have run in the new process, though it were for one instruction.
    private var destinationHasStarted: Bool {
        guard !isPostcopy, let destination, let event = try? destination.findUnread(Self.start) else { return false }
        return event.name == Self.start
    }

    /// The old process is gone by itself: the guest is the new one's, if all of it has come; if not, that ends by itself.
    private func adopt() -> Outcome {
        // A command may have been begun that nobody will end.
        try? destination?.abandon()
        for _ in 0..<60 {
            guard let destination, let answer = try? destination.run("query-status", timeoutMilliseconds: 5000) else {
                // One that closed its monitor is about to end.
                guard destinationEnds(withinMilliseconds: 5000) else { return .undecided }
                names.removePrivate()
                return .lost
            }
            switch answer["status"]?.stringValue {
            case "running": return finish()
            case "paused" where wasRunning: _ = try? destination.run("cont")
            case "paused": return finish()
            default: break
            }
            ProcessSignal.sleep(milliseconds: 50)
        }
        return .undecided
    }

    /// The guest ran in the new process, which is dead: what the old one has is not the guest any more, and must never run.
    private func giveUp() -> Outcome {
        ProcessSignal.kill(sourceProcess)
        guard Self.hasEnded(sourceProcess, withinMilliseconds: 30_000) else { return .undecided }
        names.removePrivate()
        return .lost
    }

    var destinationHasEnded: Bool { destinationEnds(withinMilliseconds: 0) }

    private func destinationEnds(withinMilliseconds limit: CInt) -> Bool {
        destinationProcess.map { Self.hasEnded($0, withinMilliseconds: limit) } ?? true
    }

    private var destinationRuns: Bool {
        guard !destinationHasEnded, let destination,
            let answer = try? destination.run("query-status", timeoutMilliseconds: 5000)
        else { return false }
        return answer["status"]?.stringValue == "running"
    }

    /// What the source says of its migration, `none` before there was one; nil when it does not answer.
    private func sourceMigration() -> String? {
        guard let answer = try? source.run("query-migrate", timeoutMilliseconds: 5000) else { return nil }
        let status = answer["status"]?.stringValue ?? "none"
        // A process into which the guest came before says of that, for good, that it is completed.
        guard status == "completed", let state = try? source.run("query-status", timeoutMilliseconds: 5000) else {
            return status
        }
        return state["status"]?.stringValue == "postmigrate" ? status : "none"
    }

    /// Waits until all of the guest's memory has followed it. Nil when it had not begun to leave, and can stay.
    private func followPostcopy() -> Outcome? {
        // What was ordered an instant ago shows a round later.
        for _ in 0..<20 {
            if Self.hasEnded(sourceProcess) || destinationHasEnded { break }
            if let status = sourceMigration(), status.hasPrefix("postcopy") || status == "completed" { break }
            ProcessSignal.sleep(milliseconds: 50)
        }
        for _ in 0..<Self.postcopySecondsMax * 10 {
            guard !Self.hasEnded(sourceProcess), !destinationHasEnded else { break }
            let status = sourceMigration() ?? ""
            if status == "completed" { return destinationRuns || !wasRunning ? finish() : .undecided }
            guard status.hasPrefix("postcopy") else { return nil }
            if status == "postcopy-paused" { return .undecided }
            ProcessSignal.sleep(milliseconds: 100)
        }
        if !destinationHasEnded { return .undecided }
        return sourceMigration()?.hasPrefix("postcopy") == false ? nil : .lost
    }

    /// Whether a process has ended, by its pidfd.
    static func hasEnded(_ process: OwnedDescriptor, withinMilliseconds limit: CInt = 0) -> Bool {
        ((try? process.waitUntilReady(for: 1, timeoutMilliseconds: limit)) ?? 0) != 0
    }

    /// The guest is the new process's: the old one goes, without the clean-up that would take its successor's names away.
    @discardableResult package func finish() -> Outcome {
        ProcessSignal.kill(sourceProcess)
        guard Self.hasEnded(sourceProcess, withinMilliseconds: 30_000) else { return .undecided }
        _ = names.give()
        names.removeOld()
        // What was switched on for this move is not left on for the next one, which may be somebody else's.
        if let destination { try? Self.setCapabilities(capabilities, on: destination) }
        return .moved
    }

    /// The guest stays: the new process goes first, so that at no time two could run it.
    package func rollBack() -> Outcome {
        if let destinationProcess {
            ProcessSignal.kill(destinationProcess)
            guard Self.hasEnded(destinationProcess, withinMilliseconds: 30_000) else { return .undecided }
        }
        if destinationHasStarted { return giveUp() }
        ProcessSignal.resume(sourceProcess)
        taps.forEach { $0.restore() }
        names.exchangeBack()
        names.removePrivate()
        do {
            for attempt in 0..<500 {
                let status = try source.run("query-migrate")["status"]?.stringValue ?? "none"
                // Pages are gone that only the new process had.
                if status.hasPrefix("postcopy") { return .lost }
                guard ["setup", "active", "pre-switchover", "device", "cancelling", "wait-unplug"].contains(status)
                else { break }
                if attempt % 50 == 0 { _ = try? source.run("migrate_cancel") }
                ProcessSignal.sleep(milliseconds: 10)
            }
            for _ in 0..<(wasRunning ? 200 : 0) {
                if try source.run("query-status")["running"]?.boolValue == true { break }
                _ = try? source.run("cont")
                ProcessSignal.sleep(milliseconds: 10)
            }
            if wasRunning, try source.run("query-status")["running"]?.boolValue != true { return .undecided }
            _ = try? source.run("closefd", ["fdname": .string(Replacement.descriptorName)])
            if !parameters.isEmpty { _ = try? source.run("migrate-set-parameters", parameters) }
            try setCapabilities(capabilities)
        } catch { return Self.hasEnded(sourceProcess) ? .lost : .stayed }
        return .stayed
    }

    /// Sets exactly these capabilities at the source.
    func setCapabilities(_ wanted: [String]) throws {
        try Self.setCapabilities(wanted, on: source)
    }

    /// Those that are on.
    static func capabilities(of monitor: QMPConnection) throws -> [String] {
        (try monitor.run("query-migrate-capabilities").arrayValue ?? []).filter { $0["state"]?.boolValue == true }
            .compactMap { $0["capability"]?.stringValue }
    }

    static func setCapabilities(_ wanted: [String], on monitor: QMPConnection) throws {
        let known = (try monitor.run("query-migrate-capabilities").arrayValue ?? []).filter { entry in
            entry["state"]?.boolValue != wanted.contains(entry["capability"]?.stringValue ?? "")
        }
        if known.isEmpty { return }
        let changes: [JSONValue] = known.map { entry in
            let name = entry["capability"]?.stringValue ?? ""
            return ["capability": .string(name), "state": .bool(wanted.contains(name))]
        }
        _ = try monitor.run("migrate-set-capabilities", ["capabilities": .array(changes)])
    }
}
