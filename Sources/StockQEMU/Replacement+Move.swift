import LinuxCalls
import MonitorClient
import QMPProtocol

extension Replacement {
    /// The name of the migration's socket in both monitors.
    static let descriptorName = "sidestep-move"

    private var capabilities: [String] {
        // An old process that waits for the new one's last word runs its guest on when the new one dies, though the guest has run
        // there; so where the guest is to run it does not wait. Where the new one starts by itself nobody is told of anything while
        // the guest stands still; where it waits for clients the old one says when all is sent.
        let waitsForLast = plan.strategy == .postcopy || !rescue.wasRunning
        let followed = plan.startsByItself && !waitsForLast ? [] : ["events"] + (waitsForLast ? ["return-path"] : [])
        return switch plan.strategy {
        case .shared: followed + ["x-ignore-shared"]
        case .postcopy: followed + ["postcopy-ram", "release-ram"]
        // A guest that writes faster than it is copied is slowed down, more and more.
        case .precopy: followed + ["auto-converge"]
        case .cpr: followed
        }
    }

    private func prepareSource() throws {
        try Rescue.setCapabilities(capabilities, on: rescue.source)
        // What is not shared is little, and goes while the guest runs.
        let downtime: Int64 = plan.strategy.keepsPages ? 20 : 300
        var parameters: JSONObject = [
            "max-bandwidth": plan.strategy == .postcopy ? 16_000_000 : 1_000_000_000_000,
            "downtime-limit": JSONValue(downtime),
        ]
        if plan.strategy == .precopy {
            parameters["cpu-throttle-initial"] = 30
            parameters["cpu-throttle-increment"] = 20
        }
        _ = try rescue.source.run("migrate-set-parameters", parameters)
    }

    /// `cpr-transfer` begins before the new process answers: it waits for descriptors first. The guest runs on until the new
    /// process says where the rest is to come.
    func beginDescriptors(_ process: ChildProcess) throws {
        try prepareSource()
        _ = try rescue.source.run("migrate-set-parameters", ["mode": "cpr-transfer"])
        if plan.mendsTimers {
            // Waits for the source there, and for the destination to have come so far.
            let (from, to) = (try StreamSocket.listen(at: .unix(path: channel.unmended)), channel.main)
            mendedState = try MendedState(request.mender, ignoresShared: false) { () throws(SystemCallError) in
                let source = try StreamSocket.accept(from: from)
                return (source, try StreamSocket.connect(to: .unix(path: to)))
            }
        }
        for attempt in 1...3000 {
            if Rescue.hasEnded(process.processDescriptor) {
                throw UpgradeFailure(.rolledBack, "the new process ended before it was ready")
            }
            guard (try? FileNames.status(of: channel.descriptors)) != nil else {
                ProcessSignal.sleep(milliseconds: 10)
                continue
            }
            do throws(QMPConnection.Failure) {
                _ = try rescue.source.run("migrate", ["channels": channel.outgoing(mended: plan.mendsTimers)])
                return
            } catch {
                // Bound, and listening an instant later. That this attempt failed is no news of the next.
                guard attempt < 3000, error.description.contains("refused") else { throw error }
                rescue.source.forgetEvents()
            }
            ProcessSignal.sleep(milliseconds: 1)
        }
        throw UpgradeFailure(.rolledBack, "the new process does not take the old one's descriptors")
    }

    /// Answers the pause in microseconds.
    func move() throws -> Int64 {
        guard let destination = rescue.destination, let destinationProcess = rescue.destinationProcess else { return 0 }
        let source = rescue.source
        progress("moving the guest (\(plan.strategy.rawValue))")
        if plan.strategy != .cpr { try prepareSource() }
        // A new process that is to run the guest touches no disk before it is told to; one that is to hold it paused locks them.
        let isLate = rescue.wasRunning && plan.strategy != .postcopy
        try Rescue.setCapabilities(
            capabilities.filter {
                $0 != "release-ram" && $0 != "auto-converge" && ($0 != "events" || !isLate)
            } + (isLate ? ["late-block-activate"] : []), on: destination)
        let orders = try orders(for: destination)
        var watch = MoveWatch(
            source: source, sourceProcess: rescue.sourceProcess, destination: destination,
            destinationProcess: destinationProcess, limitSeconds: request.limitSeconds, progress: progress)
        if plan.strategy == .cpr {
            UpgradeStep.prepared.reached()
            try command(destination, "migrate-incoming", ["uri": .string("unix:\(channel.main)")])
        } else {
            let (near, far) = try openChannel()
            _ = try source.run("getfd", ["fdname": .string(Self.descriptorName)], descriptors: [near])
            _ = try destination.run("getfd", ["fdname": .string(Self.descriptorName)], descriptors: [far])
            UpgradeStep.prepared.reached()
            try command(destination, "migrate-incoming", ["uri": .string("fd:\(Self.descriptorName)")])
            // Once the new process runs there is no way back, for the names either: with postcopy it has them before.
            if plan.strategy == .postcopy {
                try rescue.names.exchange()
                UpgradeStep.renamed.reached()
            }
            try command(source, "migrate", ["uri": .string("fd:\(Self.descriptorName)")])
            // At once: what is sent before it begins is not freed.
            if plan.strategy == .postcopy { try command(source, "migrate-start-postcopy") }
        }
        UpgradeStep.moving.reached()
        if plan.startsByItself {
            let state = try discovery.process.openState()
            try watch.awaitStart()
            // From here on nothing can fail any more, and nothing of the following is waited for by the guest.
            stopSource(state)
            UpgradeStep.moved.reached()
            giveNames()
            UpgradeStep.running.reached()
            return (try? watch.pauseMicroseconds()) ?? 0
        }
        if plan.strategy == .postcopy {
            try watch.awaitArrival()
            UpgradeStep.running.reached()
            return rescue.wasRunning ? (try? watch.pauseMicroseconds()) ?? 0 : 0
        }
        return try rescue.wasRunning ? handOver(orders, &watch) : handOverPaused(orders, &watch)
    }

    /// The source's end and the destination's.
    private func openChannel() throws(SystemCallError) -> (OwnedDescriptor, OwnedDescriptor) {
        let (near, far) = try StreamSocket.pair()
        guard plan.mendsTimers else { return (near, far) }
        let (second, last) = try StreamSocket.pair()
        mendedState = try MendedState(request.mender, ignoresShared: plan.strategy == .shared) { (far, second) }
        return (near, last)
    }

    /// Runs a command that belongs to the move: its limit is the move's.
    func command(_ monitor: QMPConnection, _ name: String, _ arguments: JSONObject = [:]) throws {
        do throws(QMPConnection.Failure) {
            _ = try monitor.run(name, arguments, timeoutMilliseconds: Int64(request.limitSeconds) * 1000)
        } catch { throw failed(name, error) }
    }

    func failed(_ name: String, _ error: QMPConnection.Failure) -> UpgradeFailure {
        guard case .timedOut = error else { return UpgradeFailure(.rolledBack, "\(name): \(error)") }
        return UpgradeFailure(
            .rolledBack,
            "the move did not end within its limit of \(request.limitSeconds) s (--limit): \(name) is not answered")
    }
}
