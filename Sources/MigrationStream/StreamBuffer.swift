/// Memory that a buffer and the cursors over it share.
@safe final class ByteStorage {
    // SAFETY: allocated once, freed in deinit; `capacity` bounds every access.
    let base: UnsafeMutableRawPointer
    let capacity: Int

    init(capacity: Int) {
        unsafe base = .allocate(byteCount: max(capacity, 1), alignment: 16)
        self.capacity = capacity
    }

    deinit { unsafe base.deallocate() }
}

/// Bytes received and not yet decoded: the driver reads into it, decoders look at it through a ``StreamCursor``.
///
/// Belongs to one thread. Filling it never disturbs a cursor taken earlier.
@safe package final class StreamBuffer {
    private var storage: ByteStorage
    private var start = 0
    private var end = 0
    /// Offset in the stream of the first byte that has not been consumed.
    package private(set) var offset: UInt64

    /// - Parameters:
    ///   - capacity: Bytes to hold without growing.
    ///   - offset: Where in the stream the first byte will stand.
    package init(capacity: Int = 1 << 18, at offset: UInt64 = 0) {
        storage = ByteStorage(capacity: capacity)
        self.offset = offset
    }

    /// Bytes not yet consumed.
    package var count: Int { end - start }

    /// Makes room for at least `minimum` bytes and lets `fill` write there; it answers how many it wrote.
    package func fill<Failure: Error>(
        minimum: Int, _ fill: (UnsafeMutableRawBufferPointer) throws(Failure) -> Int
    ) throws(Failure) -> Int {
        makeRoom(max(minimum, 1))
        let space = unsafe UnsafeMutableRawBufferPointer(start: storage.base + end, count: storage.capacity - end)
        let written = try unsafe fill(space)
        precondition(written >= 0 && written <= space.count, "wrote beyond the buffer")
        end += written
        return written
    }

    /// Adds bytes that are already at hand.
    package func append(_ bytes: some Sequence<UInt8>) {
        let bytes = Array(bytes)
        unsafe append(bytes.span.bytes)
    }

    package func append(_ bytes: RawSpan) {
        makeRoom(bytes.byteCount)
        unsafe bytes.withUnsafeBytes { source in
            if let address = source.baseAddress {
                unsafe (storage.base + end).copyMemory(from: address, byteCount: source.count)
            }
        }
        end += bytes.byteCount
    }

    /// A cursor over what is here now.
    /// - Parameter isFinal: True when nothing will follow: running out is then ``StreamError/Reason/truncated``.
    package func cursor(isFinal: Bool = false) -> StreamCursor {
        StreamCursor(storage: storage, position: start, end: end, offset: offset, isFinal: isFinal)
    }

    /// Drops everything before the cursor, which came from this buffer since it was last consumed.
    package func consume(to cursor: borrowing StreamCursor) {
        precondition(cursor.offset >= offset && cursor.offset - offset <= UInt64(count), "a cursor of another buffer")
        consume(Int(cursor.offset - offset))
    }

    package func consume(_ byteCount: Int) {
        precondition(byteCount >= 0 && byteCount <= count)
        start += byteCount
        offset += UInt64(byteCount)
        if start == end && isKnownUniquelyReferenced(&storage) {
            start = 0
            end = 0
        }
    }

    /// Moves up to `byteCount` bytes out, for page contents that were read together with records.
    /// - Returns: Bytes moved: fewer when fewer are here; the driver then reads the rest straight into place.
    package func take(_ byteCount: Int, into destination: UnsafeMutableRawPointer) -> Int {
        let taken = min(max(byteCount, 0), count)
        unsafe destination.copyMemory(from: storage.base + start, byteCount: taken)
        consume(taken)
        return taken
    }

    /// Tells the buffer that the driver moved bytes of the stream past it. Only while it is empty.
    package func skip(_ byteCount: Int) {
        precondition(count == 0 && byteCount >= 0)
        offset += UInt64(byteCount)
    }

    /// Drops everything and goes on at another place of the stream, as in a file.
    package func move(to offset: UInt64) {
        start = 0
        end = 0
        if !isKnownUniquelyReferenced(&storage) { storage = ByteStorage(capacity: storage.capacity) }
        self.offset = offset
    }

    private func makeRoom(_ minimum: Int) {
        if storage.capacity - end >= minimum { return }
        let held = count
        if isKnownUniquelyReferenced(&storage) && storage.capacity - held >= minimum {
            unsafe storage.base.copyMemory(from: storage.base + start, byteCount: held)
        } else {
            let larger = ByteStorage(capacity: max(storage.capacity, (held + minimum) + (held + minimum) / 2))
            unsafe larger.base.copyMemory(from: storage.base + start, byteCount: held)
            storage = larger
        }
        start = 0
        end = held
    }
}
