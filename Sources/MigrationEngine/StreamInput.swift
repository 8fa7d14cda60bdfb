import Glibc
package import MigrationStream

/// The receiving side of a channel: what was received and not yet decoded.
///
/// Belongs to one thread.
@safe package final class StreamInput {
    package let transport: any MigrationTransport
    package let buffer: StreamBuffer
    package var phase = MigrationPhase.setup
    package private(set) var isAtEnd = false
    /// Bytes received.
    package private(set) var receivedByteCount: UInt64 = 0

    package init(transport: any MigrationTransport, capacity: Int = 1 << 18) {
        self.transport = transport
        // In a file, places in messages are the file's.
        let start = (try? transport.seekable?.position()) ?? 0
        buffer = StreamBuffer(capacity: capacity, at: start)
    }

    /// Goes on at another place of a file; what was read ahead is dropped.
    package func reposition(to offset: UInt64) throws(MigrationError) {
        guard let file = transport.seekable else { preconditionFailure("\(transport.name) has no places") }
        do throws(TransportError) { try file.seek(to: offset) } catch {
            throw error.migrationError(in: phase, "going to byte \(offset) of the file")
        }
        buffer.move(to: offset)
        isAtEnd = false
    }

    /// Accounts bytes that a hook received itself.
    package func receivedAside(byteCount: UInt64) { receivedByteCount += byteCount }

    /// Receives more, at least one byte unless the end is reached; asks for room for `minimum`.
    /// - Parameter atMost: Bytes to receive, unless `minimum` is more.
    package func fill(minimum: Int, atMost: Int = .max) throws(MigrationError) {
        guard !isAtEnd else { return }
        do throws(TransportError) {
            let count = try unsafe buffer.fill(minimum: minimum) { (space) throws(TransportError) in
                let count = min(space.count, max(minimum, atMost))
                var piece = unsafe iovec(iov_base: space.baseAddress, iov_len: count)
                return try unsafe withUnsafeMutablePointer(to: &piece) { (pointer) throws(TransportError) in
                    try unsafe transport.receive(UnsafeMutableBufferPointer(start: pointer, count: 1))
                }
            }
            if count == 0 { isAtEnd = true }
            receivedByteCount += UInt64(count)
        } catch {
            throw error.migrationError(in: phase, "receiving")
        }
    }

    /// As ``fill(minimum:)`` but waits only so long; false when nothing came.
    package func fill(timeoutMilliseconds: Int) throws(MigrationError) -> Bool {
        guard !isAtEnd else { return true }
        do throws(TransportError) {
            var answer: Int? = nil
            _ = try unsafe buffer.fill(minimum: 1) { (space) throws(TransportError) in
                var piece = unsafe iovec(iov_base: space.baseAddress, iov_len: space.count)
                answer = try unsafe withUnsafeMutablePointer(to: &piece) { (pointer) throws(TransportError) in
                    try unsafe transport.receive(
                        UnsafeMutableBufferPointer(start: pointer, count: 1), timeoutMilliseconds: timeoutMilliseconds)
                }
                return answer ?? 0
            }
            guard let answer else { return false }
            if answer == 0 { isAtEnd = true }
            receivedByteCount += UInt64(answer)
            return true
        } catch {
            throw error.migrationError(in: phase, "receiving")
        }
    }

    /// Decodes one thing, receiving more as often as it needs.
    package func decode<Result>(
        _ body: (inout StreamCursor) throws(StreamError) -> Result
    ) throws(MigrationError) -> Result {
        while true {
            var cursor = buffer.cursor(isFinal: isAtEnd)
            do throws(StreamError) {
                let result = try body(&cursor)
                buffer.consume(to: cursor)
                return result
            } catch {
                guard let needed = error.neededByteCount else { throw Self.migrationError(error, in: phase, isAtEnd) }
                try fill(minimum: needed)
            }
        }
    }

    static func migrationError(_ error: StreamError, in phase: MigrationPhase, _ isAtEnd: Bool) -> MigrationError {
        switch error.reason {
        case .truncated where isAtEnd:
            MigrationError(
                .channelClosed, in: phase, "the stream ended too early; take it from the source again", cause: error)
        case .limitExceeded: MigrationError(.limitExceeded, in: phase, "the stream asks for too much", cause: error)
        case .state: MigrationError(.stateRejected, in: phase, "a component did not take its state", cause: error)
        case .unknownBlock, .blockDiffers:
            MigrationError(
                .ramMismatch, in: phase, "RAM differs; give both sides the same machine and the same RAM", cause: error)
        default:
            MigrationError(
                .streamMalformed, in: phase,
                "the stream is malformed; it is damaged, or from a release that is not understood", cause: error)
        }
    }

    /// One receive into several pieces, past the buffer, which is empty; 0 is the end. The caller tells the buffer what of
    /// it was consumed.
    func receive(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(MigrationError) -> Int {
        do throws(TransportError) {
            let count = try unsafe transport.receive(pieces)
            if count == 0 { isAtEnd = true }
            receivedByteCount += UInt64(count)
            return count
        } catch {
            throw error.migrationError(in: phase, "receiving pages")
        }
    }

    /// Reads exactly `byteCount` bytes to where they belong.
    package func read(_ byteCount: Int, into destination: UnsafeMutableRawPointer) throws(MigrationError) {
        var done = unsafe buffer.take(byteCount, into: destination)
        while done < byteCount {
            do throws(TransportError) {
                var piece = unsafe iovec(iov_base: destination + done, iov_len: byteCount - done)
                let count = try unsafe withUnsafeMutablePointer(to: &piece) { (pointer) throws(TransportError) in
                    try unsafe transport.receive(UnsafeMutableBufferPointer(start: pointer, count: 1))
                }
                guard count > 0 else {
                    isAtEnd = true
                    throw TransportError.closed
                }
                receivedByteCount += UInt64(count)
                buffer.skip(count)
                done += count
            } catch {
                throw error.migrationError(in: phase, "receiving a page")
            }
        }
    }
}
