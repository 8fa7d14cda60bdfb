import Glibc
package import LinuxCalls
package import QMPProtocol

/// Runs commands that clients of the QMP server send.
package protocol QMPCommandExecutor: AnyObject, Sendable {
    /// Called on the monitor's thread, which must not block. `reply` is called once, from any thread, now or later; until
    /// then the client's next command waits.
    func execute(
        _ command: QMPCommand, from client: QMPClient, reply: @escaping @Sendable (Result<JSONValue, QMPError>) -> Void)
}

/// QMP on several sockets, each with several clients. Lives on one event loop's thread; no call blocks.
///
/// Hand-over: ``suspend()`` stops reading, and ``handOver()`` gives what a successor builds its own server from; clients
/// keep their negotiation, their half-read input and their unsent output. ``resume()`` takes everything back.
///
/// SAFETY: every member is touched on the event loop's thread only.
package final class QMPServer: @unchecked Sendable {
    // SAFETY: every member is touched only on the event loop's thread; entry points check it.

    package static let clientCountMax = 2048

    private struct Listener {
        var address: ListenAddress
        var descriptor: OwnedDescriptor
        var token: EventLoop.Token?
    }

    private let loop: EventLoop
    private let version: QMPVersion
    private weak var executor: (any QMPCommandExecutor)?
    private var listeners: [Listener] = []
    private var clients: [Int: QMPClient] = [:]
    private var nextIdentifier = 0
    /// No descriptor was left for another client; listening goes on when one leaves.
    private var isOutOfDescriptors = false
    package private(set) var isSuspended = false

    package init(loop: EventLoop, version: QMPVersion, executor: any QMPCommandExecutor) {
        self.loop = loop
        self.version = version
        self.executor = executor
    }

    package var clientCount: Int { clients.count }
    package var addresses: [ListenAddress] { listeners.map(\.address) }

    /// Starts to serve on a listening socket.
    package func listen(_ descriptor: OwnedDescriptor, as address: ListenAddress) throws(SystemCallError) {
        precondition(loop.isLoopThread)
        try descriptor.setNonBlocking(true)
        listeners.append(Listener(address: address, descriptor: descriptor))
        try watchListeners()
    }

    /// Makes the socket for an address. A socket file that nobody listens on any more is replaced.
    package static func bind(_ address: ListenAddress) throws(SystemCallError) -> (OwnedDescriptor, ListenAddress) {
        switch address {
        case .unix(let path):
            return (try UnixListener.bind(path: path), address)
        case .tcp(let host, let port):
            let descriptor = try StreamSocket.listen(at: .tcp(host: host, port: port))
            return (descriptor, .tcp(host: host, port: port == 0 ? try StreamSocket.localPort(of: descriptor) : port))
        }
    }

    /// Tells every client that has negotiated.
    package func broadcast(_ event: QMPEvent) {
        precondition(loop.isLoopThread)
        let line = event.line
        for client in clients.values where client.session.isNegotiated { client.send(line) }
    }

    /// Closes every connection and listener after a last attempt to send what is queued.
    package func close() {
        precondition(loop.isLoopThread)
        for listener in listeners { if let token = listener.token { loop.remove(token) } }
        listeners = []
        for client in Array(clients.values) {
            client.flush()
            client.close()
        }
    }

    private func watchListeners() throws(SystemCallError) {
        for index in listeners.indices {
            if isSuspended || isOutOfDescriptors {
                if let token = listeners[index].token { loop.remove(token) }
                listeners[index].token = nil
            } else if listeners[index].token == nil {
                let descriptor = listeners[index].descriptor
                listeners[index].token = try loop.watch(descriptor, for: .readable) { [weak self] _ in
                    self?.accept(from: descriptor)
                }
            }
        }
    }

    private func accept(from listener: OwnedDescriptor) {
        let socket: OwnedDescriptor
        do {
            socket = try StreamSocket.accept(from: listener)
        } catch {
            if error.errno == .tooManyOpenFiles || error.errno == .tooManyOpenFilesInSystem {
                isOutOfDescriptors = true
                try? watchListeners()
            }
            return
        }
        guard clients.count < Self.clientCountMax else { return }  // closes it
        let client = QMPClient(
            identifier: nextIdentifier, socket: socket, session: QMPSession(), output: [], descriptors: [],
            server: self,
            loop: loop)
        nextIdentifier += 1
        clients[client.identifier] = client
        client.send(QMPMessage.greetingLine(version, capabilities: QMPSession.capabilities))
        client.updateWatch()
    }

    func remove(_ client: QMPClient) {
        clients[client.identifier] = nil
        if isOutOfDescriptors {
            isOutOfDescriptors = false
            // The descriptor is closed when the last reference goes, after this returns.
            loop.perform { [weak self] in try? self?.watchListeners() }
        }
    }

    func execute(_ command: QMPCommand, from client: QMPClient) {
        guard let executor else { return client.finish(.failure(QMPError("the guest is going away"))) }
        executor.execute(command, from: client) { [loop, client] result in
            if loop.isLoopThread {
                client.finish(result)
            } else {
                loop.perform { client.finish(result) }
            }
        }
    }

    // MARK: Hand-over

    /// What a successor builds its server from, besides the descriptors.
    package struct Saved: Codable, Sendable {
        package var listeners: [String]
        package var clients: [QMPClient.Saved]
    }

    /// Stops accepting, reading and answering; what arrives stays in the sockets. Commands that run may still finish.
    package func suspend() {
        precondition(loop.isLoopThread)
        isSuspended = true
        try? watchListeners()
        for client in clients.values { client.updateWatch() }
    }

    /// Goes on after ``suspend()``, as when the successor did not take over.
    package func resume() {
        precondition(loop.isLoopThread)
        isSuspended = false
        try? watchListeners()
        for client in Array(clients.values) { client.process() }
    }

    /// The state and the descriptors, in one order: listeners first, then each client's socket and what came with its
    /// latest message. Call while suspended.
    package func handOver() -> (Saved, [OwnedDescriptor]) {
        precondition(loop.isLoopThread && isSuspended)
        var descriptors = listeners.map(\.descriptor)
        var saved = Saved(listeners: listeners.map(\.address.argument), clients: [])
        for client in clients.values.sorted(by: { $0.identifier < $1.identifier }) {
            let (state, own) = client.handOver()
            saved.clients.append(state)
            descriptors += own
        }
        return (saved, descriptors)
    }

    /// Takes over from a predecessor; stays suspended until ``resume()``.
    package func adopt(_ saved: Saved, descriptors: [OwnedDescriptor]) throws {
        precondition(loop.isLoopThread && listeners.isEmpty && clients.isEmpty)
        isSuspended = true
        let needed = saved.listeners.count + saved.clients.reduce(0) { $0 + 1 + max(0, $1.descriptorCount) }
        guard needed == descriptors.count else {
            throw Refusal("\(descriptors.count) descriptors for \(needed) QMP sockets")
        }
        var rest = descriptors[...]
        for text in saved.listeners {
            listeners.append(Listener(address: try ListenAddress(argument: text), descriptor: rest.removeFirst()))
        }
        for state in saved.clients {
            let socket = rest.removeFirst()
            let own = Array(rest.prefix(max(0, state.descriptorCount)))
            rest = rest.dropFirst(own.count)
            let client = QMPClient(
                identifier: nextIdentifier, socket: socket, session: QMPSession(resuming: state.session),
                output: state.output, descriptors: own, server: self, loop: loop)
            nextIdentifier += 1
            client.resume(state.unanswered)
            clients[client.identifier] = client
        }
    }

    /// Answers every command of the given name that the predecessor had begun and left to us.
    package func answerInherited(_ command: String, _ result: Result<JSONValue, QMPError>) {
        precondition(loop.isLoopThread)
        for client in Array(clients.values) where client.unansweredCommand == command { client.finish(result) }
    }

    /// Answers whatever else the predecessor left: it had not begun it.
    package func refuseInherited(_ error: QMPError) {
        precondition(loop.isLoopThread)
        for client in Array(clients.values) where client.unansweredCommand != nil { client.finish(.failure(error)) }
    }

    /// Forgets clients and listeners without closing what a successor now owns: our descriptors close, theirs stay.
    package func release() {
        precondition(loop.isLoopThread && isSuspended)
        listeners = []
        clients = [:]
    }
}

/// Listening unix sockets in the file system.
package enum UnixListener {
    /// Binds `path` with mode 0600. A socket file left behind by a process that is gone is replaced; one that answers, or
    /// anything that is no socket, is `EADDRINUSE`.
    package static func bind(path: String) throws(SystemCallError) -> OwnedDescriptor {
        do {
            return try StreamSocket.listen(at: .unix(path: path))
        } catch  where error.errno == .addressInUse {
            var status = stat()
            guard unsafe lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK else { throw error }
            guard isDeserted(path) else { throw error }
            _ = unsafe unlink(path)
            return try StreamSocket.listen(at: .unix(path: path))
        }
    }

    private static func isDeserted(_ path: String) -> Bool {
        do throws(SystemCallError) {
            _ = try StreamSocket.connect(to: .unix(path: path))
            return false
        } catch {
            return error.errno == .connectionRefused
        }
    }
}
