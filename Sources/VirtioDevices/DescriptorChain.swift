import GuestMemory

/// One buffer of guest memory; it was inside RAM (and writable, if the device may write to it) when the chain was read,
/// and the memory map never changes.
struct GuestSegment: Hashable, Sendable {
    var address: UInt64
    var byteCount: Int
}

/// A request as the driver put it into a queue: what the device may read, then what it may write.
struct DescriptorChain: Sendable {
    /// Index of the first descriptor: what goes into the used ring.
    let head: UInt16
    var readable: [GuestSegment] = []
    var writable: [GuestSegment] = []
    var readableByteCount = 0
    var writableByteCount = 0

    /// Copies bytes of the readable part from `offset` on; answers how many there were.
    func read(_ memory: GuestMemory, at offset: Int, into buffer: UnsafeMutableRawBufferPointer) -> Int {
        var done = 0
        Self.walk(readable, offset: offset, byteCount: buffer.count) { address, count in
            let target = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + count])
            guard let _ = unsafe try? memory.read(address, into: target) else { return false }
            done += count
            return true
        }
        return done
    }

    /// Copies bytes of the readable part from `offset` on, fewer if there are fewer.
    func readBytes(_ memory: GuestMemory, at offset: Int, count: Int) -> [UInt8] {
        let count = max(0, min(count, readableByteCount - offset))
        return unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            unsafe filled = read(memory, at: offset, into: UnsafeMutableRawBufferPointer(buffer))
        }
    }

    /// Copies bytes into the writable part from `offset` on; answers how many fitted.
    func write(_ memory: GuestMemory, at offset: Int, _ bytes: UnsafeRawBufferPointer) -> Int {
        var done = 0
        Self.walk(writable, offset: offset, byteCount: bytes.count) { address, count in
            let source = unsafe UnsafeRawBufferPointer(rebasing: bytes[done..<done + count])
            guard let _ = unsafe try? memory.write(address, source) else { return false }
            done += count
            return true
        }
        return done
    }

    @discardableResult func write(_ memory: GuestMemory, at offset: Int, _ bytes: [UInt8]) -> Int {
        unsafe bytes.withUnsafeBytes { unsafe write(memory, at: offset, $0) }
    }

    /// Calls `body` with each piece of guest memory that `byteCount` bytes from `offset` cover.
    private static func walk(
        _ segments: [GuestSegment], offset: Int, byteCount: Int, _ body: (_ address: UInt64, _ count: Int) -> Bool
    ) {
        precondition(offset >= 0 && byteCount >= 0)
        var skip = offset
        var left = byteCount
        for segment in segments where left > 0 {
            if skip >= segment.byteCount {
                skip -= segment.byteCount
                continue
            }
            let count = min(segment.byteCount - skip, left)
            guard body(segment.address + UInt64(skip), count) else { return }
            skip = 0
            left -= count
        }
    }
}
