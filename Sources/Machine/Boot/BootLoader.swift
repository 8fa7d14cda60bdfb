import Glibc
import GuestMemory
import RISCVProcessor

/// Puts everything a guest starts from into its memory, as QEMU's `virt` does: reset code, firmware, kernel, initrd and
/// device tree.
///
/// Done before the first instruction and again at every reset, from the files as they are then.
struct BootLoader {
    let configuration: MachineConfiguration
    let isa: RISCVConfiguration
    let virtioSlots: [Int]
    let memory: GuestMemory
    let mrom: RAMBlock

    private static let megabyte: UInt64 = 1 << 20
    private static let alignment: UInt64 = 2 << 20
    /// QEMU puts an initrd half the RAM behind the kernel, but not further than this.
    private static let initrdDistanceMax: UInt64 = 128 << 20
    /// The device tree stays below 3 GiB, where firmware of 32 bits reaches it.
    private static let deviceTreeEndMax: UInt64 = 3 << 30

    /// Where OpenSBI lies on hosts that have it installed; the first that exists is taken.
    static let firmwarePaths = [
        "/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin",
        "/usr/share/qemu/opensbi-riscv64-generic-fw_dynamic.bin",
        "/usr/share/opensbi/generic/fw_dynamic.bin",
    ]

    private var ramEnd: UInt64 { VirtMemoryMap.ram + configuration.memoryByteCount }

    /// True when there is nothing to start: a machine that waits for a state from elsewhere.
    static func isEmpty(_ configuration: MachineConfiguration) -> Bool {
        configuration.firmwarePath == nil && configuration.kernelPath == nil
    }

    func load() throws(MachineError) {
        var kernelFile: ImageFile?
        if let path = configuration.kernelPath {
            guard configuration.memoryByteCount >= LinuxImage.memoryByteCountMin else {
                throw .tooLittleMemory(
                    "a Linux kernel needs at least \(LinuxImage.memoryByteCountMin / Self.megabyte) MiB of RAM, "
                        + "the guest has \(configuration.memoryByteCount / Self.megabyte) MiB")
            }
            kernelFile = try ImageFile(path: path, role: .kernel)
        }
        let firmware = try loadFirmware(path: firmwarePath())
        var used = [firmware.range]
        var kernelEntry: UInt64 = 0
        var initrd: Range<UInt64>?
        if let kernelFile {
            let kernel = try place(kernelFile, after: firmware.range.upperBound)
            kernelEntry = kernel.lowerBound
            used.append(kernel)
            if let path = configuration.initrdPath {
                let range = try loadInitrd(path: path, kernelStart: kernel.lowerBound, used: used)
                used.append(range)
                initrd = range
            }
        }
        let deviceTree = try loadDeviceTree(initrd: initrd, used: used)
        writeResetCode(firmwareEntry: firmware.entry, deviceTree: deviceTree, kernelEntry: kernelEntry)
    }

    // MARK: Firmware

    private func firmwarePath() throws(MachineError) -> String {
        if let path = configuration.firmwarePath { return path }
        for path in Self.firmwarePaths where unsafe access(path, R_OK) == 0 { return path }
        throw .configuration(
            "no OpenSBI firmware on this host (looked for \(Self.firmwarePaths.joined(separator: ", "))); "
                + "install the package opensbi or name a file with --firmware")
    }

    /// Entry point, and the RAM it takes.
    private func loadFirmware(path: String) throws(MachineError) -> (entry: UInt64, range: Range<UInt64>) {
        let file = try ImageFile(path: path, role: .firmware)
        let head = try file.head(0x206)
        guard head.starts(with: ELFImage.magic) else {
            if let kind = ImageFile.kind(of: head), !head.starts(with: Array("MZ".utf8)) {
                throw file.failure("neither a flat binary nor an ELF file but \(kind)")
            }
            let range = try fit(file, at: VirtMemoryMap.ram, byteCount: UInt64(file.byteCount), used: [])
            try file.load(into: memory, at: VirtMemoryMap.ram)
            return (VirtMemoryMap.ram, range)
        }
        let image = try ELFImage(file)
        var top = VirtMemoryMap.ram
        for segment in image.segments {
            let range = try fit(file, at: segment.address, byteCount: segment.memoryByteCount, used: [])
            try file.load(
                offset: segment.fileOffset, byteCount: segment.fileByteCount, into: memory, at: segment.address)
            try clear(segment.address + UInt64(segment.fileByteCount)..<range.upperBound)
            top = max(top, range.upperBound)
        }
        guard (VirtMemoryMap.ram..<ramEnd).contains(image.entry) else {
            throw file.failure("its entry point 0x\(String(image.entry, radix: 16)) is not in RAM")
        }
        return (image.entry, VirtMemoryMap.ram..<top)
    }

    /// Zeroes what an ELF segment has in memory but not in its file, page by page where it is not zero already.
    private func clear(_ range: Range<UInt64>) throws(MachineError) {
        let zeros = [UInt8](repeating: 0, count: guestPageSize)
        var address = range.lowerBound
        while address < range.upperBound {
            let piece = Int(min(UInt64(guestPageSize) - address % UInt64(guestPageSize), range.upperBound - address))
            do {
                if try memory.bytes(at: address, count: piece).contains(where: { $0 != 0 }) {
                    try memory.write(address, Array(zeros.prefix(piece)))
                }
            } catch { throw .tooLittleMemory(error.description) }
            address += UInt64(piece)
        }
    }

