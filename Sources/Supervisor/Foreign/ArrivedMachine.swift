import ComponentState
import GuestMemory
import LinuxCalls
import Machine
import MigrationEngine
import MigrationStream

/// What a stream says of the machine that its guest is on, as far as one of ours can be like it.
struct ArrivedMachine {
    /// Which of the flags the user gave; what they say wins over the stream.
    struct Given: Sendable {
        var memory = false
        var processorCount = false
        var isa = false
        var virtio = false
    }

    private static let virtioPrefix = "virtio-mmio@"

    private struct Device {
        var slot: Int
        /// QEMU's name: `virtio-blk`.
        var name: String
        var section: UnreadSection
    }

    let contents: StreamArrival.Contents
    /// What the user may want to know.
    private(set) var notices: [String] = []

    init(_ contents: StreamArrival.Contents) { self.contents = contents }

    // MARK: RAM

    /// Blocks for what a stream lists, before its pages come.
    /// - Parameter files: Memory that is here already, by block name.
    static func makeBlocks(
        _ list: [RAMBlockDescription], _ configuration: RunConfiguration, _ given: Given,
        _ files: [String: OwnedDescriptor] = [:]
    ) throws -> [RAMBlock] {
        let fixed = VirtMachine.fixedBlocks
        for name in [VirtMachine.ramName] + fixed.keys.sorted() where !list.contains(where: { $0.name == name }) {
            throw Refusal("the source has no RAM block \(name); start it with -M virt")
        }
        return try list.map { block in
            if block.name == VirtMachine.ramName {
                var wanted = configuration
                wanted.memory = block.byteCount
                try wanted.validate()
                if given.memory, configuration.memory != block.byteCount {
                    throw Refusal(
                        "the guest has \(SizeText.format(block.byteCount)) of RAM, --memory says "
                            + "\(SizeText.format(configuration.memory)); leave it out")
                }
            } else if let byteCount = fixed[block.name] {
                guard block.byteCount == UInt64(byteCount) else {
                    throw Refusal(
                        "RAM block \(block.name) has \(block.byteCount) bytes, \(byteCount) here; start the source as a "
                            + "plain machine virt")
                }
            } else {
                guard let byteCountMax = VirtMachine.surplusBlocks[block.name], block.byteCount <= byteCountMax else {
                    throw Refusal(
                        "the source has a RAM block \(block.name), which belongs to a device that no machine here has; "
                            + "start it without that device")
                }
                return try RAMBlock(name: block.name, byteCount: Int(block.byteCount), backend: .anonymous)
            }
            if let file = files[block.name] {
                return try RAMBlock(name: block.name, byteCount: Int(block.byteCount), adopting: file)
            }
            // By descriptor into the machine that is to be built.
            return try RAMBlock(name: block.name, byteCount: Int(block.byteCount), backend: .memfd)
        }
    }

    /// The memory for the machine to adopt.
    var files: [String: OwnedDescriptor] {
        Dictionary(
            contents.blocks.compactMap { block in block.file.map { (block.name, $0) } }, uniquingKeysWith: { $1 })
    }

    // MARK: The machine

    /// Completes a configuration by what the stream says.
    /// - Throws: ``Refusal`` that names what is not there.
    mutating func complete(_ configuration: inout RunConfiguration, _ given: Given) throws(Refusal) {
        let harts = contents.sections.filter { $0.header.name == "cpu" }
        guard !harts.isEmpty else { throw Refusal("the stream has no section cpu; start the source with -M virt") }
        if !given.processorCount { configuration.processorCount = harts.count }
        let layout: StateLayout? =
            switch harts[0].header.version {
            case 5: .qemu7_2
            case 10: .qemu10_0
            case 12: .qemu11_1
            default: nil
            }
        guard let layout else {
            throw Refusal(
                "section cpu has version \(harts[0].header.version); the source must be one of "
                    + RunConfiguration.compatibleReleases.joined(separator: ", "))
        }
        for block in contents.blocks where block.name == VirtMachine.ramName {
            configuration.memory = UInt64(block.byteCount)
        }
        configuration.memoryBackend = .memfd
        try completeProcessor(&configuration, given, layout)
        try completeDevices(&configuration, given)
        // Where it came from it can go back to.
        if configuration.compatibility == nil, !isNative { configuration.compatibility = layout }
    }

    /// Another Sidestep writes the native layout, whose processor section has a part of its own.
    private var isNative: Bool {
        contents.sections.contains { $0.header.name == "cpu" && Self.has($0, subsection: "cpu/sidestep") }
    }

    private mutating func completeProcessor(
        _ configuration: inout RunConfiguration, _ given: Given, _ layout: StateLayout
    ) throws(Refusal) {
        guard !given.isa else { return }
        configuration.isa = VirtMachine.isaForArrivals
        guard let ram = contents.blocks.first(where: { $0.name == VirtMachine.ramName }),
            let mrom = contents.blocks.first(where: { $0.name == VirtMachine.mromName }),
            let tree = GuestDeviceTree.find(ram: ram, mrom: mrom)
        else {
            notices.append(
                "what the guest was offered by its processor is not known: there is no device tree in its memory")
            return
        }
        if let reason = VirtMachine.obstacle(offered: tree.extensions, to: .native) {
            throw Refusal("\(reason); start the source's processor without (-cpu rv64,NAME=off)")
        }
    }

