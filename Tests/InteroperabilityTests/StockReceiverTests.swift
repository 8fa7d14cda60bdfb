import ComponentState
import Machine
import MigrationStream
import ProcessTestKit
import Testing

/// A QEMU that takes a stream from a file and is asked things over QMP.
private final class StockReceiver {
    let program: RunningProgram

    init(_ path: String, _ arguments: [String], stream: String) throws {
        program = try RunningProgram(
            path,
            arguments + [
                "-S", "-accel", "tcg", "-display", "none", "-serial", "none", "-monitor", "none", "-qmp", "stdio",
                "-incoming", "exec:cat \(stream)",
            ], limitSeconds: 180)
        try program.wait(for: "\"QMP\"", seconds: 60)
        try command("qmp_capabilities")
    }

    @discardableResult func command(_ name: String, _ arguments: String = "{}") throws -> String {
        try program.type("{\"execute\": \"\(name)\", \"arguments\": \(arguments)}\n")
        do {
            return try program.output.wait(seconds: 60, what: "an answer to \(name)") { line in
                line.contains("\"return\"") || line.contains("\"error\"") ? line : nil
            }
        } catch {
            throw ExpectationError.failed(command: name, end: "\(error)", output: program.errors.tail)
        }
    }

    /// Waits until a migration has come to an end, in or out.
    func waitForMigration() throws {
        let deadline = ContinuousClock.now + .seconds(60)
        while true {
            let status = try command("query-migrate")
            if status.contains("\"completed\"") { return }
            guard !status.contains("\"failed\""), ContinuousClock.now < deadline else {
                throw ExpectationError.failed(command: "migrate", end: status, output: program.errors.tail)
            }
        }
    }
}

/// A machine's whole stream, its memory as it is after reset: no page differs from what a receiver has.
private func stream(of machine: VirtMachine, layout: StateLayout) throws -> [UInt8] {
    let writer = StreamWriter()
    writer.writeHeader()
    writer.writeConfiguration(StreamConfiguration(machineName: VirtMachine.machineName))
    let ram = RAMEncoder(
        blocks: machine.ramBlocks.map { RAMBlockDescription(name: $0.name, byteCount: UInt64($0.byteCount)) })
    for kind in [SectionKind.start, .end] {
        writer.beginSection(SectionHeader(kind, id: 1, name: "ram", version: 4))
        if kind == .start { ram.writeBlockList(to: writer) }
        ram.writeEndOfSection(to: writer)
        writer.endSection(id: 1)
    }
    var description: VMDescription? = VMDescription()
    for (index, component) in machine.components.enumerated() {
        try SectionEncoder.encode(
            component, id: UInt32(index + 2), layout: layout, to: writer, description: &description)
    }
    writer.writeEndOfStream()
    writer.writeDescription(description!.json)
    return writer.bytes
}

private let devices = [
    "-device", "virtio-rng-device", "-netdev", "hubport,hubid=0,id=n0", "-device",
    "virtio-net-device,netdev=n0,mac=52:54:00:12:34:56", "-device", "virtio-serial-device", "-chardev", "null,id=c0",
    "-device", "virtconsole,chardev=c0", "-drive", "if=none,id=d0,driver=null-co,size=1048576", "-device",
    "virtio-blk-device,drive=d0",
]

/// What may be otherwise after the way through both machines, and why.
private let tolerated = [
    // Times go on, and a timer that is not armed again is sent as an interrupt (see ForeignStateTests).
    "timer.", "cpu_common.interrupt_request: 0, 2", "cpu.env.mip: 0, 0x20",
    "cpu.env.load_val: ", "cpu.env.load_res: ", "cpu.env.badaddr: ",
    "cpu.env.mhpmevent_val[", "cpu.env.pmu_ctrs[",
    "cpu.env.mcounteren: 0xffffffffffffffff, 0xffffffff", "cpu cpu/pmp.env.pmp_state.pmp[",
    "cpu.env.priv_ver: 3, 2",
    // A device no driver has touched: the receiver fills in its configuration space.
    "virtio-mmio@0000000010007000/virtio-net.virtio: ", "virtio-mmio@0000000010006000/virtio-console.virtio: ",
    "virtio-mmio@0000000010005000/virtio-blk.virtio: ",
    // The clock of the host that the receiver saw.
    "goldfish_rtc.tick_offset",
    // QEMU's clock finds its alarm, which was never set, to have passed when it is loaded.
    "goldfish_rtc.irq_pending: 0, 1",
    // What this hart does not have.
    "cpu.env.misa_ext", "cpu.env.mideleg: 0x1444, 0",
    "cpu cpu/debug.env.trigger_cur: 1, 0",
    // The user network of a stock monitor is read and left out.
    "slirp: only in the first",
    // A guest that ran is stopped here.
    "globalstate.",
]

