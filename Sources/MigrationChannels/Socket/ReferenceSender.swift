package import Glibc
package import LinuxCalls
import MigrationEngine

/// The calls that send by reference; tests play a kernel that refuses.
@safe package struct ReferenceCalls: Sendable {
    package typealias Fill =
        @Sendable (UnsafeMutableBufferPointer<iovec>, OwnedDescriptor) throws(SystemCallError) -> Int
    package typealias Move =
        @Sendable (_ byteCount: Int, OwnedDescriptor, _ socket: OwnedDescriptor) throws(SystemCallError) -> Int
    /// Pieces into the pipe.
    package var fill: Fill
    /// Out of the pipe into the socket.
    package var move: Move

    package init(fill: @escaping Fill, move: @escaping Move) {
        unsafe self.fill = fill
        self.move = move
    }

    /// vmsplice(2) and splice(2).
    package static let kernel = unsafe ReferenceCalls(
        fill: { (pieces, pipe) throws(SystemCallError) in try unsafe PagePipe.lend(pieces, to: pipe) },
        move: { (byteCount, pipe, socket) throws(SystemCallError) in
            try PagePipe.move(byteCount, from: pipe, to: socket)
        })
}

/// Sends pages over a unix socket without copying them: they go into a pipe by vmsplice(2) and from there into the socket by
/// splice(2), both by reference, and the one copy is the receiver's. The bytes are the same.
///
/// What the receiver gets is a page as it is when it is received, up to a socket buffer later than it was sent. A page that is
/// written meanwhile is marked and sent again; the last ones are safe when the other end says so, or when nothing is left in the
/// socket (``DescriptorTransport/awaitReferences()``). Whoever frees a page takes nothing away: the socket keeps the memory. Records
/// do change soon, so they are copied to memory that is given up after each call.
///
/// Belongs to the thread that sends.
@safe final class ReferenceSender: @unchecked Sendable {
    // SAFETY: only the thread that sends calls anything; others let go of it.
    /// Fewer bytes of pages than this are copied faster than they are referred to.
    static let pageBytesMin = 64 << 10
    private static let recordBytesMax = 256 << 10

    private let pipe: (readEnd: OwnedDescriptor, writeEnd: OwnedDescriptor, capacity: Int)
    private let records: OwnedMapping
    private let calls: ReferenceCalls
    /// Bytes in the pipe.
    private var held = 0
    private var recordBytes = 0

    init(_ calls: ReferenceCalls) throws(SystemCallError) {
        self.calls = calls
        pipe = try PagePipe.make()
        records = try OwnedMapping(byteCount: Self.recordBytesMax)
    }

    /// Whether it is worth while; pieces within `records` are no pages.
    static func takes(_ pieces: UnsafeMutableBufferPointer<iovec>, records: UnsafeRawBufferPointer) -> Bool {
        guard records.count <= recordBytesMax else { return false }
        var pageBytes = 0
        for index in pieces.indices {
            if unsafe holds(records, pieces[index]) { continue }
            unsafe pageBytes += pieces[index].iov_len
            if pageBytes >= pageBytesMin { return true }
        }
        return false
    }

    private static func holds(_ records: UnsafeRawBufferPointer, _ piece: iovec) -> Bool {
        guard let base = records.baseAddress, let address = unsafe UnsafeRawPointer(piece.iov_base) else {
            return false
        }
        return unsafe address >= base && address < base + records.count
    }

    /// Before the first ``send(_:_:to:)`` of these pieces: records are taken to where they stay as they are.
    func begin(_ pieces: UnsafeMutableBufferPointer<iovec>, records own: UnsafeRawBufferPointer) {
        for index in pieces.indices where unsafe Self.holds(own, pieces[index]) {
            let count = unsafe pieces[index].iov_len
            let place = unsafe records.base + recordBytes
            unsafe memcpy(place, pieces[index].iov_base, count)
            unsafe pieces[index].iov_base = place
            recordBytes += count
        }
    }

    /// Sends a part, without waiting, and advances `index` and the piece it stands at by what is in the socket.
    /// - Returns: Bytes sent.
    /// - Throws: ``SystemCallError``; `EAGAIN` when the socket takes nothing now.
    func send(
        _ pieces: UnsafeMutableBufferPointer<iovec>, _ index: inout Int, to socket: OwnedDescriptor
    ) throws(SystemCallError) -> Int {
        if held == 0 {
            held = try unsafe calls.fill(UnsafeMutableBufferPointer(rebasing: pieces[index...]), pipe.writeEnd)
        }
        let moved = try calls.move(held, pipe.readEnd, socket)
        guard moved > 0 else { throw SystemCallError("splice", .invalidArgument, subject: "socket") }
        held -= moved
        unsafe DescriptorTransport.advance(pieces, &index, by: moved)
        return moved
    }

    /// After the last part: the socket keeps the records' memory, and here it is new memory.
    /// - Throws: ``SystemCallError``: this sender must not be used again.
    func end() throws(SystemCallError) {
        let used = recordBytes
        recordBytes = 0
        guard used > 0 else { return }
        try records.advise(
            offset: 0, byteCount: min(records.byteCount, used.roundedUp(to: hostPageSize)), MADV_DONTNEED)
    }
}

extension Int {
    fileprivate func roundedUp(to unit: Int) -> Int { (self + unit - 1) / unit * unit }
}
