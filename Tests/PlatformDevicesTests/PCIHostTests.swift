import ComponentState
import DeviceModel
import PlatformDevices
import Testing

@Suite("Empty PCI host") struct PCIHostTests {
    let host = PCIHost()

    @Test("only the host bridge answers")
    func configuration() {
        #expect(host.read(0) == 0x0008_1b36)
        #expect(host.read(8) == 0x0600_0000)
        #expect(host.read(1 << 15) == 0xffff_ffff)
        #expect(host.read(0x100, .two) == 0xffff)
        #expect(host.read(0xfff_fffc) == 0xffff_ffff)
    }

    @Test("identity is read-only, the command register is not")
    func writes() {
        host.write(0, 0)
        host.write(4, 0xffff_ffff)
        #expect(host.read(0) == 0x0008_1b36)
        #expect(host.read(4, .two) == 0x0507)
        host.reset()
        #expect(host.read(4) == 0)
    }

    @Test("a fresh host's sections are those of QEMU", arguments: StateLayout.allCases)
    func wire(layout: StateLayout) throws {
        var expected = bytes("00 00 00 02 36 1b 08 00 00 00 00 00 00 00 00 06")
        expected += Array(repeating: 0, count: 32) + bytes("f4 1a 00 11") + Array(repeating: 0, count: 224)
        #expect(try encode(host, layout) == expected)
        try decode(expected, into: host, layout)
        let companions = host.companions
        #expect(companions.map(\.sectionName) == ["PCIHost", "PCIBUS"])
        #expect(try encode(companions[0], layout) == [0, 0, 0, 0])
        #expect(try encode(companions[1], layout) == [0, 0, 0, 4] + Array(repeating: 0, count: 16))
    }

    @Test("another device, or a bus in use, is refused")
    func refused() throws {
        var body = try encode(host, .qemu7_2)
        body[4] = 0
        #expect(throws: StateError.self) { try decode(body, into: host, .qemu7_2) }
        #expect(throws: StateError.self) {
            try decode([0, 0, 0, 5] + Array(repeating: 0, count: 16), into: host.companions[1], .qemu7_2)
        }
        #expect(throws: StateError.self) {
            try decode([0, 0, 0, 4, 0, 0, 0, 1] + Array(repeating: 0, count: 12), into: host.companions[1], .qemu7_2)
        }
    }
}
