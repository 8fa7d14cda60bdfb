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
    let request: ReplacementRequest
    let plan: ReplacementPlan
    let token: String
    let progress: (String) -> Void
    var rescue: Rescue
    /// What is found out on the way.
    var notes: [String]
    /// Passes the state, where it is mended on the way.
    var mendedState: MendedState?
    private var guardProcess: ChildProcess?
    /// The old process may have stopped the guest.
    private var hasBegun = false

    /// How long a guard that is not needed any more is waited for.
    private static let guardMillisecondsMax: CInt = 5000

    var discovery: Discovery { plan.discovery }

    /// - Parameter progress: Is told of each step, in a few words.
    package init(_ request: ReplacementRequest, progress: @escaping (String) -> Void) throws(UpgradeFailure) {
        self.request = request
        self.progress = progress
        token = String(UInt32.random(in: 0...UInt32.max), radix: 36)
        plan = try ReplacementPlan(request, token: token)
        notes = plan.newCommandLine.notes
        rescue = Rescue(
            source: plan.discovery.monitor, sourceProcess: plan.discovery.processDescriptor,
            wasRunning: plan.discovery.status == "running", isPostcopy: plan.strategy == .postcopy, names: MovingNames()
        )
    }

    /// - Throws: ``UpgradeFailure``; its kind says where the guest is.
    package func run() throws(UpgradeFailure) -> ReplacementReport {
        if let failure = plan.findings.first(where: { $0.grade == .fail }) {
            throw UpgradeFailure(.refused, "\(failure.subject): \(failure.text)")
        }
        let guarding: OwnedDescriptor
        do {
            try lookAtSource()
            guarding = try startGuard()
            UpgradeStep.guarded.reached()
        } catch {
            throw UpgradeFailure(.refused, "the upgrade cannot be prepared: \(error); nothing was changed")
        }
        defer {
            ReplacementGuard.disarm(guarding)
            // Until it is gone it keeps the guest's monitor from others, such as the next upgrade.
            _ = guardProcess?.wait(timeoutMilliseconds: Self.guardMillisecondsMax)
        }
        do throws(SystemCallError) { try rescue.names.makeDirectories() } catch {
            rescue.names.removePrivate()
            throw UpgradeFailure(
                .refused, "beside the guest's sockets nothing can be made: \(error); make room, or let us write there")
        }
        UpgradeStep.named.reached()
        return try moveGuarded(guarding)
    }

    private func moveGuarded(_ guarding: OwnedDescriptor) throws(UpgradeFailure) -> ReplacementReport {
        progress("starting \(request.binary)")
        let start = monotonicNanoseconds()
        let destination: ChildProcess
        do throws(SystemCallError) { destination = try startDestination(guarding) } catch {
            let outcome = rescue.rollBack()
            throw UpgradeFailure(
                outcome == .stayed ? .rolledBack : .undecided,
                "the new process cannot be started: \(error); the guest runs on in process \(discovery.process.identifier)"
            )
        }
        do {
            if plan.strategy == .cpr { try beginDescriptors(destination) }
            try awaitDestination(destination)
            let started = monotonicNanoseconds()
            UpgradeStep.ready.reached()
            hasBegun = true
            let pause = try move()
            let moved = monotonicNanoseconds()
            // From here on the guest is the new process's, and nothing is left that could fail for it.
            plan.service.announce(destination.processIdentifier)
            if request.keepSourceSeconds > 0 {
                progress("keeping the old process, paused, for \(request.keepSourceSeconds) s")
                ProcessSignal.sleep(milliseconds: UInt32(clamping: request.keepSourceSeconds) &* 1000)
            }
            guard rescue.finish() == .moved else {
                throw UpgradeFailure(
                    .undecided,
                    "the guest runs in process \(destination.processIdentifier), but the old one does not end")
            }
            UpgradeStep.ended.reached()
            // A guest that ends by itself, and its process with it, has come to its end as it would have anywhere.
            if case .signaled(let signal) = destination.wait(timeoutMilliseconds: 0) {
                throw UpgradeFailure(.lost, "the new process was ended by signal \(signal) as soon as it ran the guest")
            }
            return ReplacementReport(
                oldProcess: discovery.process.identifier, newProcess: destination.processIdentifier,
                strategy: plan.strategy, reason: plan.reason, pauseMicroseconds: pause,
                startMicroseconds: (started - start) / 1000, totalMicroseconds: (moved - started) / 1000,
                notes: notes)
        } catch {
            throw failure(error, destination)
        }
    }

    /// Ends what was begun, and says where the guest is.
    private func failure(_ error: any Error, _ destination: ChildProcess) -> UpgradeFailure {
        var text = (error as? UpgradeFailure)?.description ?? "\(error)"
        if !rescue.destinationHasEnded, let reason = mendedState?.failure() { text += ": \(reason)" }
        // While the guest may stand still nobody waits for words.
        if !hasBegun, rescue.destinationHasEnded, let explanation = explain() { text += ": \(explanation)" }
        switch rescue.resolve() {
        case .stayed:
            return UpgradeFailure(
                .rolledBack,
                "\(text); the guest \(rescue.wasRunning ? "runs on" : "stays") in process \(discovery.process.identifier)"
            )
        case .moved:
            return UpgradeFailure(
                .undecided, "\(text); yet the guest runs in process \(destination.processIdentifier)")
        case .lost: return UpgradeFailure(.lost, "\(text); the guest is gone")
        case .undecided:
            return UpgradeFailure(
                .undecided,
                "\(text); the guest stands still, in process \(discovery.process.identifier) or "
                    + "\(destination.processIdentifier): ask both with query-status")
        }
    }

    // MARK: Preparation

    /// What is to be put back when the guest stays.
    private func lookAtSource() throws {
        rescue.capabilities = try Rescue.capabilities(of: rescue.source)
        let known = try rescue.source.run("query-migrate-parameters")
        let throttle = ["cpu-throttle-initial", "cpu-throttle-increment"]
        for name in ["max-bandwidth", "downtime-limit"] + throttle + (plan.strategy == .cpr ? ["mode"] : []) {
            rescue.parameters[name] = known[name]
        }
        for name in plan.newCommandLine.names {
            let status = try FileNames.status(of: name.publicPath)
            rescue.names.entries.append(
                .init(publicPath: name.publicPath, privatePath: name.privatePath, inode: status.inode))
        }
        let beside = rescue.names.entries.map {
            String($0.privatePath.prefix(upTo: $0.privatePath.lastIndex(of: "/") ?? $0.privatePath.startIndex))
        }
        let own = plan.strategy == .cpr ? [channel.directory] : []
        rescue.names.directories = Set(own + beside).sorted()
        let anySocket = discovery.facts.sockets.first.flatMap {
            try? discovery.process.take($0.descriptor, from: discovery.processDescriptor)
        }
        for tap in discovery.facts.taps.sorted(by: { $0.key < $1.key }) {
            guard let first = tap.value.first else { continue }
            let descriptor = try discovery.process.take(first, from: discovery.processDescriptor)
            rescue.taps.append(
                HeldTap(descriptor: descriptor, settings: try TapSettings(of: descriptor, socket: anySocket)))
        }
    }

    var channel: MoveChannel { MoveChannel(token: token) }

    /// Before anything else, so that there is no moment without it.
    private func startGuard() throws -> OwnedDescriptor {
        let ours = try spawnGuard()
        try ReplacementGuard.arm(rescue, token: token, over: ours)
        // It does not start beside the new process: with both, and a guest, two processors are too few.
        try ReplacementGuard.awaitReadiness(over: ours)
        return ours
    }

    private func spawnGuard() throws(SystemCallError) -> OwnedDescriptor {
        let (ours, guards) = try StreamSocket.pair()
        let nothing = try OwnedDescriptor.open("/dev/null", flags: 2)
        let errors = try OwnedDescriptor.duplicate(of: 2)
        guardProcess = try HostThread.avoiding(discovery.processors) { () throws(SystemCallError) in
            try ChildProcess(
                path: request.guardProgram, arguments: ["qemu", "guard", "3"],
                descriptors: [0: nothing, 1: nothing, 2: errors, 3: guards], newSession: true)
        }
        return ours
    }
}
