package import ComponentState
import DeviceModel
import GuestMemory
import HostBackends
import Machine
package import MigrationEngine
package import MigrationStream

/// Rewrites the state of a `virt` machine from one stock release's layout to another's.
///
/// Only what differs between them goes through components of ours: processors, their timers, and what they take the time
/// from. Everything else passes as it came. The machine that the components belong to never has the guest's memory.
package struct BridgeRewriter: StreamRelay.Rewriter {
    let target: StateLayout
    /// What the user says the source is; nil takes what comes.
    let expected: StateLayout?
    /// What the destination may have to be started with, should it refuse.
    package private(set) var hints: [String] = []
    private var tree: [UInt8] = []
    private var treeOffset: UInt64?

    /// Whether queues that the destination cannot have are refused.
    private let judgesQueues: Bool

    package init(target: StateLayout, expected: StateLayout? = nil, judgesQueues: Bool = true) {
        self.target = target
        self.judgesQueues = judgesQueues
        self.expected = expected
    }

    /// ACPI tables are the destination's own, and QEMU 7.2's `virt` has none.
    package func drops(block name: String) -> Bool { target == .qemu7_2 && VirtMachine.surplusBlocks[name] != nil }

    package var passesSwitchoverStart: Bool { target != .qemu7_2 }

    // MARK: The device tree

    /// A device tree begins at a multiple of 2 MiB; its first pages are kept, the last copy wins.
    package mutating func look(at page: UnsafeRawBufferPointer, block: String, offset: UInt64) {
        guard block == "riscv_virt_board.ram" else { return }
        if offset & 0x1f_ffff == 0, unsafe page.starts(with: GuestDeviceTree.magic) {
            treeOffset = offset
            if tree.isEmpty { tree = [UInt8](repeating: 0, count: GuestDeviceTree.byteCountMax) }
        }
        guard let start = treeOffset, offset >= start, offset - start < UInt64(tree.count) else { return }
        let position = Int(offset - start)
        unsafe tree.replaceSubrange(position..<(position + page.count), with: page)
    }

    // MARK: State

    /// Sections that go through components.
    private static let rewritten: Set<String> = ["timer", "cpu_common", "cpu", "riscv_mtimer"]
    /// Sections that QEMU 7.2 does not have.
    private static let unknownTo7: Set<String> = ["virt_acpi_build"]

    package mutating func rewrite(_ sections: [UnreadSection], _ description: inout VMDescription?) throws
        -> [UnreadSection]
    {
        let harts = sections.filter { $0.header.name == "cpu" }
        guard let version = harts.first?.header.version,
            let layout = StateLayout.allCases.first(where: { $0 != .native && Self.processorVersion($0) == version })
        else {
            throw Refusal(
                "section cpu has \(harts.first.map { "version \($0.header.version)" } ?? "not come"); the source must be one of "
                    + RunConfiguration.compatibleReleases.joined(separator: ", "))
        }
        if let expected, expected != layout {
            throw Refusal("the source is \(layout.rawValue), --source says \(expected.rawValue)")
        }
        if let tree = GuestDeviceTree(tree), let reason = VirtMachine.obstacle(offered: tree.extensions, to: target) {
            throw Refusal("\(reason); it can only go where those are")
        }
        if target == .qemu11_1, judgesQueues {
            let queues = sections.compactMap { QueueSizes($0) }
            if let reason = queues.lazy.compactMap(\.obstacle).first {
                throw Refusal("\(reason); start the source without the device")
            }
            hints = queues.compactMap(\.hint)
        }
        let machine = try Self.machine(hartCount: harts.count)
        defer { machine.shutDown() }
        var register = SectionRegister(
            components: machine.components.filter { Self.rewritten.contains($0.sectionName) }, layouts: [layout])
        for section in sections where needsComponent(section) {
            let component = try component(of: section, in: machine)
            if Self.rewritten.contains(section.header.name) {
                _ = try register.begin(
                    name: section.header.name, instance: section.header.instance, version: section.header.version)
            }
            var cursor = StreamCursor(section.body + [RecordType.sectionFooter.rawValue], isFinal: true)
            do throws(StreamError) {
                try SectionDecoder.decode(component, header: section.header, layout: layout, from: &cursor)
            } catch { throw Refusal("section \(section.name) was not taken: \(error)") }
            guard cursor.remaining == 1 else {
                throw Refusal("section \(section.name) has \(cursor.remaining - 1) bytes more than its fields")
            }
        }
        try register.requireAll()
        var result: [UnreadSection] = []
        for section in sections {
            guard needsComponent(section) else {
                result.append(section)
                continue
            }
            let place = description?.devices.firstIndex {
                $0.name == section.header.name && $0.instance == section.header.instance
            }
            let rewritten =
                target == .qemu7_2 && Self.unknownTo7.contains(section.header.name)
                ? nil : try encode(try component(of: section, in: machine), as: section)
            if let rewritten { result.append(rewritten.section) }
            guard let place else { continue }
            if let structure = rewritten?.structure {
                description?.devices[place].content = structure
                description?.devices[place].undescribedByteCount = nil
            } else {
                description?.devices.remove(at: place)
            }
        }
        return result
    }

    /// Sizes of ACPI tables are part of the firmware's device, where there are such tables.
    private func needsComponent(_ section: UnreadSection) -> Bool {
        Self.rewritten.contains(section.header.name)
            || target == .qemu7_2 && (section.header.name == "fw_cfg" || Self.unknownTo7.contains(section.header.name))
    }

    private func component(of section: UnreadSection, in machine: VirtMachine) throws -> any StatefulComponent {
        guard
            let component = machine.components.first(where: {
                $0.sectionName == section.header.name && $0.instance == section.header.instance
            })
        else { throw Refusal("section \(section.name) belongs to no machine virt") }
        return component
    }

    private func encode(
        _ component: any StatefulComponent, as section: UnreadSection
    ) throws -> (section: UnreadSection, structure: StructureDescription?)? {
        guard let version = component.sectionVersion(for: target) else { return nil }
        let writer = StreamWriter()
        let encoder = VMStateEncoder(
            to: writer, component: component.sectionName, version: version, layout: target, describing: true)
        var coder: any StateCoder = encoder
        try component.codeState(with: &coder)
        var result = section
        result.header.version = version
        result.body = writer.bytes
        return (result, encoder.structure)
    }

    private static func processorVersion(_ layout: StateLayout) -> UInt32 {
        switch layout {
        case .qemu7_2: 5
        case .native, .qemu10_0: 10
        case .qemu11_1: 12
        }
    }

    /// Processors and platform devices; the little memory it has is never looked at.
    private static func machine(hartCount: Int) throws -> VirtMachine {
        var configuration = MachineConfiguration()
        configuration.memoryByteCount = MachineConfiguration.memoryByteCountRange.lowerBound
        configuration.memoryBackend = .anonymous
        configuration.hartCount = hartCount
        configuration.isa = VirtMachine.isaForArrivals
        return try VirtMachine(configuration: configuration, backends: MachineBackends(serial: NullConsole()))
    }
}
