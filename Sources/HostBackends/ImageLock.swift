import LinuxCalls

/// The lock of a disk image, as stock QEMU understands it too.
///
/// QEMU locks single bytes of an image, always shared, so that several processes can say what they do: at 100 and on what it does
/// (byte 0 reads, 1 writes, 3 changes the size), at 200 and on what it lets nobody else do; and it looks for what others hold by
/// asking whether it could have each of those bytes alone.
///
/// A writer of ours has the whole file alone, which excludes everybody. A reader holds the bytes that QEMU's reader holds, so
/// that readers of both kinds can share an image, and writers of neither kind join them.
enum ImageLock {
    private static let uses: Int64 = 100
    private static let forbids: Int64 = 200
    private static let read: Int64 = 0
    private static let write: Int64 = 1
    private static let resize: Int64 = 3

    /// False: somebody else has the image in a way that excludes this. Does nothing when this open file has the lock.
    static func take(_ file: OwnedDescriptor, forWriting: Bool) throws(SystemCallError) -> Bool {
        if forWriting { return try FileLock.take(.exclusive, on: file) }
        for byte in [uses + read, forbids + write, forbids + resize] {
            guard try FileLock.take(.shared, byte: byte, on: file) else {
                try FileLock.release(file)
                return false
            }
        }
        for byte in [forbids + read, uses + write, uses + resize]
        where try FileLock.isExcluded(.exclusive, byte: byte, on: file) {
            try FileLock.release(file)
            return false
        }
        return true
    }
}
