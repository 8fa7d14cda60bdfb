import ComponentState
import DeviceModel
import GuestMemory
import PlatformDevices
import VirtioDevices

/// The eight virtio-mmio slots; configured devices take the highest free one.
struct VirtioSlots: Sendable {
    /// Slots with a device behind them.
    let used: [Int]
    let transports: [VirtioMMIOTransport]
    private let networks: [Network]

    private struct Network {
        var identifier: String
        var device: VirtioNetwork
        var transport: VirtioMMIOTransport
    }

    /// - Throws: ``MachineError/configuration(_:)`` for a device without its backend.
    init(
        configuration: MachineConfiguration, backends: MachineBackends, memory: GuestMemory, plic: PLIC
    ) throws(MachineError) {
        var used: [Int] = []
        var transports: [VirtioMMIOTransport] = []
        var networks: [Network] = []
        let places = Self.places(of: configuration.devices)
        for slot in (0..<VirtMemoryMap.virtioSlotCount).reversed() {
            var device: (any VirtioDevice)?
            if let index = places[slot] {
                device = try Self.makeDevice(configuration.devices[index], index: index, backends: backends)
                used.append(slot)
            }
            let transport = VirtioMMIOTransport(
                slotAddress: VirtMemoryMap.virtioAddress(slot: slot), device: device, memory: memory,
                interrupt: plic.line(VirtMemoryMap.firstVirtioInterrupt + slot),
                isLegacy: configuration.virtio == .legacy, queueSizeLimit: configuration.queueSizeLimit)
            if let network = device as? VirtioNetwork, let index = places[slot] {
                networks.append(
                    Network(
                        identifier: configuration.devices[index].identifier, device: network, transport: transport))
            }
            transports.append(transport)
        }
        self.used = used
        self.transports = transports
        self.networks = networks
    }

    /// Which device is in a slot.
    private static func places(of devices: [MachineConfiguration.Device]) -> [Int: Int] {
        var places: [Int: Int] = [:]
        for (index, device) in devices.enumerated() { if let slot = device.slot { places[slot] = index } }
        var free = (0..<VirtMemoryMap.virtioSlotCount).filter { places[$0] == nil }
        for (index, device) in devices.enumerated() where device.slot == nil { places[free.removeLast()] = index }
        return places
    }

    private static func makeDevice(_ device: MachineConfiguration.Device, index: Int, backends: MachineBackends)
        throws(MachineError) -> any VirtioDevice
    {
        func missing(_ what: String) -> MachineError {
            .configuration("\(device.kind.rawValue) device \(device.identifier) has no \(what) behind it")
        }
        switch device.kind {
        case .block:
            guard let backend = backends.blocks[device.identifier] else { throw missing("image") }
            guard backend.byteCount % 512 == 0 else {
                throw .configuration(
                    "block device \(device.identifier): its image has \(backend.byteCount) bytes, not whole sectors of 512"
                )
            }
            return VirtioBlock(backend: backend, serial: device.serial ?? "")
        case .network:
            guard let backend = backends.networks[device.identifier] else { throw missing("network") }
            // QEMU's own prefix, counted up by slot.
            let address = device.macAddress ?? [0x52, 0x54, 0x00, 0x12, 0x34, 0x56 + UInt8(index)]
            return VirtioNetwork(backend: backend, macAddress: address)
        case .console:
            guard let backend = backends.consoles[device.identifier] else { throw missing("console") }
            return VirtioConsole(backend: backend)
        case .entropy: return VirtioEntropy()
        }
    }

    var windows: [Bus.Window] {
        transports.map { Bus.Window(address: $0.slotAddress, byteCount: VirtioMMIOTransport.byteCount, device: $0) }
    }

    /// An empty slot has no state.
    var components: [any StatefulComponent] { transports.filter { $0.isOccupied } }

    /// Has the network cards announced, by the name of their backends; nil is all of them.
    func announceNetworks(_ identifiers: [String]?) {
        for network in networks where identifiers?.contains(network.identifier) ?? true {
            network.device.announce(on: network.transport)
        }
    }
}
