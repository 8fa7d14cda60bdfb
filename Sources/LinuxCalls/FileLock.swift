import CLinuxShims
import Glibc
import SystemPackage

/// Open-file-description locks: they belong to the open file, so they travel with the descriptor to another process
/// and end when the last duplicate is closed. Source: fcntl(2), "Open file description locks (non-POSIX)".
package enum FileLock {
    package enum Kind: Sendable { case shared, exclusive }

    /// Locks the whole file, or one byte of it (which need not exist), without waiting. False: somebody else holds a lock that
    /// excludes this one.
    package static func take(
        _ kind: Kind, byte: Int64? = nil, on file: OwnedDescriptor
    ) throws(SystemCallError) -> Bool {
        var lock = description(kind, byte)
        do {
            _ = try retrying("fcntl(F_OFD_SETLK)") { unsafe shim_fcntl_lock(file.rawValue, SHIM_F_OFD_SETLK, &lock) }
            return true
        } catch  where error.errno == .wouldBlock || error.errno == .permissionDenied {
            return false
        }
    }

    /// - Parameter byte: Nil for the whole file; of a length of 0 the kernel makes everything there is and will be.
    private static func description(_ kind: Kind, _ byte: Int64?) -> flock {
        var lock = flock()
        lock.l_type = Int16(kind == .shared ? F_RDLCK : F_WRLCK)
        lock.l_whence = Int16(SEEK_SET)
        lock.l_start = off_t(byte ?? 0)
        lock.l_len = byte == nil ? 0 : 1
        return lock
    }

    /// Gives the lock up.
    package static func release(_ file: OwnedDescriptor) throws(SystemCallError) {
        var lock = flock()
        lock.l_type = Int16(F_UNLCK)
        lock.l_whence = Int16(SEEK_SET)
        _ = try retrying("fcntl(F_OFD_SETLK)") { unsafe shim_fcntl_lock(file.rawValue, SHIM_F_OFD_SETLK, &lock) }
    }

    /// Whether another open file holds a lock that would exclude `kind`.
    package static func isExcluded(
        _ kind: Kind, byte: Int64? = nil, on file: OwnedDescriptor
    ) throws(SystemCallError) -> Bool {
        var lock = description(kind, byte)
        _ = try retrying("fcntl(F_OFD_GETLK)") { unsafe shim_fcntl_lock(file.rawValue, SHIM_F_OFD_GETLK, &lock) }
        return lock.l_type != Int16(F_UNLCK)
    }
}
