import ComponentState
import MigrationStream
import Testing

/// A component with one field of every kind.
private final class Sample: StatefulComponent, @unchecked Sendable {
    struct State: Equatable {
        var byte: UInt8 = 0
        var half: UInt16 = 0
        var word: UInt32 = 0
        var double: UInt64 = 0
        var signedWord: Int32 = 0
        var signedDouble: Int64 = 0
        var flag = false
        var bytes = [UInt8](repeating: 0, count: 3)
        var byteArray = [UInt8](repeating: 0, count: 2)
        var halves = [UInt16](repeating: 0, count: 2)
        var words = [UInt32](repeating: 0, count: 1)
        var doubles = [UInt64](repeating: 0, count: 2)
        var expiry: Int64?
        var nested: UInt32 = 0
        var pairs = [[UInt16]](repeating: [0, 0], count: 2)
        var list: [UInt8] = []
        var hidden: UInt32 = 0
        var option: UInt32?
        var nestedOption: UInt32?
    }

    var state = State()
    let sectionName = "0000:00:01.0/sample"
    let instance: UInt32 = 3
    let readableVersions: ClosedRange<UInt32> = 2...4

    func sectionVersion(for layout: StateLayout) -> UInt32? { layout == .qemu11_1 ? nil : 4 }

    func codeState(with coder: inout any StateCoder) throws(StateError) {
        var new = state
        if coder.isDecoding { new.option = nil }
        try coder.uint8("byte", &new.byte)
        try coder.uint16("half", &new.half)
        try coder.uint32("word", &new.word)
        try coder.uint64("double", &new.double)
        try coder.int32("word", &new.signedWord)
        try coder.int64("signed", &new.signedDouble)
        try coder.bool("flag", &new.flag)
        try coder.buffer("bytes", &new.bytes)
        try coder.uint8Array("byteArray", &new.byteArray)
        try coder.uint16Array("halves", &new.halves)
        try coder.uint32Array("words", &new.words)
        try coder.uint64Array("doubles", &new.doubles)
        try coder.timer("timer", &new.expiry)
        try coder.unused(5)
        try coder.structure("inner", type: "inner", version: 2) { (coder: inout any StateCoder) throws(StateError) in
            try coder.uint32("nested", &new.nested)
            var option = new.nestedOption ?? 0
            try coder.subsections([
                Subsection("inner/option", version: 1, isNeeded: new.nestedOption != nil) {
                    (coder: inout any StateCoder) throws(StateError) in
                    try coder.uint32("option", &option)
                    new.nestedOption = option
                }
            ])
        }
        try coder.structures("pairs", type: "pair", version: 1, count: 2) {
            (coder: inout any StateCoder, index: Int) throws(StateError) in
            try coder.uint16("first", &new.pairs[index][0])
            try coder.uint16("second", &new.pairs[index][1])
        }
        var count = new.list.count
        var list = coder.isDecoding ? [] : new.list
        try coder.list("list", type: "element", version: 1, count: &count, countMax: 3) {
            (coder: inout any StateCoder, index: Int) throws(StateError) in
            var element = index < list.count ? list[index] : 0
            try coder.uint8("element", &element)
            if coder.isDecoding { list.append(element) }
        }
        new.list = list
        try coder.opaque("hidden", type: "sample hidden") { (coder: inout any StateCoder) throws(StateError) in
            try coder.uint32("hidden", &new.hidden)
        }
        try coder.uint32Equal("constant", 77)
        var option = new.option ?? 0
        try coder.subsections([
            Subsection("sample/other", isNeeded: false) { (_: inout any StateCoder) throws(StateError) in },
            Subsection("sample/option", version: 2, isNeeded: new.option != nil) {
                (coder: inout any StateCoder) throws(StateError) in
                try coder.uint32("option", &option)
                new.option = option
            },
        ])
        state = new
    }

    static let filled = State(
        byte: 1, half: 0x0203, word: 0x0405_0607, double: 0x0809_0a0b_0c0d_0e0f, signedWord: -2, signedDouble: -3,
        flag: true, bytes: [0xa1, 0xa2, 0xa3], byteArray: [0xb1, 0xb2], halves: [0xc1c2, 0xc3c4], words: [0xd1d2_d3d4],
        doubles: [1, 2], expiry: 1_000_000_007, nested: 9, pairs: [[1, 2], [3, 4]], list: [5, 6, 7],
        hidden: 0x1234_5678,
        option: 0xee, nestedOption: 0xdd)

    static let filledBytes = hex(
        """
        01 0203 04050607 08090a0b0c0d0e0f fffffffe fffffffffffffffd 01 a1a2a3 b1b2 c1c2c3c4 d1d2d3d4
        0000000000000001 0000000000000002 000000003b9aca07 0000000000
        00000009 05 0c "inner/option" 00000001 000000dd
        0001000200030004 01 05 01 06 01 07 00 12345678 0000004d
        05 0d "sample/option" 00000002 000000ee
        """)
}

private func decode(
    _ bytes: [UInt8], into sample: Sample, version: UInt32 = 4, isFinal: Bool = false
) throws(StreamError) -> Int {
    var cursor = StreamCursor(bytes, at: 100, isFinal: isFinal)
    let header = SectionHeader(.full, id: 1, name: sample.sectionName, instance: 3, version: version)
    try SectionDecoder.decode(sample, header: header, layout: .qemu10_0, from: &cursor)
    return Int(cursor.offset - 100)
}

