import DeviceModel
import GuestMemory
import LinuxCalls
import Synchronization

@testable import VirtioDevices

let ramBase: UInt64 = 0x8000_0000

/// A machine of RAM and one virtio slot.
final class TestMachine: Sendable {
    let block: RAMBlock
    let memory: GuestMemory
    let transport: VirtioMMIOTransport
    let interrupts: InterruptRecorder

    init(
        _ device: (any VirtioDevice)?, isLegacy: Bool = false, byteCount: Int = 16 << 20,
        slotAddress: UInt64 = 0x1000_8000, queueSizeLimit: UInt16? = nil, sharing other: TestMachine? = nil
    ) throws {
        block = try other?.block ?? RAMBlock(name: "ram", byteCount: byteCount, backend: .anonymous)
        memory = GuestMemory(regions: [MemoryRegion(address: ramBase, block: block)])
        let interrupts = InterruptRecorder()
        self.interrupts = interrupts
        transport = VirtioMMIOTransport(
            slotAddress: slotAddress, device: device, memory: memory,
            interrupt: InterruptLine { interrupts.set($0) }, isLegacy: isLegacy, queueSizeLimit: queueSizeLimit)
    }

    subscript(_ offset: UInt64) -> UInt32 {
        get { UInt32(transport.load(offset: offset, width: .four)) }
        set { write(offset, newValue) }
    }

    func write(_ offset: UInt64, _ value: UInt32) {
        transport.store(offset: offset, width: .four, value: UInt64(value))
    }
}

/// The level of an interrupt line, and how often it was set high.
final class InterruptRecorder: Sendable {
    private let state = Mutex((level: false, raised: 0))
    private let raises = HostSemaphore()

    func set(_ level: Bool) {
        state.withLock {
            $0.level = level
            if level { $0.raised += 1 }
        }
        if level { raises.signal() }
    }

    var level: Bool { state.withLock { $0.level } }
    var raised: Int { state.withLock { $0.raised } }

    /// Waits until the line was set high once more than waited for.
    @discardableResult func wait() -> Bool { raises.wait(timeoutNanoseconds: 20_000_000_000) }
}

/// A guest driver for one queue: puts chains into the available ring, takes what is in the used ring.
final class TestQueue {
    let machine: TestMachine
    let index: UInt32
    let size: UInt16
    let descriptors: UInt64
    let available: UInt64
    let used: UInt64
    private(set) var availableIndex: UInt16 = 0
    private(set) var usedIndex: UInt16 = 0
    private var nextDescriptor: UInt16 = 0

    /// Rings in three pages from `address` on.
    init(
        _ machine: TestMachine, index: UInt32, size: UInt16, address: UInt64, isLegacy: Bool = false, start: UInt16 = 0
    ) {
        self.machine = machine
        self.index = index
        self.size = size
        descriptors = address
        available = isLegacy ? address + 16 * UInt64(size) : address + 0x4000
        used = isLegacy ? (available + 6 + 2 * UInt64(size) + 4095) & ~4095 : address + 0x5000
        availableIndex = start
        usedIndex = start
        machine.write(0x30, index)
        machine.write(0x38, UInt32(size))
        if isLegacy {
            machine.write(0x28, 4096)
            machine.write(0x3c, 4096)
            machine.write(0x40, UInt32(address >> 12))
        } else {
            for (offset, value) in [(0x80, descriptors), (0x90, available), (0xa0, used)] {
                machine.write(UInt64(offset), UInt32(truncatingIfNeeded: value))
                machine.write(UInt64(offset) + 4, UInt32(truncatingIfNeeded: value >> 32))
            }
            machine.write(0x44, 1)
        }
    }

    /// The same rings, seen by a driver that goes on with another device.
    init(continuing other: TestQueue, on machine: TestMachine) {
        self.machine = machine
        index = other.index
        size = other.size
        descriptors = other.descriptors
        available = other.available
        used = other.used
        availableIndex = other.availableIndex
        usedIndex = other.usedIndex
        nextDescriptor = other.nextDescriptor
    }

