package import DeviceModel
import Glibc
package import LinuxCalls
import Synchronization
import SystemPackage

/// A console at a unix socket. Any number of people (up to ``clientCountMaximum``) may be connected: what the guest
/// prints goes to all of them, what any of them types goes to the guest.
///
/// Nobody can hold the guest up: a client that does not read loses what does not fit into its backlog, and is told how much
/// that was as soon as it reads again. Without clients output is dropped.
package final class SocketConsole: ConsoleBackend, TransferableBackend {
    static let kind = "socket"
    package static let clientCountMaximum = 16
    /// Bytes kept for one client that does not read.
    package static let backlogByteCountMaximum = 256 << 10

    private final class Client: Sendable {
        struct Output {
            var backlog: [UInt8] = []
            /// Bytes that found no room since the backlog was last empty.
            var lostByteCount: UInt64 = 0
            var hasEnded = false
        }

        let number: UInt64
        let watch: WatchedDescriptor
        let output: Mutex<Output>

        init(number: UInt64, watch: WatchedDescriptor, output: Output) {
            self.number = number
            self.watch = watch
            self.output = Mutex(output)
        }
    }

    private struct State {
        var clients: [Client] = []
        var nextNumber: UInt64 = 1
        var isReading: Bool
        var isHeld: Bool
    }

    /// Where people connect.
    package let path: String
    private let loop: EventLoop
    private let listener: WatchedDescriptor
    private let input: ConsoleInput
    private let state: Mutex<State>

    /// Listens at `path`. A socket file that nobody listens at any more is replaced.
    package convenience init(path: String, loop: EventLoop) throws(BackendError) {
        try self.init(
            listener: try Self.listen(at: path), path: path, loop: loop, clients: [], pending: [], isQuiesced: false)
    }

    private static func listen(at path: String) throws(BackendError) -> OwnedDescriptor {
        do throws(SystemCallError) { return try StreamSocket.listen(at: .unix(path: path)) } catch {
            guard error.errno == .addressInUse else { throw BackendError(error, "console socket") }
        }
        if (try? StreamSocket.connect(to: .unix(path: path))) != nil {
            throw BackendError(errorNumber: EADDRINUSE, "console socket \(path): another process listens there")
        }
        _ = unsafe unlink(path)
        return try backendCall("console socket") { () throws(SystemCallError) in
            try StreamSocket.listen(at: .unix(path: path))
        }
    }

    package convenience init(adopting handover: BackendHandover, loop: EventLoop) throws(BackendError) {
        try handover.check(kind: Self.kind)
        var state = try handover.stateReader()
        let path = try state.text()
        let pending = try state.blob()
        let count: UInt64 = try state.integer()
        guard count <= UInt64(Self.clientCountMaximum) else {
            throw BackendError(errorNumber: 0, "hand-over of a socket console with \(count) clients")
        }
        var clients: [(OwnedDescriptor, Client.Output)] = []
        for index in 0..<count {
            var output = Client.Output()
            output.backlog = try state.blob()
            output.lostByteCount = try state.integer()
            clients.append((try handover.descriptor(named: "client \(index)"), output))
        }
        try state.finish()
        try self.init(
            listener: try handover.descriptor(named: "listener"), path: path, loop: loop, clients: clients,
            pending: pending, isQuiesced: true)
    }

    /// A console that nobody can reach, with a client that says nothing: to rehearse a hand-over with.
    package static func unreachable(loop: EventLoop) throws(BackendError) -> SocketConsole {
        let (near, far) = try backendCall { () throws(SystemCallError) in try StreamSocket.pair() }
        return try SocketConsole(
            listener: near, path: "@", loop: loop, clients: [(far, Client.Output())], pending: [], isQuiesced: true)
    }

    private init(
        listener: OwnedDescriptor, path: String, loop: EventLoop, clients: [(OwnedDescriptor, Client.Output)],
        pending: [UInt8], isQuiesced: Bool
    ) throws(BackendError) {
        try backendCall("console socket") { () throws(SystemCallError) in try listener.setNonBlocking(true) }
        self.path = path
        self.loop = loop
        state = Mutex(State(isReading: pending.isEmpty, isHeld: isQuiesced))
        let owner = WeakOwner<SocketConsole>()
        self.listener = WatchedDescriptor(listener, loop: loop) { _ in owner.value?.accept() }
        input = ConsoleInput(loop: loop, pending: pending, isQuiesced: isQuiesced) { isReading in
            owner.value?.setReading(isReading)
        }
        owner.value = self
        for (socket, output) in clients { add(socket, output) }
        if isQuiesced { self.listener.hold() }
        self.listener.want(.readable)
    }

    package func connect(input: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {
        self.input.connect(input)  // never full, hence never waited for
    }

    // MARK: Clients

    /// On the loop's thread.
    private func accept() {
        guard let socket = try? StreamSocket.accept(from: listener.descriptor) else { return }
        guard state.withLock({ $0.clients.count }) < Self.clientCountMaximum else {
            let answer = "no room: \(Self.clientCountMaximum) clients are connected\r\n"
            _ = try? StreamSocket.sendAll(Array(answer.utf8), to: socket)
            return
        }
        add(socket, Client.Output())
    }

    private func add(_ socket: OwnedDescriptor, _ output: Client.Output) {
        state.withLock { state in
            let number = state.nextNumber
            state.nextNumber += 1
            let watch = WatchedDescriptor(socket, loop: loop) { [weak self] events in self?.ready(number, events) }
            if state.isHeld { watch.hold() }
            watch.want(state.isReading ? .readable : [])
            if !output.backlog.isEmpty { watch.want(.writable) }
            state.clients.append(Client(number: number, watch: watch, output: output))
        }
    }

    /// On the loop's thread.
    private func ready(_ number: UInt64, _ events: ReadyEvents) {
        guard let client = state.withLock({ $0.clients.first { $0.number == number } }) else { return }
        if events.contains(.writable) { flush(client) }
        guard !events.subtracting(.writable).isEmpty else { return }
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = unsafe bytes.withUnsafeMutableBytes { buffer in
            do throws(SystemCallError) {
                return unsafe try StreamSocket.receive(
                    into: buffer, descriptorsMax: 0, from: client.watch.descriptor, nonBlocking: true
                ).byteCount
            } catch { return error.errno == .wouldBlock ? -1 : 0 }
        }
        if count == 0 { remove(client) } else if count > 0 { input.add(Array(bytes[..<count])) }
    }

    private func remove(_ client: Client) {
        client.output.withLock { $0.hasEnded = true }
        client.watch.end()
        state.withLock { state in state.clients.removeAll { $0 === client } }
    }

    /// On the loop's thread: the device has taken everything, or has not.
    private func setReading(_ isReading: Bool) {
        let clients = state.withLock { state in
            state.isReading = isReading
            return state.clients
        }
        for client in clients {
            if isReading { client.watch.want(.readable) } else { client.watch.unwant(.readable) }
        }
    }

    package func inputIsWanted() { input.inputIsWanted() }

    // MARK: Output

    package func write(_ bytes: [UInt8]) -> Int {
        for client in state.withLock({ $0.clients }) {
            client.output.withLock { output in
                guard !output.hasEnded else { return }
                let sent = output.backlog.isEmpty ? Self.send(bytes, to: client) : 0
                guard sent < bytes.count else { return }
                let room = Self.backlogByteCountMaximum - output.backlog.count
                // Nothing after a gap before the gap has been shown.
                let kept = output.lostByteCount > 0 ? 0 : min(room, bytes.count - sent)
                output.backlog += bytes[sent..<sent + kept]
                output.lostByteCount += UInt64(bytes.count - sent - kept)
                client.watch.want(.writable)
            }
        }
        return bytes.count
    }

    private static func send(_ bytes: [UInt8], to client: Client) -> Int {
        unsafe bytes.withUnsafeBytes { buffer in
            do throws(SystemCallError) {
                return unsafe try StreamSocket.send(buffer, to: client.watch.descriptor, nonBlocking: true)
            } catch { return error.errno == .wouldBlock ? 0 : buffer.count }  // reading finds out that it is gone
        }
    }

    /// On the loop's thread.
    private func flush(_ client: Client) {
        client.output.withLock { output in
            output.backlog.removeFirst(Self.send(output.backlog, to: client))
            guard output.backlog.isEmpty else { return }
            if output.lostByteCount > 0 {
                output.backlog = Array("\r\n[\(output.lostByteCount) bytes were not shown]\r\n".utf8)
                output.lostByteCount = 0
            } else {
                client.watch.unwant(.writable)
            }
        }
    }

    // MARK: Pausing and moving

    package func quiesce() {
        loop.sync {
            input.quiesce()
            setHeld(true)
        }
    }

    package func resume() {
        setHeld(false)
        input.resume()
    }

    private func setHeld(_ isHeld: Bool) {
        let clients = state.withLock { state in
            state.isHeld = isHeld
            return state.clients
        }
        for watch in [listener] + clients.map(\.watch) { if isHeld { watch.hold() } else { watch.release() } }
    }

    package func handOver() throws(BackendError) -> BackendHandover {
        let clients = state.withLock { $0.clients }
        var bytes = BackendHandover.stateWriter()
        bytes.text(path)
        bytes.blob(input.pending)
        bytes.integer(UInt64(clients.count))
        var descriptors = [("listener", listener.descriptor)]
        for (index, client) in clients.enumerated() {
            client.output.withLock { output in
                bytes.blob(output.backlog)
                bytes.integer(output.lostByteCount)
            }
            descriptors.append(("client \(index)", client.watch.descriptor))
        }
        return BackendHandover(kind: Self.kind, descriptors: descriptors, state: bytes.bytes)
    }

    package func relinquish() { endAll() }

    /// Ends the connections and removes the socket's file.
    package func close() {
        endAll()
        if !path.hasPrefix("@") { _ = unsafe unlink(path) }
    }

    private func endAll() {
        listener.end()
        for client in state.withLock({ $0.clients }) { remove(client) }
    }
}
