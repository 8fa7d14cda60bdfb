/// The header of a flat RISC-V Linux `Image`.
///
/// Source: Linux `Documentation/arch/riscv/boot-image-header.rst`.
struct LinuxImage {
    static let headerByteCount = 64
    /// Least RAM that a kernel of today gets through its early start with.
    static let memoryByteCountMin: UInt64 = 96 << 20

    /// Bytes from a 2 MiB boundary of RAM to where the image wants to be.
    let textOffset: UInt64
    /// Bytes it takes in memory, more than the file.
    let memoryByteCount: UInt64

    init(_ file: ImageFile) throws(MachineError) {
        let head = try file.head(0x206)
        guard head.count >= Self.headerByteCount else {
            throw file.failure(
                ImageFile.kind(of: head).map { "not a RISC-V Linux Image but \($0)" }
                    ?? "truncated: \(head.count) bytes are less than the header of an Image")
        }
        guard head[0x38..<0x3c].elementsEqual([0x52, 0x53, 0x43, 0x05]) else {
            throw file.failure("not a RISC-V Linux Image" + (ImageFile.kind(of: head).map { " but \($0)" } ?? ""))
        }
        func word(_ offset: Int) -> UInt64 { (0..<8).reduce(0) { $0 | UInt64(head[offset + $1]) << UInt64($1 * 8) } }
        try Self.requireSections(of: file, head)
        textOffset = word(8)
        memoryByteCount = max(word(16), UInt64(file.byteCount))
        guard textOffset < 1 << 30, memoryByteCount < 1 << 32 else {
            throw file.failure("its header is damaged: text offset \(textOffset), size \(memoryByteCount)")
        }
    }

    /// An image with an EFI stub is a PE file too, whose section table says how long the file must be: the header of an
    /// `Image` has only its size in memory, which is more. An image without the stub is taken as long as it is.
    ///
    /// Source: PE format, "COFF file header" and "section table".
    private static func requireSections(of file: ImageFile, _ head: [UInt8]) throws(MachineError) {
        func half(_ offset: Int) -> Int { Int(head[offset]) | Int(head[offset + 1]) << 8 }
        func word(_ bytes: [UInt8], _ offset: Int) -> Int {
            (0..<4).reduce(0) { $0 | Int(bytes[offset + $1]) << ($1 * 8) }
        }
        let header = word(head, 0x3c)
        guard head.starts(with: Array("MZ".utf8)), header <= head.count - 24,
            head[header..<header + 4].elementsEqual([0x50, 0x45, 0, 0])
        else { return }
        let sectionCount = min(half(header + 6), 96)
        let table = header + 24 + half(header + 20)
        let bytes = try file.bytes(offset: table, count: sectionCount * 40)
        for section in 0..<sectionCount {
            let end = word(bytes, section * 40 + 16) + word(bytes, section * 40 + 20)
            guard end <= file.byteCount else {
                throw file.failure("truncated: its sections reach to byte \(end), the file has \(file.byteCount)")
            }
        }
    }
}
