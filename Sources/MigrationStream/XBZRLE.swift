/// Differences between two versions of a page: `repeat { skip; count; count bytes }`, both numbers in at most 14 bits.
@safe package enum XBZRLE {
    /// The two-byte numbers bound the page.
    package static let pageSizeMax = 1 << 14 - 1

    package enum DecodingError: Error, Hashable, Sendable {
        /// A number of more than two bytes, or one that the bytes end in.
        case malformedNumber
        /// A run without bytes where one must have some.
        case emptyRun
        /// A run beyond the page, or more literals than there are bytes.
        case overrun
    }

    /// Applies `encoded` to the page the receiver holds.
    /// - Returns: How far into the page it reached. After an error the page may be changed in part: the stream is lost.
    @discardableResult package static func decode(
        _ encoded: UnsafeRawBufferPointer, into page: UnsafeMutableRawBufferPointer
    ) throws(DecodingError) -> Int {
        var source = 0
        var target = 0
        while source < encoded.count {
            let skip = try unsafe readNumber(encoded, &source)
            guard skip > 0 || target == 0 else { throw .emptyRun }
            guard skip <= page.count - target else { throw .overrun }
            target += skip
            let count = try unsafe readNumber(encoded, &source)
            guard count > 0 else { throw .emptyRun }
            guard count <= page.count - target, count <= encoded.count - source else { throw .overrun }
            unsafe (page.baseAddress! + target).copyMemory(from: encoded.baseAddress! + source, byteCount: count)
            source += count
            target += count
        }
        return target
    }

    private static func readNumber(
        _ encoded: UnsafeRawBufferPointer, _ position: inout Int
    ) throws(DecodingError) -> Int {
        // Two bytes must be there even for a number of one: a run has at least one more byte.
        guard encoded.count - position >= 2 else { throw .malformedNumber }
        let low = unsafe encoded[position]
        position += 1
        if low & 0x80 == 0 { return Int(low) }
        let high = unsafe encoded[position]
        guard high & 0x80 == 0 else { throw .malformedNumber }
        position += 1
        return Int(low & 0x7f) | Int(high) << 7
    }

    /// Encodes what `new` has that `old` has not.
    /// - Parameter output: Room for the result.
    /// - Returns: Bytes written, 0 when the pages are equal; nil when the room does not suffice.
    package static func encode(
        from old: UnsafeRawBufferPointer, to new: UnsafeRawBufferPointer, into output: UnsafeMutableRawBufferPointer
    ) -> Int? {
        precondition(old.count == new.count && new.count <= pageSizeMax)
        var position = 0
        var written = 0
        while true {
            let skipStart = position
            while position < new.count {
                if position + 8 <= new.count,
                    unsafe old.loadUnaligned(fromByteOffset: position, as: UInt64.self)
                        == new.loadUnaligned(fromByteOffset: position, as: UInt64.self)
                {
                    position += 8
                } else if unsafe old[position] == new[position] {
                    position += 1
                } else {
                    break
                }
            }
            if position == new.count { return written }
            let runStart = position
            while position < new.count, unsafe old[position] != new[position] { position += 1 }
            let (skip, count) = (runStart - skipStart, position - runStart)
            guard output.count - written >= numberByteCount(skip) + numberByteCount(count) + count else { return nil }
            unsafe writeNumber(skip, output, &written)
            unsafe writeNumber(count, output, &written)
            unsafe (output.baseAddress! + written).copyMemory(from: new.baseAddress! + runStart, byteCount: count)
            written += count
        }
    }

    private static func numberByteCount(_ value: Int) -> Int { value < 0x80 ? 1 : 2 }

    private static func writeNumber(_ value: Int, _ output: UnsafeMutableRawBufferPointer, _ position: inout Int) {
        if value < 0x80 {
            unsafe output[position] = UInt8(value)
        } else {
            unsafe output[position] = UInt8(value & 0x7f | 0x80)
            unsafe output[position + 1] = UInt8(value >> 7)
        }
        position += numberByteCount(value)
    }
}

