import LinuxCalls

/// What a hart knows of one page of guest RAM that it has decoded code from. Lives in raw memory, after it a table with
/// one 32-bit index for each halfword of the page: the operation that a block entered there begins with, 0 for none.
struct CodePage {
    /// The page in host memory.
    var host: UnsafeRawPointer
    /// Counted over all regions of the machine; see ``SharedMemoryMap``.
    var pageIndex: Int
    /// Place in the store.
    var handle: UInt32
    /// Instruction that ``straddling`` was decoded from: one that begins in the last halfword of the page.
    var straddlingInstruction: UInt32
    /// Index of its operations, 0 for none.
    var straddling: UInt32

    static let headerByteCount = 64
    static let tableCount = 2048
    static let byteCount = headerByteCount + tableCount * 4
}

typealias CodePagePointer = UnsafeMutablePointer<CodePage>

extension UnsafeMutablePointer where Pointee == CodePage {
    @inline(__always) var table: UnsafeMutablePointer<UInt32> {
        UnsafeMutableRawPointer(self).advanced(by: CodePage.headerByteCount).assumingMemoryBound(to: UInt32.self)
    }
    @inline(__always) var address: UInt64 { UInt64(UInt(bitPattern: self)) }
}

/// The decoded code of one hart: operations, allocated upwards and only ever freed all at once, and the pages that say
/// where blocks begin.
///
/// Full is full: whoever finds no room stops, and the hart drops everything before it goes on.
final class CodeStore {
    /// The first two operations are never a block: index 0 means none.
    let operations: OperationPointer
    let capacity: Int
    private(set) var used = 2
    private let pages: UnsafeMutableRawPointer
    private let pageCapacity: Int
    private(set) var pageCount = 0
    /// Handle of each page of guest RAM, plus one; 0 for none.
    private let handles: UnsafeMutablePointer<UInt32>
    /// What the three lie in. It costs nothing until it is touched.
    private let areas: [OwnedMapping]

    /// - Throws: The address space is too short.
    init(guestPageCount: Int, capacity: Int = 4 << 20, pageCapacity: Int = 8192) throws(SystemCallError) {
        self.capacity = capacity
        self.pageCapacity = pageCapacity
        let operationArea = try OwnedMapping(byteCount: capacity * MemoryLayout<Operation>.stride)
        let pageArea = try OwnedMapping(byteCount: pageCapacity * CodePage.byteCount)
        let handleArea = try OwnedMapping(byteCount: max(guestPageCount, 1) * 4)
        operations = operationArea.base.assumingMemoryBound(to: Operation.self)
        pages = pageArea.base
        handles = handleArea.base.assumingMemoryBound(to: UInt32.self)
        areas = [operationArea, pageArea, handleArea]
    }

    /// Room for `count` operations, or nil.
    func reserve(_ count: Int) -> OperationPointer? {
        used + count <= capacity ? operations + used : nil
    }

    func commit(_ count: Int) { used += count }

    @inline(__always) func index(of operation: OperationPointer) -> UInt32 {
        UInt32(truncatingIfNeeded: operation - operations)
    }

    func page(handle: UInt32) -> CodePagePointer {
        pages.advanced(by: Int(handle) * CodePage.byteCount).assumingMemoryBound(to: CodePage.self)
    }

    /// The page's record if there is one.
    func existingPage(_ pageIndex: Int) -> CodePagePointer? {
        let handle = handles[pageIndex]
        return handle == 0 ? nil : page(handle: handle - 1)
    }

    /// A record for a page that has none, or nil when there is no room.
    func makePage(_ pageIndex: Int, host: UnsafeRawPointer) -> CodePagePointer? {
        guard pageCount < pageCapacity else { return nil }
        let handle = UInt32(pageCount)
        pageCount += 1
        let result = page(handle: handle)
        result.initialize(
            to: CodePage(host: host, pageIndex: pageIndex, handle: handle, straddlingInstruction: 0, straddling: 0))
        result.table.update(repeating: 0, count: CodePage.tableCount)
        handles[pageIndex] = handle + 1
        return result
    }

    /// Forgets the blocks of a page. Their operations stay where they are until ``removeAll()``.
    func clear(_ page: CodePagePointer) {
        page.table.update(repeating: 0, count: CodePage.tableCount)
        page.pointee.straddling = 0
    }

    /// Forgets everything; calls `each` for every page there was.
    func removeAll(_ each: (Int) -> Void) {
        for handle in 0..<pageCount {
            let pageIndex = page(handle: UInt32(handle)).pointee.pageIndex
            handles[pageIndex] = 0
            each(pageIndex)
        }
        pageCount = 0
        used = 2
    }
}