@Suite("Stock QEMU as the receiver", .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"), .serialized)
struct StockReceiverTests {
    static func analyse(_ path: String) throws -> StreamReport {
        var analysis = StreamAnalysis()
        analysis.input.append(try fileBytes(path))
        try analysis.run(isFinal: true)
        return analysis.report
    }

    /// From QEMU's stream through our machine into a QEMU, and out of that again.
    private func roundTrip(_ name: String, _ program: String, devices: [String], bytes memory: String) throws {
        let captured = try CapturedStream(name)
        let machine = try machine(for: captured, withDevices: !devices.isEmpty)
        var original = StreamReport()
        for section in captured.sections {
            guard
                let component = machine.components.first(where: {
                    $0.sectionName == section.header.name && $0.instance == section.header.instance
                })
            else { continue }
            var cursor = StreamCursor(section.body + [RecordType.sectionFooter.rawValue], isFinal: true)
            try SectionDecoder.decode(component, header: section.header, layout: captured.layout, from: &cursor)
            cursor = StreamCursor(section.body, isFinal: true)
            let content = try DissectedStructure.decode(#require(section.device).content, from: &cursor)
            original.sections.append(
                .init(
                    header: section.header, offset: section.offset, byteCount: UInt64(section.body.count),
                    content: content, body: []))
        }
        let directory = try TemporaryDirectory()
        let input = try directory.write(stream(of: machine, layout: captured.layout), to: "in")
        let output = directory.file("out")
        let board = captured.layout == .qemu7_2 ? "virt" : "virt,acpi=off"
        let receiver = try StockReceiver(
            program, ["-M", board, "-m", memory, "-bios", "none", "-nic", "none", "-cpu", "rv64,h=off"] + devices,
            stream: input)
        try receiver.waitForMigration()
        try receiver.command("migrate", "{\"uri\": \"exec:cat >\(output)\"}")
        try receiver.waitForMigration()
        try receiver.command("quit")
        try receiver.program.waitForEnd(seconds: 60)
        var again = try Self.analyse(output)
        again.configuration = nil
        again.isComplete = false
        again.blocks = []
        for line in StreamDifference.lines(original, again) where !tolerated.contains(where: line.hasPrefix) {
            Issue.record("\(name): \(line)")
        }
    }

    @Test("7.2 takes a booted guest's state from us and has it as QEMU first wrote it")
    func booted7() throws {
        try roundTrip("booted-plain-7.2", StockQEMUBuild.installed, devices: [], bytes: "128M")
    }

    @Test("7.2 takes fresh virtio devices from us")
    func devices7() throws {
        try roundTrip("virt-devices-7.2", StockQEMUBuild.installed, devices: devices, bytes: "4M")
    }

    @Test(
        "10.0 takes a booted guest's state from us and has it as QEMU first wrote it",
        .enabled(if: Requirement.qemu10.isMet, "\(Requirement.qemu10)"))
    func booted10() throws {
        try roundTrip("booted-plain-10.0", StockQEMUBuild.ten, devices: [], bytes: "128M")
    }

    @Test(
        "10.0 takes fresh virtio devices from us",
        .enabled(if: Requirement.qemu10.isMet, "\(Requirement.qemu10)"))
    func devices10() throws {
        try roundTrip("virt-devices-10.0", StockQEMUBuild.ten, devices: devices, bytes: "4M")
    }
}
