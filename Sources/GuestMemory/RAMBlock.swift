package import LinuxCalls
import Synchronization

/// Where a RAM block's bytes live.
package enum MemoryBackend: String, Sendable, CaseIterable {
    /// A sealed memfd, mapped shared: can be handed to another process by descriptor.
    case memfd
    /// Private anonymous memory.
    case anonymous
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
    /// The memfd behind the mapping, if it has one.
    package let file: OwnedDescriptor?
    /// Pages written since they were last taken.
    package let dirty: DirtyBitmap

    package init(name: String, byteCount: Int, backend: MemoryBackend) throws(SystemCallError) {
        precondition(byteCount > 0 && byteCount % guestPageSize == 0, "RAM comes in pages")
        let file = backend == .memfd ? try MemoryFile.create(name: name, byteCount: byteCount) : nil
        self.name = name
        self.byteCount = byteCount
        self.file = file
        mapping = try OwnedMapping(byteCount: byteCount, descriptor: file)
        dirty = DirtyBitmap(pageCount: byteCount / guestPageSize)
    }

    /// A block over a memfd that another process made. The caller has judged the descriptor (size, seals).
    package init(name: String, byteCount: Int, adopting file: OwnedDescriptor) throws(SystemCallError) {
        precondition(byteCount > 0 && byteCount % guestPageSize == 0, "RAM comes in pages")
        self.name = name
        self.byteCount = byteCount
        self.file = file
        mapping = try OwnedMapping(byteCount: byteCount, descriptor: file)
        dirty = DirtyBitmap(pageCount: byteCount / guestPageSize)
    }

    package var pageCount: Int { byteCount / guestPageSize }

    /// Host address of the first byte. Stable for the life of the block.
    package var base: UnsafeMutableRawPointer { unsafe mapping.base }
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
