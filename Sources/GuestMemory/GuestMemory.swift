import Glibc
import Synchronization

/// A guest-physical area backed by a RAM block.
package struct MemoryRegion: Sendable {
    package let address: UInt64
    package let block: RAMBlock
    /// The guest cannot write here (ROM); the host can.
    package let isReadOnly: Bool

    package init(address: UInt64, block: RAMBlock, isReadOnly: Bool = false) {
        self.address = address
        self.block = block
        self.isReadOnly = isReadOnly
    }

    package var end: UInt64 { address + UInt64(block.byteCount) }
}

/// Why an access to guest memory was refused. The guest's mistake, never a trap of ours.
package struct GuestMemoryError: Error, Hashable, Sendable, CustomStringConvertible {
    package let address: UInt64
    package let byteCount: Int

    package init(address: UInt64, byteCount: Int) {
        self.address = address
        self.byteCount = byteCount
    }

    package var description: String {
        "no RAM at guest address 0x\(String(address, radix: 16)) for \(byteCount) bytes"
    }
}

/// The guest-physical address space as devices and processors see its RAM. The map never changes after init.
///
/// Every write through here marks the dirty bitmap and, if the page holds code that a processor has decoded, tells the
/// processors by ``codeWatch``. While the guest runs, copy a value out and judge the copy.
@safe package final class GuestMemory: Sendable {
    /// In ascending order of address, not overlapping.
    package let regions: [MemoryRegion]

    /// Gets the region index and page range that a device or the host wrote, so that decoded code is dropped.
    /// Set once, before the guest runs.
    private let codeWatch = Mutex<CodeWatch?>(nil)

    /// A structure, because a closure that is itself what a mutex holds comes back from every look at it in one more
    /// wrapping: it is converted on the way out and on the way back in.
    private struct CodeWatch {
        let call: @Sendable (_ region: Int, _ pages: ClosedRange<Int>) -> Void
    }

    private let hasCodeWatch = Atomic<Bool>(false)

    package init(regions: [MemoryRegion]) {
        let sorted = regions.sorted { $0.address < $1.address }
        for (lower, upper) in zip(sorted, sorted.dropFirst()) {
            precondition(lower.end <= upper.address, "RAM regions overlap")
        }
        self.regions = sorted
    }

    package func setCodeWatch(_ watch: @escaping @Sendable (_ region: Int, _ pages: ClosedRange<Int>) -> Void) {
        codeWatch.withLock { $0 = CodeWatch(call: watch) }
        hasCodeWatch.store(true, ordering: .releasing)
    }

    /// The blocks in the order of ascending address.
    package var blocks: [RAMBlock] { regions.map(\.block) }

    /// Index of the region that holds all of the bytes, or nil.
    package func region(containing address: UInt64, byteCount: Int = 1) -> Int? {
        for (index, region) in regions.enumerated() where address >= region.address && address < region.end {
            return UInt64(byteCount) <= region.end - address ? index : nil
        }
        return nil
    }

    /// Host pointer to `byteCount` bytes of guest memory that lie in one region. Whoever writes through it must call
    /// ``markWritten(address:byteCount:)`` afterwards.
    package func pointer(to address: UInt64, byteCount: Int, writing: Bool) throws(GuestMemoryError)
        -> UnsafeMutableRawPointer
    {
        guard byteCount >= 0, let index = region(containing: address, byteCount: byteCount),
            !(writing && regions[index].isReadOnly)
        else { throw GuestMemoryError(address: address, byteCount: byteCount) }
        return unsafe regions[index].block.base + Int(address - regions[index].address)
    }

    /// Marks pages dirty and drops code decoded from them.
    package func markWritten(address: UInt64, byteCount: Int) {
        guard byteCount > 0, let index = region(containing: address, byteCount: byteCount) else { return }
        let offset = Int(address - regions[index].address)
        regions[index].block.dirty.mark(offset: offset, byteCount: byteCount)
        if hasCodeWatch.load(ordering: .acquiring), let watch = codeWatch.withLock({ $0 }) {
            watch.call(index, (offset / guestPageSize)...((offset + byteCount - 1) / guestPageSize))
        }
    }

    /// Copies out of guest memory.
    package func read(_ address: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(GuestMemoryError) {
        guard buffer.count > 0 else { return }
        let source = unsafe try pointer(to: address, byteCount: buffer.count, writing: false)
        unsafe memcpy(buffer.baseAddress!, source, buffer.count)
    }

    /// Copies into guest memory and marks it written.
    package func write(_ address: UInt64, _ bytes: UnsafeRawBufferPointer) throws(GuestMemoryError) {
        guard bytes.count > 0 else { return }
        let target = unsafe try pointer(to: address, byteCount: bytes.count, writing: true)
        unsafe memcpy(target, bytes.baseAddress!, bytes.count)
        markWritten(address: address, byteCount: bytes.count)
    }

    package func write(_ address: UInt64, _ bytes: [UInt8]) throws(GuestMemoryError) {
        guard !bytes.isEmpty else { return }
        let target = unsafe try pointer(to: address, byteCount: bytes.count, writing: true)
        unsafe bytes.withUnsafeBytes { unsafe _ = memcpy(target, $0.baseAddress!, bytes.count) }
        markWritten(address: address, byteCount: bytes.count)
    }

    package func bytes(at address: UInt64, count: Int) throws(GuestMemoryError) -> [UInt8] {
        let source = unsafe try pointer(to: address, byteCount: count, writing: false)
        return unsafe [UInt8](UnsafeRawBufferPointer(start: source, count: count))
    }

    /// One little-endian value, read once.
    package func load<Value: FixedWidthInteger & BitwiseCopyable>(_ address: UInt64, as _: Value.Type = Value.self)
        throws(GuestMemoryError) -> Value
    {
        let source = unsafe try pointer(to: address, byteCount: MemoryLayout<Value>.size, writing: false)
        return unsafe Value(littleEndian: source.loadUnaligned(as: Value.self))
    }

    /// One little-endian value.
    package func store<Value: FixedWidthInteger & BitwiseCopyable>(_ address: UInt64, _ value: Value)
        throws(GuestMemoryError)
    {
        let target = unsafe try pointer(to: address, byteCount: MemoryLayout<Value>.size, writing: true)
        unsafe target.storeBytes(of: value.littleEndian, as: Value.self)
        markWritten(address: address, byteCount: MemoryLayout<Value>.size)
    }
}
