import Foundation
import MigrationStream
import Testing

/// Streams captured from QEMU with `Corpus/capture.py`.
enum Corpus {
    /// The bytes of `Corpus/<name>.gz`.
    static func bytes(_ name: String) throws -> [UInt8] {
        let directory = try #require(Bundle.module.url(forResource: "Corpus", withExtension: nil))
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/gzip")
        process.arguments = ["-dc", directory.appending(path: name + ".gz").path]
        let output = Pipe()
        process.standardOutput = output
        try process.run()
        let data = try output.fileHandleForReading.readToEnd() ?? Data()
        process.waitUntilExit()
        try #require(process.terminationStatus == 0, "Corpus/\(name).gz cannot be unpacked")
        return [UInt8](data)
    }

    /// Whole main streams.
    static let streams = [
        "none-7.2", "none-10.0", "none-capabilities-7.2", "none-capabilities-10.0", "virt-7.2", "virt-10.0",
        "virt-2-harts-7.2", "virt-acpi-10.0", "virt-devices-7.2", "virt-devices-10.0", "running-return-path-7.2",
        "running-xbzrle-10.0", "running-multifd-7.2", "running-multifd-10.0", "running-postcopy-7.2",
        "running-postcopy-10.0", "virt-cpr-10.0-main", "virt-plain-7.2", "virt-plain-10.0", "booted-plain-7.2",
        "booted-plain-10.0", "booted-legacy-7.2", "booted-modern-7.2", "booted-legacy-10.0",
        "booted-modern-10.0",
    ]

    /// The self-description at the end of a stream, if there is one.
    static func description(_ stream: [UInt8]) -> VMDescription? {
        let opening = Array("{\"".utf8)
        for start in stride(from: stream.count - 2, through: 5, by: -1)
        where stream[start] == opening[0] && stream[start + 1] == opening[1] && stream[start - 5] == 6 {
            let byteCount = stream[start - 4..<start].reduce(0) { $0 << 8 | Int($1) }
            if byteCount == stream.count - start { return try? VMDescription.parse(Array(stream[start...])) }
        }
        return nil
    }
}

/// Decodes a whole stream to records, fields and all, and encodes those again.
struct Transcoder {
    var reader = StreamReader()
    var ramDecoder: RAMDecoder
    var ramEncoder: RAMEncoder?
    let writer = StreamWriter()
    let description: VMDescription?
    var records: [StreamRecord] = []
    var ramRecords: [RAMRecord] = []
    var sections: [DissectedStructure] = []
    var undescribed: [String] = []

    init(_ stream: [UInt8], options: RAMStreamOptions = RAMStreamOptions()) {
        var options = options
        options.acceptsFill = true
        ramDecoder = RAMDecoder(takingAnyBlock: options)
        description = Corpus.description(stream)
    }

    mutating func run(_ cursor: inout StreamCursor, isPackage: Bool = false) throws {
        while !reader.isDone && !cursor.isAtEnd {
            let record = try reader.next(&cursor)
            records.append(record)
            switch record {
            case .header: writer.writeHeader()
            case .configuration(let configuration): writer.writeConfiguration(configuration)
            case .command(.packaged(let byteCount)):
                var package = try reader.readPackage(&cursor, byteCount: byteCount)
                writer.writeCommand(.packaged(byteCount: byteCount))
                try run(&package, isPackage: true)
                #expect(package.isAtEnd)
            case .command(let command):
                writer.writeCommand(command)
                if case .postcopyDiscard = command { ramEncoder?.forgetLastBlock() }
            case .endOfStream: writer.writeEndOfStream()
            case .description(let json): writer.writeDescription(try VMDescription.parse(json).json)
            case .section(let header):
                writer.beginSection(header)
                if header.name == "ram" { try ram(header, &cursor) } else { try device(header, &cursor) }
                try reader.endSection(&cursor)
                writer.endSection(id: header.id)
            }
        }
    }

    private mutating func ram(_ header: SectionHeader, _ cursor: inout StreamCursor) throws {
        try ramDecoder.beginSection(header.kind, version: header.version, at: cursor.offset)
        while true {
            let record = try ramDecoder.next(&cursor)
            ramRecords.append(record)
            if ramDecoder.isListComplete && ramEncoder == nil {
                var options = ramDecoder.options
                options.hasPostcopy = false
                ramEncoder = RAMEncoder(blocks: ramDecoder.blocks, options: options)
                writer.write(ramDecoder.blocks.reduce(0) { $0 + $1.byteCount } | RAMFlags.memorySize.rawValue)
                for index in ramDecoder.blocks.indices {
                    ramEncoder!.writeBlockEntry(BlockReference(index), to: writer)
                }
                continue
            }
            ramEncoder?.write(record, to: writer)
            switch record {
            case .page: writer.write(try cursor.readBytes(4096))
            case .xbzrlePage(_, _, let encoded): writer.write(try cursor.readBytes(encoded))
            case .endOfSection: return
            default: break
            }
        }
    }

    private mutating func device(_ header: SectionHeader, _ cursor: inout StreamCursor) throws {
        if let device = description?.device(header.name, instance: header.instance) {
            let structure = try DissectedStructure.decode(device.content, from: &cursor)
            structure.encode(to: writer)
            sections.append(structure)
        } else {
            undescribed.append(header.name)
            let byteCount = try #require(
                SectionSearch.distanceToFooter(
                    of: header.id, from: cursor, knownSections: Set(reader.knownSections.keys), isFinal: true))
            writer.write(try cursor.readBytes(byteCount))
        }
    }
}

/// Expects equal bytes and says where they differ, not what they all are.
func expectSame(
    _ found: [UInt8], _ expected: [UInt8], _ comment: Comment? = nil, at location: SourceLocation = #_sourceLocation
) {
    let common = zip(found, expected).prefix { $0 == $1 }.count
    let isSame = found.count == expected.count && common == found.count
    let there = found.dropFirst(common).prefix(8).map { String($0, radix: 16) }
    let wanted = expected.dropFirst(common).prefix(8).map { String($0, radix: 16) }
    #expect(
        isSame, "\(found.count) and \(expected.count) bytes, the same up to \(common): \(there), not \(wanted)",
        sourceLocation: location)
}
