import MigrationStream
import Testing

/// Decodes a run of records in which sections are empty; stops after the self-description or at the end of the bytes.
private func records(
    _ bytes: [UInt8], resumed: Bool = true, limits: StreamLimits = StreamLimits()
) throws -> [StreamRecord] {
    var cursor = StreamCursor(bytes)
    var reader = resumed ? StreamReader.resumed(limits: limits) : StreamReader(limits: limits)
    var records: [StreamRecord] = []
    while !cursor.isAtEnd {
        let record = try reader.next(&cursor)
        records.append(record)
        if case .section = record { try reader.endSection(&cursor) }
    }
    return records
}

private func failure(_ bytes: [UInt8], resumed: Bool = true) -> StreamError.Reason? {
    do {
        _ = try records(bytes, resumed: resumed)
        return nil
    } catch let error as StreamError {
        return error.reason
    } catch {
        return nil
    }
}

/// Bytes seen on the wire, and what they say.
enum CommandCorpus {
    static let known: [(bytes: [UInt8], command: StreamCommand)] = [
        (hex("08 0001 0000"), .openReturnPath),
        (hex("08 0002 0004 00000001"), .ping(1)),
        (
            hex("08 0003 0010 0000000000001000 0000000000001000"),
            .postcopyAdvise(.init(pageSizeSummary: 4096, targetPageSize: 4096))
        ),
        (hex("08 0003 0000"), .postcopyAdvise(nil)),
        (hex("08 0004 0000"), .postcopyListen),
        (hex("08 0005 0000"), .postcopyRun),
        (
            hex("08 0006 001e 00 0b 6d6963726f766d2e72616d 00 0000000000097000 000000007ff69000"),
            .postcopyDiscard(block: "microvm.ram", ranges: [.init(offset: 0x97000, byteCount: 0x7ff6_9000)])
        ),
        (hex("08 0007 0004 00000e08"), .packaged(byteCount: 0xe08)),
        (hex("08 0008 0000"), .enableColo),
        (hex("08 0009 0000"), .postcopyResume),
        (hex("08 000a 0004 03 \"ram\""), .receivedBitmap(block: "ram")),
        (hex("08 000b 0000"), .switchoverStart),
    ]
}

