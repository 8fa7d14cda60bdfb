/// JSON as it stands in a stream's self-description: objects keep their order, so that what was read can be written
/// again byte for byte.
package indirect enum DescriptionJSON: Hashable, Sendable {
    package struct Member: Hashable, Sendable {
        package var key: String
        package var value: DescriptionJSON
    }

    case object([Member])
    case array([DescriptionJSON])
    case string(String)
    case integer(Int64)
    /// A number that is not a 64-bit integer, as it was written.
    case number(String)
    case boolean(Bool)
    case null

    /// The value of a key; nil when there is none or this is no object.
    package subscript(key: String) -> DescriptionJSON? {
        guard case .object(let members) = self else { return nil }
        return members.first { $0.key == key }?.value
    }

    package var text: String? {
        if case .string(let text) = self { return text }
        return nil
    }

    package var integerValue: Int64? {
        if case .integer(let value) = self { return value }
        return nil
    }

    package var elements: [DescriptionJSON]? {
        if case .array(let elements) = self { return elements }
        return nil
    }

    /// Nesting and number of values a reader takes.
    static let depthMax = 64
    static let valueCountMax = 1 << 20

    /// - Parameters:
    ///   - bytes: The whole document.
    ///   - offset: Where it stands in the stream, for errors.
    package static func parse(_ bytes: [UInt8], at offset: UInt64 = 0) throws(StreamError) -> DescriptionJSON {
        var parser = Parser(bytes: bytes, origin: offset)
        let value = try parser.value(depth: 0)
        parser.skipSpace()
        guard parser.position == bytes.count else { throw parser.failure("text after the value") }
        return value
    }

    /// As QEMU writes it: a space after each comma and colon, nothing else.
    package func serialise(into bytes: inout [UInt8]) {
        switch self {
        case .object(let members):
            bytes.append(UInt8(ascii: "{"))
            for (index, member) in members.enumerated() {
                if index > 0 { bytes.append(contentsOf: ", ".utf8) }
                Self.serialise(member.key, into: &bytes)
                bytes.append(contentsOf: ": ".utf8)
                member.value.serialise(into: &bytes)
            }
            bytes.append(UInt8(ascii: "}"))
        case .array(let elements):
            bytes.append(UInt8(ascii: "["))
            for (index, element) in elements.enumerated() {
                if index > 0 { bytes.append(contentsOf: ", ".utf8) }
                element.serialise(into: &bytes)
            }
            bytes.append(UInt8(ascii: "]"))
        case .string(let text): Self.serialise(text, into: &bytes)
        case .integer(let value): bytes.append(contentsOf: String(value).utf8)
        case .number(let text): bytes.append(contentsOf: text.utf8)
        case .boolean(let value): bytes.append(contentsOf: (value ? "true" : "false").utf8)
        case .null: bytes.append(contentsOf: "null".utf8)
        }
    }

    private static func serialise(_ text: String, into bytes: inout [UInt8]) {
        bytes.append(UInt8(ascii: "\""))
        for scalar in text.unicodeScalars {
            switch scalar.value {
            case 0x22: bytes.append(contentsOf: "\\\"".utf8)
            case 0x5c: bytes.append(contentsOf: "\\\\".utf8)
            case 0x08: bytes.append(contentsOf: "\\b".utf8)
            case 0x0c: bytes.append(contentsOf: "\\f".utf8)
            case 0x0a: bytes.append(contentsOf: "\\n".utf8)
            case 0x0d: bytes.append(contentsOf: "\\r".utf8)
            case 0x09: bytes.append(contentsOf: "\\t".utf8)
            case 0x20..<0x7f: bytes.append(UInt8(scalar.value))
            default:
                for unit in String(scalar).utf16 {
                    let digits = String(unit, radix: 16, uppercase: true)
                    bytes.append(contentsOf: ("\\u" + String(repeating: "0", count: 4 - digits.count) + digits).utf8)
                }
            }
        }
        bytes.append(UInt8(ascii: "\""))
    }

    private struct Parser {
        let bytes: [UInt8]
        let origin: UInt64
        var position = 0
        var valueCount = 0

        func failure(_ text: String) -> StreamError {
            StreamError(.invalid("self-description: \(text)"), at: origin &+ UInt64(position))
        }

        mutating func skipSpace() {
            while position < bytes.count, [0x20, 0x09, 0x0a, 0x0d].contains(bytes[position]) { position += 1 }
        }

        mutating func expect(_ literal: String) throws(StreamError) {
            let expected = literal.utf8
            guard bytes.count - position >= expected.count,
                bytes[position..<position + expected.count].elementsEqual(expected)
            else { throw failure("expected \(literal)") }
            position += expected.count
        }

        mutating func value(depth: Int) throws(StreamError) -> DescriptionJSON {
            guard depth <= depthMax else { throw failure("nested deeper than \(depthMax)") }
            valueCount += 1
            guard valueCount <= valueCountMax else { throw failure("more than \(valueCountMax) values") }
            skipSpace()
            guard position < bytes.count else { throw failure("ends early") }
            switch bytes[position] {
            case UInt8(ascii: "{"): return try object(depth: depth)
            case UInt8(ascii: "["): return try array(depth: depth)
            case UInt8(ascii: "\""): return .string(try string())
            case UInt8(ascii: "t"):
                try expect("true")
                return .boolean(true)
            case UInt8(ascii: "f"):
                try expect("false")
                return .boolean(false)
            case UInt8(ascii: "n"):
                try expect("null")
                return .null
            default: return try number()
            }
        }

        mutating func object(depth: Int) throws(StreamError) -> DescriptionJSON {
            position += 1
            var members: [Member] = []
            skipSpace()
            if position < bytes.count, bytes[position] == UInt8(ascii: "}") {
                position += 1
                return .object(members)
            }
            while true {
                skipSpace()
                guard position < bytes.count, bytes[position] == UInt8(ascii: "\"") else {
                    throw failure("expected a key")
                }
                let key = try string()
                skipSpace()
                try expect(":")
                members.append(Member(key: key, value: try value(depth: depth + 1)))
                skipSpace()
                guard position < bytes.count else { throw failure("ends early") }
                position += 1
                if bytes[position - 1] == UInt8(ascii: "}") { return .object(members) }
                guard bytes[position - 1] == UInt8(ascii: ",") else { throw failure("expected , or }") }
            }
        }

        mutating func array(depth: Int) throws(StreamError) -> DescriptionJSON {
            position += 1
            var elements: [DescriptionJSON] = []
            skipSpace()
            if position < bytes.count, bytes[position] == UInt8(ascii: "]") {
                position += 1
                return .array(elements)
            }
            while true {
                elements.append(try value(depth: depth + 1))
                skipSpace()
                guard position < bytes.count else { throw failure("ends early") }
                position += 1
                if bytes[position - 1] == UInt8(ascii: "]") { return .array(elements) }
                guard bytes[position - 1] == UInt8(ascii: ",") else { throw failure("expected , or ]") }
            }
        }

        mutating func number() throws(StreamError) -> DescriptionJSON {
            let start = position
            while position < bytes.count, "+-.eE0123456789".utf8.contains(bytes[position]) { position += 1 }
            guard position > start else { throw failure("expected a value") }
            let text = String(decoding: bytes[start..<position], as: UTF8.self)
            guard bytes[start] != UInt8(ascii: "+") else { throw failure("malformed number") }
            if let integer = Int64(text) { return .integer(integer) }
            guard Double(text) != nil else { throw failure("malformed number") }
            return .number(text)
        }

        mutating func string() throws(StreamError) -> String {
            position += 1
            var content: [UInt8] = []
            while position < bytes.count {
                let byte = bytes[position]
                position += 1
                switch byte {
                case UInt8(ascii: "\""):
                    guard let text = String(validating: content, as: UTF8.self) else { throw failure("malformed text") }
                    return text
                case UInt8(ascii: "\\"): try escape(into: &content)
                case 0..<0x20: throw failure("control character in text")
                default: content.append(byte)
                }
            }
            throw failure("text without end")
        }

        mutating func escape(into content: inout [UInt8]) throws(StreamError) {
            guard position < bytes.count else { throw failure("text without end") }
            let byte = bytes[position]
            position += 1
            switch byte {
            case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): content.append(byte)
            case UInt8(ascii: "b"): content.append(0x08)
            case UInt8(ascii: "f"): content.append(0x0c)
            case UInt8(ascii: "n"): content.append(0x0a)
            case UInt8(ascii: "r"): content.append(0x0d)
            case UInt8(ascii: "t"): content.append(0x09)
            case UInt8(ascii: "u"):
                var value = try hexadecimalUnit()
                if (0xd800..<0xdc00).contains(value) {
                    try expect("\\u")
                    let low = try hexadecimalUnit()
                    guard (0xdc00..<0xe000).contains(low) else { throw failure("malformed surrogate") }
                    value = 0x10000 + (value - 0xd800) << 10 + (low - 0xdc00)
                }
                guard let scalar = Unicode.Scalar(value) else { throw failure("malformed surrogate") }
                content.append(contentsOf: String(scalar).utf8)
            default: throw failure("unknown escape")
            }
        }

        mutating func hexadecimalUnit() throws(StreamError) -> UInt32 {
            guard bytes.count - position >= 4 else { throw failure("text without end") }
            var value: UInt32 = 0
            for _ in 0..<4 {
                guard let digit = Character(Unicode.Scalar(bytes[position])).hexDigitValue else {
                    throw failure("malformed escape")
                }
                value = value << 4 | UInt32(digit)
                position += 1
            }
            return value
        }
    }
}
