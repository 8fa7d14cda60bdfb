/// Collects the bytes of records in a buffer that is used again and again. Page contents do not pass through it: the
/// driver notes ``count`` between headers and writes headers and pages with one `writev`.
///
/// Belongs to one thread.
@safe package final class StreamWriter {
    private var storage: ByteStorage
    /// Bytes collected since ``removeAll()``.
    package private(set) var count = 0
    /// Offset in the stream of the first byte collected.
    package private(set) var startOffset: UInt64

    /// - Parameter capacity: Bytes to hold without growing.
    package init(capacity: Int = 1 << 16, at offset: UInt64 = 0) {
        storage = ByteStorage(capacity: capacity)
        startOffset = offset
    }

    /// Offset in the stream of the next byte.
    package var offset: UInt64 { startOffset + UInt64(count) }

    /// Forgets what was written, keeps the memory.
    package func removeAll() {
        startOffset += UInt64(count)
        count = 0
    }

    /// Accounts for bytes of the stream that the driver wrote itself.
    package func advance(byteCount: Int) { startOffset += UInt64(byteCount) }

    /// Lets `body` see the bytes collected. They move when more is written.
    package func withBytes<Result, Failure: Error>(
        _ body: (UnsafeRawBufferPointer) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        try unsafe body(UnsafeRawBufferPointer(start: storage.base, count: count))
    }

    /// A copy of the bytes collected.
    package var bytes: [UInt8] { unsafe withBytes { unsafe [UInt8]($0) } }

    /// Removes what was written from `position` on, as when a component fails half way.
    package func truncate(to position: Int) {
        precondition(position >= 0 && position <= count)
        count = position
    }

    private func makeRoom(_ byteCount: Int) {
        if storage.capacity - count >= byteCount { return }
        grow(byteCount)
    }

    @inline(never)
    private func grow(_ byteCount: Int) {
        let larger = ByteStorage(capacity: max(storage.capacity * 2, count + byteCount))
        unsafe larger.base.copyMemory(from: storage.base, byteCount: count)
        storage = larger
    }

    @inline(__always)
    package func write<Value: FixedWidthInteger & BitwiseCopyable>(_ value: Value) {
        let size = MemoryLayout<Value>.size
        makeRoom(size)
        unsafe storage.base.storeBytes(of: value.bigEndian, toByteOffset: count, as: Value.self)
        count &+= size
    }

    /// Writes `count` 64-bit integers, each `step` more than the one before it.
    package func writeSequence(from first: UInt64, step: UInt64, count wanted: Int) {
        makeRoom(wanted * 8)
        var value = first
        for index in 0..<wanted {
            unsafe storage.base.storeBytes(
                of: value.bigEndian, toByteOffset: count &+ index &* 8, as: UInt64.self)
            value &+= step
        }
        count += wanted * 8
    }

    package func write(_ bytes: [UInt8]) { unsafe write(bytes.span.bytes) }

    package func write(_ bytes: RawSpan) {
        makeRoom(bytes.byteCount)
        unsafe bytes.withUnsafeBytes { source in
            if let address = source.baseAddress {
                unsafe (storage.base + count).copyMemory(from: address, byteCount: source.count)
            }
        }
        count += bytes.byteCount
    }

    package func writeZeroes(_ byteCount: Int) {
        makeRoom(byteCount)
        unsafe (storage.base + count).initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
        count += byteCount
    }

    /// A length byte and the text. Names are ours: one that does not fit is our mistake.
    package func writeShortString(_ text: String) {
        var text = text
        text.withUTF8 { bytes in
            precondition((1...255).contains(bytes.count), "a name on the wire has 1 to 255 bytes")
            write(UInt8(bytes.count))
            unsafe write(RawSpan(_unsafeElements: bytes))
        }
    }

    package func writeText(_ text: String) {
        var text = text
        text.withUTF8 { bytes in unsafe write(RawSpan(_unsafeElements: bytes)) }
    }

    /// Replaces an integer written earlier, as a length that was not known then.
    package func overwrite<Value: FixedWidthInteger & BitwiseCopyable>(_ value: Value, at position: Int) {
        precondition(position >= 0 && position + MemoryLayout<Value>.size <= count)
        unsafe storage.base.storeBytes(of: value.bigEndian, toByteOffset: position, as: Value.self)
    }
}
