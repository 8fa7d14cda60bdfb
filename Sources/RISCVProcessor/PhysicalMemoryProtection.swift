/// The PMP registers, and what they allow.
///
/// Source: RISC-V Privileged Architecture 1.12, section 3.7.
struct PhysicalMemoryProtection {
    static let count = 16
    static let read: UInt8 = 1
    static let write: UInt8 = 2
    static let execute: UInt8 = 4
    /// Answered for a page when parts of it have different permissions.
    static let mixed: UInt8 = 0x80

    struct Entry {
        var configuration: UInt8 = 0
        var address: UInt64 = 0
        /// First and last byte; empty when `last < first`.
        var first: UInt64 = 1
        var last: UInt64 = 0
    }

    private var entries = [Entry](repeating: Entry(), count: PhysicalMemoryProtection.count)
    /// One past the highest entry in use.
    private var active = 0

    func configuration(_ index: Int) -> UInt8 { entries[index].configuration }
    func address(_ index: Int) -> UInt64 { entries[index].address }

    private func isLocked(_ index: Int) -> Bool { entries[index].configuration & 0x80 != 0 }

    /// Writes one byte of `pmpcfg`; a locked entry keeps its value.
    mutating func setConfiguration(_ index: Int, _ value: UInt8) {
        guard !isLocked(index) else { return }
        var value = value & 0x9f
        // W without R is reserved.
        if value & 3 == Self.write { value &= ~Self.write }
        entries[index].configuration = value
    }

    /// Writes `pmpaddr`; locked when the entry is, or the next one is locked and reaches down to this address.
    mutating func setAddress(_ index: Int, _ value: UInt64) {
        guard !isLocked(index) else { return }
        if index + 1 < Self.count, isLocked(index + 1), entries[index + 1].configuration >> 3 & 3 == 1 { return }
        entries[index].address = value & 0x003f_ffff_ffff_ffff
    }

    /// Takes saved values, locked or not.
    mutating func load(_ index: Int, configuration: UInt8, address: UInt64) {
        entries[index].configuration = configuration & 0x9f
        entries[index].address = address & 0x003f_ffff_ffff_ffff
    }

    /// Works the ranges out; after any change.
    mutating func update() {
        active = 0
        for index in 0..<Self.count {
            let entry = entries[index]
            var first: UInt64 = 1
            var last: UInt64 = 0
            switch entry.configuration >> 3 & 3 {
            case 1:
                let low = index == 0 ? 0 : entries[index - 1].address << 2
                let high = entry.address << 2
                if low < high {
                    first = low
                    last = high - 1
                }
            case 2:
                first = entry.address << 2
                last = first | 3
            case 3:
                let ones = entry.address.trailingZeroBitCountOfInverse
                let size = UInt64(8) << UInt64(min(ones, 53))
                first = (entry.address << 2) & ~(size - 1)
                last = first | (size - 1)
            default: break
            }
            entries[index].first = first
            entries[index].last = last
            if first <= last { active = index + 1 }
        }
    }

    /// Whether no entry limits machine mode or lets anybody else in: nothing was ever configured.
    private func permissions(_ entry: Entry, _ privilege: UInt64) -> UInt8 {
        if privilege == 3 && entry.configuration & 0x80 == 0 { return 7 }
        return entry.configuration & 7
    }

    /// What the bytes `first...last` allow, all of them together; ``mixed`` when an entry covers only a part of them.
    func permissions(first: UInt64, last: UInt64, privilege: UInt64) -> UInt8 {
        for index in 0..<active {
            let entry = entries[index]
            if entry.first > entry.last || last < entry.first || first > entry.last { continue }
            if first >= entry.first && last <= entry.last { return permissions(entry, privilege) }
            return Self.mixed
        }
        return privilege == 3 ? 7 : 0
    }
}

extension UInt64 {
    /// Ones at the low end.
    fileprivate var trailingZeroBitCountOfInverse: Int { (~self).trailingZeroBitCount }
}
