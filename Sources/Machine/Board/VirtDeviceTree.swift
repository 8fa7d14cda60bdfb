import PlatformDevices
import RISCVProcessor

/// The device tree of `virt`: QEMU's nodes and properties for what this machine has.
///
/// Not in it: the PCI host (nothing is behind it), the platform bus (it is empty) and the performance counters.
struct VirtDeviceTree {
    var memoryByteCount: UInt64
    var hartCount: Int
    var isa: RISCVConfiguration
    /// Slots with a device behind them.
    var virtioSlots: [Int]
    var commandLine: String = ""
    /// Guest-physical; nil without an initrd.
    var initrd: Range<UInt64>?
    /// Entropy for the kernel, from the host.
    var randomSeed: [UInt8] = []

    /// References between nodes: the PLIC, the test finisher, then each hart and its interrupt controller.
    private enum Handle {
        static let plic: UInt32 = 1
        static let testFinisher: UInt32 = 2
        static func hart(_ index: Int) -> UInt32 { 3 + UInt32(index) * 2 }
        static func hartInterrupts(_ index: Int) -> UInt32 { 4 + UInt32(index) * 2 }
    }

    func flattened() -> [UInt8] {
        var root = DeviceTreeNode("")
        root.set("#address-cells", cells: 2)
        root.set("#size-cells", cells: 2)
        root.set("compatible", "riscv-virtio")
        root.set("model", "riscv-virtio,qemu")
        var aliases = DeviceTreeNode("aliases")
        aliases.set("serial0", Self.serialPath)
        root.add(aliases)
        root.add(chosen)
        root.add(memory)
        root.add(processors)
        root.add(soc)
        root.add(flash)
        root.add(firmwareConfiguration)
        root.add(Self.system("poweroff", value: 0x5555))
        root.add(Self.system("reboot", value: 0x7777))
        return root.flattened()
    }

    private static let serialPath = "/soc/serial@10000000"

    private static func at(_ name: String, _ address: UInt64) -> DeviceTreeNode {
        DeviceTreeNode("\(name)@\(String(address, radix: 16))")
    }

    private var chosen: DeviceTreeNode {
        var node = DeviceTreeNode("chosen")
        node.set("stdout-path", Self.serialPath)
        if !commandLine.isEmpty { node.set("bootargs", commandLine) }
        if let initrd {
            // One cell each: the initrd's place is always below 4 GiB.
            node.set("linux,initrd-start", cells: UInt32(initrd.lowerBound))
            node.set("linux,initrd-end", cells: UInt32(initrd.upperBound))
        }
        if !randomSeed.isEmpty { node.set("rng-seed", bytes: randomSeed) }
        return node
    }

    private var memory: DeviceTreeNode {
        var node = Self.at("memory", VirtMemoryMap.ram)
        node.set("device_type", "memory")
        node.set("reg", regions: (VirtMemoryMap.ram, memoryByteCount))
        return node
    }

    private var processors: DeviceTreeNode {
        var node = DeviceTreeNode("cpus")
        node.set("#address-cells", cells: 1)
        node.set("#size-cells", cells: 0)
        node.set("timebase-frequency", cells: VirtMemoryMap.timebaseFrequency)
        var cluster = DeviceTreeNode("cluster0")
        for index in 0..<hartCount {
            node.add(hart(index))
            var core = DeviceTreeNode("core\(index)")
            core.set("cpu", cells: Handle.hart(index))
            cluster.add(core)
        }
        var map = DeviceTreeNode("cpu-map")
        map.add(cluster)
        node.add(map)
        return node
    }

    private func hart(_ index: Int) -> DeviceTreeNode {
        var node = Self.at("cpu", UInt64(index))
        node.set("phandle", cells: Handle.hart(index))
        node.set("device_type", "cpu")
        node.set("reg", cells: UInt32(index))
        node.set("status", "okay")
        node.set("compatible", "riscv")
        node.set("riscv,isa", isa.isaString)
        node.set("riscv,isa-base", isa.isaBase)
        node.set("riscv,isa-extensions", isa.isaExtensions)
        node.set("mmu-type", isa.mmuType)
        if let byteCount = isa.cboBlockByteCount {
            if isa.hasZicbom { node.set("riscv,cbom-block-size", cells: byteCount) }
            if isa.hasZicbop { node.set("riscv,cbop-block-size", cells: byteCount) }
            if isa.hasZicboz { node.set("riscv,cboz-block-size", cells: byteCount) }
        }
        var interrupts = DeviceTreeNode("interrupt-controller")
        interrupts.set("#interrupt-cells", cells: 1)
        interrupts.set("interrupt-controller")
        interrupts.set("compatible", "riscv,cpu-intc")
        interrupts.set("phandle", cells: Handle.hartInterrupts(index))
        node.add(interrupts)
        return node
    }

