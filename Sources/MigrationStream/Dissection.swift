/// Component state taken apart with the help of the stream's own description: fields with names, places and values.
package struct DissectedStructure: Hashable, Sendable {
    package var name: String
    package var version: UInt32
    package var fields: [DissectedField]
    package var subsections: [DissectedStructure]
}

/// One field of a section, as the stream's own description names it.
package struct DissectedField: Hashable, Sendable {
    package enum Value: Hashable, Sendable {
        case unsigned(UInt64)
        case signed(Int64)
        case boolean(Bool)
        /// Nanoseconds of virtual time; nil is a timer that is not armed.
        case timer(Int64?)
        /// Elements of an array of integers.
        case integers([UInt64])
        case bytes([UInt8])
        case structure(DissectedStructure)
        /// Elements of an array of structures.
        case structures([DissectedStructure])
    }

    package var name: String
    /// As in the description: `uint32`, `struct`.
    package var type: String
    /// In the stream.
    package var offset: UInt64
    /// Of one element.
    package var elementByteCount: Int
    /// Which element of an array this is, when its elements are described one by one.
    package var index: UInt32? = nil
    package var value: Value
}

extension DissectedStructure {
    /// Takes apart a structure and what nests in it.
    /// - Parameter cursor: Stands at its first field; afterwards behind its last subsection.
    /// - Throws: ``StreamError`` when bytes and description disagree or end.
    package static func decode(
        _ description: StructureDescription, from cursor: inout StreamCursor
    ) throws(StreamError) -> DissectedStructure {
        var ahead = cursor
        let structure = try decode(description, from: &ahead, depth: 0)
        cursor = ahead
        return structure
    }

    private static func decode(
        _ description: StructureDescription, from cursor: inout StreamCursor, depth: Int
    ) throws(StreamError) -> DissectedStructure {
        guard depth <= DescriptionJSON.depthMax else {
            throw StreamError(
                .limitExceeded("structures nested deeper than \(DescriptionJSON.depthMax)"), at: cursor.offset)
        }
        var result = DissectedStructure(
            name: description.name, version: description.version, fields: [], subsections: [])
        result.fields.reserveCapacity(description.fields.count)
        for field in description.fields { result.fields.append(try decode(field, from: &cursor, depth: depth)) }
        for subsection in description.subsections {
            let start = cursor.offset
            guard try cursor.readInteger(as: UInt8.self) == RecordType.subsection.rawValue,
                try cursor.readShortString() == subsection.name,
                try cursor.readInteger(as: UInt32.self) == subsection.version
            else { throw StreamError(.unexpectedRecord("subsection \(subsection.name) is not here"), at: start) }
            result.subsections.append(try decode(subsection, from: &cursor, depth: depth + 1))
        }
        return result
    }

    private static func decode(
        _ field: FieldDescription, from cursor: inout StreamCursor, depth: Int
    ) throws(StreamError) -> DissectedField {
        let start = cursor.offset
        let (total, overflow) = field.byteCount.multipliedReportingOverflow(by: UInt64(field.elementCount))
        guard !overflow, let byteCount = Int(exactly: total), let elementByteCount = Int(exactly: field.byteCount)
        else {
            throw StreamError(.limitExceeded("field \(field.name)"), at: start)
        }
        try cursor.require(byteCount)
        var result = DissectedField(
            name: field.name, type: field.type, offset: start, elementByteCount: elementByteCount, value: .bytes([]))
        if case .index(let index) = field.repetition { result.index = index }
        if let nested = field.structure {
            // An element without bytes needs no repetition: nothing could tell how many there are.
            guard elementByteCount > 0 || field.elementCount == 1 else { return result }
            var elements: [DissectedStructure] = []
            for _ in 0..<field.elementCount {
                let elementStart = cursor.offset
                elements.append(try decode(nested, from: &cursor, depth: depth + 1))
                guard cursor.offset - elementStart == field.byteCount else {
                    throw StreamError(
                        .invalid("field \(field.name) has not the \(field.byteCount) bytes described"), at: elementStart
                    )
                }
            }
            result.value = field.elementCount == 1 ? .structure(elements[0]) : .structures(elements)
            return result
        }
        let type = field.type
        if case .array = field.repetition, [1, 2, 4, 8].contains(elementByteCount), type != "timer" {
            var values: [UInt64] = []
            values.reserveCapacity(Int(field.elementCount))
            for _ in 0..<field.elementCount { values.append(try readUnsigned(elementByteCount, from: &cursor)) }
            result.value = .integers(values)
        } else if byteCount == elementByteCount, [1, 2, 4, 8].contains(byteCount),
            type.hasPrefix("uint") || type.hasPrefix("int") || type == "bool" || type == "timer"
        {
            let raw = try readUnsigned(byteCount, from: &cursor)
            if type == "bool", raw <= 1 {
                result.value = .boolean(raw == 1)
            } else if type == "timer", byteCount == 8 {
                result.value = .timer(raw == .max ? nil : Int64(bitPattern: raw))
            } else if type.hasPrefix("int") {
                let shift = 64 - byteCount * 8
                result.value = .signed(Int64(bitPattern: raw << shift) >> shift)
            } else {
                result.value = .unsigned(raw)
            }
        } else {
            result.value = .bytes(try cursor.readBytes(byteCount))
        }
        return result
    }