    // MARK: Kernel and initrd

    /// Loads the kernel and answers what it takes, its uninitialised data included.
    private func place(_ file: ImageFile, after firmwareEnd: UInt64) throws(MachineError) -> Range<UInt64> {
        let image = try LinuxImage(file)
        let wanted = VirtMemoryMap.ram + max(image.textOffset, Self.alignment)
        let start = max(wanted, (firmwareEnd + Self.alignment - 1) / Self.alignment * Self.alignment)
        let range = try fit(file, at: start, byteCount: image.memoryByteCount, used: [])
        try file.load(into: memory, at: start)
        return range
    }

    private func loadInitrd(path: String, kernelStart: UInt64, used: [Range<UInt64>]) throws(MachineError) -> Range<
        UInt64
    > {
        let file = try ImageFile(path: path, role: .initrd)
        let start = kernelStart + min(configuration.memoryByteCount / 2, Self.initrdDistanceMax)
        let range = try fit(file, at: start, byteCount: UInt64(file.byteCount), used: used)
        try file.load(into: memory, at: start)
        return range
    }

    /// Refuses what would not lie in RAM whole or would lie over something else.
    private func fit(_ file: ImageFile, at address: UInt64, byteCount: UInt64, used: [Range<UInt64>])
        throws(MachineError)
        -> Range<UInt64>
    {
        guard address >= VirtMemoryMap.ram, address < ramEnd, byteCount <= ramEnd - address else {
            throw .tooLittleMemory(
                "\(file.role.rawValue) \(file.path) does not fit: \(byteCount) bytes at 0x\(String(address, radix: 16)), "
                    + "RAM is 0x\(String(VirtMemoryMap.ram, radix: 16)) to 0x\(String(ramEnd, radix: 16))")
        }
        let range = address..<address + byteCount
        if let other = used.first(where: { $0.overlaps(range) }) {
            throw .tooLittleMemory(
                "\(file.role.rawValue) \(file.path) does not fit: \(byteCount) bytes at 0x\(String(address, radix: 16)) "
                    + "would lie over 0x\(String(other.lowerBound, radix: 16)) to 0x\(String(other.upperBound, radix: 16)); "
                    + "give the guest more RAM")
        }
        return range
    }

    // MARK: Device tree and reset code

    /// Answers where the device tree lies.
    private func loadDeviceTree(initrd: Range<UInt64>?, used: [Range<UInt64>]) throws(MachineError) -> UInt64 {
        let seed = (0..<32).map { _ in UInt8.random(in: .min ... .max) }  // The host's own generator.
        let tree = VirtDeviceTree(
            memoryByteCount: configuration.memoryByteCount, hartCount: configuration.hartCount, isa: isa,
            virtioSlots: virtioSlots, commandLine: configuration.kernelCommandLine, initrd: initrd, randomSeed: seed)
        let blob = tree.flattened()
        let end = min(ramEnd, Self.deviceTreeEndMax)
        let address = (end - UInt64(blob.count)) / Self.alignment * Self.alignment
        let range = address..<address + UInt64(blob.count)
        guard address >= VirtMemoryMap.ram, !used.contains(where: { $0.overlaps(range) }) else {
            throw .tooLittleMemory(
                "no room for the device tree at 0x\(String(address, radix: 16)); give the guest more RAM")
        }
        do { try memory.write(address, blob) } catch { throw .tooLittleMemory(error.description) }
        return address
    }

    /// The first instructions of every hart, and the record by which OpenSBI learns what comes after it.
    ///
    /// Source: OpenSBI `docs/firmware/fw_dynamic.md`.
    private func writeResetCode(firmwareEntry: UInt64, deviceTree: UInt64, kernelEntry: UInt64) {
        let code: [UInt32] = [
            0x0000_0297,  // auipc t0, 0
            0x0282_8613,  // addi  a2, t0, 0x28: the record
            0xf140_2573,  // csrr  a0, mhartid
            0x0202_b583,  // ld    a1, 0x20(t0): the device tree
            0x0182_b283,  // ld    t0, 0x18(t0): the firmware
            0x0002_8067,  // jr    t0
        ]
        let supervisorMode: UInt64 = 1
        let record: [UInt64] = [firmwareEntry, deviceTree, 0x4942_534f, 2, kernelEntry, supervisorMode, 0, 0]
        var bytes: [UInt8] = []
        for word in code { for shift in 0..<4 { bytes.append(UInt8(truncatingIfNeeded: word >> UInt32(shift * 8))) } }
        for word in record { for shift in 0..<8 { bytes.append(UInt8(truncatingIfNeeded: word >> UInt64(shift * 8))) } }
        unsafe bytes.withUnsafeBytes { unsafe mrom.base.copyMemory(from: $0.baseAddress!, byteCount: bytes.count) }
        mrom.dirty.mark(offset: 0, byteCount: bytes.count)
        // Read-only to the guest, so the host's write is announced by hand.
        memory.markWritten(address: VirtMemoryMap.mrom, byteCount: bytes.count)
    }
}
