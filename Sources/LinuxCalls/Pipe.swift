package import CLinuxShims
import Glibc
import SystemPackage

/// A pipe for page contents.
package enum PagePipe {
    /// Bytes a pipe may hold without privileges. Source: pipe(7), /proc/sys/fs/pipe-max-size.
    package static let capacityWanted = 1 << 20

    /// Makes a pipe that holds as much as the kernel allows, up to ``capacityWanted``; answers how much that is.
    package static func make() throws(SystemCallError)
        -> (readEnd: OwnedDescriptor, writeEnd: OwnedDescriptor, capacity: Int)
    {
        let (readEnd, writeEnd) = try OwnedDescriptor.pipe()
        _ = shim_fcntl_int(writeEnd.rawValue, SHIM_F_SETPIPE_SZ, CInt(capacityWanted))
        let capacity = try retrying("fcntl(F_GETPIPE_SZ)") { shim_fcntl_int(writeEnd.rawValue, SHIM_F_GETPIPE_SZ, 0) }
        return (readEnd, writeEnd, Int(capacity))
    }

    /// Moves bytes from one pipe into another, or into a non-blocking unix socket, by reference, without waiting: nothing is copied.
    /// - Returns: Bytes moved; 0 when nobody can write into the first any more.
    /// - Throws: ``SystemCallError``; `EAGAIN` when the first is empty or the second full. A socket nobody reads is `SIGPIPE`, too,
    ///   unless that is ignored.
    ///
    /// The corresponding C function is `splice`. Source: splice(2).
    package static func move(
        _ byteCount: Int, from first: OwnedDescriptor, to second: OwnedDescriptor
    ) throws(SystemCallError) -> Int {
        try retrying("splice") {
            shim_splice(first.rawValue, second.rawValue, byteCount, SHIM_SPLICE_F_NONBLOCK)
        }
    }

    /// Puts pieces of memory into a pipe by reference, without waiting, as they are: what is written to them before somebody has
    /// read them out of the pipe, or out of whatever they were moved on to, is what arrives.
    /// - Returns: Bytes taken; fewer than offered when the pipe is full.
    /// - Throws: ``SystemCallError``; `EAGAIN` when nothing fits.
    ///
    /// The corresponding C function is `vmsplice`. Source: vmsplice(2).
    package static func lend(_ pieces: UnsafeMutableBufferPointer<iovec>, to pipe: OwnedDescriptor)
        throws(SystemCallError) -> Int
    {
        try retrying("vmsplice") {
            unsafe shim_vmsplice(
                pipe.rawValue, pieces.baseAddress, min(pieces.count, GatheredIO.piecesMax), SHIM_SPLICE_F_NONBLOCK)
        }
    }

    /// Puts whole pages into a pipe by reference, as a gift, without waiting: nothing is copied, so whoever writes to
    /// them later changes what arrives.
    /// - Parameter pieces: Addresses and lengths in bytes are multiples of the host page size.
    /// - Returns: Bytes taken, a multiple of the page size; fewer than offered when the pipe is full.
    /// - Throws: ``SystemCallError``; `EAGAIN` when nothing fits.
    ///
    /// The corresponding C function is `vmsplice`. Source: vmsplice(2).
    package static func splice(_ pieces: UnsafeMutableBufferPointer<iovec>, into pipe: OwnedDescriptor)
        throws(SystemCallError) -> Int
    {
        try retrying("vmsplice") {
            unsafe shim_vmsplice(
                pipe.rawValue, pieces.baseAddress, min(pieces.count, GatheredIO.piecesMax),
                SHIM_SPLICE_F_GIFT | SHIM_SPLICE_F_NONBLOCK)
        }
    }
}