    private static func readUnsigned(_ byteCount: Int, from cursor: inout StreamCursor) throws(StreamError) -> UInt64 {
        switch byteCount {
        case 1: UInt64(try cursor.readInteger(as: UInt8.self))
        case 2: UInt64(try cursor.readInteger(as: UInt16.self))
        case 4: UInt64(try cursor.readInteger(as: UInt32.self))
        default: try cursor.readInteger(as: UInt64.self)
        }
    }

    /// The bytes it was taken from.
    package func encode(to writer: StreamWriter) {
        for field in fields { field.encode(to: writer) }
        for subsection in subsections {
            writer.write(RecordType.subsection.rawValue)
            writer.writeShortString(subsection.name)
            writer.write(subsection.version)
            subsection.encode(to: writer)
        }
    }
}

extension DissectedField {
    func encode(to writer: StreamWriter) {
        switch value {
        case .unsigned(let value): write(value, to: writer)
        case .signed(let value): write(UInt64(bitPattern: value), to: writer)
        case .boolean(let value): write(value ? 1 : 0, to: writer)
        case .timer(let expiry): writer.write(expiry ?? -1)
        case .integers(let values): for value in values { write(value, to: writer) }
        case .bytes(let bytes): writer.write(bytes)
        case .structure(let structure): structure.encode(to: writer)
        case .structures(let structures): for structure in structures { structure.encode(to: writer) }
        }
    }

    private func write(_ value: UInt64, to writer: StreamWriter) {
        switch elementByteCount {
        case 1: writer.write(UInt8(truncatingIfNeeded: value))
        case 2: writer.write(UInt16(truncatingIfNeeded: value))
        case 4: writer.write(UInt32(truncatingIfNeeded: value))
        default: writer.write(value)
        }
    }
}

/// Finds where a section without a length ends, when nobody knows its fields.
package enum SectionSearch {
    enum Outcome {
        /// Bytes from the cursor to the footer.
        case found(Int)
        /// Nothing before this distance; more bytes must come to go on.
        case undecided(Int)
    }

    /// Distance from the cursor to the footer of section `id`: the first place where the footer stands and something
    /// that can follow a section follows.
    /// - Parameters:
    ///   - knownSections: Ids that a PART or END may name.
    ///   - isFinal: Nothing will follow the bytes at hand.
    /// - Returns: Nil when it is not among the bytes at hand, or not yet to be told.
    package static func distanceToFooter(
        of id: UInt32, from cursor: StreamCursor, knownSections: Set<UInt32>, isFinal: Bool
    ) -> Int? {
        switch search(for: id, from: cursor, startingAt: 0, knownSections: knownSections, isFinal: isFinal) {
        case .found(let distance): distance
        case .undecided: nil
        }
    }

    /// - Parameter start: How many bytes ahead to begin, as an earlier search said.
    static func search(
        for id: UInt32, from cursor: StreamCursor, startingAt start: Int, knownSections: Set<UInt32>, isFinal: Bool
    ) -> Outcome {
        let footer =
            [RecordType.sectionFooter.rawValue] + (0..<4).map { UInt8(truncatingIfNeeded: id >> (24 - 8 * $0)) }
        var distance = start
        while let found = cursor.firstDistance(of: footer, from: distance) {
            var behind = cursor
            guard (try? behind.skip(found + footer.count)) != nil else { return .undecided(found) }
            do throws(StreamError) {
                if try canFollow(isFinal ? behind.final : behind, knownSections) { return .found(found) }
            } catch {
                // Only wanting more bytes is no answer.
                if error.neededByteCount != nil { return .undecided(found) }
            }
            distance = found + 1
        }
        // The footer may have begun already.
        return .undecided(max(distance, cursor.remaining - footer.count + 1))
    }

    private static func canFollow(_ cursor: StreamCursor, _ knownSections: Set<UInt32>) throws(StreamError) -> Bool {
        var cursor = cursor
        do throws(StreamError) {
            _ = try cursor.peekByte()
        } catch {
            if error.reason == .truncated { return true }
            throw error
        }
        guard let type = RecordType(rawValue: try cursor.readInteger(as: UInt8.self)) else { return false }
        switch type {
        case .sectionStart, .sectionFull:
            _ = try cursor.readInteger(as: UInt32.self)
            let name = try cursor.readShortString()
            guard name.utf8.allSatisfy({ (0x20..<0x7f).contains($0) }) else { return false }
            try cursor.skip(8)
            return true
        case .sectionPart, .sectionEnd: return knownSections.contains(try cursor.readInteger())
        case .command:
            _ = try StreamCommand.decode(from: &cursor)
            return true
        case .endOfStream:
            do throws(StreamError) {
                return try cursor.readInteger(as: UInt8.self) == RecordType.description.rawValue
            } catch {
                if error.reason == .truncated { return true }
                throw error
            }
        default: return false
        }
    }
}
