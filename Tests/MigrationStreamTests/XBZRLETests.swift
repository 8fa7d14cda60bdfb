import MigrationStream
import Testing

private func decode(_ encoded: [UInt8], _ page: [UInt8]) throws(XBZRLE.DecodingError) -> [UInt8] {
    var page = page
    var failure: XBZRLE.DecodingError?
    page.withUnsafeMutableBytes { target in
        encoded.withUnsafeBytes { source in
            do throws(XBZRLE.DecodingError) { try XBZRLE.decode(source, into: target) } catch { failure = error }
        }
    }
    if let failure { throw failure }
    return page
}

private func encode(_ old: [UInt8], _ new: [UInt8], room: Int = 4096) -> [UInt8]? {
    var output = [UInt8](repeating: 0, count: room)
    let count = output.withUnsafeMutableBytes { output in
        old.withUnsafeBytes { old in new.withUnsafeBytes { XBZRLE.encode(from: old, to: $0, into: output) } }
    }
    return count.map { Array(output.prefix($0)) }
}

@Suite("XBZRLE")
struct XBZRLETests {
    let page = (0..<4096).map { UInt8(truncatingIfNeeded: $0) }

    @Test("the vector checked against QEMU applies as there, and is what the encoder makes")
    func vector() throws {
        let encoded = hex("03 02 ee ff c8 01 01 aa")
        var expected = page
        expected[3] = 0xee
        expected[4] = 0xff
        expected[205] = 0xaa
        #expect(try decode(encoded, page) == expected)
        #expect(encode(page, expected) == encoded)
    }

    @Test("malformed encodings are refused")
    func refused() {
        let bad: [(String, XBZRLE.DecodingError)] = [
            ("00", .malformedNumber), ("00 01", .malformedNumber), ("80 80 01 aa", .malformedNumber),
            ("00 00", .malformedNumber), ("00 00 00", .emptyRun), ("00 01 aa 00 01 aa", .emptyRun),
            ("00 05 aa", .overrun), ("ff 7f 01 aa", .overrun), ("ff 1f 02 aa bb", .overrun), ("81", .malformedNumber),
        ]
        for (text, error) in bad {
            #expect(throws: error, "\(text)") { _ = try decode(hex(text), page) }
        }
    }

    @Test("equal pages encode to nothing, and one that does not fit to nil")
    func edges() throws {
        #expect(encode(page, page) == [])
        let inverted = page.map { ~$0 }
        #expect(encode(page, inverted) == nil)
        #expect(encode(page, inverted, room: 4099)?.count == 4099)
        var alternating = page
        for index in stride(from: 0, to: 4096, by: 2) { alternating[index] ^= 0xff }
        #expect(encode(page, alternating) == nil)
        var last = page
        last[4095] ^= 1
        #expect(try decode(#require(encode(page, last)), page) == last)
    }

    @Test("any change comes back, seeded", arguments: 1...64)
    func roundTrip(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        var new = page
        for _ in 0..<Int.random(in: 1...40, using: &random) {
            let start = Int.random(in: 0..<4096, using: &random)
            for index in start..<min(start + Int.random(in: 1...60, using: &random), 4096) {
                new[index] = UInt8.random(in: 0...255, using: &random)
            }
        }
        if let encoded = encode(page, new) { #expect(try decode(encoded, page) == new) }
    }

    @Test("random bytes never trap", arguments: 1...50)
    func fuzz(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        for _ in 0..<200 {
            let bytes = (0..<Int.random(in: 0...64, using: &random)).map { _ in
                UInt8.random(in: 0...255, using: &random)
            }
            _ = try? decode(bytes, page)
        }
    }

    @Test("what the cache says to send leaves the destination with the source's page")
    func cache() throws {
        var random = SeededGenerator(seed: 5)
        let cache = XBZRLECache(byteCount: 5 * 4096)
        #expect(cache.slotCount == 4)
        var source = (0..<6).map { _ in page }
        var destination: [[UInt8]] = Array(repeating: [UInt8](repeating: 0, count: 4096), count: 6)
        var kinds: Set<String> = []
        for round in 1...200 {
            let index = Int.random(in: 0..<6, using: &random)
            let offset = UInt64(index) * 4096
            switch Int.random(in: 0..<10, using: &random) {
            case 0:
                source[index] = [UInt8](repeating: 0, count: 4096)
                cache.noteZeroPage(BlockReference(0), offset: offset)
                destination[index] = source[index]
                continue
            case 1: for byte in 0..<4096 { source[index][byte] = UInt8.random(in: 0...255, using: &random) }
            case 2: break
            default: source[index][Int.random(in: 0..<4096, using: &random)] &+= 1
            }
            let outcome = source[index].withUnsafeBytes {
                cache.encode(BlockReference(0), offset: offset, page: $0.baseAddress!, round: round)
            }
            switch outcome {
            case .unchanged: kinds.insert("unchanged")
            case .encoded(let bytes):
                kinds.insert("encoded")
                destination[index] = try decode(Array(bytes), destination[index])
            case .whole(let bytes):
                kinds.insert("whole")
                destination[index] = Array(bytes)
            }
            #expect(destination[index] == source[index])
        }
        #expect(kinds == ["unchanged", "encoded", "whole"])
    }

    @Test("a captured move with XBZRLE leaves the pages the guest had at the end")
    func captured() throws {
        let bytes = try Corpus.bytes("running-xbzrle-10.0")
        var reader = StreamReader()
        var ram = RAMDecoder(takingAnyBlock: RAMStreamOptions())
        var cursor = StreamCursor(bytes, isFinal: true)
        var pages: [String: [UInt8]] = [:]
        var applied = 0
        let description = try #require(Corpus.description(bytes))
        while !reader.isDone {
            guard case .section(let header) = try reader.next(&cursor) else { continue }
            if header.name == "ram" {
                try ram.beginSection(header.kind, version: header.version, at: 0)
                words: while true {
                    switch try ram.next(&cursor) {
                    case .page(let block, let offset):
                        pages["\(block.index) \(offset)"] = try cursor.readBytes(4096)
                    case .filledPage(let block, let offset, _):
                        pages["\(block.index) \(offset)"] = [UInt8](repeating: 0, count: 4096)
                    case .xbzrlePage(let block, let offset, let count):
                        let encoded = try cursor.readBytes(count)
                        pages["\(block.index) \(offset)"] = try decode(encoded, pages["\(block.index) \(offset)"]!)
                        applied += 1
                    case .endOfSection: break words
                    default: break
                    }
                }
            } else {
                let size = try #require(description.device(header.name, instance: header.instance)?.content.byteCount)
                try cursor.skip(Int(size))
            }
            try reader.endSection(&cursor)
        }
        #expect(applied > 0)
        // The guest writes one count into 16 pages in turn: they hold one or two neighbouring values.
        let index = try #require(ram.blocks.firstIndex { $0.name == "riscv_virt_board.ram" })
        let counts = (0..<16).map { page -> UInt64 in
            let bytes = pages["\(index) \(0x100000 + page * 4096)"]![16..<24]
            return bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }
        #expect(counts[0] > 0)
        #expect(counts[0] - counts[15] <= 1)
        #expect(zip(counts, counts.dropFirst()).allSatisfy { $0 >= $1 })
    }
}

/// SplitMix64: a seed gives the same numbers everywhere.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var value = state
        value = (value ^ value >> 30) &* 0xbf58_476d_1ce4_e5b9
        value = (value ^ value >> 27) &* 0x94d0_49bb_1331_11eb
        return value ^ value >> 31
    }
}
