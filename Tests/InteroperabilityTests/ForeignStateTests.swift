import ComponentState
import DeviceModel
import GuestMemory
import Machine
import MigrationStream
import Testing

/// What may come back otherwise, and why: the beginning of a line of ``StreamDifference``.
private let tolerated = [
    // The host's cycle counter; nothing of the guest's depends on it.
    "timer.cpu_ticks_offset: ",
    // Releases that arm no timer again get its interrupt as pending.
    "cpu_common.interrupt_request: 0, 2", "cpu.env.mip: 0, 0x20",
    // No reservation survives a move, and the value of the last trap is nowhere to be read.
    "cpu.env.load_val: ", "cpu.env.load_res: ", "cpu.env.badaddr: ",
    // This hart has no hypervisor extension: a guest that uses it is refused.
    "cpu.env.misa_ext: 0x1411ad, 0x14112d", "cpu.env.misa_ext_mask: 0x1411ad, 0x14112d",
    "cpu.env.mideleg: 0x1444, 0", "cpu.env.mideleg: 0x1666, 0x222", "cpu.env.medeleg: 0xf0b509, 0xb109",
    // Nor has it debug triggers, which are refused when set, nor counters of events.
    "cpu cpu/debug: only in the first", "cpu.env.mhpmevent_val[", "cpu.env.pmu_ctrs[3].",
    "cpu.env.pmu_ctrs[0].started: ", "cpu.env.pmu_ctrs[1].started: ", "cpu.env.pmu_ctrs[2].started: ",
    // Bits that are not there: of 64 only 32, of a PMP address only 54.
    "cpu.env.mcounteren: 0xffffffffffffffff, 0xffffffff",
    "cpu cpu/pmp.env.pmp_state.pmp[2].addr_reg: 0xffffffffffffffff, 0x3fffffffffffff",
    "cpu cpu/pmp.env.pmp_state.pmp[7].addr_reg: 0xffffffffffffffff, 0x3fffffffffffff",
    // Version 1.13 of the privileged architecture; this one is 1.12.
    "cpu.env.priv_ver: 3, 2",
]

/// The name of the component without the path of its bus.
private func lastName(_ name: String) -> String { name.split(separator: "/").last.map(String.init) ?? name }

@Suite("State that QEMU wrote")
struct ForeignStateTests {
    static let streams = [
        "virt-7.2", "virt-10.0", "virt-plain-7.2", "virt-plain-10.0", "virt-2-harts-7.2", "virt-devices-7.2",
        "virt-devices-10.0", "booted-legacy-7.2", "booted-legacy-10.0", "booted-modern-7.2", "booted-modern-10.0",
        "booted-plain-7.2", "booted-plain-10.0",
    ]

    @Test("every section is taken, and written again the same", arguments: streams)
    func taken(name: String) throws {
        let stream = try CapturedStream(name)
        let machine = try machine(for: stream)
        let components = machine.components
        // The user network of the host's is nothing of the guest's.
        for section in stream.sections where section.header.name != "slirp" {
            let header = section.header
            guard
                let component = components.first(where: {
                    $0.sectionName == header.name && $0.instance == header.instance
                })
            else {
                Issue.record("nobody takes \(header.name) \(header.instance)")
                continue
            }
            #expect(component.sectionVersion(for: stream.layout) == header.version, "\(header.name)")
            var cursor = StreamCursor(section.body + [RecordType.sectionFooter.rawValue], isFinal: true)
            do {
                try SectionDecoder.decode(component, header: header, layout: stream.layout, from: &cursor)
            } catch {
                Issue.record("\(header.name) \(header.instance): \(error), in \(section.field(at: Int(error.offset)))")
                continue
            }
            #expect(
                cursor.remaining == 1, "\(header.name): \(cursor.remaining - 1) of \(section.body.count) bytes are left"
            )
            let writer = StreamWriter()
            let encoder = VMStateEncoder(
                to: writer, component: header.name, version: header.version, layout: stream.layout, describing: true)
            var coder: any StateCoder = encoder
            try component.codeState(with: &coder)
            if ["cpu", "cpu_common", "timer"].contains(header.name) {
                try compareFields(section, encoder, writer.bytes)
            } else {
                compareBytes(section, writer.bytes)
            }
        }
        let names = Set(stream.sections.map { "\($0.header.name) \($0.header.instance)" })
        for component in components where component.sectionVersion(for: stream.layout) != nil {
            #expect(
                names.contains("\(component.sectionName) \(component.instance)"),
                "QEMU has no section \(component.sectionName)")
        }
    }

    /// Every field that QEMU has, by QEMU's name, and no other.
    private func compareFields(
        _ section: CapturedStream.Section, _ encoder: VMStateEncoder, _ bytes: [UInt8]
    ) throws {
        let theirs = try #require(section.device).content
        var cursor = StreamCursor(section.body, isFinal: true)
        let wanted = try DissectedStructure.decode(theirs, from: &cursor)
        cursor = StreamCursor(bytes, isFinal: true)
        let found = try DissectedStructure.decode(#require(encoder.structure), from: &cursor)
        #expect(cursor.isAtEnd)
        for line in StreamDifference.lines(lastName(section.header.name), wanted, found)
        where !tolerated.contains(where: line.hasPrefix) {
            Issue.record("\(line)")
        }
    }

    private func compareBytes(_ section: CapturedStream.Section, _ bytes: [UInt8]) {
        var found = bytes
        if section.header.name.hasPrefix("virtio-mmio"), found.count == section.body.count, section.body[12] == 0 {
            // Of a device no driver has touched QEMU writes a configuration space it has not filled in yet.
            let byteCount = Int(section.body[23])
            found.replaceSubrange(24..<24 + byteCount, with: section.body[24..<24 + byteCount])
        }
        guard found != section.body else { return }
        let same = zip(found, section.body).prefix { $0 == $1 }.count
        Issue.record(
            """
            \(section.header.name) \(section.header.instance): \(found.count) bytes for \(section.body.count), other from \
            \(same) on, in \(section.field(at: same)): \(found.dropFirst(same).prefix(8)), not \
            \(section.body.dropFirst(same).prefix(8))
            """)
    }

    @Test("RAM blocks have QEMU's names, sizes and order", arguments: streams)
    func blocks(name: String) throws {
        let stream = try CapturedStream(name)
        let machine = try machine(for: stream)
        // QEMU puts the largest first; ours stand as with 64 MiB of RAM and more.
        let names = machine.ramBlocks.map(\.name)
        #expect(names.sorted() == stream.blocks.map(\.name).sorted())
        if machine.configuration.memoryByteCount >= 64 << 20 { #expect(names == stream.blocks.map(\.name)) }
        for block in machine.ramBlocks {
            #expect(stream.blocks.first { $0.name == block.name }?.byteCount == UInt64(block.byteCount))
        }
        #expect(stream.configuration?.machineName == VirtMachine.machineName)
    }
}
