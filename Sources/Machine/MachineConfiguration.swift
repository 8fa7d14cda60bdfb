package import GuestMemory

extension MemoryBackend: Codable {}

/// What a `virt` machine is made of, without the things of the host that stand behind its devices. Two machines of equal
/// configuration accept each other's state.
package struct MachineConfiguration: Codable, Hashable, Sendable {
    package static let hartCountRange = 1...8
    /// Bytes. The upper limit keeps RAM below the addresses that 39 bits reach.
    package static let memoryByteCountRange: ClosedRange<UInt64> = 4 << 20...128 << 30
    package static let deviceCountMax = 8
    package static let commandLineByteCountMax = 4096

    /// Which generation of the virtio register file the slots have.
    package enum VirtioGeneration: String, Codable, Sendable { case legacy, modern }

    /// A virtio device in one of the slots.
    package struct Device: Codable, Hashable, Sendable {
        package enum Kind: String, Codable, Sendable { case block, network, console, entropy }
        package var kind: Kind
        /// Names the backend in ``MachineBackends``; unique among devices of the machine.
        package var identifier: String
        /// Six bytes, for a network device.
        package var macAddress: [UInt8]?
        /// 0 to 7; nil takes the highest that is free.
        package var slot: Int?
        /// Serial number of a block device, as the guest sees it; at most 20 bytes of ASCII.
        package var serial: String?

        package init(
            kind: Kind, identifier: String, macAddress: [UInt8]? = nil, serial: String? = nil, slot: Int? = nil
        ) {
            self.kind = kind
            self.identifier = identifier
            self.macAddress = macAddress
            self.serial = serial
            self.slot = slot
        }
    }

    /// Bytes of RAM; a multiple of the page size.
    package var memoryByteCount: UInt64 = 512 << 20
    package var memoryBackend: MemoryBackend = .memfd
    package var hartCount = 1
    /// As ``RISCVConfiguration`` takes it; nil is everything there is.
    package var isa: String?
    /// What runs first, in machine mode: a flat binary or an ELF file. Nil with a kernel takes the host's OpenSBI.
    package var firmwarePath: String?
    /// A flat RISC-V Linux `Image`.
    package var kernelPath: String?
    package var initrdPath: String?
    package var kernelCommandLine = ""
    package var virtio = VirtioGeneration.modern
    /// What QueueNumMax answers at most: 1024 for a guest of QEMU 7.2, nil is each queue's default.
    package var queueSizeLimit: UInt16?
    /// In the order of the command line: the first takes the highest slot.
    package var devices: [Device] = []

    package init() {}

    /// Throws ``MachineError/configuration(_:)`` for what no machine can be.
    func validate() throws(MachineError) {
        guard Self.memoryByteCountRange.contains(memoryByteCount) else {
            throw .configuration(
                "RAM must be between \(Self.memoryByteCountRange.lowerBound >> 20) MiB and "
                    + "\(Self.memoryByteCountRange.upperBound >> 30) GiB, not \(memoryByteCount) bytes")
        }
        guard memoryByteCount % UInt64(guestPageSize) == 0 else {
            throw .configuration("RAM must be a multiple of \(guestPageSize) bytes, not \(memoryByteCount)")
        }
        guard Self.hartCountRange.contains(hartCount) else {
            throw .configuration(
                "there can be \(Self.hartCountRange.lowerBound) to \(Self.hartCountRange.upperBound) harts, not \(hartCount)"
            )
        }
        guard devices.count <= Self.deviceCountMax else {
            throw .configuration("there are \(Self.deviceCountMax) virtio slots, not \(devices.count)")
        }
        guard Set(devices.map(\.identifier)).count == devices.count else {
            throw .configuration("two devices have the same identifier")
        }
        let slots = devices.compactMap(\.slot)
        guard Set(slots).count == slots.count, slots.allSatisfy({ (0..<Self.deviceCountMax).contains($0) }) else {
            throw .configuration("two devices want the same virtio slot, or one that is not there")
        }
        for device in devices {
            if let address = device.macAddress, address.count != 6 || address[0] & 1 != 0 {
                throw .configuration(
                    "device \(device.identifier): a MAC address has six bytes and is not a multicast one")
            }
        }
        guard kernelCommandLine.utf8.count < Self.commandLineByteCountMax, !kernelCommandLine.utf8.contains(0) else {
            throw .configuration("the kernel command line is longer than \(Self.commandLineByteCountMax - 1) bytes")
        }
        if let queueSizeLimit, queueSizeLimit.nonzeroBitCount != 1 || queueSizeLimit > 1024 {
            throw .configuration("a queue size is a power of two up to 1024, not \(queueSizeLimit)")
        }
        if kernelPath == nil, initrdPath != nil {
            throw .configuration("an initrd needs a kernel")
        }
    }
}
