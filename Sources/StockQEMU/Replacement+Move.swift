import LinuxCalls
import MonitorClient
import QMPProtocol

extension Replacement {
    /// The name of the migration's socket in both monitors.
    static let descriptorName = "sidestep-move"

    private var capabilities: [String] {
        // An old process that waits for the new one's last word runs its guest on when the new one dies, though the guest has run
        // there; so where that starts by itself, it does not wait. Nor is anybody told of what happens while the guest stands still.
        let followed = plan.startsByItself ? [] : ["events", "return-path"]
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
            capabilities.filter { $0 != "release-ram" && $0 != "auto-converge" }
                + (isLate ? ["late-block-activate"] : []), on: destination)
        let clients = try prepareClients(destination)
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
            try watch.awaitStart()
            // From here on nothing can fail any more, and nothing of the following is waited for by the guest.
            stopSource()
            UpgradeStep.moved.reached()
            for entry in rescue.names.give() {
                notes.append(
                    "\(entry.publicPath) is another file now: the new process serves it at \(entry.privatePath)")
            }
            UpgradeStep.running.reached()
            return (try? watch.pauseMicroseconds()) ?? 0
        }
        if plan.strategy == .postcopy {
            try watch.awaitArrival(isSentToo: true)
            UpgradeStep.running.reached()
            return rescue.wasRunning ? (try? watch.pauseMicroseconds()) ?? 0 : 0
        }
        // A guest that ran waits for nothing that can do without it: the old process's last step is not awaited but prevented.
        try watch.awaitArrival(isSentToo: !rescue.wasRunning)
        stopSource()
        UpgradeStep.moved.reached()
        try rescue.names.exchange()
        UpgradeStep.renamed.reached()
        var orders = clients.map { client in
            Order(
                "add_client", ["protocol": .string(client.identifier), "fdname": .string(client.descriptorName)],
                client: client.identifier)
        }
        // From 10.0 on a paused guest's disks are left to whoever activates them; before, its arrival does.
        orders.append(
            rescue.wasRunning ? Order("cont") : Order("blockdev-set-active", ["active": true], mayFail: true))
        UpgradeStep.handed.reached()
        let start = try give(orders, to: destination, destinationProcess)
        guard rescue.wasRunning else { return 0 }
        watch.start = start?.microseconds
        let pause = (try? watch.pauseMicroseconds()) ?? 0
        UpgradeStep.running.reached()
        return pause
    }

    /// The old process is stopped for good: from here on it can neither run the guest nor read from its clients.
    private func stopSource() {
        ProcessSignal.stop(rescue.sourceProcess)
        // The signal takes effect when its threads next enter the kernel's gate; a moment.
        for _ in 0..<10_000 {
            if (try? discovery.process.state()) == "T" { break }
            ProcessSignal.yield()
        }
    }

    /// A command of those that the guest waits for.
    private struct Order {
        let name: String
        let arguments: JSONObject
        /// The one that has to connect again if it is refused.
        let client: String?
        let mayFail: Bool

        init(_ name: String, _ arguments: JSONObject = [:], client: String? = nil, mayFail: Bool = false) {
            self.name = name
            self.arguments = arguments
            self.client = client
            self.mayFail = mayFail
        }
    }

    /// Sends all of them before the first is answered: QEMU runs them in order.
    /// - Returns: The word with which QEMU lets the guest run. It stays unread, and so does what follows it.
    private func give(_ orders: [Order], to destination: QMPConnection, _ process: OwnedDescriptor) throws -> QMPEvent?
    {
        var waiting = Array(zip(try destination.send(orders.map { ($0.name, $0.arguments) }), orders))
        var failure: UpgradeFailure?
        let deadline = monotonicNanoseconds() + Int64(request.limitSeconds) * 1_000_000_000
        while !waiting.isEmpty {
            let hasEnded = Rescue.hasEnded(process)
            do throws(QMPConnection.Failure) {
                let start = try destination.findUnread(Rescue.start) { message in
                    switch message {
                    case .result(_, let identifier): waiting.removeAll { $0.0 == identifier }
                    case .failure(let error, let identifier):
                        guard let index = waiting.firstIndex(where: { $0.0 == identifier }) else { return }
                        let order = waiting.remove(at: index).1
                        if let client = order.client {
                            notes.append("\(client): its client must connect again: \(error)")
                        } else if !order.mayFail {
                            failure = failed(order.name, .refused(error))
                        }
                    case .event, .greeting: break
                    }
                }
                if let start { return start }
            } catch { throw failed(waiting.first?.1.name ?? "cont", error) }
            if let failure { throw failure }
            if hasEnded { throw UpgradeFailure(.rolledBack, "the new process ended during the move") }
            guard monotonicNanoseconds() < deadline else {
                throw failed(waiting.first?.1.name ?? "cont", .timedOut)
            }
            if !waiting.isEmpty {
                Readiness.awaitAny([destination.socket, process], timeoutMilliseconds: 250)
            }
        }
        return nil
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
    private func command(_ monitor: QMPConnection, _ name: String, _ arguments: JSONObject = [:]) throws {
        do throws(QMPConnection.Failure) {
            _ = try monitor.run(name, arguments, timeoutMilliseconds: Int64(request.limitSeconds) * 1000)
        } catch { throw failed(name, error) }
    }

    private func failed(_ name: String, _ error: QMPConnection.Failure) -> UpgradeFailure {
        guard case .timedOut = error else { return UpgradeFailure(.rolledBack, "\(name): \(error)") }
        return UpgradeFailure(
            .rolledBack,
            "the move did not end within its limit of \(request.limitSeconds) s (--limit): \(name) is not answered")
    }

    // MARK: Clients

    /// Gives the new process the connections of the guest's clients, to have at hand.
    private func prepareClients(_ destination: QMPConnection) throws -> [CharacterClient] {
        for client in plan.newCommandLine.clients {
            let socket = try discovery.process.take(client.descriptor, from: discovery.processDescriptor)
            _ = try destination.run("getfd", ["fdname": .string(client.descriptorName)], descriptors: [socket])
        }
        return plan.newCommandLine.clients
    }
}
