import DeviceModel
import Testing

@testable import VirtioDevices

@Suite("The virtio register file") struct TransportTests {
    @Test("an empty slot answers magic, version and vendor, and zero for everything else", arguments: [false, true])
    func emptySlot(isLegacy: Bool) throws {
        let machine = try TestMachine(nil, isLegacy: isLegacy)
        #expect(machine[0x00] == 0x7472_6976)
        #expect(machine[0x04] == (isLegacy ? 1 : 2))
        #expect(machine[0x0c] == 0x554d_4551)
        for offset in stride(from: UInt64(0), to: 0x200, by: 4) where ![0, 4, 12].contains(offset) {
            #expect(machine[offset] == 0)
            machine.write(offset, .max)
        }
        #expect(machine[0x70] == 0)
        #expect(machine.transport.sectionVersion(for: .native) == nil)
    }

    @Test("devices have QEMU's ids, names, versions and ring sizes")
    func identities() throws {
        let expected: [(any VirtioDevice, UInt32, String, UInt32, [UInt32])] = [
            (VirtioEntropy(), 4, "virtio-rng", 1, [8, 0]),
            (VirtioBlock(backend: MemoryDisk(sectorCount: 8)), 2, "virtio-blk", 2, [256, 0]),
            (
                VirtioNetwork(backend: TestNetwork(), macAddress: [2, 0, 0, 0, 0, 1]), 1, "virtio-net", 11,
                [256, 256, 64, 0]
            ),
            (VirtioConsole(backend: TestConsole()), 3, "virtio-console", 3, [128, 128, 32, 32, 128]),
        ]
        for (device, id, name, version, sizes) in expected {
            let machine = try TestMachine(device, slotAddress: 0x1000_7000)
            #expect(machine[0x08] == id)
            #expect(machine.transport.sectionName == "virtio-mmio@0000000010007000/\(name)")
            #expect(machine.transport.sectionVersion(for: .qemu7_2) == version)
            for (queue, size) in sizes.enumerated() {
                machine.write(0x30, UInt32(queue))
                #expect(machine[0x34] == size)
            }
        }
    }

    @Test("the largest ring can be set to what QEMU 7.2 shows")
    func ringLimit() throws {
        let machine = try TestMachine(VirtioEntropy(), queueSizeLimit: 1024)
        #expect(machine[0x34] == 1024)
    }

    @Test("features are accepted when all were offered and VERSION_1 is among them")
    func negotiation() throws {
        let machine = try TestMachine(VirtioEntropy())
        #expect(machine.offered == 0x1_3900_0000)
        #expect(machine.negotiate(version1 | eventIndex))
        #expect(!machine.negotiate(eventIndex))
        #expect(!machine.negotiate(version1 | 1 << 34))
        machine.write(0x14, 7)
        #expect(machine[0x10] == 0)
    }

    @Test("a legacy device offers the low half and takes it without a status bit")
    func legacyNegotiation() throws {
        let machine = try TestMachine(VirtioEntropy(), isLegacy: true)
        #expect(machine.offered == 0x3900_0000)
        machine.write(0x24, 0)
        machine.write(0x20, 0x3000_0000)
        #expect(machine.transport.core!.monitor.withLock { $0.features } == 0x3000_0000)
    }

    @Test("a legacy driver tells its page size once, before it resets the device")
    func legacyPageSize() throws {
        let machine = try TestMachine(VirtioEntropy(), isLegacy: true)
        machine.write(0x28, 4096)
        machine.write(0x70, 0)
        machine.write(0x30, 0)
        machine.write(0x38, 8)
        machine.write(0x3c, 4096)
        machine.write(0x40, 0x8000_1000 >> 12)
        #expect(machine[0x40] == 0x8000_1000 >> 12)
        let rings = machine.transport.core!.monitor.withLock { $0.queues[0].rings }
        #expect(rings.descriptors == 0x8000_1000)
    }

    @Test("features QEMU's drivers accepted are offered", arguments: [false, true])
    func qemuFeatures(isLegacy: Bool) throws {
        let net = VirtioNetwork(backend: TestNetwork(), macAddress: [2, 0, 0, 0, 0, 1])
        let accepted: [(any VirtioDevice, UInt64)] = [
            (VirtioEntropy(), 0x3000_0000), (VirtioBlock(backend: MemoryDisk(sectorCount: 8)), 0x3000_6e54),
            (VirtioConsole(backend: TestConsole()), 0x3000_0002), (net, isLegacy ? 0x38af_8064 : 0x30af_8024),
        ]
        for (device, features) in accepted {
            let machine = try TestMachine(device, isLegacy: isLegacy)
            #expect((features | (isLegacy ? 0 : version1)) & ~machine.offered == 0)
        }
    }

