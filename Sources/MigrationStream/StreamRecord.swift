/// First four bytes of a stream: "QEVM".
package let streamMagic: UInt32 = 0x5145_564d
/// Second four bytes.
package let streamVersion: UInt32 = 3

/// The byte that begins a record.
package enum RecordType: UInt8, Sendable, CaseIterable {
    case endOfStream = 0x00
    case sectionStart = 0x01
    case sectionPart = 0x02
    case sectionEnd = 0x03
    case sectionFull = 0x04
    /// Only inside component state and CONFIGURATION.
    case subsection = 0x05
    case description = 0x06
    case configuration = 0x07
    case command = 0x08
    case sectionFooter = 0x7e
}

/// Which of a section's records this is. A component's state comes as one `full`; RAM as `start`, `part`s and `end`.
package enum SectionKind: UInt8, Sendable, CaseIterable {
    case start = 0x01
    case part = 0x02
    case end = 0x03
    case full = 0x04
}

/// What stands before a section's body. `part` and `end` carry only the id on the wire; the rest is what the section's
/// `start` said.
package struct SectionHeader: Hashable, Sendable {
    package var kind: SectionKind
    /// A label of the source's choice, for this stream only.
    package var id: UInt32
    /// QEMU's name, with bus path: `virtio-mmio@0000000010008000/virtio-blk`.
    package var name: String
    package var instance: UInt32
    package var version: UInt32

    package init(_ kind: SectionKind, id: UInt32, name: String, instance: UInt32 = 0, version: UInt32 = 1) {
        self.kind = kind
        self.id = id
        self.name = name
        self.instance = instance
        self.version = version
    }
}

/// One step of a stream. What follows a section's header is not framed by a length: the reader is handed on to whoever
/// knows the body (``RAMDecoder``, ``SectionDecoder``) and comes back for the footer.
package enum StreamRecord: Hashable, Sendable {
    /// Magic and version.
    case header
    case configuration(StreamConfiguration)
    /// The body follows, then the footer: ``StreamReader/endSection(_:)``.
    case section(SectionHeader)
    /// For ``StreamCommand/packaged(byteCount:)`` a nested run of records follows: ``StreamReader/readPackage(_:byteCount:)``.
    case command(StreamCommand)
    /// A self-description may still follow.
    case endOfStream
    /// The self-description's JSON, unread.
    case description([UInt8])
}

