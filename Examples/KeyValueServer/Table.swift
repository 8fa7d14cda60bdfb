import LocalMigration

/// A hash table that lives in a block of memory and nowhere else: open addressing, slots of 256 bytes.
struct Table {
    static let byteCount = 64 << 20
    private static let slotByteCount = 256
    private static let keyByteCountMax = 63
    private static let valueByteCountMax = 255 - 1 - keyByteCountMax - 1

    let block: MemoryBlock
    private var slots: Int { block.byteCount / Self.slotByteCount }

    init(block: MemoryBlock) { self.block = block }

    /// Keys that are set.
    var count: Int { (0..<slots).count { unsafe slot($0)[0] != 0 } }

    subscript(key: String) -> String? {
        guard let index = find(key), unsafe slot(index)[0] != 0 else { return nil }
        let bytes = unsafe slot(index)
        let start = 1 + Self.keyByteCountMax
        return unsafe String(decoding: bytes[(start + 1)..<(start + 1 + Int(bytes[start]))], as: UTF8.self)
    }

    /// False when the key or the value is too long or the table is full.
    mutating func set(_ key: String, _ value: String) -> Bool {
        guard value.utf8.count <= Self.valueByteCountMax, let index = find(key) else { return false }
        let bytes = unsafe slot(index)
        let start = 1 + Self.keyByteCountMax
        unsafe bytes[start] = UInt8(value.utf8.count)
        for (offset, byte) in value.utf8.enumerated() { unsafe bytes[start + 1 + offset] = byte }
        for (offset, byte) in key.utf8.enumerated() { unsafe bytes[1 + offset] = byte }
        unsafe bytes[0] = UInt8(key.utf8.count)
        return true
    }

    /// The slot that holds the key, or the free one where it would stand.
    private func find(_ key: String) -> Int? {
        let length = key.utf8.count
        guard length > 0, length <= Self.keyByteCountMax else { return nil }
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325  // FNV-1a: the same in every process
        for byte in key.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
        for probe in 0..<UInt64(slots) {
            let index = Int((hash &+ probe) % UInt64(slots))
            let bytes = unsafe slot(index)
            if unsafe bytes[0] == 0 { return index }
            if unsafe Int(bytes[0]) == length && bytes[1..<(1 + length)].elementsEqual(key.utf8) { return index }
        }
        return nil
    }

    private func slot(_ index: Int) -> UnsafeMutableBufferPointer<UInt8> {
        unsafe UnsafeMutableBufferPointer(
            start: block.bytes.baseAddress!.assumingMemoryBound(to: UInt8.self) + index * Self.slotByteCount,
            count: Self.slotByteCount)
    }
}
