package import LinuxCalls
import Glibc
import Synchronization

/// Where a RAM block's bytes live. Raw values are those of `--memory-backend`.
package enum MemoryBackend: RawRepresentable, Hashable, Sendable {
    /// A sealed memfd, mapped shared: can be handed to another process by descriptor.
    case memfd
    /// Private anonymous memory.
    case anonymous
    /// A file that has a name, mapped shared: whoever maps the same file has the same memory (`x-ignore-shared`).
    case file(String)

    package init?(rawValue: String) {
        switch rawValue {
        case "memfd": self = .memfd
        case "anonymous": self = .anonymous
        case _ where rawValue.hasPrefix("file:") && rawValue.utf8.count > 5: self = .file(String(rawValue.dropFirst(5)))
        default: return nil
        }
    }

    package var rawValue: String {
        switch self {
        case .memfd: "memfd"
        case .anonymous: "anonymous"
        case .file(let path): "file:\(path)"
        }
    }

    /// Others can have the same memory by its name.
    package var isNamed: Bool { if case .file = self { true } else { false } }

    /// What there is to choose from, for people.
    package static let choices = ["memfd", "anonymous", "file:PATH"]
}

/// Bytes per page of guest RAM, the unit of dirty tracking and of the migration stream.
package let guestPageSize = 4096

/// A named, contiguous piece of guest memory: the unit that migrates.
@safe package final class RAMBlock: Sendable {
    /// QEMU's name for it: `riscv_virt_board.ram`.
    package let name: String
    /// A multiple of ``guestPageSize``.
    package let byteCount: Int
    package let mapping: OwnedMapping
    /// The memory file behind the mapping, if it has one.
    package let file: OwnedDescriptor?
    /// The file has a name, by which others may have it as well.
    package let isNamed: Bool
    /// Pages written since they were last taken.
    package let dirty: DirtyBitmap
    /// Ranges that lie in a file other than ``file``, ascending.
    private let foreign = Mutex<[ForeignRange]>([])

    private struct ForeignRange: Sendable {
        let range: Range<Int>
        let file: OwnedDescriptor
    }

    package convenience init(name: String, byteCount: Int, backend: MemoryBackend) throws(SystemCallError) {
        let file: OwnedDescriptor? =
            switch backend {
            case .memfd: try MemoryFile.create(name: name, byteCount: byteCount)
            case .anonymous: nil
            case .file(let path): try MemoryFile.open(path, byteCount: byteCount)
            }
        try self.init(name: name, byteCount: byteCount, file: file, isNamed: backend.isNamed)
    }

    /// A block over a memory file that another process made. The caller has judged the descriptor (size, seals).
    package convenience init(
        name: String, byteCount: Int, adopting file: OwnedDescriptor, isNamed: Bool = false
    ) throws(SystemCallError) {
        try self.init(name: name, byteCount: byteCount, file: file, isNamed: isNamed)
    }

    private init(name: String, byteCount: Int, file: OwnedDescriptor?, isNamed: Bool) throws(SystemCallError) {
        precondition(byteCount > 0 && byteCount % guestPageSize == 0, "RAM comes in pages")
        self.name = name
        self.byteCount = byteCount
        self.file = file
        self.isNamed = isNamed
        mapping = try OwnedMapping(byteCount: byteCount, descriptor: file)
        dirty = DirtyBitmap(pageCount: byteCount / guestPageSize)
    }

    package var pageCount: Int { byteCount / guestPageSize }

    /// Another process of ours has the same named file as its memory; each holds a shared lock on it.
    package var isShared: Bool {
        guard isNamed, let file else { return false }
        return (try? FileLock.isExcluded(.exclusive, on: file)) ?? false
    }

    /// Host address of the first byte. Stable for the life of the block.
    package var base: UnsafeMutableRawPointer { unsafe mapping.base }

    /// All of it lies in ``file`` (or none of it in any): the file alone is the block.
    package var isWhole: Bool { foreign.withLock { $0.isEmpty } }

    /// Some of it lies in this file.
    package func uses(_ other: OwnedDescriptor) throws(SystemCallError) -> Bool {
        let wanted = try other.status()
        for used in foreign.withLock({ $0.map(\.file) }) + (file.map { [$0] } ?? []) {
            let status = try used.status()
            if status.device == wanted.device && status.inode == wanted.inode { return true }
        }
        return false
    }

    /// Gives pages back to the host; they read as zero afterwards. For a memfd they are gone for everybody who has it.
    /// - Parameters: Multiples of the host page size.
    package func free(offset: Int, byteCount: Int) throws(SystemCallError) {
        precondition(offset >= 0 && byteCount > 0 && offset + byteCount <= self.byteCount)
        for (range, file) in pieces(of: offset..<(offset + byteCount)) {
            if let file {
                try MemoryFile.punchHole(in: file, offset: range.lowerBound, byteCount: range.count)
            } else {
                try mapping.advise(offset: range.lowerBound, byteCount: range.count, 4)  // MADV_DONTNEED
            }
        }
    }

    /// Maps a range of another memfd, at the same offset, over this block's; the address stays.
    /// Nobody may write there meanwhile.
    package func replace(_ range: Range<Int>, with other: OwnedDescriptor) throws(SystemCallError) {
        precondition(range.lowerBound >= 0 && range.upperBound <= byteCount && !range.isEmpty)
        try mapping.replace(offset: range.lowerBound, byteCount: range.count, with: other)
        foreign.withLock { list in
            list = list.flatMap { Self.subtract(range, from: $0) }
            list.append(ForeignRange(range: range, file: other))
            list.sort { $0.range.lowerBound < $1.range.lowerBound }
        }
    }

    /// Brings everything that ``replace(_:with:)`` put elsewhere back into this block's own file, piece by piece, so that
    /// at most `pieceByteCount` bytes exist twice. Only while the guest is paused.
    package func makeWhole(pieceByteCount: Int = 4 << 20) throws(SystemCallError) {
        guard let file else { return }
        while let entry = foreign.withLock({ $0.first }) {
            let end = min(entry.range.lowerBound + pieceByteCount, entry.range.upperBound)
            let piece = entry.range.lowerBound..<end
            let copy = try OwnedMapping(byteCount: piece.count, descriptor: file, offset: piece.lowerBound)
            unsafe memcpy(copy.base, base + piece.lowerBound, piece.count)
            try mapping.replace(offset: piece.lowerBound, byteCount: piece.count, with: file)
            try? MemoryFile.punchHole(in: entry.file, offset: piece.lowerBound, byteCount: piece.count)
            foreign.withLock { list in list = list.flatMap { Self.subtract(piece, from: $0) } }
        }
    }

    private static func subtract(_ range: Range<Int>, from entry: ForeignRange) -> [ForeignRange] {
        guard entry.range.overlaps(range) else { return [entry] }
        var left: [ForeignRange] = []
        if entry.range.lowerBound < range.lowerBound {
            left.append(ForeignRange(range: entry.range.lowerBound..<range.lowerBound, file: entry.file))
        }
        if entry.range.upperBound > range.upperBound {
            left.append(ForeignRange(range: range.upperBound..<entry.range.upperBound, file: entry.file))
        }
        return left
    }

    /// The parts of a range and the file each lies in; nil is private memory.
    private func pieces(of range: Range<Int>) -> [(Range<Int>, OwnedDescriptor?)] {
        var result: [(Range<Int>, OwnedDescriptor?)] = []
        var position = range.lowerBound
        for entry in foreign.withLock({ $0 }) where entry.range.overlaps(range) {
            let common = entry.range.clamped(to: range)
            if position < common.lowerBound { result.append((position..<common.lowerBound, file)) }
            result.append((common, entry.file))
            position = common.upperBound
        }
        if position < range.upperBound { result.append((position..<range.upperBound, file)) }
        return result
    }
}

