import ComponentState
import GuestMemory

/// A request that was taken from its queue and not given back, as QEMU saves it: the raw bytes of its
/// `VirtQueueElementOld` on a 64-bit little-endian host.
///
/// u32 index, u32 out_num, u32 in_num, 4 bytes of padding; 1024 u64 guest addresses of writable buffers, 1024 of readable
/// ones; 1024 pairs (host pointer, u64 length) of writable buffers, 1024 of readable ones.
///
/// Between two Sidesteps only the index is written.
enum SavedElement {
    private static let segmentCount = 1024
    private static let writableAddresses = 16
    private static let readableAddresses = writableAddresses + 8 * segmentCount
    private static let writablePairs = readableAddresses + 8 * segmentCount
    private static let readablePairs = writablePairs + 16 * segmentCount
    static let byteCount = readablePairs + 16 * segmentCount

    static func encode(_ chain: DescriptorChain, with coder: inout any StateCoder) throws(StateError) {
        if coder.layout == .native {
            var head = chain.head
            return try coder.uint16("elem.index", &head)
        }
        var bytes = [UInt8](repeating: 0, count: byteCount)
        func put(_ word: UInt64, _ count: Int, at offset: Int) {
            for index in 0..<count { bytes[offset + index] = UInt8(truncatingIfNeeded: word >> (8 * UInt64(index))) }
        }
        put(UInt64(chain.head), 4, at: 0)
        put(UInt64(chain.readable.count), 4, at: 4)
        put(UInt64(chain.writable.count), 4, at: 8)
        for (index, segment) in chain.writable.enumerated() {
            put(segment.address, 8, at: writableAddresses + 8 * index)
            put(UInt64(segment.byteCount), 8, at: writablePairs + 16 * index + 8)
        }
        for (index, segment) in chain.readable.enumerated() {
            put(segment.address, 8, at: readableAddresses + 8 * index)
            put(UInt64(segment.byteCount), 8, at: readablePairs + 16 * index + 8)
        }
        try coder.buffer("elem", &bytes)
    }

    /// Reads an element. Only index and lengths are taken: the buffers are described in guest memory, where the driver
    /// still keeps them, and are judged there.
    static func decode(with coder: inout any StateCoder) throws(StateError) -> (head: UInt16, readableLengths: [UInt64])
    {
        if coder.layout == .native {
            var head: UInt16 = 0
            try coder.uint16("elem.index", &head)
            guard head < virtqueueSizeMaximum else {
                throw .invalid(component: coder.component, field: "elem.index", value: "\(head)")
            }
            return (head, [])
        }
        var bytes = [UInt8](repeating: 0, count: byteCount)
        try coder.buffer("elem", &bytes)
        let head = littleEndian(bytes[0..<4])
        guard head < UInt64(virtqueueSizeMaximum) else {
            throw .invalid(component: coder.component, field: "elem.index", value: "\(head)")
        }
        let count = littleEndian(bytes[4..<8])
        guard count <= UInt64(segmentCount) else {
            throw .invalid(component: coder.component, field: "elem.out_num", value: "\(count)")
        }
        let lengths = (0..<Int(count)).map { index in
            littleEndian(bytes[(readablePairs + 16 * index + 8)..<(readablePairs + 16 * index + 16)])
        }
        return (UInt16(head), lengths)
    }
}
