import ComponentState
import Machine
import MigrationEngine
import MigrationStream
import Supervisor
import Testing

/// What is done to a riscv guest's state between two stock QEMUs; live guests cross it in `OtherTargetTests`.
@Suite("Timers mended on the way") struct TimerMenderTests {
    private func mended(_ sections: [UnreadSection], _ description: VMDescription?) throws -> [UnreadSection] {
        var mender = TimerMender()
        var description = description
        return try mender.rewrite(sections, &description)
    }

    private func differences(_ stream: EditedStream, _ after: [UnreadSection]) throws -> [String] {
        func report(_ sections: [UnreadSection]) throws -> StreamReport {
            var edited = stream
            edited.sections = sections
            var analysis = StreamAnalysis()
            analysis.input.append(edited.bytes)
            try analysis.run(isFinal: true)
            return analysis.report
        }
        return try StreamDifference.lines(report(stream.sections), report(after))
    }

    @Test(
        "a hart's timer that would be lost is pending, and nothing else is touched",
        arguments: [
            "booted-plain-7.2", "booted-modern-7.2", "booted-legacy-7.2", "booted-plain-10.0", "booted-modern-10.0",
        ]
    )
    func pending(name: String) throws {
        let stream = EditedStream(try CapturedStream(name))
        let lines = try differences(stream, mended(stream.sections, stream.description))
        #expect(lines == ["cpu_common.interrupt_request: 0, 2", "cpu.env.mip: 0, 0x20"], "\(lines)")
    }

    @Test("the board's timer is each hart's own") func machineTimer() throws {
        var stream = EditedStream(try CapturedStream("virt-2-harts-7.2"))
        let index = try #require(stream.sections.firstIndex { $0.header.name == "riscv_mtimer" })
        stream.sections[index].body.replaceSubrange(8..<16, with: [0, 0, 0, 0, 0, 0, 0x10, 0])
        // A hart after reset has its timer's interrupt pending already: as if it had been taken.
        for (name, field, byteCount) in [("cpu", "env.mip", 8), ("cpu_common", "interrupt_request", 4)] {
            let place = try #require(
                stream.sections.firstIndex { $0.header.name == name && $0.header.instance == 1 })
            let described = try #require(stream.description.device(name, instance: 1)?.content.fields)
            let before = try #require(described.firstIndex { $0.name == field })
            let offset = described[..<before].reduce(0) { $0 + Int($1.byteCount) * Int($1.elementCount) }
            stream.sections[place].body.replaceSubrange(
                offset..<(offset + byteCount), with: [UInt8](repeating: 0, count: byteCount))
        }
        let lines = try differences(stream, mended(stream.sections, stream.description))
        #expect(lines == ["cpu_common[1].interrupt_request: 0, 2", "cpu[1].env.mip: 0, 0x80"], "\(lines)")
    }

    @Test(
        "a machine that nobody has started has nothing pending",
        arguments: ["virt-7.2", "virt-2-harts-7.2", "virt-10.0"])
    func fresh(name: String) throws {
        let stream = EditedStream(try CapturedStream(name))
        #expect(try mended(stream.sections, stream.description) == stream.sections)
    }

    @Test("timers that go along are left alone") func along() throws {
        let captured = try CapturedStream("booted-modern-7.2")
        let machine = try machine(for: captured)
        defer { machine.shutDown() }
        for section in captured.sections {
            guard
                let component = machine.components.first(where: {
                    $0.sectionName == section.header.name && $0.instance == section.header.instance
                })
            else { continue }
            var cursor = StreamCursor(section.body + [RecordType.sectionFooter.rawValue], isFinal: true)
            try SectionDecoder.decode(component, header: section.header, layout: captured.layout, from: &cursor)
        }
        var description: VMDescription? = VMDescription()
        var sections: [UnreadSection] = []
        for (index, component) in machine.components.enumerated() {
            guard let version = component.sectionVersion(for: .qemu11_1) else { continue }
            let writer = StreamWriter()
            try SectionEncoder.encode(
                component, id: UInt32(index), layout: .qemu11_1, to: writer, description: &description)
            let header = SectionHeader(
                .full, id: UInt32(index), name: component.sectionName, instance: component.instance, version: version)
            // Behind type, number, name, instance and version; before the footer.
            sections.append(
                UnreadSection(
                    header: header,
                    body: Array(writer.bytes.dropFirst(14 + header.name.utf8.count).dropLast(5))))
        }
        #expect(sections.contains { $0.header.name == "cpu" && $0.header.version == 12 })
        #expect(try mended(sections, description) == sections)
    }

    @Test("a state without its description, or that is not as described, is refused") func undescribed() throws {
        let stream = EditedStream(try CapturedStream("booted-modern-10.0"))
        #expect(throws: Refusal.self) { try mended(stream.sections, nil) }
        var sections = stream.sections
        let index = try #require(sections.firstIndex { $0.header.name == "cpu" })
        sections[index].body.removeLast()
        #expect(throws: Refusal.self) { try mended(sections, stream.description) }
        sections = stream.sections.filter { $0.header.name != "cpu_common" }
        #expect(throws: Refusal.self) { try mended(sections, stream.description) }
    }

    @Test(
        "shared memory that is listed and not sent passes where it is on at both ends, and is refused where it is not")
    func shared() throws {
        let stream = EditedStream(try CapturedStream("booted-modern-10.0"))
        let writer = StreamWriter()
        writer.writeHeader()
        writer.writeConfiguration(
            StreamConfiguration(machineName: "virt", capabilities: ["x-ignore-shared"]))
        var options = RAMStreamOptions()
        options.ignoresShared = true
        var blocks = stream.blocks
        blocks[0].address = 0x8000_0000
        let encoder = RAMEncoder(blocks: blocks, options: options)
        for kind in [SectionKind.start, .end] {
            writer.beginSection(SectionHeader(kind, id: 9999, name: "ram", version: 4))
            if kind == .start { encoder.writeBlockList(to: writer) }
            encoder.writeEndOfSection(to: writer)
            writer.endSection(id: 9999)
        }
        for section in stream.sections { section.write(to: writer) }
        writer.writeEndOfStream()
        writer.writeDescription(stream.description.json)
        let sink = Sink()
        var mender = TimerMender()
        try StreamRelay(from: ReplayedTransport(writer.bytes, then: Sink()), to: sink, ignoresShared: true).run(&mender)
        #expect(sink.bytes.count == writer.bytes.count && sink.bytes != writer.bytes)
        let refusing = StreamRelay(from: ReplayedTransport(writer.bytes, then: Sink()), to: Sink())
        #expect(throws: MigrationError.self) { try refusing.run(&mender) }
    }
}
