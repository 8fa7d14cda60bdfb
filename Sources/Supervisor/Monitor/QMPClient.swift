import Glibc
package import LinuxCalls
package import QMPProtocol

/// One connection to a QMP socket. Lives on the monitor's thread.
package final class QMPClient: @unchecked Sendable {
    // SAFETY: every member is touched only on the event loop's thread; entry points check it.

    /// Output beyond which no more input is read: a client that does not read cannot make us buffer without end.
    static let outputBytesPausingInput = 64 << 10
    /// Output beyond which the client is dropped (events pile up for somebody who never reads).
    static let outputBytesMax = 4 << 20

    let identifier: Int
    let socket: OwnedDescriptor
    private(set) var session: QMPSession
    private unowned let server: QMPServer
    private let loop: EventLoop
    private var output: [UInt8]
    private var token: EventLoop.Token?
    private var watched: ReadyEvents = []
    private var isProcessing = false
    /// The command that is running, if any; others of this client wait for it.
    private var running: QMPCommand?
    private(set) var isClosed = false
    /// Descriptors that came with the latest message that brought any; `getfd` and `add-fd` take them.
    private var descriptors: [OwnedDescriptor] = []

    init(
        identifier: Int, socket: OwnedDescriptor, session: QMPSession, output: [UInt8], descriptors: [OwnedDescriptor],
        server: QMPServer, loop: EventLoop
    ) {
        self.identifier = identifier
        self.socket = socket
        self.session = session
        self.output = output
        self.descriptors = descriptors
        self.server = server
        self.loop = loop
    }

    /// The first descriptor that came with the current message, removed from it.
    package func takeDescriptor() -> OwnedDescriptor? {
        precondition(loop.isLoopThread)
        return descriptors.isEmpty ? nil : descriptors.removeFirst()
    }

    // MARK: Output

    /// Queues bytes and sends what the socket takes.
    func send(_ bytes: [UInt8]) {
        guard !isClosed else { return }
        output.append(contentsOf: bytes)
        if output.count > Self.outputBytesMax {
            close()
        } else {
            flush()
        }
    }

    /// Sends what the socket takes without waiting.
    func flush() {
        while !isClosed && !output.isEmpty {
            let sent = unsafe output.withUnsafeBytes { bytes -> Int? in
                do throws(SystemCallError) {
                    return try unsafe StreamSocket.send(bytes, to: socket, nonBlocking: true)
                } catch {
                    return error.errno == .wouldBlock ? 0 : nil
                }
            }
            guard let sent else { return close() }
            if sent == 0 { break }
            output.removeFirst(sent)
        }
        updateWatch()
    }

    // MARK: Input

    private func isReady(_ events: ReadyEvents) {
        if !events.isDisjoint(with: [.writable, Self.broken]) { flush() }
        if watched.contains(.readable), !isClosed { receive() }
    }

    /// EPOLLERR and EPOLLHUP, not a peer that has only finished sending.
    private static let broken = ReadyEvents(rawValue: 0x008 | 0x010)

    private func receive() {
        let message: ReceivedMessage?
        do {
            message = unsafe try withUnsafeTemporaryAllocation(byteCount: 16 << 10, alignment: 16) {
                (buffer) throws(SystemCallError) in
                let message = unsafe try StreamSocket.receive(
                    into: buffer, descriptorsMax: StreamSocket.descriptorsMax, from: socket, nonBlocking: true)
                if message.byteCount > 0 {
                    unsafe session.append(UnsafeRawBufferPointer(rebasing: buffer[..<message.byteCount]))
                }
                return message
            }
        } catch {
            message = nil
            if error.errno == .wouldBlock { return }
        }
        guard let message, message.byteCount > 0, !message.isTruncated else { return close() }
        if !message.descriptors.isEmpty { descriptors = message.descriptors }
        process()
    }

    /// Answers everything that has arrived, up to a command that takes its time.
    func process() {
        guard !isProcessing else { return }
        isProcessing = true
        while running == nil, !isClosed, !server.isSuspended, let action = session.next() {
            switch action {
            case .reply(let bytes): send(bytes)
            case .execute(let command):
                running = command
                server.execute(command, from: self)
            }
        }
        isProcessing = false
        updateWatch()
    }

    /// The answer to the running command.
    func finish(_ result: Result<JSONValue, QMPError>) {
        guard let command = running else { return }
        running = nil
        switch result {
        case .success(let value): send(QMPMessage.resultLine(value, identifier: command.identifier))
        case .failure(let error): send(QMPMessage.failureLine(error, identifier: command.identifier))
        }
        process()
    }

    // MARK: Watching

    func updateWatch() {
        var wanted: ReadyEvents = []
        if !isClosed && !server.isSuspended {
            if running == nil && output.count < Self.outputBytesPausingInput { wanted.insert(.readable) }
            // Edge-triggered when only writing: a peer that has finished sending would report that for ever.
            if !output.isEmpty {
                wanted.insert(.writable)
                if !wanted.contains(.readable) { wanted.insert(Self.edgeTriggered) }
            }
        }
        guard wanted != watched else { return }
        watched = wanted
        do {
            if wanted.isEmpty {
                if let token { loop.remove(token) }
                token = nil
            } else if let token {
                try loop.change(token, to: wanted)
            } else {
                token = try loop.watch(socket, for: wanted) { [weak self] events in self?.isReady(events) }
            }
        } catch {
            close()
        }
    }

    /// EPOLLET.
    private static let edgeTriggered = ReadyEvents(rawValue: 1 << 31)

    func close() {
        guard !isClosed else { return }
        isClosed = true
        if let token { loop.remove(token) }
        token = nil
        watched = []
        descriptors = []
        output = []
        StreamSocket.shutDown(socket)
        server.remove(self)
    }

    // MARK: Hand-over

    /// What a successor needs besides the socket and the descriptors that came with a message.
    package struct Saved: Codable, Sendable {
        package var session: QMPSession.Saved
        /// Not yet taken by the socket.
        package var output: [UInt8]
        /// How many descriptors follow the client's socket.
        package var descriptorCount: Int
        /// A command that has not been answered; the successor answers it (``QMPServer/answerInherited(_:)``).
        package var unanswered: Unanswered?
    }

    package struct Unanswered: Codable, Sendable {
        package var command: String
        package var identifier: JSONValue?
    }

    func handOver() -> (Saved, [OwnedDescriptor]) {
        let saved = Saved(
            session: session.saved, output: output, descriptorCount: descriptors.count,
            unanswered: running.map { Unanswered(command: $0.name, identifier: $0.identifier) })
        return (saved, [socket] + descriptors)
    }

    /// A command that the predecessor had begun.
    func resume(_ unanswered: Unanswered?) {
        running = unanswered.map { QMPCommand(name: $0.command, identifier: $0.identifier) }
    }

    var unansweredCommand: String? { running?.name }
}
