/// Reads a stream's bytes in order and never past their end. Every integer is big-endian, like the whole stream.
///
/// A copy is cheap and independent: decoders work on a copy and hand it back when the record is whole.
@safe package struct StreamCursor {
    private let storage: ByteStorage
    // SAFETY: `storage` is kept alive beside it; `position <= end <= storage.capacity` always.
    private let base: UnsafeRawPointer
    private var position: Int
    private let end: Int
    /// What to add to `position` to get the stream offset; wraps.
    private let origin: UInt64
    private let isFinal: Bool

    init(storage: ByteStorage, position: Int, end: Int, offset: UInt64, isFinal: Bool) {
        precondition(position >= 0 && position <= end && end <= storage.capacity)
        self.storage = storage
        unsafe base = UnsafeRawPointer(storage.base)
        self.position = position
        self.end = end
        origin = offset &- UInt64(position)
        self.isFinal = isFinal
    }

    /// A cursor over a copy of `bytes`.
    /// - Parameters:
    ///   - offset: Where in the stream the first byte stands.
    ///   - isFinal: True when nothing will follow: running out is then ``StreamError/Reason/truncated``.
    package init(_ bytes: some Sequence<UInt8>, at offset: UInt64 = 0, isFinal: Bool = false) {
        let bytes = Array(bytes)
        unsafe self.init(bytes.span.bytes, at: offset, isFinal: isFinal)
    }

    package init(_ bytes: RawSpan, at offset: UInt64 = 0, isFinal: Bool = false) {
        let storage = ByteStorage(capacity: bytes.byteCount)
        unsafe bytes.withUnsafeBytes { source in
            if let address = source.baseAddress {
                unsafe storage.base.copyMemory(from: address, byteCount: source.count)
            }
        }
        self.init(storage: storage, position: 0, end: bytes.byteCount, offset: offset, isFinal: isFinal)
    }

    /// Offset in the stream of the next byte.
    package var offset: UInt64 { origin &+ UInt64(position) }
    /// Bytes left in the buffer.
    package var remaining: Int { end - position }
    package var isAtEnd: Bool { position == end }

    /// The error for wanting `byteCount` bytes when fewer are left.
    private func shortage(_ byteCount: Int) -> StreamError {
        StreamError(isFinal ? .truncated : .incomplete(needed: byteCount - remaining), at: offset)
    }

    /// Throws unless `byteCount` bytes are left.
    package func require(_ byteCount: Int) throws(StreamError) {
        guard byteCount <= end - position else { throw shortage(byteCount) }
    }

    @inline(__always)
    package mutating func readInteger<Value: FixedWidthInteger & BitwiseCopyable>(
        as _: Value.Type = Value.self
    ) throws(StreamError) -> Value {
        let size = MemoryLayout<Value>.size
        guard size <= end - position else { throw shortage(size) }
        let value = unsafe base.loadUnaligned(fromByteOffset: position, as: Value.self)
        position &+= size
        return Value(bigEndian: value)
    }

    /// Moves past 64-bit integers as long as each is `step` more than the one before it, the first being `first`; answers
    /// how many, at most `limit`. A run of names is read as fast as memory.
    package mutating func skipSequence(from first: UInt64, step: UInt64, limit: Int) -> Int {
        let countMax = min(limit, (end - position) / 8)
        var expected = first
        var count = 0
        while count < countMax {
            let word = unsafe base.loadUnaligned(fromByteOffset: position &+ count &* 8, as: UInt64.self)
            guard UInt64(bigEndian: word) == expected else { break }
            expected &+= step
            count &+= 1
        }
        position += count * 8
        return count
    }

    /// The byte `distance` bytes ahead, without moving.
    package func peekByte(at distance: Int = 0) throws(StreamError) -> UInt8 {
        guard distance >= 0, distance < end - position else { throw shortage(distance + 1) }
        return unsafe base.load(fromByteOffset: position + distance, as: UInt8.self)
    }

    /// Copies the next bytes out. The caller has judged `byteCount`: it may come from the stream only if a limit stands before.
    package mutating func readBytes(_ byteCount: Int) throws(StreamError) -> [UInt8] {
        precondition(byteCount >= 0)
        try require(byteCount)
        let bytes = unsafe [UInt8](UnsafeRawBufferPointer(start: base + position, count: byteCount))
        position += byteCount
        return bytes
    }

    /// Lets `body` see the next bytes in place.
    package mutating func withBytes<Result>(
        _ byteCount: Int, _ body: (UnsafeRawBufferPointer) -> Result
    ) throws(StreamError) -> Result {
        precondition(byteCount >= 0)
        try require(byteCount)
        let result = unsafe body(UnsafeRawBufferPointer(start: base + position, count: byteCount))
        position += byteCount
        return result
    }

    package mutating func skip(_ byteCount: Int) throws(StreamError) {
        precondition(byteCount >= 0)
        try require(byteCount)
        position += byteCount
    }

    /// Moves up to `byteCount` bytes along and answers how many were here.
    package mutating func skipAvailable(_ byteCount: UInt64) -> Int {
        let taken = Int(min(byteCount, UInt64(remaining)))
        position += taken
        return taken
    }

    /// A length byte and that many bytes of text: never empty, no NUL, valid UTF-8.
    package mutating func readShortString() throws(StreamError) -> String {
        var ahead = self
        let byteCount = Int(try ahead.readInteger(as: UInt8.self))
        let text = try ahead.readText(byteCount)
        self = ahead
        return text
    }

    /// Whether exactly this text stands `distance` bytes ahead, behind its length byte; false also when not all of it is here.
    package func hasShortString(_ text: String, at distance: Int) -> Bool {
        let byteCount = text.utf8.count
        guard distance >= 0, distance + 1 + byteCount <= end - position,
            unsafe base.load(fromByteOffset: position + distance, as: UInt8.self) == byteCount
        else { return false }
        return unsafe text.utf8.elementsEqual(
            UnsafeRawBufferPointer(start: base + position + distance + 1, count: byteCount))
    }

    /// Text of a known length: never empty, no NUL, valid UTF-8.
    package mutating func readText(_ byteCount: Int) throws(StreamError) -> String {
        let start = offset
        let text = try unsafe withBytes(byteCount) { bytes -> String? in
            if unsafe bytes.isEmpty || bytes.contains(0) { return nil }
            return unsafe String(validating: bytes, as: UTF8.self)
        }
        guard let text else { throw StreamError(.malformedName, at: start) }
        return text
    }

    /// The next bytes as a stream part of their own, which ends where they end.
    package mutating func readSlice(_ byteCount: Int) throws(StreamError) -> StreamCursor {
        precondition(byteCount >= 0)
        try require(byteCount)
        let slice = StreamCursor(
            storage: storage, position: position, end: position + byteCount, offset: offset, isFinal: true)
        position += byteCount
        return slice
    }

    /// The same place, but with nothing to follow the bytes at hand.
    package var final: StreamCursor {
        StreamCursor(storage: storage, position: position, end: end, offset: offset, isFinal: true)
    }

    /// Distance to the first place where `pattern` stands, at or after `distance` bytes ahead.
    func firstDistance(of pattern: [UInt8], from distance: Int = 0) -> Int? {
        guard distance >= 0, !pattern.isEmpty, remaining - distance >= pattern.count else { return nil }
        let bytes = unsafe UnsafeRawBufferPointer(start: base + position, count: remaining)
        var index = distance
        while index <= bytes.count - pattern.count {
            if unsafe bytes[index] == pattern[0] {
                var matched = 1
                while matched < pattern.count, unsafe bytes[index + matched] == pattern[matched] { matched += 1 }
                if matched == pattern.count { return index }
            }
            index += 1
        }
        return nil
    }
}
