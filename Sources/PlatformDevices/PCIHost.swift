package import ComponentState
package import DeviceModel
import Synchronization

/// A PCI Express host with nothing behind it: configuration space in which only the host bridge answers.
///
/// It is here for guests that come from elsewhere and have found it in their device tree; a guest that boots here is not
/// told of it. Its saved state has three sections: the bridge's own and those of the host and the bus.
///
/// Source: PCI Express Base Specification, section 7.2.2 (ECAM); PCI Local Bus Specification 3.0, section 6.1.
package final class PCIHost: BusDevice, StatefulComponent {
    package static let byteCount: UInt64 = 0x1000_0000
    private static let configurationByteCount = 256

    package let name = "pci"
    package let sectionName = "0000:00:00.0/gpex_root"
    package let instance: UInt32 = 0
    package let readableVersions: ClosedRange<UInt32> = 1...1

    private let configuration = Mutex(PCIHost.configurationAfterReset)

    package init() {}

    private static let configurationAfterReset: [UInt8] = {
        var bytes = [UInt8](repeating: 0, count: configurationByteCount)
        bytes.replaceSubrange(0x00..<0x04, with: [0x36, 0x1b, 0x08, 0x00])  // Vendor and device.
        bytes.replaceSubrange(0x09..<0x0c, with: [0x00, 0x00, 0x06])  // Host bridge.
        bytes.replaceSubrange(0x2c..<0x30, with: [0xf4, 0x1a, 0x00, 0x11])  // Subsystem.
        return bytes
    }()

    /// Bits that software may change.
    private static let writable: [UInt8] = {
        var mask = [UInt8](repeating: 0, count: configurationByteCount)
        mask[0x04] = 0x07  // I/O, memory, bus master.
        mask[0x05] = 0x05  // SERR, INTx disable.
        mask[0x0c] = 0xff  // Cache line size.
        mask[0x3c] = 0xff  // Interrupt line.
        for index in 0x40..<configurationByteCount { mask[index] = 0xff }
        return mask
    }()

    // MARK: Registers

    package func load(offset: UInt64, width: AccessWidth) -> UInt64 {
        guard offset <= UInt64(Self.configurationByteCount - width.rawValue) else {
            return width == .eight ? .max : (1 << UInt64(width.rawValue * 8)) - 1  // Nobody there.
        }
        return configuration.withLock { bytes in
            (0..<width.rawValue).reduce(0) { $0 | UInt64(bytes[Int(offset) + $1]) << UInt64($1 * 8) }
        }
    }

    package func store(offset: UInt64, width: AccessWidth, value: UInt64) {
        guard offset <= UInt64(Self.configurationByteCount - width.rawValue) else { return }
        configuration.withLock { bytes in
            for index in 0..<width.rawValue {
                let position = Int(offset) + index
                let mask = Self.writable[position]
                bytes[position] = bytes[position] & ~mask | UInt8(truncatingIfNeeded: value >> UInt64(index * 8)) & mask
            }
        }
    }

    package func reset() { configuration.withLock { $0 = Self.configurationAfterReset } }

    // MARK: State

    package var canGoAhead: Bool { true }

    package func sectionVersion(for layout: StateLayout) -> UInt32? { 1 }

    package func codeState(with coder: inout any StateCoder) throws(StateError) {
        var bytes = configuration.withLock { $0 }
        var interruptLevels = [UInt8](repeating: 0, count: 16)
        try coder.structure("parent_obj", type: "PCIDevice", version: 2) { coder throws(StateError) in
            var version: Int32 = 2
            try coder.int32("version_id", &version)
            try coder.opaque("config[0]", type: "pci config") { coder throws(StateError) in
                try coder.buffer("config[0]", &bytes)
            }
            try coder.opaque("irq_state", type: "pci irq state") { coder throws(StateError) in
                try coder.buffer("irq_state", &interruptLevels)
            }
            guard version == 1 || version == 2 else {
                throw .invalid(component: coder.component, field: "version_id", value: "\(version)")
            }
        }
        guard coder.isDecoding else { return }
        // Another device's configuration space is not this bridge. Status (6 and 7) may differ.
        for index in 0..<0x40 where index != 0x06 && index != 0x07 {
            guard (bytes[index] ^ Self.configurationAfterReset[index]) & ~Self.writable[index] == 0 else {
                throw .invalid(component: coder.component, field: "config[\(index)]", value: "\(bytes[index])")
            }
        }
        let decoded = bytes
        configuration.withLock { $0 = decoded }
    }

    /// The sections of the host and the bus: constants, since no device is there that could change them.
    package var companions: [any StatefulComponent] { [PCIHostSection(), PCIBusSection()] }
}

/// Section `PCIHost`: the latch of the configuration address register, which this kind of host does not have.
private final class PCIHostSection: StatefulComponent {
    let sectionName = "PCIHost"
    let instance: UInt32 = 0
    let readableVersions: ClosedRange<UInt32> = 1...1

    var canGoAhead: Bool { true }

    func sectionVersion(for layout: StateLayout) -> UInt32? { 1 }

    func codeState(with coder: inout any StateCoder) throws(StateError) {
        var address: UInt32 = 0
        try coder.uint32("config_reg", &address)
    }
}

/// Section `PCIBUS`: how many devices hold each of the four interrupt lines.
private final class PCIBusSection: StatefulComponent {
    let sectionName = "PCIBUS"
    let instance: UInt32 = 0
    let readableVersions: ClosedRange<UInt32> = 1...1

    var canGoAhead: Bool { true }

    func sectionVersion(for layout: StateLayout) -> UInt32? { 1 }

    func codeState(with coder: inout any StateCoder) throws(StateError) {
        try coder.int32Equal("nirq", 4)
        for _ in 0..<4 {
            var deviceCount: Int32 = 0
            try coder.int32("irq_count", &deviceCount)
            guard deviceCount == 0 else {
                throw .unsupported(component: coder.component, reason: "a PCI device holds an interrupt line")
            }
        }
    }
}
