/// QEMU's cpr channel (10 on): the descriptors of shared RAM, by name, before the main stream.
package enum CPRRecord: Hashable, Sendable {
    /// "QCPR" and version.
    case header
    /// A descriptor came with the last byte of the record.
    case descriptor(name: String, id: Int32)
    /// No more descriptors.
    case endOfDescriptors
    /// What QEMU 11 adds behind the end: its list of VFIO devices, which must be empty here.
    case noDevices
}

/// Reads a cpr channel. Descriptors are received beside the bytes, by the driver, one per ``CPRRecord/descriptor(name:id:)``.
package struct CPRReader: Sendable {
    package static let magic: UInt32 = 0x5143_5052
    static let version: UInt32 = 1
    static let devicesName = "CprState/vfio devices"
    /// The byte a descriptor travels with.
    static let carrier: UInt8 = 0x20

    private enum Place: Hashable { case header, descriptors, end, done }
    private var place = Place.header
    private var names: Set<String> = []
    private let limits: StreamLimits

    package init(limits: StreamLimits = StreamLimits()) { self.limits = limits }

    /// The list is complete. Whether more follows, only the end of the channel tells.
    package var hasAllDescriptors: Bool { place == .end || place == .done }

    /// - Throws: ``StreamError``; after `incomplete` nothing has changed.
    package mutating func next(_ cursor: inout StreamCursor) throws(StreamError) -> CPRRecord {
        var ahead = cursor
        let start = ahead.offset
        let record: CPRRecord
        switch place {
        case .header:
            let magic = try ahead.readInteger(as: UInt32.self)
            guard magic == Self.magic else { throw StreamError(.badMagic(magic), at: start) }
            let version = try ahead.readInteger(as: UInt32.self)
            guard version == Self.version else { throw StreamError(.unsupportedVersion(version), at: start) }
            record = .header
            place = .descriptors
        case .descriptors:
            let mark = try ahead.readInteger(as: UInt8.self)
            switch mark {
            case 0:
                record = .endOfDescriptors
                place = .end
            case 1:
                record = try decodeDescriptor(&ahead)
            default: throw StreamError(.unknownRecordType(mark), at: start)
            }
        case .end:
            guard try ahead.readInteger(as: UInt8.self) == RecordType.subsection.rawValue,
                try ahead.readShortString() == Self.devicesName
            else { throw StreamError(.unexpectedRecord("behind the cpr list"), at: start) }
            let version = try ahead.readInteger(as: UInt32.self)
            guard version == 1 else { throw StreamError(.unsupportedVersion(version), at: start) }
            guard try ahead.readInteger(as: UInt8.self) == 0 else {
                throw StreamError(.unexpectedRecord("a VFIO device"), at: start)
            }
            record = .noDevices
            place = .done
        case .done:
            throw StreamError(.unexpectedRecord("behind the end of the cpr stream"), at: start)
        }
        cursor = ahead
        return record
    }

    private mutating func decodeDescriptor(_ cursor: inout StreamCursor) throws(StreamError) -> CPRRecord {
        let start = cursor.offset
        let byteCount = try cursor.readInteger(as: UInt32.self)
        guard (2...256).contains(byteCount) else { throw StreamError(.malformedName, at: start) }
        let name = try cursor.readText(Int(byteCount) - 1)
        guard try cursor.readInteger(as: UInt8.self) == 0 else { throw StreamError(.malformedName, at: start) }
        let id = try cursor.readInteger(as: Int32.self)
        guard try cursor.readInteger(as: UInt8.self) == Self.carrier else {
            throw StreamError(.invalid("cpr entry \(name) without the byte for its descriptor"), at: start)
        }
        guard names.count < limits.cprDescriptorCount else {
            throw StreamError(.limitExceeded("more than \(limits.cprDescriptorCount) descriptors"), at: start)
        }
        guard names.insert("\(name)\0\(id)").inserted else {
            throw StreamError(.invalid("cpr entry \(name) comes twice"), at: start)
        }
        return .descriptor(name: name, id: id)
    }
}

extension StreamWriter {
    /// A record of the cpr channel. For a descriptor the last byte is the one it travels with: the driver sends what
    /// is before it, then that byte together with the descriptor.
    package func writeCPR(_ record: CPRRecord) {
        switch record {
        case .header:
            write(CPRReader.magic)
            write(CPRReader.version)
        case .descriptor(let name, let id):
            precondition((1...255).contains(name.utf8.count))
            write(UInt8(1))
            write(UInt32(name.utf8.count + 1))
            writeText(name)
            write(UInt8(0))
            write(id)
            write(CPRReader.carrier)
        case .endOfDescriptors: write(UInt8(0))
        case .noDevices:
            write(RecordType.subsection.rawValue)
            writeShortString(CPRReader.devicesName)
            write(UInt32(1))
            write(UInt8(0))
        }
    }
}
