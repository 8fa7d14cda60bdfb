/// The grammar of one JSON value whose brackets balance, as QEMU's parser judges it: Foundation's is laxer (a comma may
/// stand before a closing bracket, the last of two equal keys wins), and says less when it refuses.
///
/// What comes out is plain JSON: strings may stand in single quotes here, as in QEMU. Numbers, and what strings say, are
/// left to the decoder.
struct JSONSyntax {
    private enum Expectation: Hashable {
        /// A value; `orClose` right behind an opening bracket.
        case value(orClose: Bool)
        case key(orClose: Bool)
        case colon
        /// A comma or the closing bracket.
        case separator
        case nothing
    }

    private struct Level {
        var isObject: Bool
        var keys: Set<ArraySlice<UInt8>> = []
    }

    private let input: [UInt8]
    private var position = 0
    private var output: [UInt8] = []
    private var levels: [Level] = []
    private var expectation = Expectation.value(orClose: false)

    /// The same value as plain JSON.
    /// - Throws: ``JSONError`` in QEMU's words.
    static func normalized(_ input: [UInt8]) throws(JSONError) -> [UInt8] {
        var syntax = JSONSyntax(input)
        try syntax.run()
        return syntax.output
    }

    private init(_ input: [UInt8]) {
        self.input = input
        output.reserveCapacity(input.count)
    }

    private mutating func run() throws(JSONError) {
        while position < input.count {
            let byte = input[position]
            switch byte {
            case 0x09, 0x0A, 0x0D, 0x20: take()
            case UInt8(ascii: "{"), UInt8(ascii: "["):
                try expectValue()
                let isObject = byte == UInt8(ascii: "{")
                levels.append(Level(isObject: isObject))
                expectation = isObject ? .key(orClose: true) : .value(orClose: true)
                take()
            case UInt8(ascii: "}"), UInt8(ascii: "]"): try close(byte)
            case UInt8(ascii: ":"):
                guard expectation == .colon else { throw misplaced() }
                expectation = .value(orClose: false)
                take()
            case UInt8(ascii: ","):
                guard expectation == .separator, let level = levels.last else { throw misplaced() }
                expectation = level.isObject ? .key(orClose: false) : .value(orClose: false)
                take()
            case UInt8(ascii: "\""), UInt8(ascii: "'"): try string(quote: byte)
            default: try word()
            }
        }
        guard expectation == .nothing else { throw JSONError(description: "premature EOI") }
    }

    private mutating func take() {
        output.append(input[position])
        position += 1
    }

    /// What is wrong with the token that stands here.
    private func misplaced() -> JSONError {
        switch expectation {
        case .value, .key: JSONError(description: "expecting value")
        case .colon: JSONError(description: "missing : in object pair")
        case .separator:
            JSONError(
                description: levels.last?.isObject == true
                    ? "expected separator in dict" : "expected separator in list")
        case .nothing: JSONError(description: "expecting value")
        }
    }

    /// A value that is no string begins here.
    private func expectValue() throws(JSONError) {
        switch expectation {
        case .value: return
        case .key: throw JSONError(description: "key is not a string in object")
        default: throw misplaced()
        }
    }

    private mutating func valueEnded() { expectation = levels.isEmpty ? .nothing : .separator }

    private mutating func close(_ byte: UInt8) throws(JSONError) {
        switch expectation {
        case .value(orClose: true), .key(orClose: true), .separator: break
        default: throw misplaced()
        }
        guard let level = levels.popLast(), level.isObject == (byte == UInt8(ascii: "}")) else { throw misplaced() }
        take()
        valueEnded()
    }

    private mutating func string(quote: UInt8) throws(JSONError) {
        let isKey: Bool
        switch expectation {
        case .key: isKey = true
        case .value: isKey = false
        default: throw misplaced()
        }
        let start = output.count
        output.append(UInt8(ascii: "\""))
        position += 1
        while position < input.count, input[position] != quote {
            switch input[position] {
            case UInt8(ascii: "\\"): try escape()
            case UInt8(ascii: "\""):
                output.append(UInt8(ascii: "\\"))
                take()
            case 0x00..<0x20: throw JSONError(description: "stray '\(String(decoding: [quote], as: UTF8.self))'")
            default: take()
            }
        }
        guard position < input.count else { throw JSONError(description: "premature EOI") }
        output.append(UInt8(ascii: "\""))
        position += 1
        if isKey {
            guard levels[levels.count - 1].keys.insert(output[start...]).inserted else {
                throw JSONError(description: "duplicate key")
            }
            expectation = .colon
        } else {
            valueEnded()
        }
    }

