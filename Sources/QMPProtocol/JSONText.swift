import FoundationEssentials

/// Why bytes are not JSON.
package struct JSONError: Error, Hashable, Sendable, CustomStringConvertible {
    package let description: String

    package init(description: String) { self.description = description }
}

extension JSONValue {
    /// Reads one value. The caller has bounded size and nesting (see ``JSONFramer``).
    package init(json bytes: [UInt8]) throws(JSONError) {
        let plain = try JSONSyntax.normalized(bytes)
        do {
            self = try JSONDecoder().decode(JSONValue.self, from: Data(plain))
        } catch {
            throw JSONError(description: "invalid UTF-8 sequence in string")  // all else has been judged
        }
    }

    /// Reads one value of limited size and nesting from somewhere that is not a QMP socket: a file, an argument.
    package static func parse(_ bytes: [UInt8], limits: JSONLimits = JSONLimits()) throws(JSONError) -> JSONValue {
        var framer = JSONFramer(limits: limits)
        framer.append(bytes)
        framer.append([0x0A])  // ends a bare number or word
        var result: JSONValue?
        while let event = framer.next() {
            switch event {
            case .problem(let problem): throw JSONError(description: problem.description)
            case .value(let bytes):
                if result != nil { throw JSONError(description: "more than one JSON value") }
                result = try JSONValue(json: bytes)
            }
        }
        guard let result else { throw JSONError(description: "incomplete JSON") }
        return result
    }

    package static func parse(_ text: String) throws(JSONError) -> JSONValue { try parse(Array(text.utf8)) }

    /// Compact JSON, ASCII only: everything else is escaped, as QEMU does.
    package var json: String { String(decoding: jsonBytes, as: UTF8.self) }

    /// JSON with one member per line.
    package var prettyJSON: String {
        var writer = JSONTextWriter(indents: true)
        writer.write(self, depth: 0)
        return String(decoding: writer.bytes, as: UTF8.self)
    }

    package var jsonBytes: [UInt8] {
        var writer = JSONTextWriter(indents: false)
        writer.write(self, depth: 0)
        return writer.bytes
    }
}

private struct JSONTextWriter {
    let indents: Bool
    var bytes: [UInt8] = []

    init(indents: Bool) { self.indents = indents }

    mutating func write(_ value: JSONValue, depth: Int) {
        switch value {
        case .null: append("null")
        case .bool(let value): append(value ? "true" : "false")
        case .integer(let value): append(String(value))
        case .unsigned(let value): append(String(value))
        case .number(let value): append(value.isFinite ? value.description : "0")
        case .string(let value): write(string: value)
        case .array(let values):
            bytes.append(UInt8(ascii: "["))
            for (index, value) in values.enumerated() {
                separate(first: index == 0, depth: depth + 1)
                write(value, depth: depth + 1)
            }
            close("]", isEmpty: values.isEmpty, depth: depth)
        case .object(let object):
            bytes.append(UInt8(ascii: "{"))
            for (index, member) in object.members.enumerated() {
                separate(first: index == 0, depth: depth + 1)
                write(string: member.key)
                append(": ")
                write(member.value, depth: depth + 1)
            }
            close("}", isEmpty: object.isEmpty, depth: depth)
        }
    }

    private mutating func append(_ text: String) { bytes.append(contentsOf: text.utf8) }

    private mutating func separate(first: Bool, depth: Int) {
        if !first { append(indents ? "," : ", ") }
        if indents { newLine(depth) }
    }

    private mutating func close(_ bracket: String, isEmpty: Bool, depth: Int) {
        if indents && !isEmpty { newLine(depth) }
        append(bracket)
    }

    private mutating func newLine(_ depth: Int) {
        bytes.append(0x0A)
        for _ in 0..<(2 * depth) { bytes.append(0x20) }
    }

    private mutating func write(string: String) {
        bytes.append(UInt8(ascii: "\""))
        for scalar in string.unicodeScalars {
            switch scalar {
            case "\"": append("\\\"")
            case "\\": append("\\\\")
            case "\n": append("\\n")
            case "\r": append("\\r")
            case "\t": append("\\t")
            case "\u{20}"..."\u{7E}": bytes.append(UInt8(scalar.value))
            default:
                for unit in String(scalar).utf16 {
                    append("\\u")
                    let digits = String(unit, radix: 16, uppercase: true)
                    append(String(repeating: "0", count: 4 - digits.count) + digits)
                }
            }
        }
        bytes.append(UInt8(ascii: "\""))
    }
}

extension JSONValue: Decodable, Encodable {
    package init(from decoder: any Decoder) throws {
        if let container = try? decoder.container(keyedBy: Key.self) {
            var members: [JSONObject.Member] = []
            for key in container.allKeys {
                members.append(.init(key: key.stringValue, value: try container.decode(JSONValue.self, forKey: key)))
            }
            members.sort { $0.key < $1.key }  // the decoder hands them out in no order at all
            self = .object(JSONObject(distinct: members))
        } else if var container = try? decoder.unkeyedContainer() {
            var values: [JSONValue] = []
            while !container.isAtEnd { values.append(try container.decode(JSONValue.self)) }
            self = .array(values)
        } else {
            let container = try decoder.singleValueContainer()
            if let value = try? container.decode(String.self) {
                self = .string(value)
            } else if let value = try? container.decode(Int64.self) {
                self = .integer(value)
            } else if let value = try? container.decode(UInt64.self) {
                self = .unsigned(value)
            } else if let value = try? container.decode(Bool.self) {
                self = .bool(value)
            } else if container.decodeNil() {
                self = .null
            } else {
                self = .number(try container.decode(Double.self))
            }
        }
    }

    package func encode(to encoder: any Encoder) throws {
        switch self {
        case .object(let object):
            var container = encoder.container(keyedBy: Key.self)
            for member in object.members { try container.encode(member.value, forKey: Key(member.key)) }
        case .array(let values):
            var container = encoder.unkeyedContainer()
            for value in values { try container.encode(value) }
        default:
            var container = encoder.singleValueContainer()
            switch self {
            case .bool(let value): try container.encode(value)
            case .integer(let value): try container.encode(value)
            case .unsigned(let value): try container.encode(value)
            case .number(let value): try container.encode(value)
            case .string(let value): try container.encode(value)
            default: try container.encodeNil()
            }
        }
    }

    private struct Key: CodingKey {
        let stringValue: String
        var intValue: Int? { nil }
        init(_ stringValue: String) { self.stringValue = stringValue }
        init?(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }
}

/// A value of ours to JSON and back, by way of its Codable conformance.
package enum JSONCoding {
    package static func value(of model: some Encodable) throws -> JSONValue {
        try JSONValue.parse(Array(try JSONEncoder().encode(model)))
    }

    package static func model<Model: Decodable>(_: Model.Type = Model.self, from value: JSONValue) throws -> Model {
        try JSONDecoder().decode(Model.self, from: Data(value.jsonBytes))
    }
}
