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
        textOffset = word(8)
        memoryByteCount = max(word(16), UInt64(file.byteCount))
        guard textOffset < 1 << 30, memoryByteCount < 1 << 32 else {
            throw file.failure("its header is damaged: text offset \(textOffset), size \(memoryByteCount)")
        }
    }
}
