import ComponentState
import Foundation
import MigrationStream
import Testing

/// A stream that QEMU wrote, from the corpus of MigrationStreamTests, cut into its sections.
struct CapturedStream {
    struct Section {
        var header: SectionHeader
        /// Without header and footer.
        var body: [UInt8]
        /// Where the body begins in the stream.
        var offset: UInt64
        /// How QEMU described it.
        var device: DeviceDescription?
    }

    let name: String
    var configuration: StreamConfiguration?
    var blocks: [RAMBlockDescription] = []
    /// All but RAM, in wire order.
    var sections: [Section] = []
    var description = VMDescription()

    var layout: StateLayout { name.hasSuffix("7.2") ? .qemu7_2 : .qemu10_0 }

    init(_ name: String) throws {
        self.name = name
        let bytes = try Self.unpack(name)
        var reader = StreamReader()
        var ram = RAMDecoder(takingAnyBlock: RAMStreamOptions())
        var cursor = StreamCursor(bytes, isFinal: true)
        while !reader.isDone && !cursor.isAtEnd {
            switch try reader.next(&cursor) {
            case .configuration(let configuration): self.configuration = configuration
            case .description(let json): description = try VMDescription.parse(json)
            case .section(let header) where header.name == "ram":
                try ram.beginSection(header.kind, version: header.version, at: cursor.offset)
                words: while true {
                    switch try ram.next(&cursor) {
                    case .page: try cursor.skip(4096)
                    case .endOfSection: break words
                    default: break
                    }
                }
                try reader.endSection(&cursor)
            case .section(let header):
                let offset = cursor.offset
                let byteCount = try #require(
                    SectionSearch.distanceToFooter(
                        of: header.id, from: cursor, knownSections: Set(reader.knownSections.keys), isFinal: true))
                sections.append(Section(header: header, body: try cursor.readBytes(byteCount), offset: offset))
                try reader.endSection(&cursor)
            default: break
            }
        }
        blocks = ram.blocks
        for index in sections.indices {
            sections[index].device = description.device(
                sections[index].header.name, instance: sections[index].header.instance)
        }
    }

    static func unpack(_ name: String) throws -> [UInt8] {
        let corpus = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "MigrationStreamTests/Corpus/\(name).gz")
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/gzip")
        process.arguments = ["-dc", corpus.path]
        let output = Pipe()
        process.standardOutput = output
        try process.run()
        let data = try output.fileHandleForReading.readToEnd() ?? Data()
        process.waitUntilExit()
        try #require(process.terminationStatus == 0, "\(name).gz cannot be unpacked")
        return [UInt8](data)
    }
}

extension CapturedStream.Section {
    /// The name of the innermost described field that the byte at `offset` of the body belongs to.
    func field(at offset: Int) -> String {
        guard let device else { return "byte \(offset)" }
        var cursor = StreamCursor(body, isFinal: true)
        guard let structure = try? DissectedStructure.decode(device.content, from: &cursor) else {
            return "byte \(offset)"
        }
        return Self.field(at: UInt64(offset), in: structure, path: "") ?? "byte \(offset)"
    }

    private static func field(at offset: UInt64, in structure: DissectedStructure, path: String) -> String? {
        var found: String?
        for field in structure.fields where field.offset <= offset {
            let inner: String? =
                if case .structure(let nested) = field.value {
                    Self.field(at: offset, in: nested, path: "\(path)\(field.name).")
                } else {
                    nil
                }
            found = inner ?? "\(path)\(field.name)+\(offset - field.offset)"
        }
        for subsection in structure.subsections where (subsection.fields.first?.offset ?? .max) <= offset {
            found = Self.field(at: offset, in: subsection, path: "\(path)\(subsection.name): ") ?? found
        }
        return found
    }
}

/// All bytes of a file.
func fileBytes(_ path: String) throws -> [UInt8] { [UInt8](try Data(contentsOf: URL(filePath: path))) }