@Suite("Records on the wire")
struct StreamRecordTests {
    @Test("a captured stream's frame decodes record by record")
    func frame() throws {
        let bytes = hex(
            """
            51 45 56 4d 00 00 00 03  07 00 00 00 04 6e 6f 6e 65
            04 00 00 00 00 05 74 69 6d 65 72 00 00 00 00 00 00 00 02  7e 00 00 00 00
            08 000b 0000
            00  06 00 00 00 02 "{}"
            """)
        let found = try records(bytes, resumed: false)
        #expect(
            found == [
                .header, .configuration(StreamConfiguration(machineName: "none")),
                .section(SectionHeader(.full, id: 0, name: "timer", version: 2)), .command(.switchoverStart),
                .endOfStream, .description(Array("{}".utf8)),
            ])
        let writer = StreamWriter()
        writer.writeHeader()
        writer.writeConfiguration(StreamConfiguration(machineName: "none"))
        writer.beginSection(SectionHeader(.full, id: 0, name: "timer", version: 2))
        writer.endSection(id: 0)
        writer.writeCommand(.switchoverStart)
        writer.writeEndOfStream()
        writer.writeDescription()
        #expect(writer.bytes == bytes)
    }

    @Test("commands decode and encode to the captured bytes", arguments: 0..<CommandCorpus.known.count)
    func commands(index: Int) throws {
        let (bytes, command) = CommandCorpus.known[index]
        #expect(try records(bytes) == [.command(command)])
        let writer = StreamWriter()
        writer.writeCommand(command)
        #expect(writer.bytes == bytes)
    }

    @Test("configuration with capabilities and uuid as captured")
    func configuration() throws {
        let bytes = hex(
            """
            51 45 56 4d 00 00 00 03
            07 00000004 6e6f6e65
            05 1e "configuration/target-page-bits" 00000001 0000000e
            05 1a "configuration/capabilities" 00000001  00000001  0f 782d69676e6f72652d736861726564
            05 12 "configuration/uuid"         00000001  00112233445566778899aabbccddeeff
            00
            """)
        let configuration = StreamConfiguration(
            machineName: "none", pageBits: 14, capabilities: ["x-ignore-shared"],
            uuid: hex("00112233445566778899aabbccddeeff"))
        #expect(try records(bytes, resumed: false) == [.header, .configuration(configuration), .endOfStream])
        let writer = StreamWriter()
        writer.writeHeader()
        writer.writeConfiguration(configuration)
        writer.writeEndOfStream()
        #expect(writer.bytes == bytes)
    }

    @Test("a configuration that is not QEMU's is refused")
    func configurationRefused() {
        let header = "5145564d 00000003 07 00000004 \"virt\" "
        #expect(failure(hex("5145564d 00000003 00"), resumed: false) == .unexpectedRecord("CONFIGURATION is missing"))
        #expect(
            failure(hex(header + "05 03 \"abc\" 00000001"), resumed: false)
                == .unexpectedRecord("subsection abc of CONFIGURATION"))
        #expect(
            failure(hex(header + "05 1a \"configuration/capabilities\" 00000002"), resumed: false)
                == .unsupportedVersion(2))
        #expect(
            failure(hex(header + "05 1a \"configuration/capabilities\" 00000001 ffffffff"), resumed: false)
                == .limitExceeded("4294967295 capabilities"))
        #expect(failure(hex("5145564d 00000003 07 00000000"), resumed: false) == .malformedName)
        #expect(failure(hex("5145564d 00000003 07 00000003 \"a\" 00 \"b\""), resumed: false) == .malformedName)
        #expect(
            failure(hex("5145564d 00000003 07 7fffffff"), resumed: false)
                == .limitExceeded("machine name of 2147483647 bytes"))
    }

    @Test("a header that is not a stream's is refused")
    func header() {
        #expect(failure(hex("5145564e 00000003"), resumed: false) == .badMagic(0x5145_564e))
        #expect(failure(hex("5145564d 00000002"), resumed: false) == .unsupportedVersion(2))
        #expect(failure(hex("5145564d 00000004"), resumed: false) == .unsupportedVersion(4))
    }

    @Test("records out of place are refused")
    func outOfPlace() {
        #expect(failure(hex("05")) == .unexpectedRecord("type 0x5 between sections"))
        #expect(failure(hex("06 00000000")) == .unexpectedRecord("type 0x6 between sections"))
        #expect(failure(hex("07 00000000")) == .unexpectedRecord("type 0x7 between sections"))
        #expect(failure(hex("7e 00000000")) == .unexpectedRecord("type 0x7e between sections"))
        #expect(failure(hex("09")) == .unknownRecordType(9))
        #expect(failure(hex("00 04")) == .unexpectedRecord("type 0x4 after the end"))
        #expect(failure(hex("02 00000007")) == .unknownSection(id: 7))
        #expect(
            failure(hex("04 00000001 01 \"a\" 00000000 00000001 7e 00000001  02 00000001"))
                == .unexpectedRecord("a part of a, which came whole"))
        #expect(failure(hex("04 00000001 01 \"a\" 00000000 00000001 00")) == .missingFooter(section: 1))
        #expect(
            failure(hex("04 00000001 01 \"a\" 00000000 00000001 7e 00000002"))
                == .footerMismatch(expected: 1, found: 2))
        #expect(failure(hex("04 00000001 00 00000000 00000001")) == .malformedName)
    }

    @Test("commands that are unknown or have a wrong length are refused")
    func badCommands() {
        #expect(failure(hex("08 0000 0000")) == .unknownCommand(0))
        #expect(failure(hex("08 000c 0000")) == .unknownCommand(12))
        #expect(failure(hex("08 0001 0001 00")) == .commandLength(command: 1, found: 1))
        #expect(failure(hex("08 0002 0003 000000")) == .commandLength(command: 2, found: 3))
        #expect(failure(hex("08 0003 0008 0000000000000000")) == .commandLength(command: 3, found: 8))
        #expect(failure(hex("08 000a 0004 04 \"ram\"")) == .commandLength(command: 10, found: 4))
        #expect(failure(hex("08 000a 0005 03 \"rams\"")) == .commandLength(command: 10, found: 5))
        #expect(failure(hex("08 0006 0006 00 03 \"ram\" 00")) == .commandLength(command: 6, found: 6))
        #expect(failure(hex("08 0006 0006 01 03 \"ram\" 00")) == .unsupportedVersion(1))
    }

    @Test("more sections than the limit are refused")
    func sectionLimit() {
        var limits = StreamLimits()
        limits.sectionCount = 2
        let section = { (id: Int) in hex("04 0000000\(id) 01 \"a\" 00000000 00000001 7e 0000000\(id)") }
        #expect(throws: Never.self) { try records(section(1) + section(2) + section(1), limits: limits) }
        #expect(throws: StreamError.self) { try records(section(1) + section(2) + section(3), limits: limits) }
    }

    @Test("a package is a run of records of its own")
    func package() throws {
        let inner = StreamWriter()
        inner.writeCommand(.postcopyListen)
        inner.writeCommand(.postcopyRun)
        let writer = StreamWriter()
        let bytes = inner.bytes
        writer.writePackage(bytes.span.bytes)
        writer.writeCommand(.ping(4))
        var cursor = StreamCursor(writer.bytes)
        var reader = StreamReader.resumed()
        guard case .command(.packaged(let byteCount)) = try reader.next(&cursor) else {
            Issue.record("no package")
            return
        }
        var package = try reader.readPackage(&cursor, byteCount: byteCount)
        #expect(try reader.next(&package) == .command(.postcopyListen))
        #expect(try reader.next(&package) == .command(.postcopyRun))
        #expect(package.isAtEnd)
        #expect(try reader.next(&cursor) == .command(.ping(4)))
        #expect(cursor.isAtEnd)
        var cut = StreamCursor(Array(writer.bytes.prefix(12)))
        var other = StreamReader.resumed()
        _ = try other.next(&cut)
        #expect(throws: StreamError(.incomplete(needed: 7), at: 9)) { try other.readPackage(&cut, byteCount: 10) }
    }

    @Test("a record cut anywhere asks for more and changes nothing", arguments: 0..<CommandCorpus.known.count)
    func cut(index: Int) throws {
        let (bytes, command) = CommandCorpus.known[index]
        for length in 0..<bytes.count {
            var cursor = StreamCursor(Array(bytes.prefix(length)))
            var reader = StreamReader.resumed()
            do {
                _ = try reader.next(&cursor)
                Issue.record("decoded \(length) of \(bytes.count) bytes")
            } catch {
                let needed = try #require(error.neededByteCount)
                #expect(needed > 0 && needed <= bytes.count - length)
            }
            #expect(cursor.offset == 0)
            var whole = StreamCursor(bytes)
            #expect(try reader.next(&whole) == .command(command))
        }
    }
}
