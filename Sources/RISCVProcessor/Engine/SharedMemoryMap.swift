import GuestMemory
import LinuxCalls
import Synchronization

/// What the harts of one machine share: where RAM is, which pages some hart has decoded code from, and which pages some
/// hart may write to without asking.
///
/// The rule that keeps decoded code right: before a hart decodes from a page for the first time, no hart has a fast
/// write path to it (``settle(page:for:)``); and a hart that makes itself one first tells those who decoded from the page
/// (``willWrite(page:hart:)``). They drop what they decoded at their next `fence.i`, as the architecture has it.
///
/// SAFETY: the layout is fixed at init; what changes are atomic words in the tables.
final class SharedMemoryMap: @unchecked Sendable {
    struct Region {
        var address: UInt64
        var byteCount: UInt64
        var host: UnsafeMutableRawPointer
        /// Index of the first page among all pages of the machine.
        var firstPage: Int
        var isReadOnly: Bool
    }

    let memory: GuestMemory
    // SAFETY: written in init only.
    let regions: UnsafeMutablePointer<Region>
    let regionCount: Int
    let pageCount: Int
    /// For each page a bit for each hart that decoded code from it.
    private let decoders: UnsafeMutablePointer<Atomic<UInt8>>
    /// For each page a bit for each hart that may have a fast write path to it.
    private let writers: UnsafeMutablePointer<Atomic<UInt8>>
    /// What the two lie in.
    private let areas: [OwnedMapping]
    private let settling = Atomic<Bool>(false)
    /// Fixed after ``RISCVHart/makeHarts(count:configuration:memory:bus:clock:)``. The harts own this object.
    private(set) var harts: [Unmanaged<RISCVHart>] = []

    /// - Throws: The address space is too short.
    init(memory: GuestMemory) throws(SystemCallError) {
        let byteCount = memory.regions.reduce(1) { $0 + $1.block.pageCount }
        areas = [try OwnedMapping(byteCount: byteCount), try OwnedMapping(byteCount: byteCount)]
        self.memory = memory
        regionCount = memory.regions.count
        regions = .allocate(capacity: max(regionCount, 1))
        var page = 0
        for (index, region) in memory.regions.enumerated() {
            (regions + index).initialize(
                to: Region(
                    address: region.address, byteCount: UInt64(region.block.byteCount), host: region.block.base,
                    firstPage: page, isReadOnly: region.isReadOnly))
            page += region.block.pageCount
        }
        pageCount = page
        decoders = areas[0].base.assumingMemoryBound(to: Atomic<UInt8>.self)
        writers = areas[1].base.assumingMemoryBound(to: Atomic<UInt8>.self)
    }

    deinit {
        regions.deallocate()
    }

    func setHarts(_ harts: [RISCVHart]) {
        self.harts = harts.map { Unmanaged.passUnretained($0) }
    }

    /// Index of the region that the address lies in, or -1.
    @inline(__always) func region(at address: UInt64) -> Int {
        for index in 0..<regionCount where address &- regions[index].address < regions[index].byteCount {
            return index
        }
        return -1
    }

    /// Before a fast write path to the page is made, and before each slow write: marks it dirty and its code stale.
    func willWrite(region: Int, offset: Int, hart: Int) {
        let page = offset / guestPageSize
        memory.regions[region].block.dirty.mark(page: page)
        let index = regions[region].firstPage + page
        let bit = UInt8(1) << UInt8(hart)
        if writers[index].load(ordering: .relaxed) & bit == 0 {
            writers[index].bitwiseOr(bit, ordering: .sequentiallyConsistent)
        }
        if decoders[index].load(ordering: .sequentiallyConsistent) != 0 { makeStale(page: index) }
    }

    /// Tells every hart that decoded from the page that its bytes change.
    func makeStale(page index: Int) {
        let who = decoders[index].exchange(0, ordering: .sequentiallyConsistent)
        guard who != 0 else { return }
        for hart in 0..<harts.count where who & (1 << UInt8(hart)) != 0 {
            harts[hart]._withUnsafeGuaranteedRef { $0.noteStale(page: index) }
        }
    }

    /// A device or the host wrote to pages of a region.
    func wasWritten(region: Int, pages: ClosedRange<Int>) {
        guard region < regionCount else { return }
        for page in pages {
            let index = regions[region].firstPage + page
            if index < pageCount, decoders[index].load(ordering: .sequentiallyConsistent) != 0 {
                makeStale(page: index)
            }
        }
    }

    /// Before the first block of a page is decoded by `hart`: from here on every write to it is noticed.
    /// Called on the hart's thread, between two instructions.
    func settle(page index: Int, for hart: RISCVHart) {
        let bit = UInt8(1) << UInt8(hart.index)
        if decoders[index].load(ordering: .relaxed) & bit != 0 { return }
        // One at a time: a second hart that decodes from the page must not see `writers` cleared before they stopped.
        while settling.exchange(true, ordering: .acquiring) { hart.serveWhileWaiting() }
        decoders[index].bitwiseOr(bit, ordering: .sequentiallyConsistent)
        let who = writers[index].exchange(0, ordering: .sequentiallyConsistent)
        if who != 0 {
            for other in 0..<harts.count where who & (1 << UInt8(other)) != 0 {
                if other == hart.index {
                    hart.dropStoreEntries()
                } else {
                    harts[other]._withUnsafeGuaranteedRef { $0.demandStoreEntriesDropped { hart.serveWhileWaiting() } }
                }
            }
        }
        settling.store(false, ordering: .releasing)
    }

    /// `hart` has nothing decoded from the page any more.
    func forget(page index: Int, hart: Int) {
        decoders[index].bitwiseAnd(~(UInt8(1) << UInt8(hart)), ordering: .sequentiallyConsistent)
    }
}
