package import DeviceModel
import Glibc
package import LinuxCalls
import Synchronization
import SystemPackage

/// A raw disk image: a file, or a block device, whose bytes are the disk's.
///
/// An image is locked (see ``ImageLock``): alone when it is written, together with other readers when it is not. The lock belongs
/// to the open file and crosses with the descriptor.
///
/// A guest that comes from stock QEMU brings no descriptor, and QEMU keeps its own lock until it has let go: open with
/// `isLocking` false and call ``lock()`` before the guest runs. One that goes there needs ``unlock()`` before QEMU runs it.
package final class RawFileBackend: BlockBackend, TransferableBackend {
    static let kind = "file"

    package let byteCount: UInt64
    package let isReadOnly: Bool
    /// For messages.
    package let path: String
    private let file: OwnedDescriptor
    private let holdsLock = Atomic<Bool>(false)
    /// ``lock()`` was called last, not ``unlock()``.
    package var isLocked: Bool { holdsLock.load(ordering: .relaxed) }
    /// Cleared when the file system says that it cannot.
    private let canPunchHoles = Atomic<Bool>(true)
    private let canZeroRanges = Atomic<Bool>(true)

    /// Opens and locks an image.
    /// - Parameter isLocking: False leaves the lock to ``lock()``.
    /// - Throws: With a sentence for the user when it cannot be opened, is in use, or is not made of sectors.
    package convenience init(path: String, isReadOnly: Bool = false, isLocking: Bool = true) throws(BackendError) {
        let file = try backendCall("disk image \(path)") { () throws(SystemCallError) in
            try OwnedDescriptor.open(path, flags: isReadOnly ? O_RDONLY : O_RDWR)
        }
        try self.init(descriptor: file, path: path, isReadOnly: isReadOnly, isLocking: isLocking)
    }

    /// Takes an image that somebody else opened, and locks it unless this open file has the lock already.
    package init(descriptor: OwnedDescriptor, path: String, isReadOnly: Bool, isLocking: Bool = true)
        throws(BackendError)
    {
        let image = "disk image \(path)"
        let status = try backendCall(image) { () throws(SystemCallError) in try descriptor.status() }
        guard status.type == .regular || status.type == .blockDevice else {
            throw BackendError(errorNumber: EINVAL, "\(image) is neither a file nor a block device")
        }
        byteCount = try backendCall(image) { () throws(SystemCallError) in try descriptor.seekToEnd() }
        guard byteCount > 0, byteCount % 512 == 0 else {
            throw BackendError(
                errorNumber: EINVAL,
                "\(image) has \(byteCount) bytes; a raw image is made of sectors of 512 bytes (truncate -s rounds it up)"
            )
        }
        self.isReadOnly = isReadOnly
        self.path = path
        file = descriptor
        if isLocking { try lock() }
    }

    /// Locks the image; does nothing when this open file has the lock.
    /// - Throws: With the name of who has it, if that can be found out.
    package func lock() throws(BackendError) {
        let isLocked = try backendCall("cannot lock disk image \(path)") { () throws(SystemCallError) in
            try ImageLock.take(file, forWriting: !isReadOnly)
        }
        holdsLock.store(isLocked, ordering: .relaxed)
        guard !isLocked else { return }
        let status = try? file.status()
        let holder = status.flatMap { LockHolder.describe(device: $0.device, inode: $0.inode) }
        throw BackendError(
            errorNumber: EBUSY,
            "disk image \(path) is in use by \(holder ?? "another process")"
                + (isReadOnly ? ", which writes to it" : "; a writable image has one user"))
    }

    /// Gives the lock up. The guest must not run until ``lock()``.
    package func unlock() throws(BackendError) {
        try backendCall("cannot unlock disk image \(path)") { () throws(SystemCallError) in try FileLock.release(file) }
        holdsLock.store(false, ordering: .relaxed)
    }

    package convenience init(adopting handover: BackendHandover) throws(BackendError) {
        try handover.check(kind: Self.kind)
        var state = try handover.stateReader()
        let isReadOnly = try state.flag()
        let byteCount: UInt64 = try state.integer()
        let path = try state.text()
        try state.finish()
        try self.init(descriptor: handover.descriptor(named: "image"), path: path, isReadOnly: isReadOnly)
        guard self.byteCount == byteCount else {
            throw BackendError(
                errorNumber: 0, "disk image \(path) has \(self.byteCount) bytes, the guest's disk \(byteCount)")
        }
    }

    /// Needs no quiesce(): there is nothing in flight when the device is at rest.
    package func handOver() throws(BackendError) -> BackendHandover {
        var state = BackendHandover.stateWriter()
        state.flag(isReadOnly)
        state.integer(byteCount)
        state.text(path)
        return BackendHandover(kind: Self.kind, descriptors: [("image", file)], state: state.bytes)
    }

    package var supportsDiscard: Bool { !isReadOnly && canPunchHoles.load(ordering: .relaxed) }

    private func check(_ offset: UInt64, _ byteCount: UInt64) throws(BackendError) {
        guard offset <= self.byteCount, byteCount <= self.byteCount - offset else {
            throw BackendError(errorNumber: EINVAL, "access outside disk image \(path)")
        }
    }

    package func read(offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(BackendError) {
        try check(offset, UInt64(buffer.count))
        var done = 0
        while done < buffer.count {
            let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
            let count = try backendCall(path) { () throws(SystemCallError) in
                unsafe try file.read(at: offset + UInt64(done), into: rest)
            }
            guard count > 0 else { throw BackendError(errorNumber: EIO, "disk image \(path) was made shorter") }
            done += count
        }
    }

    package func write(offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(BackendError) {
        try check(offset, UInt64(bytes.count))
        var done = 0
        while done < bytes.count {
            let rest = unsafe UnsafeRawBufferPointer(rebasing: bytes[done...])
            let count = try backendCall(path) { () throws(SystemCallError) in
                unsafe try file.write(at: offset + UInt64(done), rest)
            }
            guard count > 0 else { throw BackendError(errorNumber: EIO, "disk image \(path) takes no more") }
            done += count
        }
    }

    package func flush() throws(BackendError) {
        try backendCall(path) { () throws(SystemCallError) in try file.synchronizeData() }
    }

    package func discard(offset: UInt64, byteCount: UInt64) throws(BackendError) {
        try check(offset, byteCount)
        _ = try punch(offset, byteCount)
    }

    /// False: not here.
    private func punch(_ offset: UInt64, _ byteCount: UInt64) throws(BackendError) -> Bool {
        try attempt(canPunchHoles) { () throws(SystemCallError) in
            try file.punchHole(offset: offset, byteCount: byteCount)
        }
    }

    private func attempt(_ isPossible: borrowing Atomic<Bool>, _ body: () throws(SystemCallError) -> Void)
        throws(BackendError) -> Bool
    {
        guard isPossible.load(ordering: .relaxed) else { return false }
        do throws(SystemCallError) {
            try body()
            return true
        } catch  where error.errno == .notSupported || error.errno == .noFunction || error.errno.rawValue == ENODEV {
            isPossible.store(false, ordering: .relaxed)
            return false
        } catch { throw BackendError(error, path) }
    }

    package func writeZeroes(offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BackendError) {
        try check(offset, byteCount)
        if mayUnmap, try punch(offset, byteCount) { return }
        let isDone = try attempt(canZeroRanges) { () throws(SystemCallError) in
            try file.zeroRange(offset: offset, byteCount: byteCount)
        }
        if isDone { return }
        let zeroes = [UInt8](repeating: 0, count: Int(min(byteCount, 1 << 20)))
        var failure: BackendError?
        unsafe zeroes.withUnsafeBytes { buffer in
            do throws(BackendError) {
                var done: UInt64 = 0
                while done < byteCount {
                    let count = min(UInt64(buffer.count), byteCount - done)
                    unsafe try write(offset: offset + done, UnsafeRawBufferPointer(rebasing: buffer[..<Int(count)]))
                    done += count
                }
            } catch { failure = error }
        }
        if let failure { throw failure }
    }
}