    private mutating func completeDevices(_ configuration: inout RunConfiguration, _ given: Given) throws(Refusal) {
        var devices: [Device] = []
        for section in contents.sections where section.header.name.hasPrefix(Self.virtioPrefix) {
            let parts = section.header.name.dropFirst(Self.virtioPrefix.count).split(separator: "/")
            guard parts.count == 2, let address = UInt64(parts[0], radix: 16),
                let slot = VirtMachine.virtioSlot(at: address)
            else { throw Refusal("section \(section.header.name) is in no virtio slot of the machine virt") }
            devices.append(Device(slot: slot, name: String(parts[1]), section: section))
        }
        devices.sort { $0.slot > $1.slot }
        try requireUsed(devices)
        if !given.virtio, let first = devices.first {
            configuration.virtio = Self.isModern(first.section) ? .modern : .legacy
        }
        let disks = devices.filter { $0.name == "virtio-blk" }
        guard configuration.disks.count == disks.count else {
            throw Refusal(
                "the guest has \(disks.count) disks (\(disks.map(Self.describe).joined(separator: ", "))), "
                    + "\(configuration.disks.count) images are given; give --disk once for each, in this order")
        }
        let cards = devices.filter { $0.name == "virtio-net" }
        guard configuration.networks.count <= cards.count else {
            throw Refusal(
                "the guest has \(cards.count) network cards, --net is given \(configuration.networks.count) times")
        }
        for (index, card) in cards.enumerated() {
            if index == configuration.networks.count {
                configuration.networks.append(NetworkConfiguration(kind: .unplugged))
                notices.append("network card \(index + 1) of the guest is not connected: give --net")
            }
            configuration.networks[index].mac = configuration.networks[index].mac ?? Self.macAddress(card.section)
        }
        configuration.slots = try devices.map { (device) throws(Refusal) in
            switch device.name {
            case "virtio-blk": return DeviceSlot(.disk, number: device.slot)
            case "virtio-net": return DeviceSlot(.network, number: device.slot)
            case "virtio-rng": return DeviceSlot(.entropy, number: device.slot)
            case "virtio-console":
                notices.append("nobody is at the guest's virtio console; its serial console is --console")
                return DeviceSlot(.console, number: device.slot)
            default:
                throw Refusal("no machine here has a device \(device.name); start the source without it")
            }
        }
    }

    /// Where no self-description says what must come, the interrupt controller tells which devices a driver uses.
    private func requireUsed(_ devices: [Device]) throws(Refusal) {
        guard !contents.isDescribed,
            let controller = contents.sections.first(where: { $0.header.name == "riscv_sifive_plic" })
        else { return }
        let here = Set(devices.map(\.slot))
        let missing = VirtMachine.virtioSlots(enabledIn: controller.body).filter { !here.contains($0) }
        guard missing.isEmpty else {
            throw Refusal(
                "the stream has no section of the virtio device in slot \(missing.map(String.init).joined(separator: ", ")), which "
                    + "the guest uses; it is damaged, take it from the source again")
        }
    }

    // MARK: What stands in a virtio device's section

    private static let configurationOffset = 24

    private static func configurationBytes(_ section: UnreadSection) -> ArraySlice<UInt8> {
        guard section.body.count >= configurationOffset else { return [] }
        let count = section.body[20..<24].reduce(0) { $0 << 8 | Int($1) }
        guard count <= section.body.count - configurationOffset else { return [] }
        return section.body[configurationOffset..<(configurationOffset + count)]
    }

    private static func describe(_ disk: Device) -> String {
        let sectors = configurationBytes(disk.section).prefix(8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        return sectors == 0 || sectors > 1 << 48 ? "a disk" : SizeText.format(sectors * 512)
    }

    private static func macAddress(_ section: UnreadSection) -> MACAddress? {
        let bytes = Array(configurationBytes(section).prefix(6))
        guard bytes.count == 6, bytes.contains(where: { $0 != 0 }) else { return nil }
        return MACAddress(bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":"))
    }

    /// A transport of the modern kind has its registers in a part of their own.
    private static func isModern(_ section: UnreadSection) -> Bool {
        has(section, subsection: "virtio_mmio/state")
            || has(section, subsection: "virtio/sidestep_queues") && isModernByCompactQueues(section)
    }

    /// Our own layout says so in the first byte of that part.
    private static func isModernByCompactQueues(_ section: UnreadSection) -> Bool {
        guard let position = position(of: "virtio/sidestep_queues", in: section), position + 4 < section.body.count
        else { return false }
        return section.body[position + 4] == 0
    }

    private static func has(_ section: UnreadSection, subsection name: String) -> Bool {
        position(of: name, in: section) != nil
    }

    /// Where the version of a subsection stands.
    private static func position(of name: String, in section: UnreadSection) -> Int? {
        let mark = [RecordType.subsection.rawValue, UInt8(name.utf8.count)] + Array(name.utf8)
        var index = 0
        while index + mark.count <= section.body.count {
            if section.body[index] == mark[0], section.body[index..<index + mark.count].elementsEqual(mark) {
                return index + mark.count
            }
            index += 1
        }
        return nil
    }
}
