import Glibc
package import MigrationStream

/// The sending side of a channel: records are collected and go out together with page contents, which are taken
/// straight from guest memory, in as few system calls as possible.
///
/// Belongs to one thread.
@safe package final class StreamOutput {
    /// Pieces of one call; IOV_MAX.
    private static let piecesMax = 1024
    /// Bytes after which a call is made.
    private static let bytesMax = 4 << 20

    package let transport: any MigrationTransport
    /// Records since the last flush, without page contents.
    package let writer: StreamWriter
    // SAFETY: allocated once, freed in deinit, used by the owning thread.
    private let pieces: UnsafeMutablePointer<iovec>
    private var pieceCount = 0
    /// For each piece: nil base stands for bytes of the writer.
    private var writerPosition = 0
    private var queuedPageBytes = 0
    /// Bytes handed to the transport.
    package private(set) var sentByteCount: UInt64 = 0
    package var phase = MigrationPhase.setup
    /// Told after each call that sent bytes.
    package var onSent: ((_ byteCount: Int) throws(MigrationError) -> Void)?

    package init(transport: any MigrationTransport) {
        self.transport = transport
        writer = StreamWriter(capacity: 1 << 18)
        unsafe pieces = .allocate(capacity: Self.piecesMax)
        unsafe pieces.initialize(repeating: iovec(), count: Self.piecesMax)
    }

    /// Goes on counting where another channel ended.
    package convenience init(transport: any MigrationTransport, continuing other: StreamOutput) {
        self.init(transport: transport)
        sentByteCount = other.sentByteCount
    }

    deinit { unsafe pieces.deallocate() }

    /// Bytes sent or waiting to be.
    package var byteCount: UInt64 { sentByteCount + UInt64(queuedPageBytes) + UInt64(writer.count) }

    /// Puts the contents of pages behind the records written so far. They are read when the call is made: by
    /// ``flush()`` at the latest.
    package func appendContents(of run: PageRun) throws(MigrationError) {
        closeRecordPiece()
        unsafe pieces[pieceCount] = iovec(iov_base: run.block.base + run.offset, iov_len: run.byteCount)
        pieceCount += 1
        queuedPageBytes += run.byteCount
        if pieceCount + 2 > Self.piecesMax || queuedPageBytes >= Self.bytesMax { try flush() }
    }

    /// Called often while records are written; sends when much has gathered.
    package func flushIfLarge() throws(MigrationError) {
        if writer.count >= 1 << 17 { try flush() }
    }

    private func closeRecordPiece() {
        let count = writer.count - writerPosition
        guard count > 0 else { return }
        // The writer's memory may still move: note where the bytes stand, the address follows when the call is made.
        unsafe pieces[pieceCount] = iovec(iov_base: UnsafeMutableRawPointer(bitPattern: UInt(1)), iov_len: count)
        pieceCount += 1
        writerPosition = writer.count
    }

    /// Sends everything that was collected.
    package func flush() throws(MigrationError) {
        closeRecordPiece()
        guard pieceCount > 0 else { return }
        let total = writer.count + queuedPageBytes
        do throws(TransportError) {
            try unsafe writer.withBytes { (bytes) throws(TransportError) in
                var position = 0
                for index in 0..<pieceCount where unsafe UInt(bitPattern: pieces[index].iov_base) == 1 {
                    unsafe pieces[index].iov_base = UnsafeMutableRawPointer(
                        mutating: bytes.baseAddress! + position)
                    unsafe position += pieces[index].iov_len
                }
                let all = unsafe UnsafeMutableBufferPointer(start: pieces, count: pieceCount)
                if queuedPageBytes == 0 {
                    try unsafe transport.send(all)
                } else {
                    try unsafe transport.send(all, records: bytes)
                }
            }
        } catch {
            reset()
            throw error.migrationError(in: phase, "sending")
        }
        reset()
        sentByteCount += UInt64(total)
        if let onSent { try onSent(total) }
    }

    private func reset() {
        pieceCount = 0
        writerPosition = 0
        queuedPageBytes = 0
        writer.removeAll()
    }

    /// Accounts bytes that a hook sent on the transport itself.
    package func sentAside(byteCount: Int) { sentByteCount += UInt64(byteCount) }
}
