import Glibc
import GuestMemory
import Machine
import Testing

@Suite("Boot images") struct BootLoaderTests {
    private func machine(_ change: (inout MachineConfiguration) -> Void) throws -> VirtMachine {
        var configuration = smallConfiguration()
        change(&configuration)
        return try VirtMachine(
            configuration: configuration, backends: MachineBackends(serial: RecordingConsole()),
            processors: ScriptedProcessor.factory { _ in .waiting(untilNanoseconds: nil) })
    }

    /// The header of a flat RISC-V Image, then nothing.
    private func kernel(imageByteCount: UInt64 = 0x1e6_b000, textOffset: UInt64 = 0x20_0000, fileByteCount: Int = 4096)
        -> [UInt8]
    {
        var bytes = [UInt8](repeating: 0, count: fileByteCount)
        func put(_ value: UInt64, _ offset: Int) {
            for index in 0..<8 { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8)) }
        }
        bytes[0] = 0x4d
        bytes[1] = 0x5a
        put(textOffset, 8)
        put(imageByteCount, 16)
        bytes.replaceSubrange(0x30..<0x35, with: Array("RISCV".utf8))
        bytes.replaceSubrange(0x38..<0x3c, with: [0x52, 0x53, 0x43, 0x05])
        return bytes
    }

    private func expectFailure(_ word: String, _ change: (inout MachineConfiguration) -> Void) throws {
        let machine = try machine(change)
        defer { machine.shutDown() }
        #expect {
            try machine.loadImages()
        } throws: { error in
            let text = "\(error)"
            if !text.contains(word) { Issue.record("\(text)") }
            return text.contains(word)
        }
    }

    @Test("a flat firmware lies at the start of RAM and the reset code leads to it")
    func firmware() throws {
        let file = try ScratchFile([0x13, 0, 0, 0])
        let machine = try machine { $0.firmwarePath = file.path }
        defer { machine.shutDown() }
        try machine.loadImages()
        #expect(try machine.memory.load(0x8000_0000, as: UInt32.self) == 0x13)
        #expect(
            try (0..<6).map { try machine.memory.load(0x1000 + UInt64($0 * 4), as: UInt32.self) } == [
                0x0000_0297, 0x0282_8613, 0xf140_2573, 0x0202_b583, 0x0182_b283, 0x0002_8067,
            ])
        let words: [UInt64] = try (0..<8).map { try machine.memory.load(0x1018 + UInt64($0 * 8)) }
        // Firmware, device tree; magic, version, next address, next mode, options, boot hart.
        #expect(words == [0x8000_0000, 0x80e0_0000, 0x4942_534f, 2, 0, 1, 0, 0])
        #expect(try machine.memory.load(0x80e0_0000, as: UInt32.self).byteSwapped == 0xd00d_feed)
    }

    @Test("kernel, initrd and device tree lie where QEMU puts them")
    func linux() throws {
        let firmware = try ScratchFile([1])
        let image = try ScratchFile(kernel())
        let initrd = try ScratchFile(Array("070701".utf8))
        let machine = try machine {
            $0.memoryByteCount = 512 << 20
            $0.firmwarePath = firmware.path
            $0.kernelPath = image.path
            $0.initrdPath = initrd.path
            $0.kernelCommandLine = "console=ttyS0 quiet"
        }
        defer { machine.shutDown() }
        try machine.loadImages()
        #expect(try machine.memory.bytes(at: 0x8020_0030, count: 5) == Array("RISCV".utf8))
        #expect(try machine.memory.bytes(at: 0x8820_0000, count: 6) == Array("070701".utf8))
        #expect(try machine.memory.load(0x1020, as: UInt64.self) == 0x9fe0_0000)
        #expect(try machine.memory.load(0x1038, as: UInt64.self) == 0x8020_0000)
    }

    @Test("an ELF firmware is loaded by its segments and started at its entry")
    func elf() throws {
        var bytes = [UInt8](repeating: 0, count: 0x200)
        func put(_ value: UInt64, _ offset: Int, _ count: Int) {
            for index in 0..<count { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8)) }
        }
        bytes.replaceSubrange(0..<6, with: [0x7f, 0x45, 0x4c, 0x46, 2, 1])
        put(2, 0x10, 2)
        put(243, 0x12, 2)
        put(0x8000_1004, 0x18, 8)
        put(0x40, 0x20, 8)
        put(56, 0x36, 2)
        put(1, 0x38, 2)
        put(1, 0x40, 4)
        put(0x100, 0x48, 8)
        put(0x8000_1000, 0x58, 8)
        put(8, 0x60, 8)
        put(0x3000, 0x68, 8)
        for index in 0..<8 { bytes[0x100 + index] = UInt8(0xa0 + index) }
        let good = try ScratchFile(bytes)
        let machine = try machine { $0.firmwarePath = good.path }
        defer { machine.shutDown() }
        try machine.memory.write(0x8000_3ffe, [7, 7, 7])
        try machine.loadImages()
        #expect(
            try machine.memory.bytes(at: 0x8000_1000, count: 9) == [0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0])
        #expect(try machine.memory.bytes(at: 0x8000_3ffe, count: 3) == [0, 0, 7])
        #expect(try machine.memory.load(0x1018, as: UInt64.self) == 0x8000_1004)

        for (length, word) in [(0x20, "truncated"), (0x60, "truncated"), (0x104, "truncated")] {
            let cut = try ScratchFile(Array(bytes.prefix(length)))
            try expectFailure(word) { $0.firmwarePath = cut.path }
        }
        put(62, 0x12, 2)
        let foreign = try ScratchFile(bytes)
        try expectFailure("not for 64-bit RISC-V") { $0.firmwarePath = foreign.path }
        put(243, 0x12, 2)
        put(0x7000_0000, 0x58, 8)
        let outside = try ScratchFile(bytes)
        try expectFailure("does not fit") { $0.firmwarePath = outside.path }
    }

    @Test(
        "what cannot be loaded is named",
        arguments: [
            ([0x1f, 0x8b, 8, 0], "gzip"), (Array("MZ\0\0zimg".utf8), "zboot"),
            ([0x7f, 0x45, 0x4c, 0x46], "an ELF file"),
            ([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0], "xz"), ([1, 2, 3], "truncated"), ([], "empty"),
        ] as [([UInt8], String)])
    func notAKernel(head: [UInt8], word: String) throws {
        let firmware = try ScratchFile([1])
        let file = try ScratchFile(head)
        try expectFailure(word) {
            $0.memoryByteCount = 128 << 20
            $0.firmwarePath = firmware.path
            $0.kernelPath = file.path
        }
    }

    @Test("a missing file is named")
    func missing() throws {
        try expectFailure("firmware /nonexistent/firmware: no such file") { $0.firmwarePath = "/nonexistent/firmware" }
        try expectFailure("kernel /nonexistent/Image: no such file") {
            $0.memoryByteCount = 128 << 20
            $0.kernelPath = "/nonexistent/Image"
        }
        try expectFailure("not a regular file") { $0.firmwarePath = "/tmp" }
        try expectFailure("neither a kernel nor a firmware") { _ in }
    }

    @Test("a Linux kernel in less than 96 MiB is refused before anything is read")
    func tooLittle() throws {
        try expectFailure("at least 96 MiB of RAM, the guest has 64 MiB") {
            $0.memoryByteCount = 64 << 20
            $0.kernelPath = "/nonexistent/Image"
        }
    }

    @Test("an initrd that would not fit is refused with the numbers")
    func initrdTooLarge() throws {
        let firmware = try ScratchFile([1])
        let image = try ScratchFile(kernel())
        let initrd = try ScratchFile([UInt8](repeating: 1, count: 47 << 20))
        try expectFailure("does not fit") {
            $0.memoryByteCount = 96 << 20
            $0.firmwarePath = firmware.path
            $0.kernelPath = image.path
            $0.initrdPath = initrd.path
        }
    }

    @Test("a kernel whose header claims more than there is is refused")
    func kernelTooLarge() throws {
        let firmware = try ScratchFile([1])
        let image = try ScratchFile(kernel(imageByteCount: 200 << 20))
        try expectFailure("does not fit") {
            $0.memoryByteCount = 128 << 20
            $0.firmwarePath = firmware.path
            $0.kernelPath = image.path
        }
        let damaged = try ScratchFile(kernel(imageByteCount: .max))
        try expectFailure("damaged") {
            $0.memoryByteCount = 128 << 20
            $0.firmwarePath = firmware.path
            $0.kernelPath = damaged.path
        }
    }
}
