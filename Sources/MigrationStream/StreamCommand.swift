/// A COMMAND record: `u16 command, u16 length, payload`.
package enum StreamCommand: Hashable, Sendable {
    /// The receiver opens the reverse direction of the same socket.
    case openReturnPath
    /// The receiver answers ``ReturnPathMessage/pong(_:)`` with the same value.
    case ping(UInt32)
    /// Postcopy may follow. Nil: of dirty bitmaps only.
    case postcopyAdvise(PostcopyAdvice?)
    /// Start taking pages asynchronously.
    case postcopyListen
    /// Start the guest; ends the enclosing package and the loop that reads it.
    case postcopyRun
    /// Forget what was received for these ranges of a block: bytes, relative to the block.
    case postcopyDiscard(block: String, ranges: [DiscardedRange])
    /// A run of records follows, outside the command's length.
    case packaged(byteCount: UInt32)
    case enableColo
    case postcopyResume
    /// Asks for the bitmap of received pages of a block.
    case receivedBitmap(block: String)
    /// The guest has stopped, the final phase begins. QEMU 10 on; 7.2 refuses it.
    case switchoverStart

    package struct PostcopyAdvice: Hashable, Sendable {
        /// Bitwise or of the page sizes of all blocks.
        package var pageSizeSummary: UInt64
        package var targetPageSize: UInt64

        package init(pageSizeSummary: UInt64, targetPageSize: UInt64) {
            self.pageSizeSummary = pageSizeSummary
            self.targetPageSize = targetPageSize
        }
    }

    package struct DiscardedRange: Hashable, Sendable {
        package var offset: UInt64
        package var byteCount: UInt64

        package init(offset: UInt64, byteCount: UInt64) {
            self.offset = offset
            self.byteCount = byteCount
        }
    }

    /// Number on the wire.
    package var number: UInt16 {
        switch self {
        case .openReturnPath: 1
        case .ping: 2
        case .postcopyAdvise: 3
        case .postcopyListen: 4
        case .postcopyRun: 5
        case .postcopyDiscard: 6
        case .packaged: 7
        case .enableColo: 8
        case .postcopyResume: 9
        case .receivedBitmap: 10
        case .switchoverStart: 11
        }
    }

    /// `cursor` stands behind the type byte.
    static func decode(from cursor: inout StreamCursor) throws(StreamError) -> StreamCommand {
        let start = cursor.offset
        let number = try cursor.readInteger(as: UInt16.self)
        let byteCount = Int(try cursor.readInteger(as: UInt16.self))
        func expect(_ allowed: Int...) throws(StreamError) {
            guard allowed.contains(byteCount) else {
                throw StreamError(.commandLength(command: number, found: byteCount), at: start)
            }
        }
        switch number {
        case 1: try expect(0)
        case 2: try expect(4)
        case 3: try expect(0, 16)
        case 4, 5: try expect(0)
        case 7: try expect(4)
        case 8, 9, 11: try expect(0)
        case 6, 10: break
        default: throw StreamError(.unknownCommand(number), at: start)
        }
        var payload = try cursor.readSlice(byteCount)
        do throws(StreamError) {
            let command = try decode(number, byteCount, &payload)
            guard payload.isAtEnd else {
                throw StreamError(.commandLength(command: number, found: byteCount), at: start)
            }
            return command
        } catch {
            if error.reason == .truncated {
                throw StreamError(.commandLength(command: number, found: byteCount), at: start)
            }
            throw error
        }
    }

    private static func decode(
        _ number: UInt16, _ byteCount: Int, _ payload: inout StreamCursor
    ) throws(StreamError) -> StreamCommand {
        switch number {
        case 1: return .openReturnPath
        case 2: return .ping(try payload.readInteger())
        case 3:
            if byteCount == 0 { return .postcopyAdvise(nil) }
            return .postcopyAdvise(
                PostcopyAdvice(pageSizeSummary: try payload.readInteger(), targetPageSize: try payload.readInteger()))
        case 4: return .postcopyListen
        case 5: return .postcopyRun
        case 6: return try decodeDiscard(&payload)
        case 7: return .packaged(byteCount: try payload.readInteger())
        case 8: return .enableColo
        case 9: return .postcopyResume
        case 10: return .receivedBitmap(block: try payload.readShortString())
        default: return .switchoverStart
        }
    }

    private static func decodeDiscard(_ payload: inout StreamCursor) throws(StreamError) -> StreamCommand {
        let start = payload.offset
        let version = try payload.readInteger(as: UInt8.self)
        guard version == 0 else { throw StreamError(.unsupportedVersion(UInt32(version)), at: start) }
        let block = try payload.readShortString()
        guard try payload.readInteger(as: UInt8.self) == 0 else {
            throw StreamError(.invalid("block name in RAM_DISCARD is not terminated"), at: start)
        }
        var ranges: [DiscardedRange] = []
        repeat {
            let range = DiscardedRange(offset: try payload.readInteger(), byteCount: try payload.readInteger())
            guard range.byteCount > 0, !range.offset.addingReportingOverflow(range.byteCount).overflow else {
                throw StreamError(.invalid("an impossible range to discard"), at: start)
            }
            ranges.append(range)
        } while !payload.isAtEnd
        return .postcopyDiscard(block: block, ranges: ranges)
    }

    /// Ranges that fit into one RAM_DISCARD command with QEMU's bound of 12 in mind; more go into further commands.
    package static let discardedRangesMax = 12

    func encode(to writer: StreamWriter) {
        writer.write(number)
        let lengthPosition = writer.count
        writer.write(UInt16(0))
        switch self {
        case .openReturnPath, .postcopyListen, .postcopyRun, .enableColo, .postcopyResume, .switchoverStart: break
        case .ping(let value): writer.write(value)
        case .postcopyAdvise(let advice):
            if let advice {
                writer.write(advice.pageSizeSummary)
                writer.write(advice.targetPageSize)
            }
        case .postcopyDiscard(let block, let ranges):
            precondition(!ranges.isEmpty, "nothing to discard")
            writer.write(UInt8(0))
            writer.writeShortString(block)
            writer.write(UInt8(0))
            for range in ranges {
                writer.write(range.offset)
                writer.write(range.byteCount)
            }
        case .packaged(let byteCount): writer.write(byteCount)
        case .receivedBitmap(let block): writer.writeShortString(block)
        }
        let byteCount = writer.count - lengthPosition - 2
        precondition(byteCount <= UInt16.max, "a command's payload has at most 65535 bytes")
        writer.overwrite(UInt16(byteCount), at: lengthPosition)
    }
}
