/// The loadable parts of an ELF64 RISC-V executable.
///
/// Source: System V ABI, chapters 4 and 5; RISC-V ELF psABI.
struct ELFImage {
    struct Segment {
        let fileOffset: Int
        let fileByteCount: Int
        let address: UInt64
        let memoryByteCount: UInt64
    }

    static let magic: [UInt8] = [0x7f, 0x45, 0x4c, 0x46]
    private static let headerByteCount = 64
    private static let programHeaderByteCount = 56
    private static let segmentCountMax = 64

    let entry: UInt64
    let segments: [Segment]

    init(_ file: ImageFile) throws(MachineError) {
        let head = try file.head(Self.headerByteCount)
        guard head.count == Self.headerByteCount else { throw file.failure("truncated ELF header") }
        func integer(_ bytes: [UInt8], _ offset: Int, _ count: Int) -> UInt64 {
            (0..<count).reduce(0) { $0 | UInt64(bytes[offset + $1]) << UInt64($1 * 8) }
        }
        guard head[4] == 2, head[5] == 1, integer(head, 0x12, 2) == 243 else {
            throw file.failure("an ELF file, but not for 64-bit RISC-V (machine \(integer(head, 0x12, 2)))")
        }
        guard integer(head, 0x10, 2) == 2 else {
            throw file.failure("an ELF file, but not an executable with fixed addresses")
        }
        entry = integer(head, 0x18, 8)
        let tableOffset = integer(head, 0x20, 8)
        let entryByteCount = Int(integer(head, 0x36, 2))
        let count = Int(integer(head, 0x38, 2))
        guard entryByteCount == Self.programHeaderByteCount, (1...Self.segmentCountMax).contains(count) else {
            throw file.failure("an ELF file with \(count) program headers of \(entryByteCount) bytes")
        }
        guard tableOffset <= UInt64(file.byteCount), count * entryByteCount <= file.byteCount - Int(tableOffset) else {
            throw file.failure("truncated: its program headers lie beyond its end")
        }
        let table = try file.bytes(offset: Int(tableOffset), count: count * entryByteCount)
        var segments: [Segment] = []
        for index in 0..<count {
            let base = index * entryByteCount
            guard integer(table, base, 4) == 1 else { continue }  // PT_LOAD
            let fileOffset = integer(table, base + 8, 8)
            let address = integer(table, base + 24, 8)
            let fileByteCount = integer(table, base + 32, 8)
            let memoryByteCount = integer(table, base + 40, 8)
            guard memoryByteCount > 0 else { continue }
            guard fileOffset <= UInt64(file.byteCount), fileByteCount <= UInt64(file.byteCount) - fileOffset,
                fileByteCount <= memoryByteCount
            else { throw file.failure("truncated: segment \(index) lies beyond its end") }
            segments.append(
                Segment(
                    fileOffset: Int(fileOffset), fileByteCount: Int(fileByteCount), address: address,
                    memoryByteCount: memoryByteCount))
        }
        guard !segments.isEmpty else { throw file.failure("an ELF file with nothing to load") }
        self.segments = segments
    }
}
