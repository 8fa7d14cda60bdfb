import MigrationStream
import Testing

private let ram = RAMBlockDescription(name: "ram", byteCount: 0x100000)
private let rom = RAMBlockDescription(name: "rom", byteCount: 0x2000)

private func decoder(
    _ blocks: [RAMBlockDescription] = [ram, rom], _ change: (inout RAMStreamOptions) -> Void = { _ in }
) -> RAMDecoder {
    var options = RAMStreamOptions()
    change(&options)
    return RAMDecoder(blocks: blocks, options: options)
}

/// Every record in `bytes`, contents of pages skipped.
private func records(_ bytes: [UInt8], _ decoder: inout RAMDecoder) throws -> [RAMRecord] {
    var cursor = StreamCursor(bytes)
    var found: [RAMRecord] = []
    while !cursor.isAtEnd {
        let record = try decoder.next(&cursor)
        found.append(record)
        switch record {
        case .page: try cursor.skip(4096)
        case .xbzrlePage(_, _, let encoded): try cursor.skip(encoded)
        default: break
        }
    }
    return found
}

private func failure(
    _ text: String, listed: Bool = true, blocks: [RAMBlockDescription] = [ram, rom],
    _ change: (inout RAMStreamOptions) -> Void = { _ in }
) -> StreamError.Reason? {
    var decoder = decoder(blocks, change)
    if listed { decoder.assumeListed() }
    do {
        _ = try records(hex(text), &decoder)
        return nil
    } catch let error as StreamError {
        return error.reason
    } catch {
        return nil
    }
}

private let list = "0000000000102004 03 \"ram\" 0000000000100000 03 \"rom\" 0000000000002000"