@Suite("Component state on the wire")
struct VMStateTests {
    @Test("fields of every kind are written as VMState does, and read back")
    func roundTrip() throws {
        let sample = Sample()
        sample.state = Sample.filled
        let writer = StreamWriter()
        var none: VMDescription?
        #expect(try SectionEncoder.encode(sample, id: 7, layout: .qemu10_0, to: writer, description: &none))
        let header = hex("04 00000007 13 \"0000:00:01.0/sample\" 00000003 00000004")
        expectSame(writer.bytes, header + Sample.filledBytes + hex("7e 00000007"))
        let other = Sample()
        let taken = try decode(Sample.filledBytes + [0x7e], into: other)
        #expect(taken == Sample.filledBytes.count)
        #expect(other.state == Sample.filled)
    }

    @Test("a layout without the section writes nothing")
    func noSection() throws {
        let writer = StreamWriter()
        var none: VMDescription?
        #expect(try !SectionEncoder.encode(Sample(), id: 7, layout: .qemu11_1, to: writer, description: &none))
        #expect(writer.count == 0)
    }

    @Test("the description built while encoding takes the bytes apart again")
    func description() throws {
        let sample = Sample()
        sample.state = Sample.filled
        let writer = StreamWriter()
        var description: VMDescription? = VMDescription()
        try SectionEncoder.encode(sample, id: 7, layout: .qemu10_0, to: writer, description: &description)
        let device = try #require(try VMDescription.parse(description!.json).device("0000:00:01.0/sample", instance: 3))
        #expect(device == description?.devices.first)
        #expect(device.content.name == "sample")
        #expect(device.content.byteCount == UInt64(Sample.filledBytes.count))
        var cursor = StreamCursor(Sample.filledBytes, isFinal: true)
        let structure = try DissectedStructure.decode(device.content, from: &cursor)
        #expect(cursor.isAtEnd)
        let again = StreamWriter()
        structure.encode(to: again)
        expectSame(again.bytes, Sample.filledBytes)
        let values = Dictionary(uniqueKeysWithValues: structure.fields.map { ($0.name, $0.value) })
        #expect(values["word[0]"] == .unsigned(0x0405_0607))
        #expect(values["word[1]"] == .signed(-2))
        #expect(values["flag"] == .boolean(true))
        #expect(values["timer"] == .timer(1_000_000_007))
        #expect(values["doubles"] == .integers([1, 2]))
        #expect(values["hidden"] == .bytes([0x12, 0x34, 0x56, 0x78]))
        #expect(device.content.fields.first { $0.name == "pairs" }?.repetition == .array(2))
        #expect(device.content.fields.first { $0.name == "words" }?.repetition == .single)
        #expect(structure.subsections.map(\.name) == ["sample/option"])
    }

    @Test("cut anywhere, more is asked for and the component keeps its state")
    func cut() throws {
        for length in 0..<Sample.filledBytes.count {
            let sample = Sample()
            do {
                let taken = try decode(Array(Sample.filledBytes.prefix(length)), into: sample)
                // Without the last subsection it is a whole state.
                #expect(taken == length && length == Sample.filledBytes.count - 23)
            } catch {
                #expect((error.neededByteCount ?? 0) > 0)
                #expect(sample.state == Sample.State())
            }
            let final = Sample()
            do {
                _ = try decode(Array(Sample.filledBytes.prefix(length)), into: final, isFinal: true)
            } catch { #expect(error.reason == .truncated && final.state == Sample.State()) }
        }
    }

    @Test("what the component does not know is refused")
    func refused() {
        func reason(_ change: (inout [UInt8]) -> Void, version: UInt32 = 4) -> StreamError.Reason? {
            var bytes = Sample.filledBytes
            change(&bytes)
            let sample = Sample()
            do {
                _ = try decode(bytes + [0x7e], into: sample, version: version)
                return nil
            } catch {
                #expect(sample.state == Sample.State())
                return error.reason
            }
        }
        let name = "0000:00:01.0/sample"
        #expect(reason({ _ in }, version: 4) == nil)
        #expect(
            reason({ _ in }, version: 5) == .state(.version(component: name, found: 5, supported: 2...4)))
        #expect(
            reason({ $0[$0.count - 14] = 0x30 }) == .state(.unknownSubsection(component: name, name: "sample/0ption")))
        #expect(
            reason { $0.append(contentsOf: $0.suffix(23)) }
                == .state(.invalid(component: name, field: "sample/option", value: "present twice")))
        #expect(reason { $0[27] = 2 } == .state(.invalid(component: name, field: "flag", value: "2")))
        #expect(reason { $0[$0.count - 5] = 3 } == .unsupportedVersion(3))
    }

    @Test("a list longer than the component allows is refused")
    func listLimit() throws {
        let sample = Sample()
        sample.state = Sample.filled
        sample.state.list = [1, 2, 3, 4]
        let writer = StreamWriter()
        let encoder = VMStateEncoder(to: writer, component: "sample", version: 4, layout: .qemu10_0)
        var coder: any StateCoder = encoder
        try sample.codeState(with: &coder)
        #expect(throws: StreamError.self) { _ = try decode(writer.bytes, into: Sample()) }
    }

    @Test("a section beyond the limit is refused instead of asked for")
    func sectionLimit() throws {
        var limits = StreamLimits()
        limits.deviceSectionByteCount = 64
        var cursor = StreamCursor(Array(Sample.filledBytes.prefix(70)))
        let header = SectionHeader(.full, id: 1, name: "sample", version: 4)
        #expect(throws: StreamError(.limitExceeded("section sample"), at: 0)) {
            try SectionDecoder.decode(Sample(), header: header, layout: .native, from: &cursor, limits: limits)
        }
    }
}
