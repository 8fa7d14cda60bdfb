import MigrationStream
import Synchronization

/// The destination's messages to the source, from any thread: one message is never inside another.
// SAFETY: `output` is touched with the lock held only.
final class ReturnPathWriter: @unchecked Sendable {
    private let lock = Mutex<Void>(())
    private var output: StreamOutput
    /// What the last page request was about.
    private var requestedBlock: String?

    init(_ output: StreamOutput) { self.output = output }

    /// Goes on over another channel.
    func replace(_ other: StreamOutput) {
        lock.withLock { _ in
            output = other
            requestedBlock = nil
        }
    }

    /// - Parameter bitmap: What follows ``ReturnPathMessage/receivedBitmap(block:)``.
    func send(
        _ message: ReturnPathMessage, bitmap: ReceivedBitmap? = nil, in phase: MigrationPhase
    ) throws(MigrationError) {
        try lock.withLock { (_) throws(MigrationError) in
            output.phase = phase
            message.encode(to: output.writer)
            bitmap?.encode(to: output.writer)
            try output.flush()
        }
    }

    /// Asks for a page, in the short form when the last request was for the same block.
    func request(_ block: String, offset: UInt64, byteCount: UInt32) throws(MigrationError) {
        try lock.withLock { (_) throws(MigrationError) in
            let isSame = requestedBlock == block
            requestedBlock = block
            output.phase = .postcopy
            ReturnPathMessage.requestPages(block: isSame ? nil : block, offset: offset, byteCount: byteCount).encode(
                to: output.writer)
            try output.flush()
        }
    }
}