/// What the destination holds, as far as the source remembers: the last version sent of some pages.
///
/// The guest may write to a page while it is looked at, so what goes out is always a copy made here. Belongs to one
/// thread.
@safe package final class XBZRLECache {
    @unsafe package enum Outcome {
        /// Nothing to send: the destination has this version.
        case unchanged
        /// These bytes are the differences; valid until the next call.
        case encoded(UnsafeRawBufferPointer)
        /// Send this copy whole; valid until the next call. The destination did not hold an older version, or the
        /// differences are longer than the page.
        case whole(UnsafeRawBufferPointer)
    }

    package let pageSize: Int
    package let slotCount: Int
    /// Pages of which no older version was remembered.
    package private(set) var missCount = 0
    /// Pages whose differences were longer than they are.
    package private(set) var overflowCount = 0
    // SAFETY: `slotCount` pages, then one for the current page and one for differences; freed in deinit.
    private let memory: UnsafeMutableRawPointer
    /// Page key of a slot; nil for a free one.
    private var keys: [UInt64?]
    /// Round in which a slot was last used: a page in use is not given up for another at once.
    private var rounds: [Int]

    /// - Parameter byteCount: Memory to use for pages; rounded down to a power of two of them, at least one.
    package init(byteCount: Int, pageSize: Int = 4096) {
        precondition(pageSize > 0 && pageSize <= XBZRLE.pageSizeMax)
        self.pageSize = pageSize
        let pages = max(byteCount / pageSize, 1)
        slotCount = 1 << (Int.bitWidth - 1 - pages.leadingZeroBitCount)
        unsafe memory = .allocate(byteCount: (slotCount + 2) * pageSize, alignment: 64)
        keys = Array(repeating: nil, count: slotCount)
        rounds = Array(repeating: 0, count: slotCount)
    }

    deinit { unsafe memory.deallocate() }

    private func slot(_ index: Int) -> UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(start: memory + index * pageSize, count: pageSize)
    }

    private func place(_ block: BlockReference, _ offset: UInt64) -> (index: Int, key: UInt64) {
        let page = offset / UInt64(pageSize)
        let key = UInt64(block.index) << 48 ^ page
        let mixed = (page &+ UInt64(block.index) &* 0x9e37_79b9) & UInt64(slotCount - 1)
        return (Int(mixed), key)
    }

    /// Takes the page's current contents over and says what to send.
    /// - Parameter round: Number of the pass over memory.
    package func encode(
        _ block: BlockReference, offset: UInt64, page: UnsafeRawPointer, round: Int
    ) -> Outcome {
        let (index, key) = place(block, offset)
        let current = unsafe slot(slotCount)
        unsafe current.baseAddress!.copyMemory(from: page, byteCount: pageSize)
        let held = unsafe slot(index)
        if keys[index] == key {
            rounds[index] = round
            let output = unsafe slot(slotCount + 1)
            let count = unsafe XBZRLE.encode(
                from: UnsafeRawBufferPointer(held), to: UnsafeRawBufferPointer(current), into: output)
            if count == 0 { return unsafe .unchanged }
            unsafe held.copyMemory(from: UnsafeRawBufferPointer(current))
            guard let count else {
                overflowCount += 1
                return unsafe .whole(UnsafeRawBufferPointer(held))
            }
            return unsafe .encoded(UnsafeRawBufferPointer(rebasing: output[..<count]))
        }
        missCount += 1
        if keys[index] == nil || rounds[index] < round - 1 {
            keys[index] = key
            rounds[index] = round
            unsafe held.copyMemory(from: UnsafeRawBufferPointer(current))
        }
        return unsafe .whole(UnsafeRawBufferPointer(current))
    }

    /// The page went out as zeroes.
    package func noteZeroPage(_ block: BlockReference, offset: UInt64) {
        let (index, key) = place(block, offset)
        guard keys[index] == key else { return }
        unsafe slot(index).initializeMemory(as: UInt8.self, repeating: 0)
    }
}