@Suite("RAM records on the wire")
struct RAMRecordTests {
    @Test("captured words decode and encode to the same bytes")
    func captured() throws {
        let bytes = hex(
            """
            00 00 00 00 00 10 00 04  03 72 61 6d 00 00 00 00 00 10 00 00  00 00 00 00 00 00 00 10
            00 00 00 00 00 00 00 02 03 72 61 6d 00
            00 00 00 00 00 00 10 22 00
            00 00 00 00 00 0f f0 22 00
            00 00 00 00 00 00 00 10
            """)
        let block = BlockReference(0)
        var decoder = decoder([ram])
        let found = try records(bytes, &decoder)
        #expect(
            found == [
                .memorySize(0x100000), .block(RAMBlockEntry(reference: block, name: "ram", byteCount: 0x100000)),
                .endOfSection, .filledPage(block, offset: 0, byte: 0), .filledPage(block, offset: 0x1000, byte: 0),
                .filledPage(block, offset: 0xff000, byte: 0), .endOfSection,
            ])
        #expect(decoder.isListComplete && decoder.missingBlocks.isEmpty)
        let writer = StreamWriter()
        var encoder = RAMEncoder(blocks: [ram])
        for record in found { encoder.write(record, to: writer) }
        #expect(writer.bytes == bytes)
    }

    @Test("every kind of record survives the wire")
    func roundTrip() throws {
        var options = RAMStreamOptions()
        options.flipsPages = true
        options.acceptsFill = true
        options.ignoresShared = true
        options.hasPostcopy = true
        let blocks = [
            RAMBlockDescription(name: "huge", byteCount: 0x40_0000, pageSize: 0x20_0000, address: 0x8000_0000),
            RAMBlockDescription(name: "rom", byteCount: 0x2000, address: 0x1000),
        ]
        let (first, second) = (BlockReference(0), BlockReference(1))
        let all: [RAMRecord] = [
            .memorySize(0x40_2000),
            .block(
                RAMBlockEntry(
                    reference: first, name: "huge", byteCount: 0x40_0000, pageSize: 0x20_0000, address: 0x8000_0000)),
            .block(RAMBlockEntry(reference: second, name: "rom", byteCount: 0x2000, address: 0x1000)),
            .flipDescriptor, .endOfSection,
            .page(first, offset: 0x1000), .page(first, offset: 0x2000), .page(second, offset: 0),
            .filledPage(second, offset: 0x1000, byte: 7), .filledPage(first, offset: 0, byte: 0),
            .xbzrlePage(first, offset: 0x3000, encodedByteCount: 12),
            .flippedPage(first, offset: 0), .flippedPage(second, offset: 0x1000), .multifdFlush, .endOfSection,
        ]
        let writer = StreamWriter(capacity: 8)
        var encoder = RAMEncoder(blocks: blocks, options: options)
        for record in all {
            encoder.write(record, to: writer)
            switch record {
            case .page: writer.write([UInt8](repeating: 0xaa, count: 4096))
            case .xbzrlePage(_, _, let encoded): writer.write([UInt8](repeating: 0xbb, count: encoded))
            default: break
            }
        }
        var decoder = RAMDecoder(blocks: blocks, options: options)
        #expect(try records(writer.bytes, &decoder) == all)
    }

    @Test("a run of flipped pages is the records of its pages, and is read back however it is cut")
    func flippedRuns() throws {
        var options = RAMStreamOptions()
        options.flipsPages = true
        let blocks = [
            RAMBlockDescription(name: "ram", byteCount: 0x20_0000), RAMBlockDescription(name: "rom", byteCount: 0x3000),
        ]
        let (ram, rom) = (BlockReference(0), BlockReference(1))
        // A gap, a run to a block's end, a page again, a run backwards.
        let runs: [(block: BlockReference, pages: Range<Int>)] = [
            (ram, 3..<40), (ram, 41..<42), (ram, 500..<512), (rom, 0..<3), (ram, 0..<5), (ram, 4..<6), (ram, 2..<3),
        ]
        let (writer, single) = (StreamWriter(capacity: 8), StreamWriter())
        var (encoder, singleEncoder) = (
            RAMEncoder(blocks: blocks, options: options), RAMEncoder(blocks: blocks, options: options)
        )
        encoder.write(.flipDescriptor, to: writer)
        singleEncoder.write(.flipDescriptor, to: single)
        var names: [RAMRecord] = []
        for run in runs {
            encoder.writeFlippedPages(run.block, run.pages, to: writer)
            for page in run.pages {
                names.append(.flippedPage(run.block, offset: UInt64(page) * 4096))
                singleEncoder.write(names.last!, to: single)
            }
        }
        #expect(writer.bytes == single.bytes)
        let bytes = writer.bytes
        for length in 0...bytes.count {
            var decoder = RAMDecoder(blocks: blocks, options: options)
            decoder.assumeListed()
            var found: [RAMRecord] = []
            var position = 0
            for end in [length, bytes.count] {
                var cursor = StreamCursor(bytes[position..<end])
                while let record = try? decoder.next(&cursor) {
                    found.append(record)
                    guard case .flippedPage(let block, let offset) = record else { continue }
                    for index in 0..<decoder.skipFollowingFlippedPages(&cursor, after: offset) {
                        found.append(.flippedPage(block, offset: offset + UInt64(index + 1) * 4096))
                    }
                }
                position = end - cursor.remaining
            }
            #expect(position == bytes.count && found == [.flipDescriptor] + names)
        }
    }

    @Test("the captured XBZRLE record decodes")
    func xbzrle() throws {
        var decoder = decoder([RAMBlockDescription(name: "pc.ram", byteCount: 0x1000)])
        decoder.assumeListed()
        var cursor = StreamCursor(hex("0000000000000040 0670632e72616d 01 0004 ec 08 01 76"))
        #expect(try decoder.next(&cursor) == .xbzrlePage(BlockReference(0), offset: 0, encodedByteCount: 4))
        #expect(cursor.remaining == 4)
    }

    @Test("the captured mapped-ram entry decodes, and its layout is the one computed")
    func mapped() throws {
        let bytes = hex(
            "0b \"microvm.ram\" 0000000000800000  00000001 0000000000001000 000000000000008c 0000000000100000")
        let header = MappedRAMHeader(pageSize: 4096, bitmapOffset: 0x8c, pagesOffset: 0x10_0000)
        #expect(MappedRAMHeader(headerAt: 0x70, byteCount: 0x80_0000) == header)
        #expect(header.end(byteCount: 0x80_0000) == 0x90_0000)
        var options = RAMStreamOptions()
        options.isMapped = true
        let blocks = [RAMBlockDescription(name: "microvm.ram", byteCount: 0x80_0000)]
        var decoder = RAMDecoder(blocks: blocks, options: options)
        var cursor = StreamCursor(hex("0000000000800004") + bytes, at: 0x54)
        #expect(try decoder.next(&cursor) == .memorySize(0x80_0000))
        #expect(
            try decoder.next(&cursor)
                == .block(
                    RAMBlockEntry(
                        reference: BlockReference(0), name: "microvm.ram", byteCount: 0x80_0000, mapped: header)))
        #expect(cursor.offset == 0x8c)
        let writer = StreamWriter()
        RAMEncoder(blocks: blocks, options: options).writeBlockEntry(BlockReference(0), mapped: header, to: writer)
        #expect(writer.bytes == bytes)
    }

    @Test("a mapped-ram header with areas that overlap or wrap is refused")
    func mappedRefused() {
        let areas = [
            "0000000000000000 0000000000100000", "000000000000008c 0000000000000090",
            "ffffffffffffffff 0000000000100000",
            "000000000000008c 0000000000100001", "000000000000008c fffffffffffff000",
        ]
        for area in areas {
            var options = RAMStreamOptions()
            options.isMapped = true
            var decoder = RAMDecoder(
                blocks: [RAMBlockDescription(name: "m", byteCount: 0x80_0000)], options: options)
            var cursor = StreamCursor(
                hex("0000000000800004 01 \"m\" 0000000000800000 00000001 0000000000001000 " + area), at: 0x54)
            _ = try? decoder.next(&cursor)
            #expect(throws: StreamError.self) { try decoder.next(&cursor) }
        }
    }

    @Test("a block goes on being the last one across sections")
    func continues() throws {
        var decoder = decoder([ram])
        decoder.assumeListed()
        _ = try records(hex("0000000000000002 03 \"ram\" 00 0000000000000010"), &decoder)
        try decoder.beginSection(.part, version: 4, at: 0)
        #expect(
            try records(hex("0000000000001022 00"), &decoder)
                == [.filledPage(BlockReference(0), offset: 0x1000, byte: 0)])
        var other = decoder.forAnotherChannel()
        #expect(throws: StreamError(.noBlockToContinue, at: 0)) { try records(hex("0000000000001022 00"), &other) }
    }

    @Test("what stock receivers refuse is refused")
    func refused() {
        #expect(failure("0000000000000002 04 \"none\" 00") == .unknownBlock("none"))
        #expect(failure("0000000000100002 03 \"ram\" 00") == .addressOutsideBlock(block: "ram", address: 0x100000))
        #expect(failure("0000000000002008 03 \"rom\"") == .addressOutsideBlock(block: "rom", address: 0x2000))
        #expect(
            failure("fffffffffffff008 03 \"rom\"") == .addressOutsideBlock(block: "rom", address: 0xffff_ffff_ffff_f000)
        )
        #expect(failure("0000000000000022 00") == .noBlockToContinue)
        #expect(failure("0000000000000002 03 \"ram\" 01") == .invalid("a page filled with 1"))
        #expect(failure("0000000000000001") == .unknownRAMFlags(.obsoleteFull))
        #expect(failure("0000000000000000") == .unknownRAMFlags([]))
        #expect(failure("000000000000000a") == .unknownRAMFlags([.filled, .page]))
        #expect(failure("0000000000000030") == .unknownRAMFlags([.endOfSection, .sameBlock]))
        #expect(failure("0000000000000400") == .unknownRAMFlags(RAMFlags(rawValue: 0x400)))
        #expect(failure("0000000000000040 03 \"ram\" 02 0000") == .invalid("XBZRLE method 2"))
        #expect(failure("0000000000000040 03 \"ram\" 01 1001") == .invalid("XBZRLE of 4097 bytes for one page"))
        #expect(failure("0000000000000100") == .unexpectedRecord("COMPRESS_PAGE, which is not taken"))
        #expect(
            failure("0000000000000080")
                == .unexpectedRecord("a RAM hook, which is RDMA's or a page flip's; neither is on"))
        #expect(failure("0000000000001010") == .invalid("end of section with an address"))
    }

    @Test("what stock receivers let through is refused too")
    func refusedCarefully() {
        #expect(failure("0000000000000004", listed: false) == .invalid("RAM of no bytes"))
        #expect(
            failure("0000000000001004 03 \"ram\" 0000000000100000", listed: false)
                == .invalid("block ram of 1048576 bytes, with 4096 to come"))
        #expect(
            failure("0000000000200004 03 \"ram\" 0000000000100000 03 \"ram\" 0000000000100000", listed: false)
                == .invalid("block ram is listed twice"))
        #expect(
            failure("0000000000002004 03 \"rom\" 0000000000001800", listed: false)
                == .invalid("block rom of 6144 bytes, not whole pages"))
        #expect(
            failure("0000000000002004 03 \"rom\" 0000000000001000", listed: false)
                == .blockDiffers("block rom has 4096 bytes at the source and 8192 here"))
        #expect(
            failure(list + list, listed: false)
                == .unexpectedRecord("a block list outside the first RAM section"))
        #expect(
            failure("0000000000000002 03 \"ram\" 00", listed: false)
                == .unexpectedRecord("a page of ram, which was not listed"))
        #expect(failure("0000000000002004 03 \"rom\" 0000000000000000", listed: false) != nil)
        #expect(failure("0000000000001004 03 \"net\" 0000000000001000", listed: false) == .unknownBlock("net"))
    }

    @Test("a list in a PART, a wrong version, or RAM as a whole section is refused")
    func refusedSections() throws {
        var decoder = decoder()
        #expect(throws: StreamError(.unsupportedVersion(3), at: 9)) {
            try decoder.beginSection(.start, version: 3, at: 9)
        }
        #expect(throws: StreamError.self) { try decoder.beginSection(.full, version: 4, at: 9) }
        try decoder.beginSection(.part, version: 4, at: 0)
        #expect(throws: StreamError.self) { try records(hex(list), &decoder) }
    }

    @Test("pages of an ignored block are refused")
    func ignored() {
        var shared = ram
        shared.isIgnored = true
        shared.address = 0x8000_0000
        #expect(
            failure("0000000000000002 03 \"ram\" 00", blocks: [shared])
                == .unexpectedRecord("a page of ram, whose contents do not travel"))
        let listed = "0000000000100004 03 \"ram\" 0000000000100000 "
        #expect(
            failure(listed + "0000000080000000", listed: false, blocks: [shared]) { $0.ignoresShared = true } == nil)
        #expect(
            failure(listed + "0000000090000000", listed: false, blocks: [shared]) { $0.ignoresShared = true }
                == .invalid("block ram is at another guest address at the source"))
    }

    @Test("a block that may grow takes the source's size; one that may not does not")
    func resizable() throws {
        let table = RAMBlockDescription(name: "/rom@etc/acpi/tables", byteCount: 0x2000, byteCountMax: 0x20_0000)
        let wire = { (size: String) in "0000000000\(size)004 14 \"/rom@etc/acpi/tables\" 0000000000\(size)000" }
        var decoder = decoder([table])
        _ = try records(hex(wire("020")), &decoder)
        #expect(decoder.byteCount(of: BlockReference(0)) == 0x20000)
        #expect(failure(wire("201"), listed: false, blocks: [table]) != nil)
    }

    @Test("flipped pages need the pipe first, once, and only where it was agreed on")
    func flipped() {
        let on: (inout RAMStreamOptions) -> Void = { $0.flipsPages = true }
        #expect(failure("0000000000000080 01 0000000000001080 03 \"ram\" 00000000000020a0", on) == nil)
        #expect(failure("0000000000001080 03 \"ram\"", on) == .unexpectedRecord("a flipped page before the pipe"))
        #expect(failure("0000000000000080 02", on) == .invalid("carrier byte 2"))
        #expect(failure("0000000000000080 01 00000000000020a0", on) == .noBlockToContinue)
    }

    @Test("in postcopy only pages and the end are taken")
    func postcopy() throws {
        var decoder = decoder([ram])
        decoder.assumeListed()
        decoder.isPostcopy = true
        #expect(throws: StreamError(.unknownRAMFlags(.multifdFlush), at: 0)) {
            try records(hex("0000000000000200"), &decoder)
        }
        #expect(throws: Never.self) {
            try records(hex("0000000000000002 03 \"ram\" 00 0000000000000010"), &decoder)
        }
    }

    @Test("cut anywhere, nothing has changed and more is asked for")
    func cut() throws {
        let bytes = hex(list + "0000000000000040 03 \"ram\" 01 0000 0000000000001022 00 0000000000000002 03 \"rom\" 00")
        for length in 0..<bytes.count {
            var decoder = decoder()
            var cursor = StreamCursor(Array(bytes.prefix(length)))
            var needed: Int?
            var before = cursor.offset
            do {
                while true {
                    before = cursor.offset
                    _ = try decoder.next(&cursor)
                }
            } catch {
                needed = error.neededByteCount
            }
            #expect(cursor.offset == before)
            let more = try #require(needed)
            #expect(more > 0 && more <= max(bytes.count - length, 8))
            var rest = StreamCursor(bytes.dropFirst(Int(before)), at: before)
            while !rest.isAtEnd { _ = try decoder.next(&rest) }
        }
    }
}