    func writeDescriptor(_ number: UInt16, address: UInt64, byteCount: UInt32, flags: UInt16, next: UInt16 = 0) {
        let at = descriptors + 16 * UInt64(number)
        try! machine.memory.store(at, address)
        try! machine.memory.store(at + 8, UInt64(byteCount) | UInt64(flags) << 32 | UInt64(next) << 48)
    }

    /// Adds a chain of buffers and shows it; answers its head.
    @discardableResult func add(
        readable: [(address: UInt64, byteCount: Int)], writable: [(address: UInt64, byteCount: Int)],
        notify: Bool = true
    ) -> UInt16 {
        let buffers = readable.map { ($0, UInt16(0)) } + writable.map { ($0, UInt16(2)) }
        let head = nextDescriptor
        for (position, (buffer, flags)) in buffers.enumerated() {
            let isLast = position == buffers.count - 1
            let number = (head + UInt16(position)) % size
            writeDescriptor(
                number, address: buffer.address, byteCount: UInt32(buffer.byteCount), flags: flags | (isLast ? 0 : 1),
                next: isLast ? 0 : (number + 1) % size)
        }
        nextDescriptor = (head + UInt16(buffers.count)) % size
        show(head)
        if notify { self.notify() }
        return head
    }

    func show(_ head: UInt16) {
        try! machine.memory.store(available + 4 + 2 * UInt64(availableIndex % size), head)
        availableIndex &+= 1
        try! machine.memory.store(available + 2, availableIndex)
    }

    func notify() { machine.write(0x50, index) }

    /// The device's used index.
    var deviceUsedIndex: UInt16 { try! machine.memory.load(used + 2) }

    /// Takes one used entry if there is one.
    func take() -> (head: UInt16, byteCount: Int)? {
        guard deviceUsedIndex != usedIndex else { return nil }
        let entry = try! machine.memory.load(used + 4 + 8 * UInt64(usedIndex % size), as: UInt64.self)
        usedIndex &+= 1
        return (UInt16(truncatingIfNeeded: entry), Int(entry >> 32))
    }

    /// Waits for one used entry; nil when the device gives none for 20 s.
    func wait() -> (head: UInt16, byteCount: Int)? {
        while true {
            if let entry = take() { return entry }
            // used_event: interrupt at the next entry. Looked at once more, as the entry may have come in between.
            try! machine.memory.store(available + 4 + 2 * UInt64(size), usedIndex)
            atomicMemoryFence(ordering: .sequentiallyConsistent)
            if let entry = take() { return entry }
            guard machine.interrupts.wait() else { return nil }
            machine.write(0x64, machine[0x60])
        }
    }
}

extension TestMachine {
    /// Negotiates features on a modern transport and answers whether the device accepted them.
    func negotiate(_ features: UInt64) -> Bool {
        self.write(0x70, 0)
        self.write(0x70, 3)
        for word in 0..<UInt32(2) {
            write(0x24, word)
            write(0x20, UInt32(truncatingIfNeeded: features >> (32 * UInt64(word))))
        }
        write(0x70, 11)
        return self[0x70] & 8 != 0
    }

    func driverReady() { write(0x70, self[0x70] | 4) }

    /// Everything the device offers.
    var offered: UInt64 {
        write(0x14, 0)
        let low = UInt64(self[0x10])
        write(0x14, 1)
        return low | UInt64(self[0x10]) << 32
    }

    func bytes(_ address: UInt64, _ count: Int) -> [UInt8] { try! memory.bytes(at: address, count: count) }
    func put(_ address: UInt64, _ bytes: [UInt8]) { try! memory.write(address, bytes) }
}

let version1: UInt64 = 1 << 32
let indirect: UInt64 = 1 << 28
let eventIndex: UInt64 = 1 << 29

func words<Word: FixedWidthInteger>(_ values: Word...) -> [UInt8] {
    values.flatMap { value in (0..<Word.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
}