/// One bit per page of a RAM block, set by whoever writes to the page, from any thread.
@safe package final class DirtyBitmap: Sendable {
    package let pageCount: Int
    package let wordCount: Int
    // SAFETY: allocated once, freed in deinit, every access is atomic.
    nonisolated(unsafe) private let words: UnsafeMutablePointer<Atomic<UInt64>>

    /// All pages clean.
    package init(pageCount: Int) {
        self.pageCount = pageCount
        wordCount = (pageCount + 63) / 64
        unsafe words = .allocate(capacity: max(wordCount, 1))
        for index in 0..<wordCount { unsafe (words + index).initialize(to: Atomic(0)) }
    }

    deinit { unsafe words.deallocate() }

    /// Marks one page; cheap when it is already marked.
    package func mark(page: Int) {
        precondition(page >= 0 && page < pageCount)
        let bit = UInt64(1) << UInt64(page & 63)
        if unsafe words[page >> 6].load(ordering: .relaxed) & bit == 0 {
            unsafe words[page >> 6].bitwiseOr(bit, ordering: .relaxed)
        }
    }

    /// Marks the pages that `byteCount` bytes from `offset` touch.
    package func mark(offset: Int, byteCount: Int) {
        guard byteCount > 0 else { return }
        for page in (offset / guestPageSize)...((offset + byteCount - 1) / guestPageSize) { mark(page: page) }
    }

    package func markAll() {
        for index in 0..<wordCount { unsafe words[index].store(validBits(ofWord: index), ordering: .relaxed) }
    }

    package func isMarked(page: Int) -> Bool {
        precondition(page >= 0 && page < pageCount)
        return unsafe words[page >> 6].load(ordering: .relaxed) & (1 << UInt64(page & 63)) != 0
    }

    /// Takes and clears the 64 pages from `64 * index` on; bit 0 is the first page.
    package func take(word index: Int) -> UInt64 {
        precondition(index >= 0 && index < wordCount)
        guard unsafe words[index].load(ordering: .relaxed) != 0 else { return 0 }
        return unsafe words[index].exchange(0, ordering: .acquiringAndReleasing)
    }

    /// Puts marks back, as after a failed migration.
    package func putBack(word index: Int, bits: UInt64) {
        precondition(index >= 0 && index < wordCount)
        unsafe words[index].bitwiseOr(bits & validBits(ofWord: index), ordering: .relaxed)
    }

    package func clearAll() {
        for index in 0..<wordCount { unsafe words[index].store(0, ordering: .relaxed) }
    }

    /// Marked pages; only exact while nobody writes.
    package var count: Int {
        var total = 0
        for index in 0..<wordCount { unsafe total += words[index].load(ordering: .relaxed).nonzeroBitCount }
        return total
    }

    private func validBits(ofWord index: Int) -> UInt64 {
        let pages = pageCount - index * 64
        return pages >= 64 ? .max : (1 << UInt64(pages)) - 1
    }
}