    private var soc: DeviceTreeNode {
        var node = DeviceTreeNode("soc")
        node.set("#address-cells", cells: 2)
        node.set("#size-cells", cells: 2)
        node.set("compatible", "simple-bus")
        node.set("ranges")
        node.add(peripheral("rtc", VirtMemoryMap.rtc, 0x1000, "google,goldfish-rtc", VirtMemoryMap.rtcInterrupt))
        var serial = peripheral("serial", VirtMemoryMap.serial, 0x100, "ns16550a", VirtMemoryMap.serialInterrupt)
        serial.set("clock-frequency", cells: SerialPort.clockFrequency)
        node.add(serial)
        var finisher = Self.at("test", VirtMemoryMap.testFinisher)
        finisher.set("phandle", cells: Handle.testFinisher)
        finisher.set("reg", regions: (VirtMemoryMap.testFinisher, TestFinisher.byteCount))
        finisher.set("compatible", ["sifive,test1", "sifive,test0", "syscon"])
        node.add(finisher)
        for slot in virtioSlots.sorted(by: >) {
            node.add(
                peripheral(
                    "virtio_mmio", VirtMemoryMap.virtioAddress(slot: slot), VirtMemoryMap.virtioStride, "virtio,mmio",
                    VirtMemoryMap.firstVirtioInterrupt + slot))
        }
        node.add(plic)
        node.add(clint)
        return node
    }

    private func peripheral(
        _ name: String, _ address: UInt64, _ byteCount: UInt64, _ compatible: String, _ interrupt: Int
    ) -> DeviceTreeNode {
        var node = Self.at(name, address)
        node.set("interrupts", cells: UInt32(interrupt))
        node.set("interrupt-parent", cells: Handle.plic)
        node.set("reg", regions: (address, byteCount))
        node.set("compatible", compatible)
        return node
    }

    private var plic: DeviceTreeNode {
        var node = Self.at("plic", VirtMemoryMap.plic)
        node.set("phandle", cells: Handle.plic)
        node.set("riscv,ndev", cells: UInt32(PLIC.sourceCount - 1))
        node.set("reg", regions: (VirtMemoryMap.plic, PLIC.byteCount))
        // Machine external (11), then supervisor external (9) of each hart.
        node.set("interrupts-extended", cellList: eachHart { [$0, 11, $0, 9] })
        node.set("interrupt-controller")
        node.set("compatible", ["sifive,plic-1.0.0", "riscv,plic0"])
        node.set("#address-cells", cells: 0)
        node.set("#interrupt-cells", cells: 1)
        return node
    }

    private var clint: DeviceTreeNode {
        var node = Self.at("clint", VirtMemoryMap.aclint)
        // Machine software (3), then machine timer (7) of each hart.
        node.set("interrupts-extended", cellList: eachHart { [$0, 3, $0, 7] })
        node.set("reg", regions: (VirtMemoryMap.aclint, ACLINT.byteCount))
        node.set("compatible", ["sifive,clint0", "riscv,clint0"])
        return node
    }

    private func eachHart(_ cells: (UInt32) -> [UInt32]) -> [UInt32] {
        (0..<hartCount).flatMap { cells(Handle.hartInterrupts($0)) }
    }

    private var flash: DeviceTreeNode {
        var node = Self.at("flash", VirtMemoryMap.flash)
        let byteCount = UInt64(VirtMemoryMap.flashByteCount)
        node.set("bank-width", cells: 4)
        node.set("reg", regions: (VirtMemoryMap.flash, byteCount), (VirtMemoryMap.flash + byteCount, byteCount))
        node.set("compatible", "cfi-flash")
        return node
    }

    private var firmwareConfiguration: DeviceTreeNode {
        var node = Self.at("fw-cfg", VirtMemoryMap.firmwareConfiguration)
        node.set("dma-coherent")
        node.set("reg", regions: (VirtMemoryMap.firmwareConfiguration, FirmwareConfiguration.byteCount))
        node.set("compatible", "qemu,fw-cfg-mmio")
        return node
    }

    /// Poweroff and reboot: a value written to the test finisher.
    private static func system(_ action: String, value: UInt32) -> DeviceTreeNode {
        var node = DeviceTreeNode(action)
        node.set("value", cells: value)
        node.set("offset", cells: 0)
        node.set("regmap", cells: Handle.testFinisher)
        node.set("compatible", "syscon-\(action)")
        return node
    }
}
