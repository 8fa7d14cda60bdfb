import MigrationStream
import Testing

@Suite("The self-description")
struct DescriptionTests {
    @Test("text and numbers of every shape come back as they were")
    func json() throws {
        let text =
            #"{"a": [1, -2, 9223372036854775807, 1.5e3, true, false, null, {}, []], "é\n\"\\": "\u0001 \uD83D\uDE00"}"#
        let value = try DescriptionJSON.parse(Array(text.utf8))
        #expect(value["a"]?.elements?.count == 9)
        #expect(value["é\n\"\\"]?.text == "\u{1} 😀")
        var bytes: [UInt8] = []
        value.serialise(into: &bytes)
        #expect(try DescriptionJSON.parse(bytes) == value)
        #expect(
            String(decoding: bytes, as: UTF8.self)
                == #"{"a": [1, -2, 9223372036854775807, 1.5e3, true, false, null, {}, []], "\u00E9\n\"\\": "\u0001 \uD83D\uDE00"}"#
        )
    }

    @Test(
        "what is no JSON is refused",
        arguments: [
            "", "{", "}", "[1,]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "\"\\x\"", "\"\\u12\"", "\"\\ud800\"",
            "\"\\ud800\\u0041\"", "\"", "1 2", "tru", "+1", "-", "1e", "\"\u{1}\"", "nul", "[1 2]", "'a'",
        ])
    func malformed(text: String) {
        #expect(throws: StreamError.self) { try DescriptionJSON.parse(Array(text.utf8)) }
    }

    @Test("depth is limited")
    func depth() {
        let deep = String(repeating: "[", count: 100_000)
        #expect(throws: StreamError.self) { try DescriptionJSON.parse(Array(deep.utf8)) }
    }

    @Test("a short description is one")
    func minimal() throws {
        #expect(try VMDescription.parse(Array("{}".utf8)).devices.isEmpty)
        #expect(throws: StreamError.self) { try VMDescription.parse(Array("[]".utf8)) }
        #expect(throws: StreamError.self) { try VMDescription.parse(Array(#"{"devices": [{}]}"#.utf8)) }
        #expect(throws: StreamError.self) {
            try VMDescription.parse(Array(#"{"devices": [{"name": "a", "instance_id": -1}]}"#.utf8))
        }
    }

    @Test("sizes that lie do not make more of a section than there is")
    func lies() throws {
        func dissect(_ fields: String, _ bytes: [UInt8]) throws -> DissectedStructure {
            let json = #"{"devices": [{"name": "a", "instance_id": 0, "vmsd_name": "a", "version": 1, "fields": ["#
            let description = try VMDescription.parse(Array((json + fields + "]}]}").utf8))
            var cursor = StreamCursor(bytes, isFinal: true)
            return try DissectedStructure.decode(description.devices[0].content, from: &cursor)
        }
        let four: [UInt8] = [1, 2, 3, 4]
        #expect(throws: StreamError.self) { try dissect(#"{"name": "x", "type": "buffer", "size": 4294967295}"#, four) }
        #expect(throws: StreamError.self) {
            try dissect(#"{"name": "x", "array_len": 4294967295, "type": "uint64", "size": 4294967295}"#, four)
        }
        // An array of elements without bytes is not walked.
        let empty = try dissect(
            #"{"name": "x", "array_len": 4294967295, "type": "struct", "struct": {"vmsd_name": "s", "version": 1, "fields": []}, "size": 0}"#,
            four)
        #expect(empty.fields[0].value == .bytes([]))
        _ = try dissect(#"{"name": "x", "array_len": 4294967295, "type": "buffer", "size": 0}"#, four)
        #expect(throws: StreamError.self) {
            try dissect(
                #"{"name": "x", "type": "struct", "struct": {"vmsd_name": "s", "version": 1, "fields": [{"name": "y", "type": "uint16", "size": 2}]}, "size": 3}"#,
                four)
        }
        #expect(
            try dissect(
                #"{"name": "x", "type": "int16", "size": 2}, {"name": "y", "type": "bool", "size": 1}"#,
                [0xff, 0xfe, 7]
            )
            .fields.map(\.value) == [.signed(-2), .unsigned(7)])
    }
}
