package import LinuxCalls
package import MonitorClient
package import QMPProtocol

/// Ends an upgrade in one of its two ways, from whatever state it was left in: used by the upgrade itself when something fails,
/// and by its guard when the upgrade's own process died.
///
/// The new process never runs the guest before it is told to, by one command; so whether it does is what decides. Postcopy is the
/// exception: the new process runs the guest by itself, and from then on there is one way only.
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

    /// Where the guest is.
    package enum Outcome: String, Sendable { case stayed, moved, lost, undecided }

    /// The longest that a guest's memory may follow it, in seconds.
    private static let postcopySecondsMax = 3600

    package func resolve() -> Outcome {
        if Self.hasEnded(sourceProcess) { return destinationHasEnded ? .lost : destinationRuns ? finish() : .undecided }
        if isPostcopy {
            if let outcome = followPostcopy() { return outcome }
        } else if destinationRuns {
            return finish()
        }
        return rollBack()
    }

    var destinationHasEnded: Bool { destinationProcess.map { Self.hasEnded($0) } ?? true }

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
        names.removePrivate()
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
