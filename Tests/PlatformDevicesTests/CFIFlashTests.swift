import ComponentState
import DeviceModel
import GuestMemory
import PlatformDevices
import Testing

@Suite("CFI flash") struct CFIFlashTests {
    let block: RAMBlock
    let flash: CFIFlash

    init() throws {
        block = try RAMBlock(name: "virt.flash0", byteCount: 32 << 20, backend: .anonymous)
        flash = CFIFlash(block: block, instance: 0)
    }

    private func command(_ value: UInt64, at offset: UInt64 = 0) { flash.write(offset, value << 16 | value) }

    @Test("a blank bank reads as its block, in every width")
    func readArray() {
        unsafe block.base.storeBytes(of: 0x8877_6655_4433_2211, toByteOffset: 64, as: UInt64.self)
        #expect(flash.read(64, .eight) == 0x8877_6655_4433_2211)
        #expect(flash.read(66, .two) == 0x4433)
        #expect(flash.read(71, .one) == 0x88)
    }

    @Test("erasing sets a whole block to ones, programming clears bits only")
    func eraseAndProgram() {
        command(0x20, at: 0x4_0000)
        command(0xd0, at: 0x4_0000)
        #expect(flash.read(0x4_0000) == 0x0080_0080)
        command(0xff)
        #expect(flash.read(0x4_0000) == 0xffff_ffff && flash.read(0x7_fffc) == 0xffff_ffff)
        #expect(flash.read(0x3_fffc) == 0 && flash.read(0x8_0000) == 0)
        command(0x40, at: 0x4_0010)
        flash.write(0x4_0010, 0x1234_5678)
        #expect(flash.read(0x4_0010) == 0x0080_0080)
        command(0x40, at: 0x4_0010)
        flash.write(0x4_0010, 0xffff_0000)
        command(0xff)
        #expect(flash.read(0x4_0010) == 0x1234_0000)
        #expect(
            block.dirty.isMarked(page: 0x40) && block.dirty.isMarked(page: 0x7f) && !block.dirty.isMarked(page: 0x80))
    }

    @Test("a buffered program takes as many words as announced, then wants its confirmation")
    func buffered() {
        command(0x20)
        command(0xd0)
        command(0xe8)
        #expect(flash.read(0) == 0x0080_0080)
        command(3)
        for word in 0..<4 as Range<UInt64> { flash.write(word * 4, 0x0101_0101 * (word + 1)) }
        command(0xd0)
        command(0xff)
        #expect((0..<4).map { flash.read(UInt64($0) * 4) } == [0x0101_0101, 0x0202_0202, 0x0303_0303, 0x0404_0404])
    }

    @Test("identifier and CFI query answer in both halves of the word")
    func identification() {
        command(0x90)
        #expect(flash.read(0) == 0x0089_0089 && flash.read(4) == 0x0018_0018 && flash.read(8) == 0)
        command(0x98, at: 0x55 * 4)
        let text = (0x10...0x12).map { UInt8(truncatingIfNeeded: flash.read(UInt64($0) * 4)) }
        #expect(text == Array("QRY".utf8))
        #expect(flash.read(0x27 * 4) & 0xff == 24)  // Each chip has 16 MiB.
        #expect(flash.read(0x2d * 4) & 0xff == 127)  // 128 blocks
        #expect(flash.read(0x30 * 4) & 0xff == 2)  // of 128 KiB in each chip.
        command(0xff)
        #expect(flash.read(0) == 0)
    }

    @Test("a wrong second command is an error in the status, which is cleared by its command")
    func errors() {
        command(0x20)
        command(0x33)
        #expect(flash.read(0) == 0x00b0_00b0)
        command(0x50)
        command(0x70)
        #expect(flash.read(0) == 0x0080_0080)
    }

    @Test("accesses beyond the end are harmless")
    func bounds() {
        #expect(flash.read(32 << 20) == 0 && flash.read((32 << 20) - 2) == 0 && flash.read(.max) == 0)
        flash.write((32 << 20) - 2, 0x40)
        flash.write(.max - 3, 0x40)
        #expect(flash.read(0) == 0)
    }

    @Test("the section is QEMU's and a command in progress goes on at the copy", arguments: StateLayout.allCases)
    func wire(layout: StateLayout) throws {
        #expect(try encode(flash, layout) == bytes("00 00 80 00 00 00 00 00 00 00 00"))
        command(0x20)
        command(0xd0)
        command(0xe8)
        command(1)
        flash.write(0, 5)
        let body = try encode(flash, layout)
        let copy = CFIFlash(block: block, instance: 0)
        try decode(body, into: copy, layout)
        copy.write(4, 6)
        copy.write(0, 0xd0)
        copy.write(0, 0xff)
        #expect(copy.read(0) == 5 && copy.read(4) == 6)
    }

    @Test("a cycle that does not exist is refused")
    func invalid() {
        #expect(throws: StateError.self) { try decode(bytes("04 00 80 00 00 00 00 00 00 00 00"), into: flash, .native) }
        #expect(throws: StateError.self) { try decode(bytes("00 00 80 ff 00 00 00 00 00 00 00"), into: flash, .native) }
    }
}
