import LinuxCalls
import MonitorClient
import QMPProtocol

/// Follows a move by both QEMUs' events.
struct MoveWatch {
    private let source: QMPConnection
    private let sourceProcess: OwnedDescriptor
    private let destination: QMPConnection
    private let destinationProcess: OwnedDescriptor
    private let limitSeconds: Int
    private let deadline: Int64
    private let progress: (String) -> Void
    private var stop: Int64?
    /// When the guest was started, in microseconds since 1970.
    var start: Int64?
    private var isSent = false
    private var isLoaded = false

    init(
        source: QMPConnection, sourceProcess: OwnedDescriptor, destination: QMPConnection,
        destinationProcess: OwnedDescriptor, limitSeconds: Int, progress: @escaping (String) -> Void
    ) {
        self.source = source
        self.sourceProcess = sourceProcess
        self.destination = destination
        self.destinationProcess = destinationProcess
        self.limitSeconds = limitSeconds
        self.progress = progress
        deadline = monotonicNanoseconds() + Int64(limitSeconds) * 1_000_000_000
    }

    /// Waits until the old process says that all was sent: the new one has it before it can be told anything more.
    mutating func awaitSent() throws { try follow(untilLoaded: false) }

    /// Waits until the old process says that all was sent and the new one that all has arrived.
    mutating func awaitArrival() throws { try follow(untilLoaded: true) }

    /// - Parameter untilLoaded: Without it what the new process says stays unread.
    private mutating func follow(untilLoaded: Bool) throws {
        var told = monotonicNanoseconds()
        while true {
            while let event = try source.nextEvent(timeoutMilliseconds: 0) { try noteSource(event) }
            if untilLoaded {
                while let event = try destination.nextEvent(timeoutMilliseconds: 0) { try noteDestination(event) }
            }
            if isSent && (isLoaded || !untilLoaded) { return }
            if Rescue.hasEnded(destinationProcess) {
                throw UpgradeFailure(.rolledBack, "the new process ended during the move")
            }
            if Rescue.hasEnded(sourceProcess) { throw UpgradeFailure(.lost, "the old process ended during the move") }
            guard monotonicNanoseconds() < deadline else {
                throw UpgradeFailure(
                    .rolledBack, "the move did not end within its limit of \(limitSeconds) s (--limit)")
            }
            Readiness.awaitAny(
                [source.socket, destinationProcess, sourceProcess] + (untilLoaded ? [destination.socket] : []),
                timeoutMilliseconds: 250)
            if monotonicNanoseconds() > told + 1_000_000_000 {
                told = monotonicNanoseconds()
                tellProgress()
            }
        }
    }

    /// Waits until the new process says that it runs the guest, which it does by itself. That word stays unread: see ``Rescue``.
    ///
    /// Nobody else's word is listened to meanwhile: each wake-up of ours takes a processor from one of the two.
    mutating func awaitStart() throws {
        var asked = monotonicNanoseconds()
        var told = asked
        var status = "inmigrate"
        var isAnswered = true
        while true {
            // Before its word is looked for: what it said before it ended is there then.
            let hasEnded = Rescue.hasEnded(destinationProcess)
            do throws(QMPConnection.Failure) {
                let event = try destination.findUnread(Rescue.start) { message in
                    guard case .result(let value, _) = message else { return }
                    isAnswered = true
                    status = value["status"]?.stringValue ?? status
                }
                if let event {
                    start = event.microseconds
                    return
                }
            } catch {
                if case .closed = error {} else { throw error }
            }
            if hasEnded { throw UpgradeFailure(.rolledBack, "the new process ended during the move") }
            guard ["inmigrate", "running"].contains(status) else {
                throw UpgradeFailure(
                    .rolledBack, "the new process has the guest and does not run it (\(status)): see its messages")
            }
            let now = monotonicNanoseconds()
            guard now < deadline else {
                throw UpgradeFailure(
                    .rolledBack, "the move did not end within its limit of \(limitSeconds) s (--limit)")
            }
            if now > asked + 250_000_000 {
                asked = now
                if isAnswered { _ = try? destination.send("query-status") }
                isAnswered = false
                try askSource(tells: now > told + 1_000_000_000)
                if now > told + 1_000_000_000 { told = now }
            }
            Readiness.awaitAny([destination.socket, destinationProcess], timeoutMilliseconds: 50)
        }
    }

    /// Whether the old process still sends. When it is gone by itself, the new one either has all or ends.
    private func askSource(tells: Bool) throws {
        guard !Rescue.hasEnded(sourceProcess),
            let answer = try? source.run("query-migrate", timeoutMilliseconds: 1000)
        else { return }
        let status = answer["status"]?.stringValue ?? ""
        if ["failed", "cancelled"].contains(status) {
            let reason = answer["error-desc"]?.stringValue
            throw UpgradeFailure(.rolledBack, "QEMU gave the move up (\(status)\(reason.map { ": \($0)" } ?? ""))")
        }
        if tells { tell(answer) }
    }

    private func tellProgress() {
        guard let answer = try? source.run("query-migrate", timeoutMilliseconds: 1000) else { return }
        tell(answer)
    }

    private func tell(_ answer: JSONValue) {
        guard let left = answer["ram"]?["remaining"]?.integerValue, let total = answer["ram"]?["total"]?.integerValue
        else { return }
        let rounds = answer["ram"]?["dirty-sync-count"]?.integerValue ?? 0
        progress("  \(left >> 20) of \(total >> 20) MiB left, round \(rounds)")
    }

    private mutating func noteSource(_ event: QMPEvent) throws {
        if event.name == "STOP" { stop = event.microseconds }
        guard event.name == "MIGRATION" else { return }
        let status = event.data?["status"]?.stringValue ?? ""
        if status == "completed" { isSent = true }
        if ["failed", "cancelled", "postcopy-paused"].contains(status) {
            let reason = (try? source.run("query-migrate"))?["error-desc"]?.stringValue
            throw UpgradeFailure(.rolledBack, "QEMU gave the move up (\(status)\(reason.map { ": \($0)" } ?? ""))")
        }
    }

    private mutating func noteDestination(_ event: QMPEvent) throws {
        if event.name == "RESUME" { start = event.microseconds }
        guard event.name == "MIGRATION" else { return }
        let status = event.data?["status"]?.stringValue ?? ""
        if status == "completed" { isLoaded = true }
        if status == "failed" { throw UpgradeFailure(.rolledBack, "the new process refused the guest's state") }
    }

    /// From the source's stop to the destination's start; both stamp their events by the host's clock.
    mutating func pauseMicroseconds() throws -> Int64 {
        while stop == nil, let event = try source.nextEvent(timeoutMilliseconds: 1000) { try? noteSource(event) }
        while start == nil, let event = try destination.nextEvent(timeoutMilliseconds: 1000) {
            try? noteDestination(event)
        }
        guard let start, let stop else { return 0 }
        return start - stop
    }
}
