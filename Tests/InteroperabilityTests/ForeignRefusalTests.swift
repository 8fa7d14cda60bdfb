import ComponentState
import Machine
import MigrationStream
import Testing

/// State of parts that no processor here has: accepted unused (`ForeignStateTests`), refused in use.
@Suite("State that QEMU wrote of what is not here") struct ForeignRefusalTests {
    /// One word of a processor's section changed.
    struct Use: Sendable, CustomTestStringConvertible {
        /// QEMU's names for the same, by release.
        let fields: [String]
        let bit: Int
        let words: String

        var testDescription: String { "\(fields[0]) bit \(bit)" }
    }

    static let uses = [
        Use(fields: ["env.virt", "env.virt_enabled"], bit: 0, words: "virtualized mode"),
        Use(fields: ["env.mstatus"], bit: 39, words: "virtualized mode"),
        Use(fields: ["env.mstatus"], bit: 9, words: "uses vectors"),
        Use(fields: ["env.hgatp"], bit: 63, words: "uses the hypervisor extension"),
        Use(fields: ["env.tdata1"], bit: 64, words: "uses debug triggers"),
    ]
    static let streams = ["virt-7.2", "virt-10.0"]

    /// Where a field lies in a section that begins at `start`.
    private func place(_ names: [String], in structure: StructureDescription, from start: Int = 0) -> Range<Int>? {
        var position = start
        for field in structure.fields {
            let byteCount = Int(field.byteCount) * Int(field.elementCount)
            if names.contains(field.name) { return position..<position + byteCount }
            position += byteCount
        }
        for subsection in structure.subsections {
            position += 6 + subsection.name.utf8.count
            if let found = place(names, in: subsection, from: position) { return found }
            position += Int(subsection.byteCount ?? 0)
        }
        return nil
    }

    private func decode(_ body: [UInt8], of section: CapturedStream.Section, in stream: CapturedStream) throws {
        let machine = try machine(for: stream)
        defer { machine.shutDown() }
        let component = try #require(machine.components.first { $0.sectionName == "cpu" && $0.instance == 0 })
        var cursor = StreamCursor(body + [RecordType.sectionFooter.rawValue], isFinal: true)
        try SectionDecoder.decode(component, header: section.header, layout: stream.layout, from: &cursor)
    }

    private func refusal(_ body: [UInt8], of section: CapturedStream.Section, in stream: CapturedStream) -> String {
        do {
            try decode(body, of: section, in: stream)
            return "taken"
        } catch { return "\(error)" }
    }

    @Test("what is in use is refused by its name", arguments: streams, uses)
    func inUse(name: String, use: Use) throws {
        let stream = try CapturedStream(name)
        let section = try #require(stream.sections.first { $0.header.name == "cpu" })
        try decode(section.body, of: section, in: stream)
        let content = try #require(section.device).content
        let range = try #require(place(use.fields, in: content), "\(use)")
        var body = section.body
        // Big-endian; of an array the last word counts first.
        body[range.upperBound - 1 - use.bit / 8] ^= 1 << (use.bit % 8)
        let text = refusal(body, of: section, in: stream)
        #expect(text.contains(use.words), "\(text)")
    }

    @Test("a processor with vectors is refused", arguments: streams)
    func vectors(name: String) throws {
        let stream = try CapturedStream(name)
        let section = try #require(stream.sections.first { $0.header.name == "cpu" })
        let writer = StreamWriter()
        writer.write(RecordType.subsection.rawValue)
        writer.writeShortString("cpu/vector")
        writer.write(UInt32(2))
        let text = refusal(section.body + writer.bytes, of: section, in: stream)
        #expect(text.contains("the guest's processor has vectors"), "\(text)")
    }
}
