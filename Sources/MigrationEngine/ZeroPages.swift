import GuestMemory
import Glibc

/// Whether all bytes of an area are zero. Reads each byte at most once, and stops early.
/// - Parameters:
///   - pointer: Aligned to 64 bytes.
///   - byteCount: A multiple of 256.
@inline(__always)
func isZero(_ pointer: UnsafeRawPointer, byteCount: Int) -> Bool {
    // The first words of a page with contents are rarely all zero.
    if unsafe pointer.load(as: UInt64.self) != 0 { return false }
    var offset = 0
    while offset < byteCount {
        let a = unsafe pointer.load(fromByteOffset: offset, as: SIMD8<UInt64>.self)
        let b = unsafe pointer.load(fromByteOffset: offset &+ 64, as: SIMD8<UInt64>.self)
        let c = unsafe pointer.load(fromByteOffset: offset &+ 128, as: SIMD8<UInt64>.self)
        let d = unsafe pointer.load(fromByteOffset: offset &+ 192, as: SIMD8<UInt64>.self)
        let all = (a | b) | (c | d)
        if all != .zero { return false }
        offset &+= 256
    }
    return true
}

/// Where a block's file has contents. A page in a hole is zero and need not be touched, which would fill it.
/// Answers stay true while pages written later are marked dirty; forget them whenever dirty pages are taken.
struct DataMap {
    private let file: CInt
    private let byteCount: Int
    /// What is known: a hole before `dataStart`, contents up to `dataEnd`.
    private var knownFrom = 0
    private var dataStart = 0
    private var dataEnd = 0

    /// Nil when the block has no file to ask.
    init?(_ block: RAMBlock) {
        guard let file = block.file, block.isWhole else { return nil }
        self.file = file.rawValue
        byteCount = block.byteCount
        forget()
    }

    mutating func forget() {
        knownFrom = 0
        dataStart = 0
        dataEnd = 0
    }

    /// How many pages from `page` on are alike, and whether they are holes.
    mutating func extent(at page: Int) -> (isHole: Bool, pageCount: Int) {
        let offset = page * guestPageSize
        if offset < knownFrom || offset >= dataEnd {
            let start = lseek(file, off_t(offset), 3)  // SEEK_DATA
            guard start >= 0 else {
                // ENXIO: no contents from here on. Any other failure: take everything for contents.
                if errno == ENXIO { return (true, (byteCount - offset) / guestPageSize) }
                return (false, (byteCount - offset) / guestPageSize)
            }
            let end = lseek(file, start, 4)  // SEEK_HOLE
            knownFrom = offset
            dataStart = Int(start)
            dataEnd = end < 0 ? byteCount : Int(end)
        }
        if offset < dataStart { return (true, (dataStart - offset) / guestPageSize) }
        return (false, max(1, (dataEnd - offset) / guestPageSize))
    }
}
