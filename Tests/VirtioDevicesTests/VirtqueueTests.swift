import GuestMemory
import Testing

@testable import VirtioDevices

@Suite("A virtqueue") struct VirtqueueTests {
    let machine: TestMachine
    let rings = Virtqueue.RingAddresses(descriptors: ramBase, available: ramBase + 0x4000, used: ramBase + 0x5000)
    var memory: GuestMemory { machine.memory }

    init() throws { machine = try TestMachine(nil) }

    func queue(size: UInt16 = 8) throws -> Virtqueue {
        var queue = Virtqueue(defaultSize: size)
        try queue.start(rings, memory: memory)
        return queue
    }

    func descriptor(
        _ number: Int, _ address: UInt64, _ byteCount: UInt32, _ flags: UInt16, next: UInt16 = 0, table: UInt64? = nil
    ) {
        let at = (table ?? rings.descriptors) + 16 * UInt64(number)
        try! memory.store(at, address)
        try! memory.store(at + 8, UInt64(byteCount) | UInt64(flags) << 32 | UInt64(next) << 48)
    }

    func show(_ heads: [UInt16], from start: UInt16 = 0, size: UInt16 = 8) {
        for (position, head) in heads.enumerated() {
            let index = start &+ UInt16(position)
            try! memory.store(rings.available + 4 + 2 * UInt64(index % size), head)
        }
        try! memory.store(rings.available + 2, start &+ UInt16(heads.count))
    }

    @Test("a chain is read in order, readable part first")
    func chain() throws {
        descriptor(3, ramBase + 0x1_0000, 4, 1, next: 1)
        descriptor(1, ramBase + 0x2_0000, 2, 1, next: 0)
        descriptor(0, ramBase + 0x3_0000, 8, 2)
        show([3])
        try memory.write(ramBase + 0x1_0000, [1, 2, 3, 4])
        try memory.write(ramBase + 0x2_0000, [5, 6])
        var queue = try queue()
        let chain = try #require(try queue.pop(memory, features: 0))
        #expect(chain.head == 3 && chain.readableByteCount == 6 && chain.writableByteCount == 8)
        #expect(chain.readBytes(memory, at: 1, count: 100) == [2, 3, 4, 5, 6])
        #expect(chain.write(memory, at: 6, [7, 8, 9]) == 2)
        #expect(try memory.bytes(at: ramBase + 0x3_0006, count: 2) == [7, 8])
        #expect(try queue.pop(memory, features: 0) == nil)
    }

    @Test("an indirect table is followed, also after direct descriptors")
    func indirectTable() throws {
        descriptor(0, ramBase + 0x1_0000, 4, 1, next: 1)
        descriptor(1, ramBase + 0x8000, 32, 4)
        descriptor(0, ramBase + 0x2_0000, 4, 1, next: 1, table: ramBase + 0x8000)
        descriptor(1, ramBase + 0x3_0000, 4, 2, table: ramBase + 0x8000)
        show([0])
        var queue = try queue()
        let chain = try #require(try queue.pop(memory, features: indirect))
        #expect(chain.readable.map(\.address) == [ramBase + 0x1_0000, ramBase + 0x2_0000])
        #expect(chain.writable.map(\.address) == [ramBase + 0x3_0000])
    }

    @Test("a driver's mistakes throw", arguments: 0..<13)
    func mistakes(number: Int) throws {
        var size: UInt16 = 8
        var features = indirect
        descriptor(0, ramBase + 0x1_0000, 4, 0)
        show([0])
        switch number {
        case 0: show([8])  // head outside the ring
        case 1: descriptor(0, ramBase, 4, 1, next: 8)  // next outside the ring
        case 2: descriptor(0, ramBase, 4, 1, next: 0)  // loop
        case 3: descriptor(0, 0x1000, 4, 0)  // not RAM
        case 4: descriptor(0, ramBase + 0xff_fffe, 4, 0)  // runs over the end of RAM
        case 5: descriptor(0, .max - 1, .max, 2)  // wraps round
        case 6:  // readable after writable
            descriptor(0, ramBase, 4, 3, next: 1)
            descriptor(1, ramBase, 4, 0)
        case 7: descriptor(0, ramBase + 0x8000, 24, 4)  // indirect table of one and a half
        case 8: descriptor(0, ramBase + 0x8000, 16, 5, next: 1)  // indirect with a next
        case 9:  // indirect in indirect
            descriptor(0, ramBase + 0x8000, 16, 4)
            descriptor(0, ramBase + 0x9000, 16, 4, table: ramBase + 0x8000)
        case 10:  // not negotiated
            descriptor(0, ramBase + 0x8000, 16, 4)
            features = 0
        case 11: try memory.store(rings.available + 2, UInt16(9))  // ran ahead
        default:  // a chain longer than any may be
            size = 8
            descriptor(0, ramBase + 0x10_0000, 16 * 2000, 4)
            for index in 0..<2000 {
                descriptor(index, ramBase, 1, 1, next: UInt16(index + 1), table: ramBase + 0x10_0000)
            }
        }
        var queue = try queue(size: size)
        #expect(throws: VirtqueueError.self) { _ = try queue.pop(memory, features: features) }
    }

