import LinuxCalls
import MonitorClient
import QMPProtocol

/// Guests whose new process must not run them before it was told to: clients are connected to their character devices, or their
/// state is mended on the way, or they are paused.
extension Replacement {
    /// A command of those that the guest waits for.
    struct Order {
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

    /// What the new process is to be told when the guest is there. It has the connections of the guest's clients at hand from now on.
    func orders(for destination: QMPConnection) throws -> [Order] {
        if plan.startsByItself { return [] }
        var orders: [Order] = []
        for client in plan.newCommandLine.clients {
            guard let socket = discovery.connection(of: client.socket) else {
                notes.append("\(client.identifier): its client has left")
                continue
            }
            _ = try destination.run("getfd", ["fdname": .string(client.descriptorName)], descriptors: [socket])
            orders.append(
                Order(
                    "add_client", ["protocol": .string(client.identifier), "fdname": .string(client.descriptorName)],
                    client: client.identifier))
        }
        // From 10.0 on a paused guest's disks are left to whoever activates them; before, its arrival does.
        orders.append(
            rescue.wasRunning ? Order("cont") : Order("blockdev-set-active", ["active": true], mayFail: true))
        return orders
    }

    /// A guest that ran waits for nothing that can do without it. As soon as the old process has sent all it is stopped, and the new
    /// one is given its orders while it loads. It looks at nothing else before it has loaded what is there, so that a client's bytes
    /// are left in the connection until then; told to run before it has all, it does so when it has.
    /// - Returns: The pause in microseconds.
    func handOver(_ orders: [Order], _ watch: inout MoveWatch) throws -> Int64 {
        guard let destination = rescue.destination, let process = rescue.destinationProcess else { return 0 }
        let begun = try begin(orders, destination)
        let state = try discovery.process.openState()
        // Where its virtual processor runs there is room when the guest stops; the others are wanted by both QEMUs then.
        let thread = discovery.facts.processorThreads.first
        let place = thread.flatMap { try? discovery.process.processor(ofThread: $0) } ?? -1
        let start = try HostThread.keeping(to: place) { () throws -> QMPEvent? in
            try HostThread.inShortTurns { () throws -> QMPEvent? in
                try watch.awaitSent()
                stopSource(state)
                UpgradeStep.moved.reached()
                // The names are given later, and refused now.
                try rescue.names.look()
                UpgradeStep.handed.reached()
                do throws(QMPConnection.Failure) { try destination.complete(begun) } catch {
                    throw failed(orders[0].name, error)
                }
                return try awaitAnswers(to: zip(begun.identifiers, orders), destination, process)
            }
        }
        if let start { watch.start = start.microseconds } else { try watch.awaitStart() }
        giveNames()
        UpgradeStep.running.reached()
        return (try? watch.pauseMicroseconds()) ?? 0
    }

    /// A paused guest waits for nothing at all.
    func handOverPaused(_ orders: [Order], _ watch: inout MoveWatch) throws -> Int64 {
        guard let destination = rescue.destination, let process = rescue.destinationProcess else { return 0 }
        try watch.awaitArrival()
        stopSource(try discovery.process.openState())
        UpgradeStep.moved.reached()
        try rescue.names.exchange()
        UpgradeStep.renamed.reached()
        let begun = try begin(orders, destination)
        UpgradeStep.handed.reached()
        do throws(QMPConnection.Failure) { try destination.complete(begun) } catch {
            throw failed(orders[0].name, error)
        }
        _ = try awaitAnswers(to: zip(begun.identifiers, orders), destination, process)
        return 0
    }

    /// The new process has the names from now on. It runs the guest, which no name can take back.
    func giveNames() {
        for entry in rescue.names.give() {
            notes.append("\(entry.publicPath) is another file now: the new process serves it at \(entry.privatePath)")
        }
    }

    /// The old process is stopped for good: from here on it can neither run the guest nor read from its clients.
    func stopSource(_ state: OwnedDescriptor) {
        ProcessSignal.stop(rescue.sourceProcess)
        // The signal takes effect when its threads next enter the kernel's gate; a moment.
        for _ in 0..<10_000 {
            if ProcessFiles.isStopped(state) { break }
            ProcessSignal.yield()
        }
    }

    private func begin(_ orders: [Order], _ destination: QMPConnection) throws -> QMPConnection.Begun {
        do throws(QMPConnection.Failure) {
            return try destination.begin(orders.map { ($0.name, $0.arguments) })
        } catch { throw failed(orders[0].name, error) }
    }

    /// Waits until all orders are answered, or the guest runs.
    /// - Returns: The word with which QEMU lets the guest run. It stays unread, and so does what follows it.
    private func awaitAnswers(
        to orders: some Sequence<(JSONValue?, Order)>, _ destination: QMPConnection, _ process: OwnedDescriptor
    ) throws -> QMPEvent? {
        var waiting = Array(orders)
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
}
