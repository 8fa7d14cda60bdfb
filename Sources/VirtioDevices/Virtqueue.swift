import GuestMemory
import Synchronization

/// A mistake of the driver that makes a queue unusable: the device stops and asks to be reset.
struct VirtqueueError: Error, Hashable, Sendable, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }

    init(_ error: GuestMemoryError) { self.init(error.description) }
}

/// A split virtqueue (virtio 1.2, section 2.7): where its rings are, and how far the device has come in them.
///
/// Nothing in the rings is believed: indices are single reads that are judged before use, and every address is checked
/// against RAM. All work is bounded by the size of the ring.
struct Virtqueue: Sendable {
    /// Entries after a reset: QEMU's default for the device.
    let defaultSize: UInt16
    /// Entries of the ring: what the driver chose, or the default.
    var size: UInt16
    /// Alignment of the used ring in bytes (legacy transport).
    var alignment: UInt32 = 4096
    /// What the driver wrote to QueueNum on a modern transport; 0 before it did.
    var sizeRegister: UInt16 = 0
    /// The modern transport's address registers; they take effect with QueueReady.
    var registers = RingAddresses()
    /// Whether ``rings`` are in use.
    var isReady = false
    var rings = RingAddresses()

    /// Next entry of the available ring to take.
    var lastAvailableIndex: UInt16 = 0
    /// Next entry of the used ring to write. Nil after a state was loaded: the ring in guest memory knows, and it is read when
    /// it is first needed, because after a post-copy move it may not be there sooner.
    private(set) var usedIndex: UInt16? = 0
    /// Used index at the last interrupt decision; nil makes the next one an interrupt.
    private var signalledUsedIndex: UInt16?

    struct RingAddresses: Hashable, Sendable {
        var descriptors: UInt64 = 0
        var available: UInt64 = 0
        var used: UInt64 = 0
    }

    init(defaultSize: UInt16) {
        self.defaultSize = defaultSize
        size = defaultSize
    }

    // MARK: Set-up

    static func isPermittedSize(_ size: UInt32) -> Bool {
        size > 0 && size <= UInt32(virtqueueSizeMaximum) && size & (size - 1) == 0
    }

    /// Takes rings into use from their beginning.
    mutating func start(_ rings: RingAddresses, memory: GuestMemory) throws(VirtqueueError) {
        try Self.check(rings, size: size, memory: memory)
        self.rings = rings
        isReady = true
        lastAvailableIndex = 0
        usedIndex = 0
        signalledUsedIndex = nil
    }

    mutating func stop() {
        rings = RingAddresses()
        isReady = false
        lastAvailableIndex = 0
        usedIndex = 0
        signalledUsedIndex = nil
    }

    mutating func reset() { self = Virtqueue(defaultSize: defaultSize) }

    /// Continues rings of a saved state.
    mutating func restore(_ rings: RingAddresses, lastAvailableIndex: UInt16) {
        self.rings = rings
        isReady = true
        self.lastAvailableIndex = lastAvailableIndex
        usedIndex = nil
        signalledUsedIndex = nil
    }

    /// Refuses rings that are not wholly in writable RAM, or not aligned so that their indices are single accesses.
    static func check(_ rings: RingAddresses, size: UInt16, memory: GuestMemory) throws(VirtqueueError) {
        let entries = Int(size)
        guard rings.descriptors % 16 == 0, rings.available % 2 == 0, rings.used % 4 == 0 else {
            throw VirtqueueError("rings are not aligned")
        }
        do throws(GuestMemoryError) {
            _ = unsafe try memory.pointer(to: rings.descriptors, byteCount: 16 * entries, writing: false)
            _ = unsafe try memory.pointer(to: rings.available, byteCount: 6 + 2 * entries, writing: false)
            _ = unsafe try memory.pointer(to: rings.used, byteCount: 6 + 8 * entries, writing: true)
        } catch { throw VirtqueueError(error) }
    }

    /// Where a legacy driver's rings are: one area that begins at a page (virtio 1.2, section 2.7.2).
    static func legacyRings(at address: UInt64, size: UInt16, alignment: UInt32) -> RingAddresses {
        let available = address &+ 16 * UInt64(size)
        let end = available &+ 6 &+ 2 * UInt64(size)
        let mask = UInt64(max(alignment, 4)) - 1
        return RingAddresses(descriptors: address, available: available, used: (end &+ mask) & ~mask)
    }

    // MARK: The available ring

