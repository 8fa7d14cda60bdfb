import MigrationStream
import Testing

@Suite("Return path messages")
struct ReturnPathTests {
    static let known: [(bytes: [UInt8], message: ReturnPathMessage)] = [
        (hex("0001 0004 00000000"), .shut(status: 0)),
        (hex("0002 0004 00000055"), .pong(0x55)),
        (
            hex("0003 0010 0000000000001000 00001000 03 \"ram\""),
            .requestPages(block: "ram", offset: 4096, byteCount: 4096)
        ),
        (hex("0004 000c 0000000000002000 00001000"), .requestPages(block: nil, offset: 8192, byteCount: 4096)),
        (hex("0005 0004 03 \"ram\""), .receivedBitmap(block: "ram")),
        (hex("0006 0004 00000001"), .resumeAcknowledged(1)),
        (hex("0007 0000"), .switchoverAcknowledged),
    ]

    @Test("messages decode, encode to the same bytes, and ask for more when cut", arguments: 0..<known.count)
    func messages(index: Int) throws {
        let (bytes, message) = Self.known[index]
        var cursor = StreamCursor(bytes)
        #expect(try ReturnPathMessage.decode(from: &cursor) == message)
        #expect(cursor.isAtEnd)
        let writer = StreamWriter()
        message.encode(to: writer)
        #expect(writer.bytes == bytes)
        for length in 0..<bytes.count {
            var cut = StreamCursor(Array(bytes.prefix(length)))
            do {
                _ = try ReturnPathMessage.decode(from: &cut)
                Issue.record("decoded a cut message")
            } catch { #expect(error.neededByteCount != nil && cut.offset == 0) }
        }
    }

    @Test("messages a stock source would refuse are refused")
    func refused() {
        let bad: [(String, StreamError.Reason)] = [
            ("0000 0000", .unknownReturnPathMessage(0)), ("0008 0000", .unknownReturnPathMessage(8)),
            ("0001 0005 0000000000", .returnPathLength(type: 1, found: 5)),
            ("0003 000d 0000000000000000 00001000 00", .returnPathLength(type: 3, found: 13)),
            ("0003 0201", .returnPathLength(type: 3, found: 513)),
            ("0003 000f 0000000000000000 00001000 03 \"ra\"", .returnPathLength(type: 3, found: 15)),
            ("0004 000c 0000000000000000 00000000", .invalid("a request for an impossible range")),
            ("0004 000c fffffffffffff000 00001000", .invalid("a request for an impossible range")),
            ("0007 0001 00", .returnPathLength(type: 7, found: 1)),
        ]
        for (text, reason) in bad {
            var cursor = StreamCursor(hex(text))
            #expect(throws: StreamError(reason, at: 0)) { try ReturnPathMessage.decode(from: &cursor) }
        }
    }

    @Test("the received-bitmap is little-endian, has the block's size, and ends with its mark")
    func bitmap() throws {
        let bytes = hex("0000000000000010 0100000000000080 0300000000000000 0123456789abcdef")
        var cursor = StreamCursor(bytes)
        let bitmap = try ReceivedBitmap.decode(from: &cursor, pageCount: 66)
        #expect(bitmap.words == [0x8000_0000_0000_0001, 3])
        let writer = StreamWriter()
        bitmap.encode(to: writer)
        #expect(writer.bytes == bytes)
        for pageCount in [0, 64, 65, 129, Int.max] {
            var cursor = StreamCursor(bytes)
            #expect(throws: StreamError.self) { try ReceivedBitmap.decode(from: &cursor, pageCount: pageCount) }
        }
        for length in 0..<bytes.count {
            var cut = StreamCursor(Array(bytes.prefix(length)))
            #expect(throws: StreamError.self) { try ReceivedBitmap.decode(from: &cut, pageCount: 66) }
        }
        var unmarked = StreamCursor(Array(bytes.dropLast()) + [0])
        #expect(throws: StreamError.self) { try ReceivedBitmap.decode(from: &unmarked, pageCount: 66) }
    }
}
