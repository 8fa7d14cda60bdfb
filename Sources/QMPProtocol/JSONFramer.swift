/// What one JSON value that somebody sends may cost.
package struct JSONLimits: Hashable, Sendable {
    /// Bytes of one value.
    package var byteCount = 1 << 20
    /// Arrays and objects within each other.
    package var nesting = 64
    /// Brackets, colons, commas, strings, numbers and words of one value.
    package var tokens = 65_536

    package init() {}
}

/// Why a piece of input was thrown away.
package enum JSONProblem: Hashable, Sendable, CustomStringConvertible {
    case tooLarge
    case tooDeep
    case tooManyTokens
    /// A byte that stands nowhere in JSON.
    case stray(UInt8)
    /// A bracket or mark that cannot stand where it stands.
    case misplaced

    package var description: String {
        switch self {
        case .tooLarge: "JSON token size limit exceeded"
        case .tooDeep: "JSON nesting depth limit exceeded"
        case .tooManyTokens: "JSON token count limit exceeded"
        case .misplaced: "JSON parse error, expecting value"
        case .stray(let byte):
            (0x21...0x7E).contains(byte)
                ? "JSON parse error, stray '\(Character(UnicodeScalar(byte)))'"
                : "JSON parse error, stray byte 0x\(String(byte, radix: 16))"
        }
    }
}

/// Cuts a stream of bytes into JSON values: no newline is needed, a complete object is enough. What is between the
/// brackets is not judged here beyond strings, brackets and limits; the parser does that.
///
/// After a problem everything up to the next end of line (or byte 0xFF, QMP's way to start afresh) is dropped, so that
/// garbage is answered once and not byte by byte.
package struct JSONFramer: Sendable {
    package enum Event: Hashable, Sendable {
        /// The bytes of one value with balanced brackets.
        case value([UInt8])
        case problem(JSONProblem)
    }

    private enum Place: Hashable { case between, inside, inString, afterBackslash, inWord, dropping }

    private let limits: JSONLimits
    private var pending: [UInt8] = []
    private var position = 0
    private var place = Place.between
    private var start = 0
    private var closers: [UInt8] = []
    /// What ends the string that is being read: QEMU takes single quotes too.
    private var quote = UInt8(ascii: "\"")
    private var tokenCount = 0

    package init(limits: JSONLimits = JSONLimits()) { self.limits = limits }

    /// What a successor needs to go on reading in the middle of a value.
    package struct Remainder: Hashable, Sendable, Codable {
        /// Input that belongs to no complete value yet.
        package var bytes: [UInt8]
        /// Everything up to the end of the line is still to be dropped.
        package var isDropping: Bool
    }

    package var remainder: Remainder {
        Remainder(bytes: place == .dropping ? [] : Array(pending[start...]), isDropping: place == .dropping)
    }

    /// Goes on where another framer stopped.
    package init(resuming remainder: Remainder, limits: JSONLimits = JSONLimits()) {
        self.limits = limits
        pending = remainder.bytes
        if remainder.isDropping { place = .dropping }
    }

    /// Adds input. Take everything with ``next()`` before adding more: what is held is bounded by that.
    package mutating func append(_ bytes: some Sequence<UInt8>) { pending.append(contentsOf: bytes) }

    /// The next value or problem; nil when more input is needed.
    package mutating func next() -> Event? {
        while position < pending.count {
            let byte = pending[position]
            if let event = step(byte) { return event }
        }
        compact()
        return nil
    }

    private mutating func step(_ byte: UInt8) -> Event? {
        switch place {
        case .dropping:
            position += 1
            if byte == 0x0A || byte == 0xFF { restart() }
            return nil
        case .between:
            switch byte {
            case 0x09, 0x0A, 0x0D, 0x20, 0xFF:
                position += 1
                start = position
                return nil
            case UInt8(ascii: "{"), UInt8(ascii: "["):
                start = position
                place = .inside
                return nil  // counted there
            case UInt8(ascii: "\""), UInt8(ascii: "'"):
                start = position
                quote = byte
                return count(token: 1) ?? advance(to: .inString)
            case _ where Self.isWord(byte):
                start = position
                return count(token: 1) ?? advance(to: .inWord)
            case UInt8(ascii: "}"), UInt8(ascii: "]"), UInt8(ascii: ":"), UInt8(ascii: ","): return drop(.misplaced)
            default: return drop(.stray(byte))
            }
        case .inWord:
            // A bare number or word ends where something else begins.
            if Self.isWord(byte) { return advance(to: .inWord) }
            return finish()
        case .afterBackslash: return advance(to: .inString)
        case .inString:
            switch byte {
            case UInt8(ascii: "\\"): return advance(to: .afterBackslash)
            case quote:
                if let event = advance(to: closers.isEmpty ? .between : .inside) { return event }
                return closers.isEmpty ? finish() : nil
            case 0x00..<0x20, 0xFF: return drop(.stray(byte))
            default: return advance(to: .inString)
            }
        case .inside:
            switch byte {
            case UInt8(ascii: "{"), UInt8(ascii: "["):
                if closers.count >= limits.nesting { return drop(.tooDeep) }
                closers.append(byte == UInt8(ascii: "{") ? UInt8(ascii: "}") : UInt8(ascii: "]"))
                return count(token: 1) ?? advance(to: .inside)
            case UInt8(ascii: "}"), UInt8(ascii: "]"):
                guard closers.popLast() == byte else { return drop(.misplaced) }
                if let event = count(token: 1) ?? advance(to: .inside) { return event }
                return closers.isEmpty ? finish() : nil
            case UInt8(ascii: "\""), UInt8(ascii: "'"):
                quote = byte
                return count(token: 1) ?? advance(to: .inString)
            case UInt8(ascii: ":"), UInt8(ascii: ","): return count(token: 1) ?? advance(to: .inside)
            case 0x09, 0x0A, 0x0D, 0x20: return advance(to: .inside)
            case _ where Self.isWord(byte):
                let isStart = position == start || !Self.isWord(pending[position - 1])
                return (isStart ? count(token: 1) : nil) ?? advance(to: .inside)
            default: return drop(.stray(byte))
            }
        }
    }

    static func isWord(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "a")...UInt8(ascii: "z"),
            UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "+"), UInt8(ascii: "-"), UInt8(ascii: "."):
            true
        default: false
        }
    }

    private mutating func advance(to next: Place) -> Event? {
        position += 1
        place = next
        return position - start > limits.byteCount ? drop(.tooLarge) : nil
    }

    private mutating func count(token: Int) -> Event? {
        tokenCount += token
        return tokenCount > limits.tokens ? drop(.tooManyTokens) : nil
    }

    private mutating func finish() -> Event {
        let bytes = Array(pending[start..<position])
        restart()
        return .value(bytes)
    }

    private mutating func restart() {
        place = .between
        start = position
        closers.removeAll(keepingCapacity: true)
        tokenCount = 0
    }

    private mutating func drop(_ problem: JSONProblem) -> Event {
        restart()
        place = .dropping
        return .problem(problem)
    }

    /// Lets go of what was consumed.
    private mutating func compact() {
        if place == .dropping || place == .between {
            pending.removeAll(keepingCapacity: pending.capacity <= 65_536)
            position = 0
        } else if start > 0 {
            pending.removeFirst(start)
            position -= start
        }
        start = 0
    }
}
