import MigrationStream
import Testing

/// Walks any bytes as a main stream, the way a receiver of foreign streams does. Stops at the first error.
private func walk(_ bytes: [UInt8], resumed: Bool = false, isFinal: Bool = true) -> StreamError? {
    var cursor = StreamCursor(bytes, isFinal: isFinal)
    var reader = resumed ? StreamReader.resumed() : StreamReader()
    var options = RAMStreamOptions()
    options.flipsPages = true
    var ram = RAMDecoder(takingAnyBlock: options)
    func records(_ cursor: inout StreamCursor, depth: Int) throws(StreamError) {
        while !reader.isDone && !cursor.isAtEnd {
            switch try reader.next(&cursor) {
            case .section(let header):
                if header.name == "ram" {
                    try ram.beginSection(header.kind, version: header.version, at: cursor.offset)
                    words: while true {
                        switch try ram.next(&cursor) {
                        case .page: try cursor.skip(4096)
                        case .xbzrlePage(_, _, let encoded): try cursor.skip(encoded)
                        case .endOfSection: break words
                        default: break
                        }
                    }
                } else {
                    guard
                        let found = SectionSearch.distanceToFooter(
                            of: header.id, from: cursor, knownSections: Set(reader.knownSections.keys), isFinal: isFinal
                        )
                    else { return }
                    try cursor.skip(found)
                }
                try reader.endSection(&cursor)
            case .command(.packaged(let byteCount)):
                var package = try reader.readPackage(&cursor, byteCount: byteCount)
                if depth < 4 { try records(&package, depth: depth + 1) }
            case .description(let json):
                let description = try VMDescription.parse(json)
                for device in description.devices {
                    var cursor = StreamCursor(bytes, isFinal: true)
                    _ = try? DissectedStructure.decode(device.content, from: &cursor)
                }
            default: break
            }
        }
    }
    do throws(StreamError) {
        try records(&cursor, depth: 0)
        return nil
    } catch { return error }
}

@Suite("Hostile bytes")
struct HostileBytesTests {
    @Test("random bytes never trap, whatever they begin with", arguments: 1...40)
    func random(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let openings = [
            [], hex("5145564d 00000003"), hex("5145564d 00000003 07 00000004 \"virt\""),
            hex("5145564d 00000003 07 00000004 \"virt\" 01 00000001 03 \"ram\" 00000000 00000004 0000000000001004"),
            hex("5145564d 00000003 07 00000004 \"virt\" 05 1a \"configuration/capabilities\" 00000001"),
        ]
        for _ in 0..<200 {
            let opening = openings.randomElement(using: &random)!
            // Small values, so that types and lengths are often possible ones.
            let rest = (0..<Int.random(in: 0...300, using: &random)).map { _ in
                Bool.random(using: &random)
                    ? UInt8.random(in: 0...12, using: &random) : .random(in: 0...255, using: &random)
            }
            _ = walk(opening + rest)
            _ = walk(rest, resumed: true)
        }
    }

    @Test("a captured stream with bytes changed never traps", arguments: 1...30)
    func mutated(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let name = ["none-7.2", "none-capabilities-10.0", "none-10.0"].randomElement(using: &random)!
        let original = try Corpus.bytes(name)
        for _ in 0..<20 {
            var bytes = original
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                let place = Int.random(in: 0..<bytes.count, using: &random)
                switch Int.random(in: 0..<4, using: &random) {
                case 0: bytes[place] = .random(in: 0...255, using: &random)
                case 1: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
                case 2: bytes.removeSubrange(place..<min(place + Int.random(in: 1...40, using: &random), bytes.count))
                default:
                    let source = Int.random(in: 0..<bytes.count, using: &random)
                    bytes.insert(contentsOf: bytes[source..<min(source + 60, bytes.count)], at: place)
                }
                if bytes.isEmpty { bytes = [0] }
            }
            _ = walk(bytes)
        }
    }

    @Test("a captured stream cut at every length ends in an error of its own", arguments: ["none-7.2", "none-10.0"])
    func cut(name: String) throws {
        let bytes = try Corpus.bytes(name)
        #expect(walk(bytes) == nil)
        for length in 1..<bytes.count {
            let error = walk(Array(bytes.prefix(length)))
            if let error { #expect(error.reason == .truncated, "cut at \(length): \(error)") }
            let live = walk(Array(bytes.prefix(length)), isFinal: false)
            if let live { #expect((live.neededByteCount ?? 0) > 0, "cut at \(length): \(live)") }
        }
    }

    @Test("side channels' random bytes never trap", arguments: 1...40)
    func sideChannels(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        for _ in 0..<100 {
            let bytes = (0..<Int.random(in: 0...1500, using: &random)).map { _ in
                Bool.random(using: &random)
                    ? UInt8.random(in: 0...8, using: &random) : .random(in: 0...255, using: &random)
            }
            var cursor = StreamCursor(bytes)
            while (try? ReturnPathMessage.decode(from: &cursor)) != nil {}
            cursor = StreamCursor(bytes)
            _ = try? ReceivedBitmap.decode(from: &cursor, pageCount: Int.random(in: 0...Int.max, using: &random))
            cursor = StreamCursor(hex("11223344 00000001") + bytes)
            _ = try? MultiFDHello.decode(from: &cursor)
            cursor = StreamCursor(hex("11223344 00000001 00000001") + bytes)
            _ = try? MultiFDPacket.decode(
                from: &cursor, pageSize: 4096, pagesPerPacket: 128, blocks: ["\u{1}": 1 << 20], hasZeroPages: true)
            cursor = StreamCursor(hex("51435052 00000001") + bytes)
            var cpr = CPRReader()
            while (try? cpr.next(&cursor)) != nil {}
            cursor = StreamCursor(bytes)
            _ = try? MappedRAMHeader.decode(
                from: &cursor, byteCount: .random(in: 0...UInt64.max, using: &random), pageSize: 4096)
            cursor = StreamCursor(bytes)
            _ = try? MappedRAMBitmap.decode(from: &cursor, pageCount: Int.random(in: 0...Int.max, using: &random))
            _ = try? VMDescription.parse(bytes)
        }
    }

    @Test("nothing is allocated on the word of a length that is not there")
    func lengths() {
        // 16 MiB of JSON announced, two bytes there.
        #expect(walk(hex("5145564d 00000003 07 00000004 \"virt\" 00 06 01000000 \"{}\""))?.reason == .truncated)
        #expect(
            walk(hex("5145564d 00000003 07 00000004 \"virt\" 00 06 01000001 \"{}\""))?.reason
                == .limitExceeded("self-description of 16777217 bytes"))
        #expect(
            walk(hex("08 0007 0004 ffffffff"), resumed: true)?.reason == .limitExceeded("package of 4294967295 bytes"))
    }
}
