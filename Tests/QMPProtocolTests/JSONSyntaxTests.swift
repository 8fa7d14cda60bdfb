import Testing

@testable import QMPProtocol

@Suite("JSON as QEMU's parser judges it") struct JSONSyntaxTests {
    static let refused: [(String, String)] = [
        (#"{"a":1,}"#, "expecting value"), (#"["a",]"#, "expecting value"), ("[,]", "expecting value"),
        ("{,}", "expecting value"), (#"{"a" "b"}"#, "missing : in object pair"), (#"{"a":}"#, "expecting value"),
        (#"{"a"}"#, "missing : in object pair"), ("{5:6}", "key is not a string in object"),
        ("{[]:6}", "key is not a string in object"), (#"{"a":1 "b":2}"#, "expected separator in dict"),
        ("[1 2]", "expected separator in list"), (#"{"a":1,"a":2}"#, "duplicate key"),
        (#"{"a":1,'a':2}"#, "duplicate key"), (#"{"a":nul}"#, "invalid keyword 'nul'"),
        ("[True]", "invalid keyword 'True'"),
        ("[01]", "stray '01'"), ("[+1]", "stray '+1'"), ("[1.]", "stray '1.'"), ("[.5]", "stray '.5'"),
        ("[1e]", "stray '1e'"), ("[-]", "stray '-'"), (#"["\q"]"#, "invalid escape sequence in string"),
        (#"["\u12"]"#, "\\u12\"] is not a valid Unicode character"),
        (#"["\ud800"]"#, "\\ud800 is not a valid Unicode character"),
        (#"["\udc00\ud800"]"#, "\\udc00 is not a valid Unicode character"),
        (#"["\u+123"]"#, "\\u+123 is not a valid Unicode character"), ("[1]]", "expecting value"),
        ("[1}", "expected separator in list"),
        ("[1", "premature EOI"), ("\"a", "premature EOI"), ("", "premature EOI"), ("1 2", "expecting value"),
    ]

    @Test("what QEMU refuses is refused in its words", arguments: refused)
    func refuses(text: String, reason: String) {
        #expect(throws: JSONError(description: reason)) { try JSONSyntax.normalized(Array(text.utf8)) }
        #expect(throws: JSONError.self) { try JSONValue(json: Array(text.utf8)) }
    }

    static let accepted: [(String, JSONValue)] = [
        ("{'a': 'it\\'s \"x\"'}", ["a": "it's \"x\""]), ("['\\u00e9\\ud83d\\ude00', \"'\"]", ["é😀", "'"]),
        ("[-0, 0.5, 1e3, -1E-2, 18446744073709551615]", [0, 0.5, 1000, -0.01, .unsigned(.max)]),
        (" { } ", [:]), ("[[],{}]", [[], [:]]), (#"{"":{"":[]}}"#, ["": ["": []]]), ("true", true), ("null", nil),
        (#"["\"\\\/\b\f\n\r\t\u0000"]"#, ["\"\\/\u{8}\u{c}\n\r\t\0"]),
    ]

    @Test("what QEMU takes is taken, single quotes too", arguments: accepted)
    func takes(text: String, value: JSONValue) throws { #expect(try JSONValue.parse(text) == value) }

    @Test("bytes that are no UTF-8 are refused in words") func invalidUTF8() {
        #expect(throws: JSONError(description: "invalid UTF-8 sequence in string")) {
            try JSONValue(json: [0x22, 0xC3, 0x28, 0x22])
        }
    }

    @Test("every cut of a valid text, and every byte of it changed, is taken or refused and never traps")
    func mangled() {
        let text = Array(#"{"a": [1, -2.5e3, "x\u00e9\n", true, null], 'b': {"c": {}}}"#.utf8)
        for length in 0..<text.count { #expect(throws: JSONError.self) { try JSONValue(json: Array(text[..<length])) } }
        for index in text.indices {
            for byte in [UInt8(0), 0x22, 0x27, 0x2C, 0x3A, 0x5B, 0x5C, 0x5D, 0x7B, 0x7D, 0x80, 0xFF] {
                var changed = text
                changed[index] = byte
                _ = try? JSONValue(json: changed)
            }
        }
    }
}
