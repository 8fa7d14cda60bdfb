import ComponentState
import Foundation
import Machine
import MigrationEngine
import MigrationStream
import Supervisor
import Testing

/// `sidestep bridge` by the streams that QEMU wrote; live guests cross it in `BridgeTests`.
@Suite("Streams rewritten for another release") struct BridgeLayoutTests {
    private static func sections(_ name: String) throws -> [UnreadSection] {
        try CapturedStream(name).sections.map { UnreadSection(header: $0.header, body: $0.body) }
    }

    private static func rewritten(_ sections: [UnreadSection], for target: StateLayout) throws -> [UnreadSection] {
        // The layout is what counts here; 7.2's queues are larger than 11.1's.
        var rewriter = BridgeRewriter(target: target, judgesQueues: false)
        var description: VMDescription?
        return try rewriter.rewrite(sections, &description)
    }

    private static let versions: [StateLayout: (cpu: UInt32, timer: UInt32)] = [
        .qemu7_2: (5, 1), .qemu10_0: (10, 1), .qemu11_1: (12, 3),
    ]

    @Test(
        "up, down and back the state is the same",
        arguments: ["booted-plain-7.2", "booted-modern-7.2", "virt-2-harts-7.2"])
    func thereAndBack(name: String) throws {
        let original = try Self.sections(name)
        // What one pass through the components leaves out, it leaves out the first time.
        let once = try Self.rewritten(original, for: .qemu7_2)
        for layout in [StateLayout.qemu10_0, .qemu11_1] {
            let there = try Self.rewritten(original, for: layout)
            #expect(there.map(\.name) == original.map(\.name))
            for section in there {
                if section.header.name == "cpu" { #expect(section.header.version == Self.versions[layout]!.cpu) }
                if section.header.name == "riscv_mtimer" {
                    #expect(section.header.version == Self.versions[layout]!.timer)
                }
            }
            let back = try Self.rewritten(there, for: .qemu7_2)
            for (first, second) in zip(once, back) { #expect(first == second, "\(layout): \(first.name)") }
        }
        let devices = original.filter { $0.header.name.hasPrefix("virtio-mmio") }
        #expect(once.filter { $0.header.name.hasPrefix("virtio-mmio") } == devices)
    }

    @Test("a machine of ours takes each layout", arguments: [StateLayout.qemu7_2, .qemu10_0, .qemu11_1])
    func taken(layout: StateLayout) throws {
        let captured = try CapturedStream("booted-modern-7.2")
        var stream = EditedStream(captured)
        stream.sections = try Self.rewritten(stream.sections, for: layout)
        let machine = try machine(for: captured)
        let guest = VirtGuest(machine: machine, events: VirtGuest.EventSink())
        var configuration = MigrationConfiguration()
        configuration.staysPaused = true
        let destination = MigrationDestination(
            guest: guest, transport: ReplayedTransport(stream.bytes, then: Sink()), configuration: configuration)
        #expect(destination.run() == .guestMoved, "\(String(describing: destination.progress.error))")
        machine.shutDown()
    }

    @Test("a whole stream passes with its pages; blocks that the target lacks do not")
    func wholeStream() throws {
        let bytes = try CapturedStream.unpack("virt-acpi-10.0")
        let sink = Sink()
        let relay = StreamRelay(from: ReplayedTransport(bytes, then: Sink()), to: sink)
        var rewriter = BridgeRewriter(target: .qemu11_1)
        try relay.run(&rewriter)
        var analysis = StreamAnalysis()
        analysis.input.append(sink.bytes)
        try analysis.run(isFinal: true)
        var original = StreamAnalysis()
        original.input.append(bytes)
        try original.run(isFinal: true)
        #expect(analysis.report.blocks.map(\.name) == original.report.blocks.map(\.name))
        #expect(analysis.report.blocks.map(\.pages) == original.report.blocks.map(\.pages))
        #expect(relay.progress.leftOut.isEmpty)
    }

    @Test("a guest that was offered what the target lacks is refused by name, and the source is told")
    func refused() throws {
        let bytes = try CapturedStream.unpack("virt-acpi-10.0")
        let source = Sink(hasReturnPath: true)
        let relay = StreamRelay(from: ReplayedTransport(bytes, then: source), to: Sink())
        var rewriter = BridgeRewriter(target: .qemu7_2)
        do {
            try relay.run(&rewriter)
            Issue.record("it passed")
        } catch {
            #expect(error.description.contains("zicboz") && error.description.contains("qemu-7.2"), "\(error)")
        }
        #expect(source.bytes == [0, 1, 0, 4, 0, 0, 0, 1])
        #expect(relay.progress.leftOut.contains("RAM block /rom@etc/acpi/tables"))
    }

    @Test("a source of another release than it was said to be is refused") func otherSource() throws {
        var rewriter = BridgeRewriter(target: .qemu11_1, expected: .qemu10_0)
        let sections = try Self.sections("booted-plain-7.2")
        var description: VMDescription?
        #expect(throws: Refusal.self) { _ = try rewriter.rewrite(sections, &description) }
    }

    @Test("a machine of ours with queues that 11.1 cannot have does not go there, or says with what to start it")
    func queues() throws {
        let captured = try CapturedStream("booted-modern-7.2")
        let machine = try machine(for: captured)
        defer { machine.shutDown() }
        let guest = VirtGuest(machine: machine, events: VirtGuest.EventSink())
        #expect(guest.obstacle(to: .qemu11_1) == nil && guest.startHints(for: .qemu11_1).isEmpty)
        for section in captured.sections where section.header.name.hasPrefix("virtio-mmio@") {
            let component = try #require(machine.components.first { $0.sectionName == section.header.name })
            var cursor = StreamCursor(section.body + [RecordType.sectionFooter.rawValue], isFinal: true)
            try SectionDecoder.decode(component, header: section.header, layout: captured.layout, from: &cursor)
        }
        let obstacle = guest.obstacle(to: .qemu11_1)
        #expect(obstacle?.contains("has a queue of 1024 entries") == true, "\(obstacle ?? "none")")
        #expect(guest.startHints(for: .qemu11_1).contains { $0.contains("with queue-size=1024") })
        #expect(guest.obstacle(to: .qemu7_2) == nil && guest.obstacle(to: .qemu10_0) == nil)
        #expect(guest.startHints(for: .qemu10_0).isEmpty)
    }
}
