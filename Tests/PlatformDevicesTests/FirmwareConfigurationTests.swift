import ComponentState
import DeviceModel
import GuestMemory
import PlatformDevices
import Testing

@Suite("fw_cfg") struct FirmwareConfigurationTests {
    let memory: GuestMemory
    let device: FirmwareConfiguration

    init() throws {
        memory = GuestMemory(regions: [
            MemoryRegion(
                address: 0x8000_0000, block: try RAMBlock(name: "ram", byteCount: 1 << 20, backend: .anonymous))
        ])
        device = FirmwareConfiguration(
            memory: memory, processorCount: 4, ramByteCount: 1 << 20,
            files: ["opt/b": [1, 2, 3], "opt/a": Array("text".utf8)])
    }

    private func select(_ key: UInt16) { device.write(8, UInt64(key.byteSwapped), .two) }
    private func string(_ count: Int) -> [UInt8] { (0..<count).map { _ in UInt8(device.read(0, .one)) } }

    @Test("signature, features and machine facts")
    func items() {
        select(0)
        #expect(string(6) == Array("QEMU".utf8) + [0, 0])
        select(1)
        #expect(device.read(0, .four) == 3)
        select(5)
        #expect(device.read(0, .two) == 4)
        select(3)
        #expect(device.read(0, .eight) == 1 << 20)
        select(0x7fff)
        #expect(device.read(0, .eight) == 0)
    }

    @Test("the directory lists files by name, with big-endian sizes and keys")
    func directory() {
        select(0x19)
        #expect(string(4) == [0, 0, 0, 2])
        #expect(string(8) == [0, 0, 0, 4, 0, 0x20, 0, 0])
        #expect(string(56).prefix(6).elementsEqual(Array("opt/a".utf8) + [0]))
        #expect(string(8) == [0, 0, 0, 3, 0, 0x21, 0, 0])
        select(0x21)
        #expect(string(4) == [1, 2, 3, 0])
    }

    @Test("the DMA register says that it is there")
    func signature() {
        let bytes = (0..<8).map { UInt8(device.read(16 + UInt64($0), .one)) }
        #expect(bytes == Array("QEMU CFG".utf8))
        #expect(device.read(16, .four).littleEndian == 0x554d_4551)
    }

    private func dma(control: UInt32, byteCount: UInt32, address: UInt64) throws -> UInt32 {
        try memory.store(0x8000_0100, control.bigEndian)
        try memory.store(0x8000_0104, byteCount.bigEndian)
        try memory.store(0x8000_0108, address.bigEndian)
        device.write(16, UInt64(UInt32(0).byteSwapped), .four)
        device.write(20, UInt64(UInt32(0x8000_0100).byteSwapped), .four)
        return UInt32(bigEndian: try memory.load(0x8000_0100))
    }

    @Test("DMA selects, skips and reads; what lies behind the end is zeros")
    func transfers() throws {
        try memory.write(0x8000_2000, Array(repeating: 0xee, count: 8))
        #expect(try dma(control: 0x20 << 16 | 0x08, byteCount: 0, address: 0) == 0)
        #expect(try dma(control: 0x04, byteCount: 1, address: 0) == 0)
        #expect(try dma(control: 0x02, byteCount: 6, address: 0x8000_2000) == 0)
        #expect(try memory.bytes(at: 0x8000_2000, count: 8) == Array("ext".utf8) + [0, 0, 0, 0xee, 0xee])
    }

    @Test(
        "DMA to where no RAM is, and writing, answer an error",
        arguments: [(2 as UInt32, 0x1000 as UInt64), (2, 0x800f_fffe), (0x10, 0x8000_0000)])
    func refused(control: UInt32, address: UInt64) throws {
        #expect(try dma(control: control, byteCount: 4, address: address) == 1)
    }

    @Test("a DMA record where no RAM is changes nothing")
    func recordOutside() {
        device.write(16, UInt64(0x1234).byteSwapped, .eight)
        device.write(16, UInt64.max, .eight)
    }

    @Test("a huge length ends at the end of RAM", .timeLimit(.minutes(1)))
    func hugeLength() throws {
        #expect(try dma(control: 0x02, byteCount: .max, address: 0x8000_0000) != 0)
    }

    @Test("the section is QEMU's 30 bytes, and its selection goes on at the copy", arguments: StateLayout.allCases)
    func wire(layout: StateLayout) throws {
        select(0x20)
        _ = string(2)
        let body = try encode(device, layout)
        #expect(
            body == bytes("00 20 00 00 00 02 05 0a 66 77 5f 63 66 67 2f 64 6d 61 00 00 00 00 00 00 00 00 00 00 00 00"))
        let copy = FirmwareConfiguration(
            memory: memory, processorCount: 4, ramByteCount: 1 << 20, files: ["opt/a": Array("text".utf8)])
        try decode(body, into: copy, layout)
        #expect(copy.read(0, .one) == UInt64(UInt8(ascii: "x")))
    }

    @Test("sizes of ACPI tables that a newer QEMU sends are accepted")
    func acpi() throws {
        let name = Array("fw_cfg/acpi_mr".utf8)
        let body =
            bytes("00 00 00 00 00 00 05 0a 66 77 5f 63 66 67 2f 64 6d 61 00 00 00 00 00 00 00 00 00 00 00 00")
            + [5, UInt8(name.count)] + name + [0, 0, 0, 1] + Array(repeating: 0x11, count: 24)
        try decode(body, into: device, .qemu10_0)
    }
}
