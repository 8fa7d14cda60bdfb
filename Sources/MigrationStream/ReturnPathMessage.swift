/// What a destination says to the source, on the reverse direction of the same socket: `u16 type, u16 length, payload`.
package enum ReturnPathMessage: Hashable, Sendable {
    /// The last message; 0 is success.
    case shut(status: UInt32)
    /// Answers ``StreamCommand/ping(_:)``.
    case pong(UInt32)
    /// Asks for pages. `offset` and `byteCount` are multiples of the host page; nil block means that of the last request.
    case requestPages(block: String?, offset: UInt64, byteCount: UInt32)
    /// A ``ReceivedBitmap`` follows, outside the message's length.
    case receivedBitmap(block: String)
    /// The destination is ready to resume; 1.
    case resumeAcknowledged(UInt32)
    /// The destination's devices are ready for the final phase.
    case switchoverAcknowledged

    /// Payloads above this are refused by stock sources, and here.
    package static let payloadByteCountMax = 512

    package var type: UInt16 {
        switch self {
        case .shut: 1
        case .pong: 2
        case .requestPages(.some, _, _): 3
        case .requestPages(nil, _, _): 4
        case .receivedBitmap: 5
        case .resumeAcknowledged: 6
        case .switchoverAcknowledged: 7
        }
    }

    /// - Throws: ``StreamError``; after `incomplete` the cursor has not moved.
    package static func decode(from cursor: inout StreamCursor) throws(StreamError) -> ReturnPathMessage {
        var ahead = cursor
        let start = ahead.offset
        let type = try ahead.readInteger(as: UInt16.self)
        let byteCount = Int(try ahead.readInteger(as: UInt16.self))
        let badLength = StreamError(.returnPathLength(type: type, found: byteCount), at: start)
        let allowed: ClosedRange<Int> =
            switch type {
            case 1, 2, 6: 4...4
            case 3: 14...payloadByteCountMax
            case 4: 12...12
            case 5: 2...payloadByteCountMax
            case 7: 0...0
            default: throw StreamError(.unknownReturnPathMessage(type), at: start)
            }
        guard allowed.contains(byteCount) else { throw badLength }
        var payload = try ahead.readSlice(byteCount)
        let message: ReturnPathMessage
        do throws(StreamError) {
            switch type {
            case 1: message = .shut(status: try payload.readInteger())
            case 2: message = .pong(try payload.readInteger())
            case 3, 4:
                let offset = try payload.readInteger(as: UInt64.self)
                let wanted = try payload.readInteger(as: UInt32.self)
                let block = type == 3 ? try payload.readShortString() : nil
                guard wanted > 0, !offset.addingReportingOverflow(UInt64(wanted)).overflow else {
                    throw StreamError(.invalid("a request for an impossible range"), at: start)
                }
                message = .requestPages(block: block, offset: offset, byteCount: wanted)
            case 5: message = .receivedBitmap(block: try payload.readShortString())
            case 6: message = .resumeAcknowledged(try payload.readInteger())
            default: message = .switchoverAcknowledged
            }
        } catch {
            throw error.reason == .truncated ? badLength : error
        }
        guard payload.isAtEnd else { throw badLength }
        cursor = ahead
        return message
    }

    package func encode(to writer: StreamWriter) {
        writer.write(type)
        let lengthPosition = writer.count
        writer.write(UInt16(0))
        switch self {
        case .shut(let value), .pong(let value), .resumeAcknowledged(let value): writer.write(value)
        case .requestPages(let block, let offset, let byteCount):
            writer.write(offset)
            writer.write(byteCount)
            if let block { writer.writeShortString(block) }
        case .receivedBitmap(let block): writer.writeShortString(block)
        case .switchoverAcknowledged: break
        }
        writer.overwrite(UInt16(writer.count - lengthPosition - 2), at: lengthPosition)
    }
}

/// Which pages of a block a destination has: what follows ``ReturnPathMessage/receivedBitmap(block:)``.
/// `u64 size, bytes, u64 end mark`; one bit per target page, lowest bit of the first byte first.
package struct ReceivedBitmap: Hashable, Sendable {
    package static let endMark: UInt64 = 0x0123_4567_89ab_cdef

    /// 64 pages each, bit 0 first.
    package var words: [UInt64]

    package init(words: [UInt64]) { self.words = words }

    /// - Parameter pageCount: Pages of the block the bitmap is for; any other size is refused.
    package static func decode(
        from cursor: inout StreamCursor, pageCount: Int
    ) throws(StreamError) -> ReceivedBitmap {
        precondition(pageCount >= 0)
        var ahead = cursor
        let start = ahead.offset
        let wordCount = pageCount / 64 + (pageCount % 64 == 0 ? 0 : 1)
        let byteCount = try ahead.readInteger(as: UInt64.self)
        guard byteCount == UInt64(wordCount) * 8 else {
            throw StreamError(.invalid("received-bitmap of \(byteCount) bytes for \(pageCount) pages"), at: start)
        }
        try ahead.require(wordCount * 8 + 8)
        var words: [UInt64] = []
        words.reserveCapacity(wordCount)
        for _ in 0..<wordCount { words.append(try ahead.readInteger(as: UInt64.self).byteSwapped) }
        if pageCount % 64 != 0, let last = words.last, last >> UInt64(pageCount % 64) != 0 {
            throw StreamError(.invalid("received-bitmap marks pages beyond the block"), at: start)
        }
        guard try ahead.readInteger(as: UInt64.self) == endMark else {
            throw StreamError(.invalid("received-bitmap without its end mark"), at: start)
        }
        cursor = ahead
        return ReceivedBitmap(words: words)
    }

    package func encode(to writer: StreamWriter) {
        writer.write(UInt64(words.count) * 8)
        for word in words { writer.write(word.byteSwapped) }
        writer.write(Self.endMark)
    }
}
