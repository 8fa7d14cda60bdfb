package import GuestMemory
import Glibc

/// Whether all bytes of an area are zero. Reads each byte at most once, and stops early.
/// - Parameters:
///   - pointer: Aligned to 64 bytes.
///   - byteCount: A multiple of 256.
@inline(__always)
package func isZero(_ pointer: UnsafeRawPointer, byteCount: Int) -> Bool {
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

/// Where a block has contents. A page in a hole of its file, or one of private memory that nobody ever wrote, is zero and
/// need not be touched, which would fill it. Answers stay true while pages written later are marked dirty; forget them
/// whenever dirty pages are taken.
package struct DataMap {
    private enum Source {
        case file(CInt)
        /// /proc/self/pagemap, and the number of the block's first page there.
        case pageMap(PageMapFile, firstPage: Int)
    }
    private let source: Source
    private let byteCount: Int
    /// What is known: a hole before `dataStart`, contents up to `dataEnd`.
    private var knownFrom = 0
    private var dataStart = 0
    private var dataEnd = 0
    /// As many bytes are allotted as the file is long, so that it has no hole worth looking for; nil when nobody asked.
    /// Looking for the end of contents, the kernel walks over every page of them.
    private var isFull: Bool?
    /// How often the kernel was asked where contents begin and end.
    package private(set) var searchCount = 0

    /// Nil when there is nobody to ask.
    package init?(_ block: RAMBlock) {
        guard block.isWhole else { return nil }
        if let file = block.file {
            source = .file(file.rawValue)
        } else {
            guard sysconf(CInt(_SC_PAGESIZE)) == guestPageSize, let file = PageMapFile() else { return nil }
            source = unsafe .pageMap(file, firstPage: Int(bitPattern: block.base) / guestPageSize)
        }
        byteCount = block.byteCount
        forget()
    }

    package mutating func forget() {
        knownFrom = 0
        dataStart = 0
        dataEnd = 0
        isFull = nil
    }

    /// How many pages from `page` on are alike, and whether they are holes.
    package mutating func extent(at page: Int) -> (isHole: Bool, pageCount: Int) {
        let offset = page * guestPageSize
        let file: CInt
        switch source {
        case .file(let descriptor): file = descriptor
        case .pageMap(let map, let firstPage):
            return map.extent(at: firstPage + page, limit: byteCount / guestPageSize - page)
        }
        let hasNoHole = isFull ?? Self.isFull(file, byteCount: byteCount)
        isFull = hasNoHole
        if hasNoHole { return (false, (byteCount - offset) / guestPageSize) }
        if offset < knownFrom || offset >= dataEnd {
            searchCount += 1
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

    /// A memory file has exactly the pages that were allotted to it. One on a disk may have a few blocks more for its own
    /// book-keeping, and so a small hole that is missed here: its pages are then read, and found to be zero.
    private static func isFull(_ file: CInt, byteCount: Int) -> Bool {
        var status = stat()
        guard unsafe fstat(file, &status) == 0, Int(status.st_size) == byteCount else { return false }
        return Int(status.st_blocks) * 512 >= byteCount  // st_blocks counts in 512 bytes. Source: inode(7)
    }
}

/// Which pages of this process exist. Source: the kernel's admin-guide/mm/pagemap; its flags need no privileges.
private final class PageMapFile {
    /// Present, or swapped out.
    private static let exists: UInt64 = 1 << 63 | 1 << 62
    private let descriptor: CInt
    private var entries = [UInt64](repeating: 0, count: 512)

    init?() {
        descriptor = unsafe open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
    }

    deinit { close(descriptor) }

    /// How many of at most `limit` pages from `page` on are alike, and whether nobody ever wrote them.
    func extent(at page: Int, limit: Int) -> (isHole: Bool, pageCount: Int) {
        let wanted = min(limit, entries.count)
        let got = unsafe entries.withUnsafeMutableBytes { buffer in
            unsafe pread(descriptor, buffer.baseAddress!, wanted * 8, off_t(page * 8)) / 8
        }
        guard got > 0 else { return (false, wanted) }
        let isHole = entries[0] & Self.exists == 0
        var count = 1
        while count < got, (entries[count] & Self.exists == 0) == isHole { count += 1 }
        return (isHole, count)
    }
}