    /// A backslash and what belongs to it.
    private mutating func escape() throws(JSONError) {
        guard position + 1 < input.count else { throw JSONError(description: "premature EOI") }
        switch input[position + 1] {
        case UInt8(ascii: "'"):  // QEMU's own
            position += 1
            take()
        case UInt8(ascii: "u"):
            let digits = input[position + 2..<min(position + 6, input.count)]
            guard let unit = Self.hexadecimal(digits) else { throw invalid(unicode: digits) }
            let next = input[min(position + 6, input.count)..<min(position + 12, input.count)]
            if (0xD800..<0xDC00).contains(unit) {
                guard next.starts(with: "\\u".utf8), let low = Self.hexadecimal(next.dropFirst(2)),
                    (0xDC00..<0xE000).contains(low)
                else { throw invalid(unicode: digits) }
                for _ in 0..<6 { take() }
            } else if (0xDC00..<0xE000).contains(unit) {
                throw invalid(unicode: digits)
            }
            for _ in 0..<6 { take() }
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"), UInt8(ascii: "b"), UInt8(ascii: "f"),
            UInt8(ascii: "n"), UInt8(ascii: "r"), UInt8(ascii: "t"):
            take()
            take()
        default: throw JSONError(description: "invalid escape sequence in string")
        }
    }

    private func invalid(unicode digits: ArraySlice<UInt8>) -> JSONError {
        JSONError(description: "\\u\(String(decoding: digits, as: UTF8.self)) is not a valid Unicode character")
    }

    /// Four digits.
    private static func hexadecimal(_ digits: ArraySlice<UInt8>) -> UInt32? {
        guard digits.count == 4, digits.first != UInt8(ascii: "+"), digits.first != UInt8(ascii: "-") else {
            return nil
        }
        return UInt32(String(decoding: digits, as: UTF8.self), radix: 16)
    }

    /// A number, `true`, `false` or `null`.
    private mutating func word() throws(JSONError) {
        var end = position
        while end < input.count, JSONFramer.isWord(input[end]) { end += 1 }
        guard end > position else { throw stray(input[position...position]) }
        let word = input[position..<end]
        if Self.isLetter(word[position]) {
            guard word.elementsEqual("true".utf8) || word.elementsEqual("false".utf8) || word.elementsEqual("null".utf8)
            else { throw JSONError(description: "invalid keyword '\(String(decoding: word, as: UTF8.self))'") }
        } else if !Self.isNumber(word) {
            throw stray(word)
        }
        try expectValue()
        for _ in word { take() }
        valueEnded()
    }

    private func stray(_ bytes: ArraySlice<UInt8>) -> JSONError {
        JSONError(description: "stray '\(String(decoding: bytes, as: UTF8.self))'")
    }

    private static func isLetter(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20)
    }

    /// RFC 8259, section 6.
    private static func isNumber(_ word: ArraySlice<UInt8>) -> Bool {
        var rest = word
        func digits(_ rest: inout ArraySlice<UInt8>) -> Int {
            let count = rest.prefix { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }.count
            rest = rest.dropFirst(count)
            return count
        }
        if rest.first == UInt8(ascii: "-") { rest = rest.dropFirst() }
        let first = rest.first
        let count = digits(&rest)
        guard count > 0, count == 1 || first != UInt8(ascii: "0") else { return false }
        if rest.first == UInt8(ascii: ".") {
            rest = rest.dropFirst()
            guard digits(&rest) > 0 else { return false }
        }
        if let letter = rest.first, letter | 0x20 == UInt8(ascii: "e") {
            rest = rest.dropFirst()
            if let sign = rest.first, sign == UInt8(ascii: "+") || sign == UInt8(ascii: "-") { rest = rest.dropFirst() }
            guard digits(&rest) > 0 else { return false }
        }
        return rest.isEmpty
    }
}
