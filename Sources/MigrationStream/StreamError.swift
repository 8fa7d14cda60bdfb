package import ComponentState

/// Why bytes could not be taken, and where. Everything a peer can do wrong ends here; nothing traps.
package struct StreamError: Error, Hashable, Sendable, CustomStringConvertible {
    package enum Reason: Hashable, Sendable {
        /// The buffer ends before the record does. Read at least `needed` more bytes and decode the record again:
        /// neither the cursor's owner nor any decoder has changed.
        case incomplete(needed: Int)
        /// The stream ended inside a record.
        case truncated
        /// The first four bytes are not the format's.
        case badMagic(UInt32)
        /// A format or section version that is not understood.
        case unsupportedVersion(UInt32)
        case unknownRecordType(UInt8)
        /// A record that may not stand here.
        case unexpectedRecord(String)
        /// A name that is empty, too long, or not text.
        case malformedName
        case unknownCommand(UInt16)
        case commandLength(command: UInt16, found: Int)
        case unknownSection(id: UInt32)
        case missingFooter(section: UInt32)
        case footerMismatch(expected: UInt32, found: UInt32)
        case unknownRAMFlags(RAMFlags)
        case unknownBlock(String)
        /// A block has another size on this side; the text says which.
        case blockDiffers(String)
        case noBlockToContinue
        case addressOutsideBlock(block: String, address: UInt64)
        case unknownReturnPathMessage(UInt16)
        case returnPathLength(type: UInt16, found: Int)
        /// More than our own limit for something the peer chooses the size of.
        case limitExceeded(String)
        /// A field's value is not allowed; the text says which.
        case invalid(String)
        /// A component refused its state.
        case state(StateError)
    }

    package let reason: Reason
    /// Bytes from the start of the stream to the record, or to the field, that is wrong.
    package let offset: UInt64

    package init(_ reason: Reason, at offset: UInt64) {
        self.reason = reason
        self.offset = offset
    }

    /// How many more bytes to read before another attempt; nil when more bytes would not help.
    package var neededByteCount: Int? {
        if case .incomplete(let needed) = reason { return needed }
        return nil
    }

    package var description: String {
        let what =
            switch reason {
            case .incomplete(let needed): "at least \(needed) more bytes are needed"
            case .truncated: "the stream ends inside a record"
            case .badMagic(let found): "not a migration stream: it begins with \(hexadecimal(found))"
            case .unsupportedVersion(let version): "unsupported version \(version)"
            case .unknownRecordType(let type): "unknown record type \(hexadecimal(type))"
            case .unexpectedRecord(let text): "unexpected record: \(text)"
            case .malformedName: "malformed name"
            case .unknownCommand(let command): "unknown command \(command)"
            case .commandLength(let command, let found): "command \(command) cannot have length \(found)"
            case .unknownSection(let id): "section id \(id) was never announced"
            case .missingFooter(let section): "section \(section) has no footer"
            case .footerMismatch(let expected, let found): "footer of section \(found) after section \(expected)"
            case .unknownRAMFlags(let flags): "RAM flags \(hexadecimal(flags.rawValue)) are not understood"
            case .blockDiffers(let text): text
            case .unknownBlock(let name): "unknown RAM block \(name)"
            case .noBlockToContinue: "a page continues a RAM block before any was named"
            case .addressOutsideBlock(let block, let address): "\(hexadecimal(address)) is outside RAM block \(block)"
            case .unknownReturnPathMessage(let type): "unknown return path message \(type)"
            case .returnPathLength(let type, let found): "return path message \(type) cannot have length \(found)"
            case .limitExceeded(let text): "too much: \(text)"
            case .invalid(let text): text
            case .state(let error): error.description
            }
        return "\(what) (at byte \(offset) of the stream)"
    }
}

func hexadecimal(_ value: some BinaryInteger) -> String { "0x" + String(value, radix: 16) }
