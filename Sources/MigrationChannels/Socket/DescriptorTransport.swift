package import Glibc
package import LinuxCalls
package import MigrationEngine
import Synchronization

/// Bytes through a socket, or through a pair of pipes or files. On a unix socket every receive has room for
/// descriptors, which are kept in the order they came; a peer that sends more than expected is broken.
///
/// Descriptors are non-blocking while the transport has them, so that any wait can be interrupted and limited.
package final class DescriptorTransport: MigrationTransport {
    package let name: String
    package let hasReturnPath: Bool
    package let isSocket: Bool
    package let deliversBeforeEnd: Bool
    private let reading: OwnedDescriptor?
    /// What is read or written, if it is a regular file.
    let file: OwnedDescriptor?
    /// Nil when this end only receives, or has finished sending into a pipe.
    private let writingEnd: Mutex<OwnedDescriptor?>
    var writing: OwnedDescriptor? { writingEnd.withLock { $0 } }
    private let wake: OwnedDescriptor
    private let interrupted = Atomic<Bool>(false)
    private let stallLimitMilliseconds = Atomic<Int>(0)
    private let isClosed = Atomic<Bool>(false)
    private struct Passed {
        var descriptors: [OwnedDescriptor] = []
        /// Descriptors the owner is ready to take; others break the channel.
        var expected = 0
        var isBroken = false
    }
    private let passed = Mutex(Passed())
    let references = Mutex(References())
    private let command: ChildProcess?

    /// - Parameters:
    ///   - reading: What to receive from; nil when this end only sends.
    ///   - writing: What to send to; the same object as `reading` for a socket.
    ///   - command: What it is sent to: only when this has ended well, everything was sent. Killed with the channel.
    package init(
        name: String, reading: OwnedDescriptor?, writing: OwnedDescriptor?, command: ChildProcess? = nil
    ) throws(SystemCallError) {
        self.name = name
        self.reading = reading
        self.command = command
        writingEnd = Mutex(writing)
        let isSocket = try reading.map { (descriptor) throws(SystemCallError) in try descriptor.status().type == .socket
        }
        let writesSocket = try writing.map { (descriptor) throws(SystemCallError) in
            try descriptor.status().type == .socket
        }
        self.isSocket = (isSocket ?? writesSocket) ?? false
        let only = reading ?? writing
        let isFile = try only.map { (descriptor) throws(SystemCallError) in try descriptor.status().type == .regular }
        file = isFile == true ? only : nil
        deliversBeforeEnd = reading.map { isSocket == true && StreamSocket.isLocal($0) } ?? false
        hasReturnPath = reading != nil && writing != nil
        wake = try .event()
        if !self.isSocket {
            // Sockets are asked per call (MSG_DONTWAIT), so that a shared open file is left as it was.
            GatheredIO.ignorePipeSignal()
            try reading?.setNonBlocking(true)
            try writing?.setNonBlocking(true)
        }
    }

    /// A connected stream socket.
    package convenience init(name: String, socket: OwnedDescriptor) throws(SystemCallError) {
        try self.init(name: name, reading: socket, writing: socket)
        GatheredIO.enlargeBuffers(of: socket, byteCount: 4 << 20)  // takes a few runs of pages
        GatheredIO.sendAtOnce(socket)
    }

    /// The socket itself, for hooks that pass descriptors.
    package var socket: OwnedDescriptor? { isSocket ? (writing ?? reading) : nil }

    var isInterrupted: Bool { interrupted.load(ordering: .relaxed) }

    // MARK: Sending

    package func send(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) {
        guard let writing else { throw .failed(SystemCallError("write", .badFileDescriptor, subject: name)) }
        var index = 0
        while index < pieces.count {
            if interrupted.load(ordering: .relaxed) { throw .interrupted }
            let left = unsafe UnsafeMutableBufferPointer(rebasing: pieces[index...])
            do throws(SystemCallError) {
                let taken =
                    isSocket
                    ? try unsafe GatheredIO.send(left, to: writing) : try unsafe GatheredIO.write(left, to: writing)
                unsafe Self.advance(pieces, &index, by: taken)
            } catch {
                try wait(after: error, writing, Int16(POLLOUT))
            }
        }
    }

    /// Sends a few bytes with descriptors attached to the first of them.
    package func send(_ bytes: [UInt8], descriptors: [OwnedDescriptor]) throws(TransportError) {
        guard let writing, isSocket else {
            throw .failed(SystemCallError("sendmsg", .notSocket, subject: name))
        }
        var rest = bytes[...]
        var attached = descriptors
        while !rest.isEmpty {
            if interrupted.load(ordering: .relaxed) { throw .interrupted }
            do throws(SystemCallError) {
                let taken = try unsafe rest.withUnsafeBufferPointer { (buffer) throws(SystemCallError) in
                    try unsafe StreamSocket.send(
                        UnsafeRawBufferPointer(buffer), descriptors: attached, to: writing, nonBlocking: true)
                }
                rest = rest.dropFirst(taken)
                attached = []
            } catch {
                try wait(after: error, writing, Int16(POLLOUT))
            }
        }
    }

    static func advance(_ pieces: UnsafeMutableBufferPointer<iovec>, _ index: inout Int, by count: Int) {
        var left = count
        while index < pieces.count, unsafe left >= pieces[index].iov_len {
            unsafe left -= pieces[index].iov_len
            index += 1
        }
        if left > 0 {
            unsafe pieces[index].iov_base += left
            unsafe pieces[index].iov_len -= left
        }
    }

    // MARK: Receiving

    package func receive(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) -> Int {
        let reading = try readingEnd
        while true {
            if interrupted.load(ordering: .relaxed) { throw .interrupted }
            do throws(SystemCallError) {
                return try unsafe receiveOnce(pieces, from: reading)
            } catch {
                try wait(after: error, reading, Int16(POLLIN))
            }
        }
    }

    package func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, timeoutMilliseconds: Int
    ) throws(TransportError) -> Int? {
        let reading = try readingEnd
        if interrupted.load(ordering: .relaxed) { throw .interrupted }
        for attempt in 0..<2 {
            do throws(SystemCallError) {
                return try unsafe receiveOnce(pieces, from: reading)
            } catch {
                guard error.errno == .wouldBlock else { throw Self.transportError(error) }
                if attempt == 1 || timeoutMilliseconds == 0 { return nil }
                guard try isReady(reading, Int16(POLLIN), milliseconds: timeoutMilliseconds) else { return nil }
            }
        }
        return nil
    }

    private var readingEnd: OwnedDescriptor {
        get throws(TransportError) {
            guard let reading else { throw .failed(SystemCallError("read", .badFileDescriptor, subject: name)) }
            return reading
        }
    }

    private func receiveOnce(
        _ pieces: UnsafeMutableBufferPointer<iovec>, from reading: OwnedDescriptor
    ) throws(SystemCallError) -> Int {
        guard isSocket else { return try unsafe GatheredIO.read(pieces, from: reading) }
        if passed.withLock({ $0.isBroken }) {
            throw SystemCallError("recvmsg", .tooManyOpenFiles, subject: "unexpected descriptors")
        }
        let message = try unsafe GatheredIO.receive(pieces, from: reading)
        if !message.descriptors.isEmpty || message.isTruncated {
            // What is not wanted is closed here, by going out of scope.
            // The bytes are still handed on, because they may say more; the next call fails.
            passed.withLock { passed in
                guard !message.isTruncated,
                    passed.descriptors.count + message.descriptors.count <= passed.expected
                else {
                    passed.descriptors = []
                    passed.isBroken = true
                    return
                }
                passed.descriptors += message.descriptors
            }
        }
        return message.byteCount
    }

    /// So many descriptors may come from now on, in all that were not taken yet.
    package func expectDescriptors(_ count: Int) { passed.withLock { $0.expected = count } }

    /// The descriptors that came so far, oldest first.
    package func takeDescriptors() -> [OwnedDescriptor] {
        passed.withLock { passed in
            defer { passed.descriptors = [] }
            return passed.descriptors
        }
    }

    // MARK: Waiting

    /// Waits when a call would have blocked; throws for every other failure.
    package func wait(after error: SystemCallError, _ descriptor: OwnedDescriptor, _ events: Int16)
        throws(TransportError)
    {
        guard error.errno == .wouldBlock else { throw Self.transportError(error) }
        let limit = stallLimitMilliseconds.load(ordering: .relaxed)
        guard try isReady(descriptor, events, milliseconds: limit == 0 ? -1 : limit) else { throw .stalled }
    }

    private static func transportError(_ error: SystemCallError) -> TransportError {
        switch error.errno {
        case .brokenPipe, .connectionReset: .closed
        default: .failed(error)
        }
    }

    /// Waits without anything to wait for but ``interrupt()``.
    func pause(milliseconds: Int) throws(TransportError) {
        let ready: GatheredIO.Ready
        do throws(SystemCallError) {
            ready = try GatheredIO.wait(for: Int16(POLLIN), on: wake, wake: wake, timeoutMilliseconds: milliseconds)
        } catch { throw .failed(error) }
        if ready.isWoken { throw .interrupted }
    }

    /// 0 is for ever.
    var stallLimit: Int { stallLimitMilliseconds.load(ordering: .relaxed) }

    private func isReady(
        _ descriptor: OwnedDescriptor, _ events: Int16, milliseconds: Int
    ) throws(TransportError) -> Bool {
        // A pipe beside the socket ends with the socket, even if somebody still holds its other end.
        let hangUp = isSocket && descriptor !== socket ? socket : nil
        let ready: GatheredIO.Ready
        do throws(SystemCallError) {
            ready = try GatheredIO.wait(
                for: events, on: descriptor, wake: wake, hangUp: hangUp, timeoutMilliseconds: milliseconds)
        } catch { throw .failed(error) }
        if ready.isWoken { throw .interrupted }
        if !ready.isReady && ready.isHungUp { throw .closed }
        return ready.isReady
    }

    // MARK: The end

    package func finishSending() throws(TransportError) {
        if isSocket {
            if let socket { StreamSocket.shutDownWriting(socket) }
            try awaitReferences()
        } else {
            do throws(SystemCallError) {
                if let writing, try writing.status().type == .regular { try GatheredIO.synchronise(writing) }
            } catch { throw .failed(error) }
            closeWritingEnd()
        }
        guard let command else { return }
        _ = try isReady(command.processDescriptor, Int16(POLLIN), milliseconds: -1)
        if let end = command.wait(), end != .exited(status: 0) {
            throw .failed(SystemCallError("exec", .ioError, subject: "the command ended with \(end)"))
        }
    }

    /// The reader of a pipe sees the end only when nobody can write any more.
    private func closeWritingEnd() { writingEnd.withLock { $0 = nil } }

    package func interrupt() {
        interrupted.store(true, ordering: .relaxed)
        wake.signal()
    }

    package func setStallLimit(milliseconds: UInt64) {
        stallLimitMilliseconds.store(Int(clamping: milliseconds), ordering: .relaxed)
    }

    package func close() {
        guard !isClosed.exchange(true, ordering: .relaxed) else { return }
        interrupt()
        if let socket { StreamSocket.shutDown(socket) } else { closeWritingEnd() }
        passed.withLock { $0.descriptors = [] }
        references.withLock { $0.sender = nil }
        guard let command, command.wait(timeoutMilliseconds: 0) == nil else { return }
        command.kill()
        _ = command.wait()
    }
}