    /// Takes the next request; nil when there is none, and then the driver has been asked to notify.
    /// - Parameter isAsking: False leaves guest memory as it is.
    mutating func pop(_ memory: GuestMemory, features: UInt64, isAsking: Bool = true) throws(VirtqueueError)
        -> DescriptorChain?
    {
        guard isReady else { return nil }
        var available = try memory.ringLoad(rings.available &+ 2, as: UInt16.self)
        if available == lastAvailableIndex {
            guard isAsking else { return nil }
            try askForNotification(memory, at: lastAvailableIndex, features: features)
            available = try memory.ringLoad(rings.available &+ 2)
            if available == lastAvailableIndex { return nil }
        }
        atomicMemoryFence(ordering: .acquiring)
        guard available &- lastAvailableIndex <= size else {
            throw VirtqueueError("the available index ran ahead of the ring")
        }
        let head: UInt16 = try memory.ringLoad(rings.available &+ 4 &+ 2 * UInt64(lastAvailableIndex % size))
        let chain = try chain(at: head, memory: memory, features: features)
        lastAvailableIndex &+= 1
        return chain
    }

    /// Whether the driver has put in requests that were not taken. Asks for nothing.
    func hasAvailable(_ memory: GuestMemory) -> Bool {
        guard isReady, let available = try? memory.load(rings.available &+ 2, as: UInt16.self) else { return false }
        return available != lastAvailableIndex
    }

    /// Puts back the request that was taken last.
    mutating func unpop(_ count: Int = 1) { lastAvailableIndex &-= UInt16(truncatingIfNeeded: count) }

    /// Asks the driver to notify when it adds a request; the caller looks at the ring once more afterwards.
    func askForNotification(_ memory: GuestMemory, features: UInt64) throws(VirtqueueError) {
        try askForNotification(memory, at: lastAvailableIndex, features: features)
    }

    /// The same for requests that are not in the ring yet.
    func askForNotificationOfNew(_ memory: GuestMemory, features: UInt64) throws(VirtqueueError) {
        let available = try memory.ringLoad(rings.available &+ 2, as: UInt16.self)
        try askForNotification(memory, at: available, features: features)
    }

    private func askForNotification(_ memory: GuestMemory, at index: UInt16, features: UInt64) throws(VirtqueueError) {
        if features & VirtioFeature.eventIndex != 0 {
            // An unchanged field is not written again: that would only dirty the page.
            let field = rings.used &+ 4 &+ 8 * UInt64(size)
            if try memory.ringLoad(field, as: UInt16.self) != index {
                try memory.ringStore(field, index)
            }
        } else if try memory.ringLoad(rings.used, as: UInt16.self) != 0 {
            try memory.ringStore(rings.used, UInt16(0))
        }
        atomicMemoryFence(ordering: .sequentiallyConsistent)
    }

    /// Reads the chain that starts at descriptor `head`.
    func chain(at head: UInt16, memory: GuestMemory, features: UInt64) throws(VirtqueueError) -> DescriptorChain {
        guard head < size else { throw VirtqueueError("descriptor \(head) is outside the ring") }
        var chain = DescriptorChain(head: head)
        var table = rings.descriptors
        var tableCount = UInt32(size)
        var index = UInt32(head)
        var isIndirect = false
        var stepsInTable: UInt32 = 0
        var segmentCount = 0
        while true {
            stepsInTable += 1
            guard stepsInTable <= tableCount else { throw VirtqueueError("descriptor chain loops") }
            let descriptor = try Descriptor(memory, at: table &+ 16 * UInt64(index))
            if descriptor.flags & Descriptor.indirect != 0 {
                guard features & VirtioFeature.indirectDescriptors != 0, !isIndirect,
                    descriptor.flags & Descriptor.next == 0
                else { throw VirtqueueError("indirect descriptor where none may be") }
                guard descriptor.byteCount >= 16, descriptor.byteCount % 16 == 0 else {
                    throw VirtqueueError("indirect table of \(descriptor.byteCount) bytes")
                }
                isIndirect = true
                table = descriptor.address
                tableCount = min(descriptor.byteCount / 16, UInt32(virtqueueSizeMaximum))
                index = 0
                stepsInTable = 0
                continue
            }
            segmentCount += 1
            guard segmentCount <= Int(virtqueueSizeMaximum) else {
                throw VirtqueueError("descriptor chain is too long")
            }
            try chain.append(descriptor, memory: memory)
            if descriptor.flags & Descriptor.next == 0 { return chain }
            index = UInt32(descriptor.next)
            guard index < tableCount else { throw VirtqueueError("descriptor \(index) is outside its table") }
        }
    }

    // MARK: The used ring

    /// Used index of the ring, read from guest memory after a load.
    mutating func currentUsedIndex(_ memory: GuestMemory) throws(VirtqueueError) -> UInt16 {
        if let usedIndex { return usedIndex }
        let index: UInt16 = try memory.ringLoad(rings.used &+ 2)
        usedIndex = index
        return index
    }

