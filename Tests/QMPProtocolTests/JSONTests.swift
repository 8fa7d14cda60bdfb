import Testing

@testable import QMPProtocol

@Suite("JSON values") struct JSONValueTests {
    @Test(
        "a value survives writing and reading",
        arguments: [
            JSONValue.null, true, false, 0, -1, .integer(.min), .integer(.max), .unsigned(.max), 1.5, -0.25, 1e300, "",
            "plain", "\"\\/\n\r\t\u{8}\u{1}", "Grüße, 世界 🐟", [], [:], [1, "two", [3.5], ["four": nil]],
            ["b": 1, "a": ["x": [], "": "empty key"]],
        ])
    func roundTrip(value: JSONValue) throws {
        #expect(try JSONValue.parse(value.jsonBytes) == value)
        #expect(try JSONValue.parse(value.prettyJSON) == value)
        #expect(try JSONCoding.model(JSONValue.self, from: JSONCoding.value(of: value)) == value)
    }

    @Test("what is written is ASCII, in the order it was built") func text() {
        let value: JSONValue = ["z": 1, "a": [true, nil], "ü": "🐟"]
        #expect(value.json == #"{"z": 1, "a": [true, null], "\u00FC": "\uD83D\uDC1F"}"#)
        #expect(
            (["a": [1, 2], "b": [:]] as JSONValue).prettyJSON == "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {}\n}")
    }

    @Test(
        "what is not JSON is refused",
        arguments: [
            "", " ", "{", "{\"a\"}", "{\"a\":}", "nul", "1 2", "{} {}", "\"open", "[1 2]", "01x", "}",
        ])
    func refused(text: String) {
        #expect(throws: JSONError.self) { try JSONValue.parse(text) }
    }
}

@Suite("Cutting input into JSON values") struct JSONFramerTests {
    static func events(_ framer: inout JSONFramer) -> [JSONFramer.Event] {
        var events: [JSONFramer.Event] = []
        while let event = framer.next() { events.append(event) }
        return events
    }

    static func value(_ text: String) -> JSONFramer.Event { .value(Array(text.utf8)) }

    static let conversation =
        #"{"execute":"a"}{"b":"}{\"]["}"# + "\r\n [1,[2]] \"x\\\\\" 12\ttrue {\"é\": [{}]}\n"
    static let pieces = [
        #"{"execute":"a"}"#, #"{"b":"}{\"]["}"#, "[1,[2]]", "\"x\\\\\"", "12", "true", "{\"é\": [{}]}",
    ]

    @Test("the same values come out wherever the input is cut", arguments: 1...20)
    func cut(length: Int) {
        var framer = JSONFramer()
        var events: [JSONFramer.Event] = []
        let bytes = Array(Self.conversation.utf8)
        for start in stride(from: 0, to: bytes.count, by: length) {
            framer.append(bytes[start..<min(start + length, bytes.count)])
            events += Self.events(&framer)
        }
        #expect(events == Self.pieces.map(Self.value))
    }

    @Test("a successor goes on in the middle of a value, wherever that is") func resumes() throws {
        let bytes = Array(Self.conversation.utf8)
        for cut in 0...bytes.count {
            var first = JSONFramer()
            first.append(bytes[..<cut])
            var events = Self.events(&first)
            var second = JSONFramer(resuming: first.remainder)
            second.append(bytes[cut...])
            events += Self.events(&second)
            #expect(events == Self.pieces.map(Self.value), "cut at \(cut)")
        }
    }

    @Test("a complete object needs no newline") func noNewline() {
        var framer = JSONFramer()
        framer.append(Array("{}".utf8))
        #expect(framer.next() == Self.value("{}"))
    }

    @Test("size, nesting and tokens have limits, and the next line is read again") func limits() {
        var limits = JSONLimits()
        limits.byteCount = 100
        limits.nesting = 4
        limits.tokens = 20
        let tooMuch: [(String, JSONProblem)] = [
            ("{\"a\":\"" + String(repeating: "x", count: 200), .tooLarge),
            (String(repeating: " ", count: 500) + "[" + String(repeating: " ", count: 200), .tooLarge),
            (String(repeating: "9", count: 200), .tooLarge),
            ("[[[[[1]]]]]", .tooDeep),
            ("{\"a\":[{\"a\":[{\"a\":1}]}]}", .tooDeep),
            ("[1,1,1,1,1,1,1,1,1,1,1,1,1]", .tooManyTokens),
            ("{\"a\":1]}", .misplaced),
            ("}}}}}", .misplaced),
            ("\u{1}{}{}", .stray(1)),
            ("{\"a\u{2}", .stray(2)),
        ]
        for (text, problem) in tooMuch {
            var framer = JSONFramer(limits: limits)
            framer.append(Array((text + "\n{\"after\":1}").utf8))
            #expect(Self.events(&framer) == [.problem(problem), Self.value("{\"after\":1}")], "\(text)")
        }
    }

    @Test("byte 0xFF starts afresh in the middle of anything") func restart() {
        var framer = JSONFramer()
        framer.append(Array("{\"a\": [\"".utf8) + [0xFF] + Array("{}".utf8))
        #expect(Self.events(&framer) == [.problem(.stray(0xFF)), Self.value("{}")])
    }

    @Test("endless input without an end is not kept") func bounded() {
        var framer = JSONFramer()
        framer.append(Array("{\"a\":\"".utf8))
        for _ in 0..<64 {
            framer.append([UInt8](repeating: 0x61, count: 65_536))
            _ = Self.events(&framer)
            #expect(framer.remainder.bytes.count <= JSONLimits().byteCount)
        }
    }

    @Test(
        "random bytes, cut at random, never trap and never hold more than the limit", arguments: 0..<32 as Range<UInt64>
    )
    func noise(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        var limits = JSONLimits()
        limits.byteCount = 256
        limits.nesting = 8
        limits.tokens = 40
        var framer = JSONFramer(limits: limits)
        let alphabet = Array("{}[]\",:\\ \n0123456789truefalsn.-+eE\u{1}".utf8) + [0xFF, 0xC3, 0x80]
        for _ in 0..<400 {
            let count = Int.random(in: 1...64, using: &random)
            framer.append((0..<count).map { _ in alphabet.randomElement(using: &random)! })
            for event in Self.events(&framer) {
                guard case .value(let bytes) = event else { continue }
                #expect(bytes.count <= limits.byteCount)
                _ = try? JSONValue(json: bytes)
            }
            #expect(framer.remainder.bytes.count <= limits.byteCount)
        }
    }
}

/// SplitMix64: a seed replays a failure.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }
}