/// Reads a stream's records in order and holds the peer to that order.
///
/// Drive it with a cursor over what was received so far. After ``StreamError/Reason/incomplete(needed:)`` nothing has
/// changed; read more and call again.
package struct StreamReader: Sendable {
    private enum Place: Hashable { case header, configuration, records, section(UInt32), description, done }
    private var place: Place
    private var sections: [UInt32: SectionHeader] = [:]
    private let limits: StreamLimits
    /// Whether both sides agreed to do without CONFIGURATION (`send-configuration=off`).
    private let configurationIsOptional: Bool
    /// Whether both sides agreed to do without footers (`send-section-footer=off`).
    private let hasFooters: Bool

    package init(
        limits: StreamLimits = StreamLimits(), configurationIsOptional: Bool = false, hasFooters: Bool = true
    ) {
        self.limits = limits
        self.configurationIsOptional = configurationIsOptional
        self.hasFooters = hasFooters
        place = .header
    }

    /// A reader for a run of records without header: the channel of a resumed postcopy.
    /// - Parameter sectionCount: How many sections will come, as far as that is known.
    package static func resumed(limits: StreamLimits = StreamLimits(), sectionCount: Int = 0) -> StreamReader {
        var reader = StreamReader(limits: limits)
        reader.sections.reserveCapacity(sectionCount)
        reader.place = .records
        return reader
    }

    /// Goes on over another channel, with the sections announced on the old one.
    package mutating func resume() { place = .records }

    /// Sections announced so far, by id.
    package var knownSections: [UInt32: SectionHeader] { sections }
    /// Everything was read, the self-description included if there was one.
    package var isDone: Bool { place == .done }
    /// Only a self-description can still come; a source may leave it out.
    package var isAwaitingDescription: Bool { place == .description }

    /// The next record. Between a ``StreamRecord/section(_:)`` and ``endSection(_:)`` the cursor belongs to the body.
    package mutating func next(_ cursor: inout StreamCursor) throws(StreamError) -> StreamRecord {
        var ahead = cursor
        let start = ahead.offset
        let record: StreamRecord
        switch place {
        case .header:
            let magic = try ahead.readInteger(as: UInt32.self)
            guard magic == streamMagic else { throw StreamError(.badMagic(magic), at: start) }
            let version = try ahead.readInteger(as: UInt32.self)
            guard version == streamVersion else { throw StreamError(.unsupportedVersion(version), at: start + 4) }
            record = .header
            place = .configuration
        case .configuration:
            if try ahead.peekByte() == RecordType.configuration.rawValue {
                try ahead.skip(1)
                record = .configuration(try StreamConfiguration.decode(from: &ahead, limits: limits))
                place = .records
            } else {
                guard configurationIsOptional else {
                    throw StreamError(.unexpectedRecord("CONFIGURATION is missing"), at: start)
                }
                place = .records
                return try next(&cursor)
            }
        case .records:
            record = try decodeRecord(&ahead)
        case .section(let id):
            throw StreamError(.unexpectedRecord("section \(id) is still open"), at: start)
        case .description:
            let type = try ahead.readInteger(as: UInt8.self)
            guard type == RecordType.description.rawValue else {
                throw StreamError(.unexpectedRecord("type \(hexadecimal(type)) after the end"), at: start)
            }
            let byteCount = Int(try ahead.readInteger(as: UInt32.self))
            guard byteCount <= limits.descriptionByteCount else {
                throw StreamError(.limitExceeded("self-description of \(byteCount) bytes"), at: start)
            }
            record = .description(try ahead.readBytes(byteCount))
            place = .done
        case .done:
            throw StreamError(.unexpectedRecord("the stream has ended"), at: start)
        }
        cursor = ahead
        return record
    }

    private mutating func decodeRecord(_ cursor: inout StreamCursor) throws(StreamError) -> StreamRecord {
        let start = cursor.offset
        let byte = try cursor.readInteger(as: UInt8.self)
        guard let type = RecordType(rawValue: byte) else { throw StreamError(.unknownRecordType(byte), at: start) }
        switch type {
        case .sectionStart, .sectionFull:
            let header = SectionHeader(
                type == .sectionFull ? .full : .start, id: try cursor.readInteger(), name: try cursor.readShortString(),
                instance: try cursor.readInteger(), version: try cursor.readInteger())
            guard sections[header.id] != nil || sections.count < limits.sectionCount else {
                throw StreamError(.limitExceeded("more than \(limits.sectionCount) sections"), at: start)
            }
            sections[header.id] = header
            place = .section(header.id)
            return .section(header)
        case .sectionPart, .sectionEnd:
            let id = try cursor.readInteger(as: UInt32.self)
            guard var header = sections[id] else { throw StreamError(.unknownSection(id: id), at: start) }
            guard header.kind == .start else {
                throw StreamError(.unexpectedRecord("a part of \(header.name), which came whole"), at: start)
            }
            header.kind = type == .sectionPart ? .part : .end
            place = .section(id)
            return .section(header)
        case .command:
            return .command(try StreamCommand.decode(from: &cursor))
        case .endOfStream:
            place = .description
            return .endOfStream
        case .subsection, .description, .configuration, .sectionFooter:
            throw StreamError(.unexpectedRecord("type \(hexadecimal(byte)) between sections"), at: start)
        }
    }

    /// Takes the footer of the section whose body was just read.
    package mutating func endSection(_ cursor: inout StreamCursor) throws(StreamError) {
        guard case .section(let id) = place else { preconditionFailure("no section is open") }
        if hasFooters {
            var ahead = cursor
            let start = ahead.offset
            guard try ahead.readInteger(as: UInt8.self) == RecordType.sectionFooter.rawValue else {
                throw StreamError(.missingFooter(section: id), at: start)
            }
            let found = try ahead.readInteger(as: UInt32.self)
            guard found == id else { throw StreamError(.footerMismatch(expected: id, found: found), at: start) }
            cursor = ahead
        }
        place = .records
    }

    /// Takes the run of records that a ``StreamCommand/packaged(byteCount:)`` announced. Read it with ``next(_:)`` of the
    /// same reader until its cursor is at the end, then go on with the outer cursor.
    package func readPackage(
        _ cursor: inout StreamCursor, byteCount: UInt32
    ) throws(StreamError) -> StreamCursor {
        guard Int(byteCount) <= limits.packageByteCount else {
            throw StreamError(.limitExceeded("package of \(byteCount) bytes"), at: cursor.offset)
        }
        return try cursor.readSlice(Int(byteCount))
    }

    /// After POSTCOPY_RUN or a broken-off stream there is no more to come.
    package mutating func finish() { place = .done }
}

extension StreamWriter {
    /// Magic and version.
    package func writeHeader() {
        write(streamMagic)
        write(streamVersion)
    }

    /// What stands before a section's body; afterwards ``endSection(id:)``.
    package func beginSection(_ header: SectionHeader) {
        write(header.kind.rawValue)
        write(header.id)
        if header.kind == .start || header.kind == .full {
            writeShortString(header.name)
            write(header.instance)
            write(header.version)
        }
    }

    /// The footer.
    package func endSection(id: UInt32) {
        write(RecordType.sectionFooter.rawValue)
        write(id)
    }

    package func writeCommand(_ command: StreamCommand) {
        write(RecordType.command.rawValue)
        command.encode(to: self)
    }

    /// A command, and then a run of records with a length of its own.
    package func writePackage(_ records: RawSpan) {
        writeCommand(.packaged(byteCount: UInt32(records.byteCount)))
        write(records)
    }

    package func writeEndOfStream() { write(RecordType.endOfStream.rawValue) }

    /// The self-description. A stock reader waits for one; `{}` is enough for it.
    package func writeDescription(_ json: [UInt8] = Array("{}".utf8)) {
        write(RecordType.description.rawValue)
        write(UInt32(json.count))
        write(json)
    }

    package func writeConfiguration(_ configuration: StreamConfiguration) {
        write(RecordType.configuration.rawValue)
        configuration.encode(to: self)
    }
}
