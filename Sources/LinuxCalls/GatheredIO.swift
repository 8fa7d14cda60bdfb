package import CLinuxShims
import Glibc
import SystemPackage

/// Calls that take many pieces of memory at once. None of them retries `EAGAIN`; all retry `EINTR`.
package enum GatheredIO {
    /// Pieces one call takes; more are left for the next.
    package static let piecesMax = 1024
    /// Descriptors one receive takes.
    package static let descriptorsMax = 32

    /// sendmsg(2) without descriptors, non-blocking; answers how many bytes were taken.
    package static func send(_ pieces: UnsafeMutableBufferPointer<iovec>, to socket: OwnedDescriptor)
        throws(SystemCallError) -> Int
    {
        try retrying("sendmsg") {
            unsafe shim_send_pieces(
                socket.rawValue, pieces.baseAddress, min(pieces.count, piecesMax), CInt(MSG_DONTWAIT))
        }
    }

    /// writev(2).
    package static func write(_ pieces: UnsafeMutableBufferPointer<iovec>, to file: OwnedDescriptor)
        throws(SystemCallError) -> Int
    {
        try retrying("writev") {
            unsafe writev(file.rawValue, pieces.baseAddress, CInt(min(pieces.count, piecesMax)))
        }
    }

    /// readv(2).
    package static func read(_ pieces: UnsafeMutableBufferPointer<iovec>, from file: OwnedDescriptor)
        throws(SystemCallError) -> Int
    {
        try retrying("readv") {
            unsafe readv(file.rawValue, pieces.baseAddress, CInt(min(pieces.count, piecesMax)))
        }
    }

    /// pwritev(2): to a place of a file, whose position stays.
    package static func write(
        _ pieces: UnsafeMutableBufferPointer<iovec>, to file: OwnedDescriptor, at offset: UInt64
    ) throws(SystemCallError) -> Int {
        try retrying("pwritev") {
            unsafe pwritev(
                file.rawValue, pieces.baseAddress, CInt(min(pieces.count, piecesMax)), off_t(clamping: offset))
        }
    }

    /// preadv(2): from a place of a file, whose position stays.
    package static func read(
        _ pieces: UnsafeMutableBufferPointer<iovec>, from file: OwnedDescriptor, at offset: UInt64
    ) throws(SystemCallError) -> Int {
        try retrying("preadv") {
            unsafe preadv(
                file.rawValue, pieces.baseAddress, CInt(min(pieces.count, piecesMax)), off_t(clamping: offset))
        }
    }

    /// recvmsg(2), non-blocking, with room for ``descriptorsMax`` descriptors, which come close-on-exec.
    package static func receive(_ pieces: UnsafeMutableBufferPointer<iovec>, from socket: OwnedDescriptor)
        throws(SystemCallError) -> (byteCount: Int, descriptors: [OwnedDescriptor], isTruncated: Bool)
    {
        try unsafe withUnsafeTemporaryAllocation(of: CInt.self, capacity: descriptorsMax) {
            (numbers) throws(SystemCallError) in
            var count = descriptorsMax
            var truncated: CInt = 0
            let received = try retrying("recvmsg") {
                count = descriptorsMax
                return unsafe shim_receive_with_descriptors(
                    socket.rawValue, pieces.baseAddress, min(pieces.count, piecesMax), numbers.baseAddress, &count,
                    &truncated, CInt(MSG_DONTWAIT))
            }
            let owned = unsafe numbers[..<count].map { OwnedDescriptor(adopting: $0) }
            return (received, owned, truncated != 0)
        }
    }

    /// Which of the descriptors waited for has something.
    package struct Ready: Sendable {
        /// What was waited for, or an error or hang-up, on the first.
        package var isReady = false
        package var isWoken = false
        package var isHungUp = false
    }

    /// Waits for one descriptor, until another wakes or a third is hung up. Nothing is set when the time is over.
    /// - Parameter timeoutMilliseconds: -1 waits for ever.
    package static func wait(
        for events: Int16, on first: OwnedDescriptor, wake: OwnedDescriptor, hangUp: OwnedDescriptor? = nil,
        timeoutMilliseconds: Int
    ) throws(SystemCallError) -> Ready {
        var entries = (
            pollfd(fd: first.rawValue, events: events, revents: 0),
            pollfd(fd: wake.rawValue, events: Int16(POLLIN), revents: 0),
            pollfd(fd: hangUp?.rawValue ?? -1, events: 0x2000, revents: 0)  // POLLRDHUP
        )
        _ = try retrying("poll") {
            unsafe withUnsafeMutablePointer(to: &entries) { tuple in
                unsafe tuple.withMemoryRebound(to: pollfd.self, capacity: 3) {
                    unsafe poll($0, 3, CInt(clamping: timeoutMilliseconds))
                }
            }
        }
        return Ready(
            isReady: entries.0.revents != 0, isWoken: entries.1.revents != 0, isHungUp: entries.2.revents != 0)
    }

    /// Waits until a file's contents are on the disk. Source: fdatasync(2).
    package static func synchronise(_ file: OwnedDescriptor) throws(SystemCallError) {
        _ = try retrying("fdatasync") { fdatasync(file.rawValue) }
    }

    /// Makes a file so long, cutting off what is behind. Source: ftruncate(2).
    package static func truncate(_ file: OwnedDescriptor, to byteCount: Int) throws(SystemCallError) {
        _ = try retrying("ftruncate") { ftruncate(file.rawValue, off_t(byteCount)) }
    }

    /// Where the next read or write of a file happens. Source: lseek(2).
    package static func seek(_ file: OwnedDescriptor, to offset: Int) throws(SystemCallError) {
        _ = try retrying("lseek") { lseek(file.rawValue, off_t(offset), SEEK_SET) }
    }

    /// Where the next read or write of a file happens now. Source: lseek(2).
    package static func position(of file: OwnedDescriptor) throws(SystemCallError) -> Int {
        Int(try retrying("lseek") { lseek(file.rawValue, 0, SEEK_CUR) })
    }

    /// Asks for larger socket buffers; the kernel gives what its limits allow. Source: socket(7).
    package static func enlargeBuffers(of socket: OwnedDescriptor, byteCount: Int) {
        var value = CInt(clamping: byteCount)
        let size = socklen_t(MemoryLayout<CInt>.size)
        unsafe _ = setsockopt(socket.rawValue, SOL_SOCKET, SO_SNDBUF, &value, size)
        unsafe _ = setsockopt(socket.rawValue, SOL_SOCKET, SO_RCVBUF, &value, size)
    }

    /// Lets a TCP socket send small pieces at once instead of waiting for the answer to those before, which costs up to
    /// 40 ms where a move synchronises. Other sockets do so anyway. Source: tcp(7), TCP_NODELAY.
    package static func sendAtOnce(_ socket: OwnedDescriptor) {
        var one: CInt = 1
        unsafe _ = setsockopt(
            socket.rawValue, CInt(IPPROTO_TCP), TCP_NODELAY, &one, socklen_t(MemoryLayout<CInt>.size))
    }

    /// Writing to a pipe whose reader is gone becomes an error instead of the death of the process. Source: signal(7).
    package static func ignorePipeSignal() { _ = signal(SIGPIPE, SIG_IGN) }
}