    /// Writes a finished request into the used ring without showing it yet.
    /// - Parameter position: Counts from the next free entry.
    mutating func fill(
        _ memory: GuestMemory, position: Int = 0, head: UInt16, byteCount: Int
    ) throws(VirtqueueError) {
        guard isReady else { return }
        let index = try currentUsedIndex(memory) &+ UInt16(truncatingIfNeeded: position)
        let entry = rings.used &+ 4 &+ 8 * UInt64(index % size)
        try memory.ringStore(entry, UInt64(head) | UInt64(UInt32(truncatingIfNeeded: byteCount)) << 32)
    }

    /// Shows `count` entries that were filled.
    mutating func publish(_ memory: GuestMemory, count: Int = 1) throws(VirtqueueError) {
        guard isReady, count > 0 else { return }
        let old = try currentUsedIndex(memory)
        let new = old &+ UInt16(truncatingIfNeeded: count)
        atomicMemoryFence(ordering: .releasing)
        try memory.ringStore(rings.used &+ 2, new)
        usedIndex = new
        // The 16-bit index went round: an old mark would look like one in the future.
        if let signalled = signalledUsedIndex, new &- signalled < new &- old { signalledUsedIndex = nil }
    }

    /// Fills and publishes one request.
    mutating func push(_ memory: GuestMemory, head: UInt16, byteCount: Int) throws(VirtqueueError) {
        try fill(memory, head: head, byteCount: byteCount)
        try publish(memory)
    }

    /// Whether the driver wants an interrupt for what was published since the last call (sections 2.7.7 and 2.7.10).
    mutating func wantsInterrupt(_ memory: GuestMemory, features: UInt64) -> Bool {
        guard isReady, let new = usedIndex else { return false }
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        if features & VirtioFeature.notifyOnEmpty != 0, new == lastAvailableIndex, !hasAvailable(memory) { return true }
        guard features & VirtioFeature.eventIndex != 0 else {
            return (try? memory.load(rings.available, as: UInt16.self)).map { $0 & 1 == 0 } ?? false
        }
        let old = signalledUsedIndex
        signalledUsedIndex = new
        guard let old else { return true }
        guard let event = try? memory.load(rings.available &+ 4 &+ 2 * UInt64(size), as: UInt16.self) else {
            return false
        }
        return new &- event &- 1 < new &- old
    }
}

/// An entry of the descriptor table (section 2.7.5).
struct Descriptor: Sendable {
    static let next: UInt16 = 1
    static let write: UInt16 = 2
    static let indirect: UInt16 = 4

    var address: UInt64
    var byteCount: UInt32
    var flags: UInt16
    var next: UInt16

    init(_ memory: GuestMemory, at location: UInt64) throws(VirtqueueError) {
        address = try memory.ringLoad(location)
        let rest = try memory.ringLoad(location &+ 8, as: UInt64.self)
        byteCount = UInt32(truncatingIfNeeded: rest)
        flags = UInt16(truncatingIfNeeded: rest >> 32)
        next = UInt16(truncatingIfNeeded: rest >> 48)
    }
}

extension DescriptorChain {
    /// Adds a descriptor's buffer after checking that it is RAM. Empty buffers are left out.
    fileprivate mutating func append(_ descriptor: Descriptor, memory: GuestMemory) throws(VirtqueueError) {
        let isWritable = descriptor.flags & Descriptor.write != 0
        guard isWritable || writable.isEmpty else { throw VirtqueueError("readable descriptor after a writable one") }
        guard descriptor.byteCount > 0 else { return }
        let segment = GuestSegment(address: descriptor.address, byteCount: Int(descriptor.byteCount))
        do throws(GuestMemoryError) {
            _ = unsafe try memory.pointer(to: segment.address, byteCount: segment.byteCount, writing: isWritable)
        } catch { throw VirtqueueError(error) }
        if isWritable {
            writable.append(segment)
            writableByteCount += segment.byteCount
        } else {
            readable.append(segment)
            readableByteCount += segment.byteCount
        }
    }
}

extension GuestMemory {
    /// One read of a ring's field; an address outside RAM is the driver's mistake.
    func ringLoad<Value: FixedWidthInteger & BitwiseCopyable>(_ address: UInt64, as _: Value.Type = Value.self)
        throws(VirtqueueError) -> Value
    {
        do throws(GuestMemoryError) { return try load(address) } catch { throw VirtqueueError(error) }
    }

    fileprivate func ringStore<Value: FixedWidthInteger & BitwiseCopyable>(_ address: UInt64, _ value: Value)
        throws(VirtqueueError)
    {
        do throws(GuestMemoryError) { try store(address, value) } catch { throw VirtqueueError(error) }
    }
}
