package import LinuxCalls
package import QMPProtocol

/// A QMP client that waits for its answers: for the tool's subcommands, which have nothing else to do. It talks to Sidestep's
/// guests and to stock QEMU alike.
package final class QMPConnection {
    package enum Failure: Error, Sendable, CustomStringConvertible {
        case closed
        case timedOut
        case notQMP
        case system(SystemCallError)
        case refused(QMPError)

        package var description: String {
            switch self {
            case .closed: "the guest's process closed the connection"
            case .timedOut: "the guest's process does not answer"
            case .notQMP: "this is not a QMP socket"
            case .system(let error): error.description
            case .refused(let error): error.description
            }
        }
    }

    package let socket: OwnedDescriptor
    private var framer: JSONFramer
    /// Set on a connection taken over; nil where every answer is ours.
    private let identifierPrefix: String?
    private var commandCount = 0

    private static let limits: JSONLimits = {
        var limits = JSONLimits()
        limits.byteCount = 16 << 20  // a schema is large
        limits.tokens = 1 << 20
        return limits
    }()
    /// Events that came while an answer was waited for.
    package private(set) var events: [QMPEvent] = []
    package private(set) var greeting = JSONObject()

    /// Takes a connected socket, waits for the greeting and negotiates.
    package init(_ socket: OwnedDescriptor, timeoutMilliseconds: Int64 = 5000) throws(Failure) {
        self.socket = socket
        identifierPrefix = nil
        framer = JSONFramer(limits: Self.limits)
        guard case .greeting(let greeting) = try receive(timeoutMilliseconds) else { throw .notQMP }
        self.greeting = greeting
        _ = try run("qmp_capabilities", timeoutMilliseconds: timeoutMilliseconds)
    }

    /// Goes on with a connection that somebody else negotiated and left in the middle: what is left of an answer, and answers to
    /// that client's commands, are passed over, because ours carry identifiers of our own.
    package init(resuming socket: OwnedDescriptor, identifierPrefix: String) {
        self.socket = socket
        self.identifierPrefix = identifierPrefix
        framer = JSONFramer(limits: Self.limits)
    }

    /// Connects to a unix socket.
    /// - Parameter waits: Whether to wait for a place in its queue, for as long as it takes.
    package convenience init(path: String, timeoutMilliseconds: Int64 = 5000, waits: Bool = true) throws(Failure) {
        let socket: OwnedDescriptor
        do { socket = try StreamSocket.connect(to: .unix(path: path), waits: waits) } catch { throw .system(error) }
        try self.init(socket, timeoutMilliseconds: timeoutMilliseconds)
    }

    /// Runs a command and waits for its answer; events that come in between are kept.
    /// - Parameter timeoutMilliseconds: -1 waits for ever.
    package func run(
        _ command: String, _ arguments: JSONObject = [:], descriptors: [OwnedDescriptor] = [],
        timeoutMilliseconds: Int64 = 30_000
    ) throws(Failure) -> JSONValue {
        try awaitAnswer(
            timeoutMilliseconds: timeoutMilliseconds, to: send(command, arguments, descriptors: descriptors))
    }

    /// Sends a command whose answer is waited for later.
    /// - Returns: What ``awaitAnswer(timeoutMilliseconds:to:)`` needs to know it.
    package func send(_ command: String, _ arguments: JSONObject = [:], descriptors: [OwnedDescriptor] = [])
        throws(Failure) -> JSONValue?
    {
        try send([(command, arguments)], descriptors: descriptors)[0]
    }

    /// Sends commands, all at once, whose answers are waited for later, in their order.
    package func send(_ commands: [(name: String, arguments: JSONObject)], descriptors: [OwnedDescriptor] = [])
        throws(Failure) -> [JSONValue?]
    {
        let (identifiers, lines) = makeLines(commands)
        do { try StreamSocket.sendAll(lines.flatMap { $0 }, descriptors: descriptors, to: socket) } catch {
            throw .system(error)
        }
        return identifiers
    }

    /// Commands of which the first is sent but for its last byte.
    package struct Begun {
        /// In the commands' order: what their answers carry.
        package let identifiers: [JSONValue?]
        fileprivate let rest: [UInt8]
    }

    /// Sends as much of some commands as can be sent before they are to be run: a monitor may read them one byte at a time. Nothing
    /// else may be sent until ``complete(_:)``, or ``abandon()``.
    package func begin(_ commands: [(name: String, arguments: JSONObject)]) throws(Failure) -> Begun {
        let (identifiers, pieces) = makeLines(commands)
        // A monitor needs no line's end: it knows by its braces where a command is over.
        let text = pieces.flatMap { $0[...($0.lastIndex(of: UInt8(ascii: "}")) ?? $0.endIndex - 1)] }
        let first = (pieces.first?.lastIndex(of: UInt8(ascii: "}")) ?? 0)
        do { try StreamSocket.sendAll(Array(text[..<first]), to: socket) } catch { throw .system(error) }
        return Begun(identifiers: identifiers, rest: Array(text[first...]))
    }

    /// Sends what is left: the commands are run from now on, in order.
    package func complete(_ begun: Begun) throws(Failure) {
        do { try StreamSocket.sendAll(begun.rest, to: socket) } catch { throw .system(error) }
    }

    /// Has the monitor forget what may have been begun, by whomever. Its answer to that is passed over. The byte is the one that
    /// QEMU's documentation of QMP names for it, which is no part of any JSON.
    package func abandon() throws(Failure) {
        do { try StreamSocket.sendAll([0xFF, 0x0A], to: socket) } catch { throw .system(error) }
    }

    private func makeLines(_ commands: [(name: String, arguments: JSONObject)]) -> ([JSONValue?], [[UInt8]]) {
        var identifiers: [JSONValue?] = []
        var lines: [[UInt8]] = []
        for command in commands {
            commandCount += 1
            let identifier = identifierPrefix.map { JSONValue.string("\($0)\(commandCount)") }
            identifiers.append(identifier)
            lines.append(
                QMPCommand(name: command.name, arguments: command.arguments, identifier: identifier).line)
        }
        return (identifiers, lines)
    }

    /// Waits for the answer to a command that was sent.
    package func awaitAnswer(timeoutMilliseconds: Int64 = 30_000, to identifier: JSONValue? = nil) throws(Failure)
        -> JSONValue
    {
        while true {
            switch try receive(timeoutMilliseconds) {
            case .result(_, let answered) where identifier != nil && answered != identifier: continue
            case .failure(_, let answered) where identifier != nil && answered != identifier: continue
            case .result(let value, _): return value
            case .failure(let error, _): throw .refused(error)
            case .event(let event): events.append(event)
            case .greeting: if identifierPrefix == nil { throw .notQMP }
            }
        }
    }

    /// Forgets events that were kept: they tell of something that is over.
    package func forgetEvents() { events = [] }

    /// The next event, kept or new; nil when none came in time.
    package func nextEvent(timeoutMilliseconds: Int64) throws(Failure) -> QMPEvent? {
        if !events.isEmpty { return events.removeFirst() }
        do {
            while true { if case .event(let event) = try receive(timeoutMilliseconds) { return event } }
        } catch {
            if case .timedOut = error { return nil }
            throw error
        }
    }

    /// Looks whether an event has come, and leaves it unread, with all that follows it: whoever else holds this connection finds it
    /// there too, whatever becomes of us. What came before it is read.
    /// - Parameter passing: Is given each message that came before it.
    /// - Returns: Nil while it has not come.
    /// - Throws: ``Failure/closed`` when it did not come and cannot come any more.
    ///
    /// The corresponding C call is `recv` with `MSG_PEEK`. Source: recv(2).
    package func findUnread(_ name: String, passing: (QMPMessage) -> Void = { _ in }) throws(Failure) -> QMPEvent? {
        if let kept = events.first(where: { $0.name == name }) { return kept }
        while true {
            let ahead: Ahead
            do throws(SystemCallError) { ahead = try lookAhead(for: name) } catch {
                throw error.errno == .connectionReset ? .closed : .system(error)
            }
            switch ahead {
            case .found(let event): return event
            case .passed(let messages): messages.forEach(passing)
            case .nothing: return nil
            case .end: throw .closed
            }
        }
    }

    private enum Ahead {
        case found(QMPEvent)
        /// Read, and not what is looked for.
        case passed([QMPMessage])
        case nothing
        case end
    }

    private func lookAhead(for name: String) throws(SystemCallError) -> Ahead {
        unsafe try withUnsafeTemporaryAllocation(byteCount: 64 << 10, alignment: 16) {
            (buffer) throws(SystemCallError) in
            guard let waiting = try unsafe StreamSocket.peek(into: buffer, from: socket) else { return .nothing }
            if waiting == 0 { return .end }
            var further = framer
            unsafe further.append(UnsafeRawBufferPointer(rebasing: buffer[..<waiting]))
            var messages: [QMPMessage] = []
            while let piece = further.next() {
                guard case .value(let bytes) = piece, let value = try? JSONValue(json: bytes),
                    let message = QMPMessage(value)
                else { continue }
                if case .event(let event) = message, event.name == name { return .found(event) }
                messages.append(message)
            }
            // Half a message is left: it may be what is looked for.
            guard unsafe buffer[waiting - 1] == 0x0A || waiting == buffer.count else { return .nothing }
            _ = try unsafe socket.read(into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<waiting]))
            framer = further
            return .passed(messages)
        }
    }

    private func receive(_ timeoutMilliseconds: Int64) throws(Failure) -> QMPMessage {
        let deadline = monotonicNanoseconds() &+ timeoutMilliseconds &* 1_000_000
        while true {
            switch framer.next() {
            case .value(let bytes):
                guard let value = try? JSONValue(json: bytes), let message = QMPMessage(value) else {
                    if identifierPrefix != nil { continue }
                    throw .notQMP
                }
                return message
            case .problem: if identifierPrefix == nil { throw .notQMP }
            case nil: break
            }
            let left = timeoutMilliseconds < 0 ? -1 : max(0, (deadline - monotonicNanoseconds()) / 1_000_000)
            do {
                guard try socket.waitUntilReady(for: 1, timeoutMilliseconds: CInt(clamping: left)) != 0 else {
                    throw Failure.timedOut
                }
                let count = unsafe try withUnsafeTemporaryAllocation(byteCount: 64 << 10, alignment: 16) {
                    (buffer) throws(SystemCallError) in
                    let count = try unsafe socket.read(into: buffer)
                    unsafe framer.append(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
                    return count
                }
                if count == 0 { throw Failure.closed }
            } catch let error as Failure {
                throw error
            } catch let error as SystemCallError {
                throw error.errno == .connectionReset ? .closed : .system(error)
            } catch {
                throw .closed
            }
        }
    }
}
