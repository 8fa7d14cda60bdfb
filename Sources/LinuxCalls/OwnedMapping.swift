import CLinuxShims
import Glibc
import SystemPackage

/// Size of a page of the host in bytes.
package let hostPageSize = Int(sysconf(CInt(_SC_PAGESIZE)))

/// An area of this process's address space made by mmap(2) and unmapped when the last reference goes away.
@safe package final class OwnedMapping: Sendable {
    // SAFETY: address and length never change after init; what lies behind them is shared memory that guests and
    // other processes write at any time, so every access goes through code that expects that.
    nonisolated(unsafe) package let base: UnsafeMutableRawPointer
    package let byteCount: Int

    /// Maps `byteCount` bytes.
    /// - Parameters:
    ///   - descriptor: What to map; nil maps private anonymous memory.
    ///   - shared: `MAP_SHARED` for a descriptor.
    package init(
        byteCount: Int, descriptor: OwnedDescriptor? = nil, offset: Int = 0, shared: Bool = true, writable: Bool = true
    ) throws(SystemCallError) {
        precondition(byteCount > 0)
        let protection = writable ? PROT_READ | PROT_WRITE : PROT_READ
        let flags = descriptor == nil ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : shared ? MAP_SHARED : MAP_PRIVATE
        let address = unsafe mmap(nil, byteCount, protection, flags, descriptor?.rawValue ?? -1, off_t(offset))
        guard let address = unsafe address, unsafe address != UnsafeMutableRawPointer(bitPattern: -1) else {
            throw .last("mmap", subject: "\(byteCount) bytes")
        }
        unsafe base = address
        self.byteCount = byteCount
    }

    deinit { unsafe munmap(base, byteCount) }

    package var bytes: UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(start: base, count: byteCount)
    }

    /// madvise(2) over a part of the area.
    package func advise(offset: Int, byteCount: Int, _ advice: CInt) throws(SystemCallError) {
        precondition(offset >= 0 && byteCount >= 0 && offset + byteCount <= self.byteCount)
        _ = try retrying("madvise") { unsafe madvise(base + offset, byteCount, advice) }
    }
}

extension OwnedMapping {
    /// Maps a part of a file, shared, over a part of this area; the address stays. Source: mmap(2), MAP_FIXED.
    package func replace(offset: Int, byteCount: Int, with descriptor: OwnedDescriptor) throws(SystemCallError) {
        precondition(offset >= 0 && byteCount > 0 && offset + byteCount <= self.byteCount)
        let wanted = unsafe base + offset
        let address = unsafe mmap(
            wanted, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor.rawValue, off_t(offset))
        guard unsafe address == wanted else { throw .last("mmap", subject: "\(byteCount) bytes") }
    }
}

/// Anonymous files that live in memory and cross to other processes by descriptor.
package enum MemoryFile {
    /// Makes a memfd of `byteCount` bytes, close-on-exec, sealed so that nobody can shrink or grow it.
    ///
    /// The corresponding system calls are `memfd_create`, `ftruncate` and `fcntl(F_ADD_SEALS)`.
    package static func create(name: String, byteCount: Int) throws(SystemCallError) -> OwnedDescriptor {
        let file = OwnedDescriptor(
            adopting: try retrying("memfd_create", subject: name) {
                unsafe shim_memfd_create(name, SHIM_MFD_CLOEXEC | SHIM_MFD_ALLOW_SEALING)
            })
        _ = try retrying("ftruncate", subject: name) { ftruncate(file.rawValue, off_t(byteCount)) }
        _ = try retrying("fcntl(F_ADD_SEALS)", subject: name) {
            shim_fcntl_int(file.rawValue, SHIM_F_ADD_SEALS, SHIM_F_SEAL_SHRINK | SHIM_F_SEAL_GROW | SHIM_F_SEAL_SEAL)
        }
        return file
    }

    /// Opens a file by its name as memory, or makes it, and marks it as in use by a shared lock (fcntl(2)) that lasts as long as
    /// it is open anywhere.
    /// - Throws: `EINVAL` if it is no regular file, or one of another size that is not empty.
    package static func open(_ path: String, byteCount: Int) throws(SystemCallError) -> OwnedDescriptor {
        let file = try OwnedDescriptor.open(path, flags: O_RDWR | O_CREAT)
        let status = try file.status()
        guard status.type == .regular else {
            throw SystemCallError("open as memory", .invalidArgument, subject: "\(path) (not a regular file)")
        }
        if status.byteCount == 0 {
            _ = try retrying("ftruncate", subject: path) { ftruncate(file.rawValue, off_t(byteCount)) }
        } else if status.byteCount != byteCount {
            throw SystemCallError(
                "open as memory", .invalidArgument,
                subject: "\(path) (it has \(status.byteCount) bytes, the guest's RAM \(byteCount))")
        }
        guard try FileLock.take(.shared, on: file) else {
            throw SystemCallError("lock", .wouldBlock, subject: "\(path) (another program has it for itself)")
        }
        return file
    }

    /// Gives a part of a memfd back to the host; it reads as zero afterwards. Source: fallocate(2).
    package static func punchHole(in file: OwnedDescriptor, offset: Int, byteCount: Int) throws(SystemCallError) {
        _ = try retrying("fallocate") {
            shim_fallocate(
                file.rawValue, SHIM_FALLOC_FL_PUNCH_HOLE | SHIM_FALLOC_FL_KEEP_SIZE, Int64(offset), Int64(byteCount))
        }
    }

    /// Keeps everybody from shrinking it from now on. `EPERM` when its maker did not allow that.
    package static func seal(_ file: OwnedDescriptor) throws(SystemCallError) {
        _ = try retrying("fcntl(F_ADD_SEALS)") {
            shim_fcntl_int(file.rawValue, SHIM_F_ADD_SEALS, SHIM_F_SEAL_SHRINK)
        }
    }

    /// Whether these seals keep a memfd from shrinking and growing.
    package static func isSizeSealed(_ seals: CInt) -> Bool {
        let size = SHIM_F_SEAL_SHRINK | SHIM_F_SEAL_GROW
        return seals & size == size
    }

    /// The seals of a memfd (`F_SEAL_*`).
    package static func seals(of file: OwnedDescriptor) throws(SystemCallError) -> CInt {
        try retrying("fcntl(F_GET_SEALS)") { shim_fcntl_int(file.rawValue, SHIM_F_GET_SEALS, 0) }
    }
}
