import DeviceModel
import GuestMemory
import Testing

@testable import VirtioDevices

/// Drivers that write nonsense into every register and ring. What must hold: no trap, nothing outside RAM, an end to
/// every request for a pause, and a device that works again after a reset.
@Suite("A hostile driver") struct HostileDriverTests {
    private static func device(_ number: Int) -> any VirtioDevice {
        switch number {
        case 0: VirtioEntropy()
        case 1: VirtioBlock(backend: MemoryDisk(sectorCount: 512))
        case 2: VirtioNetwork(backend: TestNetwork(), macAddress: [2, 0, 0, 0, 0, 1])
        default: VirtioConsole(backend: TestConsole())
        }
    }

    private static let registers: [UInt64] = [
        0x14, 0x20, 0x24, 0x28, 0x30, 0x38, 0x3c, 0x40, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4,
    ]

    /// A number that is more often interesting than not.
    private static func value(_ random: inout SplitMix) -> UInt32 {
        switch random.next() % 6 {
        case 0: UInt32(random.next() % 8)
        case 1: 1 << UInt32(random.next() % 32)
        case 2: UInt32(truncatingIfNeeded: ramBase) &+ UInt32(random.next() % 0x10_0000) & ~0xf
        case 3: UInt32(truncatingIfNeeded: ramBase >> 12) &+ UInt32(random.next() % 256)
        case 4: .max
        default: UInt32(truncatingIfNeeded: random.next())
        }
    }

    @Test("nonsense in registers", arguments: 0..<4, [false, true])
    func registers(number: Int, isLegacy: Bool) throws {
        for seed in 0..<20 {
            var random = SplitMix(seed: UInt64(seed * 8 + number * 2 + (isLegacy ? 1 : 0)))
            let machine = try TestMachine(Self.device(number), isLegacy: isLegacy, byteCount: 1 << 20)
            for _ in 0..<2000 {
                let kind = random.next() % 32
                if kind == 0 {
                    machine.transport.quiesce()
                    machine.transport.resume()
                } else if kind < 4 {
                    let width = [AccessWidth.one, .two, .four, .eight][Int(random.next() % 4)]
                    let offset = random.next() % 0x200
                    _ = machine.transport.load(offset: offset, width: width)
                    machine.transport.store(offset: offset, width: width, value: random.next())
                } else {
                    let register = Self.registers[Int(random.next() % UInt64(Self.registers.count))]
                    machine.write(register, Self.value(&random))
                }
            }
            machine.transport.quiesce()
            _ = try encode(machine)
        }
    }

    /// Rings of nonsense with just enough sense that many requests begin.
    private static func scribble(_ machine: TestMachine, _ queue: TestQueue, _ random: inout SplitMix) {
        func address() -> UInt64 {
            switch random.next() % 8 {
            case 0: random.next()
            case 1: ramBase + (1 << 20) - random.next() % 64
            case 2: queue.descriptors + random.next() % 0x6000
            default: ramBase + random.next() % (1 << 20)
            }
        }
        func byteCount() -> UInt32 {
            switch random.next() % 6 {
            case 0: UInt32(truncatingIfNeeded: random.next())
            case 1: 0
            case 2: 16 * UInt32(random.next() % 64)
            default: UInt32(random.next() % 600)
            }
        }
        for number in 0..<queue.size {
            let flags = random.next() % 12 == 0 ? UInt16(truncatingIfNeeded: random.next()) : UInt16(random.next() % 4)
            queue.writeDescriptor(
                number, address: address(), byteCount: byteCount(), flags: flags,
                next: random.next() % 10 == 0 ? UInt16(truncatingIfNeeded: random.next()) : (number + 1) % queue.size)
        }
        // Headers that mean something, now and then.
        for _ in 0..<8 {
            machine.put(
                ramBase + random.next() % ((1 << 20) - 16),
                words(UInt32(random.next() % 16), 0) + words(random.next() % 600))
        }
        for _ in 0..<(random.next() % UInt64(queue.size)) {
            queue.show(
                random.next() % 20 == 0
                    ? UInt16(truncatingIfNeeded: random.next()) : UInt16(random.next() % UInt64(queue.size))
            )
        }
        if random.next() % 30 == 0 {
            try! machine.memory.store(queue.available + 2, UInt16(truncatingIfNeeded: random.next()))
        }
    }

    @Test("nonsense in rings", arguments: 0..<4)
    func rings(number: Int) throws {
        for seed in 0..<UInt64(60) {
            var random = SplitMix(seed: seed * 4 + UInt64(number))
            let network = TestNetwork()
            let console = TestConsole()
            let device: any VirtioDevice =
                number == 2
                ? VirtioNetwork(backend: network, macAddress: [2, 0, 0, 0, 0, 1])
                : number == 3 ? VirtioConsole(backend: console) : Self.device(number)
            let machine = try TestMachine(device, byteCount: 1 << 20)
            for round in 0..<20 {
                #expect(machine.negotiate(machine.offered & (random.next() | version1)))
                let queues = (0..<UInt32(min(device.identity.queueSizes.count, 4))).map { index in
                    TestQueue(machine, index: index, size: 16, address: ramBase + 0x8000 * UInt64(index))
                }
                machine.driverReady()
                for _ in 0..<3 {
                    let queue = queues[Int(random.next() % UInt64(queues.count))]
                    Self.scribble(machine, queue, &random)
                    queue.notify()
                    _ = network.deliver([UInt8](repeating: 0xff, count: Int(random.next() % 3000)))
                    _ = console.type([UInt8](repeating: 0x20, count: Int(random.next() % 300)))
                    if random.next() % 3 == 0 { machine.transport.quiesce() }
                    if random.next() % 4 == 0 { _ = try encode(machine, layout: round % 2 == 0 ? .native : .qemu7_2) }
                    machine.transport.resume()
                }
                machine.transport.quiesce()
                machine.write(0x70, 0)
                #expect(machine[0x70] == 0)
                machine.transport.resume()
            }
        }
    }

    @Test("after any nonsense a reset makes a working device")
    func worksAfterReset() throws {
        var random = SplitMix(seed: 99)
        let machine = try TestMachine(VirtioEntropy(), byteCount: 1 << 20)
        for _ in 0..<50 {
            #expect(machine.negotiate(machine.offered))
            let bad = TestQueue(machine, index: 0, size: 16, address: ramBase)
            machine.driverReady()
            Self.scribble(machine, bad, &random)
            bad.notify()
            machine.write(0x70, 0)
            machine.put(ramBase, [UInt8](repeating: 0, count: 0x8000))
            #expect(machine.negotiate(machine.offered))
            let good = TestQueue(machine, index: 0, size: 16, address: ramBase)
            machine.driverReady()
            good.add(readable: [], writable: [(ramBase + 0x1_0000, 64)])
            #expect(good.wait()?.byteCount == 64)
        }
    }
}