    @Test("indices go round at 65536")
    func wrap() throws {
        var queue = try queue()
        for index in UInt16(65530)...65535 {
            try memory.store(rings.available + 4 + 2 * UInt64(index % 8), UInt16(index % 8))
        }
        for number in 0..<8 { descriptor(number, ramBase + 0x1_0000, 4, 2) }
        try memory.store(rings.used + 2, UInt16(65530))
        queue.restore(rings, lastAvailableIndex: 65530)
        show(Array(0..<8), from: 65530)
        for _ in 0..<8 {
            let chain = try #require(try queue.pop(memory, features: 0))
            try queue.push(memory, head: chain.head, byteCount: 4)
        }
        #expect(queue.lastAvailableIndex == 2)
        #expect(try memory.load(rings.used + 2, as: UInt16.self) == 2)
    }

    @Test("with an event index the driver is interrupted when it asked to be, and once after a load")
    func interruptEvents() throws {
        var queue = try queue()
        for number in 0..<8 { descriptor(number, ramBase + 0x1_0000, 4, 2) }
        show(Array(0..<8))
        let usedEvent = rings.available + 4 + 2 * 8
        try memory.store(usedEvent, UInt16(2))
        var interrupts: [Bool] = []
        for _ in 0..<4 {
            let chain = try #require(try queue.pop(memory, features: eventIndex))
            try queue.push(memory, head: chain.head, byteCount: 0)
            interrupts.append(queue.wantsInterrupt(memory, features: eventIndex))
        }
        #expect(interrupts == [true, false, true, false])
        queue.restore(rings, lastAvailableIndex: 4)
        let chain = try #require(try queue.pop(memory, features: eventIndex))
        try queue.push(memory, head: chain.head, byteCount: 0)
        let afterLoad = queue.wantsInterrupt(memory, features: eventIndex)
        #expect(afterLoad)
    }

    @Test("without an event index the driver's flag decides, unless NOTIFY_ON_EMPTY was accepted")
    func interruptFlag() throws {
        var queue = try queue()
        descriptor(0, ramBase + 0x1_0000, 4, 2)
        show([0])
        try memory.store(rings.available, UInt16(1))
        let chain = try #require(try queue.pop(memory, features: 0))
        try queue.push(memory, head: chain.head, byteCount: 0)
        let whenOff = queue.wantsInterrupt(memory, features: 0)
        let whenEmpty = queue.wantsInterrupt(memory, features: 1 << 24)
        try memory.store(rings.available, UInt16(0))
        let whenOn = queue.wantsInterrupt(memory, features: 0)
        #expect([whenOff, whenEmpty, whenOn] == [false, true, true])
    }

    @Test("an empty queue asks to be notified of the next request")
    func notificationEvent() throws {
        var queue = try queue()
        descriptor(0, ramBase + 0x1_0000, 4, 2)
        show([0, 0, 0])
        while try queue.pop(memory, features: eventIndex) != nil {}
        #expect(try memory.load(rings.used + 4 + 8 * 8, as: UInt16.self) == 3)
    }

    @Test("what the device writes is marked dirty and nothing else is")
    func dirtyPages() throws {
        var queue = try queue()
        descriptor(0, ramBase + 0x1_0ffe, 4, 2)
        show([0])
        machine.block.dirty.clearAll()
        let chain = try #require(try queue.pop(memory, features: 0))
        #expect(machine.block.dirty.count == 0)
        _ = chain.write(memory, at: 0, [1, 2, 3, 4])
        try queue.push(memory, head: 0, byteCount: 4)
        #expect((0..<machine.block.pageCount).filter { machine.block.dirty.isMarked(page: $0) } == [5, 16, 17])
    }
}