    @Test("a reset forgets queues, features, status and interrupts")
    func reset() throws {
        let machine = try TestMachine(VirtioEntropy())
        #expect(machine.negotiate(version1))
        let queue = TestQueue(machine, index: 0, size: 8, address: ramBase)
        machine.driverReady()
        queue.add(readable: [], writable: [(ramBase + 0x1_0000, 16)])
        #expect(queue.wait()?.byteCount == 16)
        machine.write(0x70, 0)
        #expect(machine[0x70] == 0 && machine[0x60] == 0 && machine[0x44] == 0)
        #expect(!machine.interrupts.level)
        queue.add(readable: [], writable: [(ramBase + 0x1_0000, 16)])
        machine.transport.quiesce()
        #expect(queue.deviceUsedIndex == 1)
    }

    @Test("a legacy driver writes its page size once, before its first reset")
    func pageSizeSurvivesReset() throws {
        let machine = try TestMachine(VirtioEntropy(), isLegacy: true)
        machine.write(0x28, 4096)
        machine.write(0x70, 0)
        machine.write(0x3c, 4096)
        machine.write(0x40, UInt32(ramBase >> 12))
        #expect(machine.transport.core!.monitor.withLock { $0.queues[0].rings.descriptors } == ramBase)
        machine.transport.reset()
        #expect(machine.transport.core!.monitor.withLock { $0.guestPageShift } == 0)
    }

    @Test("acknowledging an interrupt lowers the line")
    func acknowledge() throws {
        let machine = try TestMachine(VirtioEntropy(), isLegacy: true)
        let queue = TestQueue(machine, index: 0, size: 8, address: ramBase, isLegacy: true)
        machine.write(0x70, 7)
        queue.add(readable: [], writable: [(ramBase + 0x1_0000, 16)])
        #expect(machine.interrupts.wait())
        #expect(machine[0x60] == 1 && machine.interrupts.level)
        machine.write(0x64, 1)
        #expect(machine[0x60] == 0 && !machine.interrupts.level)
        #expect(machine[0x40] == UInt32(ramBase >> 12))
    }

    @Test("rings outside RAM stop the device and ask for a reset")
    func badRings() throws {
        let machine = try TestMachine(VirtioEntropy())
        #expect(machine.negotiate(version1))
        machine.driverReady()
        let before = machine[0xfc]
        _ = TestQueue(machine, index: 0, size: 8, address: 0x4000)
        #expect(machine[0x70] & 0x40 != 0)
        #expect(machine[0x60] == 2 && machine[0xfc] == before + 1)
        machine.write(0x70, 0)
        #expect(machine[0x70] == 0)
        #expect(machine.negotiate(version1))
    }

    @Test("a ring cannot be moved while it is in use")
    func ringsAreFixedWhileReady() throws {
        let machine = try TestMachine(VirtioEntropy())
        #expect(machine.negotiate(version1))
        let queue = TestQueue(machine, index: 0, size: 8, address: ramBase)
        machine.driverReady()
        machine.write(0x80, 0xdead_0000)
        machine.write(0x38, 4)
        queue.add(readable: [], writable: [(ramBase + 0x1_0000, 16)])
        #expect(queue.wait()?.byteCount == 16)
    }

    @Test("only aligned 32-bit accesses reach registers; the configuration takes any width")
    func widths() throws {
        let machine = try TestMachine(VirtioNetwork(backend: TestNetwork(), macAddress: [2, 3, 4, 5, 6, 7]))
        #expect(machine.transport.load(offset: 0, width: .one) == 0)
        #expect(machine.transport.load(offset: 0, width: .eight) == 0)
        #expect(machine.transport.load(offset: 2, width: .four) == 0)
        #expect(machine.transport.load(offset: 0x101, width: .one) == 3)
        #expect(machine.transport.load(offset: 0x104, width: .two) == 0x0706)
        #expect(machine.transport.load(offset: 0x100, width: .four) == 0x0504_0302)
        #expect(machine.transport.load(offset: 0x106, width: .two) == 1)
        #expect(machine.transport.load(offset: 0x107, width: .four) == 0)
        #expect(machine.transport.load(offset: 0x1fc, width: .four) == 0)
    }
}
