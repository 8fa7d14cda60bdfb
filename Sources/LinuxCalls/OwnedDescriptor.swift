import CLinuxShims
import Glibc
import Synchronization
import SystemPackage

/// A file descriptor that is closed when the last reference goes away.
///
/// A class, because descriptors stand in collections and cross between threads; there is one object per descriptor, and
/// the number is never handed to anybody who outlives it.
package final class OwnedDescriptor: Sendable, CustomStringConvertible {
    package let rawValue: CInt
    private let isRelinquished = Atomic<Bool>(false)

    /// Takes ownership; close-on-exec is not changed.
    package init(adopting rawValue: CInt) {
        precondition(rawValue >= 0, "a descriptor is not negative")
        self.rawValue = rawValue
    }

    deinit { if !isRelinquished.load(ordering: .relaxed) { _ = Glibc.close(rawValue) } }

    /// Leaves the descriptor open when this object goes away: somebody else closes it by its number.
    package func relinquish() { isRelinquished.store(true, ordering: .relaxed) }

    /// A descriptor of our own for an open file that somebody else owns; close-on-exec.
    package static func duplicate(of number: CInt) throws(SystemCallError) -> OwnedDescriptor {
        OwnedDescriptor(adopting: try retrying("fcntl(F_DUPFD_CLOEXEC)") { shim_fcntl_int(number, F_DUPFD_CLOEXEC, 3) })
    }

    package var description: String { "fd \(rawValue)" }

    /// A second descriptor for the same open file (same offset, same open-file-description locks), close-on-exec.
    package func duplicate() throws(SystemCallError) -> OwnedDescriptor { try Self.duplicate(of: rawValue) }

    package func setNonBlocking(_ on: Bool) throws(SystemCallError) {
        let flags = try retrying("fcntl(F_GETFL)") { shim_fcntl_int(rawValue, F_GETFL, 0) }
        _ = try retrying("fcntl(F_SETFL)") {
            shim_fcntl_int(rawValue, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK)
        }
    }

    package func setCloseOnExec(_ on: Bool) throws(SystemCallError) {
        _ = try retrying("fcntl(F_SETFD)") { shim_fcntl_int(rawValue, F_SETFD, on ? FD_CLOEXEC : 0) }
    }

    /// fstat(2).
    package func status() throws(SystemCallError) -> FileStatus {
        var status = stat()
        _ = try retrying("fstat") { unsafe fstat(rawValue, &status) }
        return FileStatus(
            type: FileStatus.FileType(mode: status.st_mode & S_IFMT), byteCount: Int(status.st_size),
            device: UInt64(status.st_dev), inode: UInt64(status.st_ino), owner: status.st_uid)
    }

    /// Reads at most `buffer.count` bytes; 0 is end of file. The corresponding C function is `read`.
    package func read(into buffer: UnsafeMutableRawBufferPointer) throws(SystemCallError) -> Int {
        try retrying("read") { unsafe Glibc.read(rawValue, buffer.baseAddress, buffer.count) }
    }

    /// Writes at most `bytes.count` bytes and answers how many. The corresponding C function is `write`.
    package func write(_ bytes: UnsafeRawBufferPointer) throws(SystemCallError) -> Int {
        try retrying("write") { unsafe Glibc.write(rawValue, bytes.baseAddress, bytes.count) }
    }

    /// Writes everything, waiting as long as it takes.
    package func writeAll(_ bytes: UnsafeRawBufferPointer) throws(SystemCallError) {
        var done = 0
        while done < bytes.count {
            do {
                done += try unsafe write(UnsafeRawBufferPointer(rebasing: bytes[done...]))
            } catch  where error.errno == .wouldBlock {
                _ = try waitUntilReady(for: Int16(POLLOUT), timeoutMilliseconds: -1)
            }
        }
    }

    package func writeAll(_ bytes: [UInt8]) throws(SystemCallError) {
        var failure: SystemCallError?
        unsafe bytes.withUnsafeBytes { buffer in
            do throws(SystemCallError) { try unsafe writeAll(buffer) } catch { failure = error }
        }
        if let failure { throw failure }
    }

    /// poll(2) on this one descriptor. Answers the ready events, 0 when the time is over.
    /// - Parameter timeoutMilliseconds: -1 waits for ever.
    package func waitUntilReady(for events: Int16, timeoutMilliseconds: CInt) throws(SystemCallError) -> Int16 {
        var entry = pollfd(fd: rawValue, events: events, revents: 0)
        _ = try retrying("poll") { unsafe poll(&entry, 1, timeoutMilliseconds) }
        return entry.revents
    }

    /// Opens a file, close-on-exec. The corresponding C function is `open`.
    package static func open(_ path: String, flags: CInt, mode: UInt32 = 0o600) throws(SystemCallError)
        -> OwnedDescriptor
    {
        OwnedDescriptor(
            adopting: try retrying("open", subject: path) { unsafe Glibc.open(path, flags | O_CLOEXEC, mode) })
    }

    /// An eventfd(2) counter, non-blocking, close-on-exec: one thread signals, another polls.
    package static func event() throws(SystemCallError) -> OwnedDescriptor {
        OwnedDescriptor(adopting: try retrying("eventfd") { shim_eventfd() })
    }

    /// Signals an eventfd made by ``event()``.
    package func signal() {
        var one: UInt64 = 1
        _ = unsafe Glibc.write(rawValue, &one, 8)
    }

    /// Takes what was signalled on an eventfd; 0 when nothing was.
    @discardableResult package func drain() -> UInt64 {
        var count: UInt64 = 0
        return unsafe Glibc.read(rawValue, &count, 8) == 8 ? count : 0
    }

    /// A pipe, both ends close-on-exec. The corresponding C function is `pipe2`.
    package static func pipe() throws(SystemCallError) -> (readEnd: OwnedDescriptor, writeEnd: OwnedDescriptor) {
        var ends: [CInt] = [-1, -1]
        _ = try retrying("pipe2") { unsafe shim_pipe(&ends) }
        return (OwnedDescriptor(adopting: ends[0]), OwnedDescriptor(adopting: ends[1]))
    }

    /// A descriptor that becomes readable when the process ends. The corresponding system call is `pidfd_open`.
    package static func process(_ identifier: CInt) throws(SystemCallError) -> OwnedDescriptor {
        OwnedDescriptor(adopting: try retrying("pidfd_open", subject: "\(identifier)") { shim_pidfd_open(identifier) })
    }
}

/// What fstat(2) tells of an open file.
package struct FileStatus: Hashable, Sendable {
    package enum FileType: Hashable, Sendable {
        case regular, directory, characterDevice, blockDevice, pipe, socket, other

        init(mode: UInt32) {
            switch mode {
            case S_IFREG: self = .regular
            case S_IFDIR: self = .directory
            case S_IFCHR: self = .characterDevice
            case S_IFBLK: self = .blockDevice
            case S_IFIFO: self = .pipe
            case S_IFSOCK: self = .socket
            default: self = .other
            }
        }
    }

    package let type: FileType
    package let byteCount: Int
    package let device: UInt64
    package let inode: UInt64
    package let owner: UInt32
}
