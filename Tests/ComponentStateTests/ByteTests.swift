import ComponentState
import Testing

private struct Damage: Error { let reason: String }

@Suite("Integers, byte strings and texts as bytes") struct ByteTests {
    private func reader(_ bytes: [UInt8]) -> ByteReader<Damage> { ByteReader(bytes) { Damage(reason: $0) } }

    private func written() -> [UInt8] {
        var writer = ByteWriter(capacity: 4)
        writer.integer(UInt16(0x0102))
        writer.integer(Int64(-2))
        writer.flag(true)
        writer.blob([9, 8])
        writer.text("é")
        writer.text("ab", countedBy: UInt32.self)
        writer.raw([7])
        writer.pad(to: 48)
        return writer.bytes
    }

    @Test("the bytes are these, most significant first, with a count before what has none")
    func layout() {
        #expect(
            written() == [
                1, 2, 255, 255, 255, 255, 255, 255, 255, 254, 1,
                0, 0, 0, 0, 0, 0, 0, 2, 9, 8,
                0, 0, 0, 0, 0, 0, 0, 2, 0xc3, 0xa9,
                0, 0, 0, 2, 97, 98,
                7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ])
    }

    /// Everything that ``written()`` wrote.
    private func read(_ bytes: [UInt8]) throws(Damage) {
        var reader = reader(bytes)
        let short: UInt16 = try reader.integer()
        let long: Int64 = try reader.integer()
        let flag = try reader.flag()
        let blob = try reader.blob()
        let text = try reader.text()
        let shortText = try reader.text(countedBy: UInt32.self)
        var rest: [UInt8] = []
        for _ in 0..<11 { rest.append(try reader.integer()) }
        try reader.finish()
        #expect(short == 0x0102 && long == -2 && flag && blob == [9, 8] && text == "é" && shortText == "ab")
        #expect(rest == [7] + [UInt8](repeating: 0, count: 10))
        #expect(reader.isAtEnd)
    }

    @Test("what was written is read back; cut at any byte, or with more behind it, it is refused")
    func readBack() throws {
        let bytes = written()
        try read(bytes)
        for count in bytes.indices { #expect(throws: Damage.self) { try read(Array(bytes.prefix(count))) } }
        #expect(throws: Damage.self) { try read(bytes + [0]) }
    }

    @Test("a count that promises more than is there is refused before anything is taken")
    func counts() throws {
        let eight = [UInt8](repeating: 0, count: 8)
        for count in [UInt64(9), UInt64(Int64.max), .max] {
            var writer = ByteWriter()
            writer.integer(count)
            writer.raw(eight)
            var (blob, text, things) = (reader(writer.bytes), reader(writer.bytes), reader(writer.bytes))
            #expect(throws: Damage.self) { try blob.blob() }
            #expect(throws: Damage.self) { try text.text() }
            #expect(throws: Damage.self) { try things.count(of: 1) }
        }
        var pairs = reader([0, 0, 0, 4] + eight)
        let count = try pairs.count(of: 2, countedBy: UInt32.self)
        #expect(count == 4)
        var triples = reader([0, 0, 0, 4] + eight)
        #expect(throws: Damage.self) { try triples.count(of: 3, countedBy: UInt32.self) }
    }

    @Test("a flag is 0 or 1, a text is UTF-8")
    func values() throws {
        var flag = reader([2])
        #expect(throws: Damage.self) { try flag.flag() }
        var text = reader([0, 0, 0, 0, 0, 0, 0, 1, 0xff])
        #expect(throws: Damage.self) { try text.text() }
    }
}
