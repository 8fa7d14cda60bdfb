package import ComponentState
import MigrationStream

/// The state of every component of a paused guest as one run of sections: what a hand-over by descriptor carries
/// instead of a whole stream, since neither RAM nor a peer of another kind is involved.
package enum SavedComponents {
    /// Writes every component in the native layout.
    /// - Parameters:
    ///   - partByteCount: After so many bytes the sections that have gathered go ahead, to be read by the other side meanwhile.
    ///   - sendPart: Gets them.
    /// - Returns: What comes behind the parts.
    package static func encode(
        _ components: [any StatefulComponent], partByteCount: Int = .max,
        sendPart: ([UInt8]) throws -> Void = { _ in }
    ) throws -> [UInt8] {
        let writer = StreamWriter()
        var description: VMDescription?
        for (index, component) in components.enumerated() {
            try SectionEncoder.encode(
                component, id: UInt32(index), layout: .native, to: writer, description: &description)
            if writer.count >= partByteCount {
                try sendPart(writer.bytes)
                writer.removeAll()
            }
        }
        writer.writeEndOfStream()
        return writer.bytes
    }

    /// Gives components their state as it comes, one part after the other.
    package struct Reader {
        private var register: SectionRegister
        private var reader: StreamReader

        package init(_ components: [any StatefulComponent]) {
            register = SectionRegister(components: components, layouts: [.native])
            reader = .resumed(sectionCount: components.count)
        }
    }
}

extension SavedComponents.Reader {
    /// Reads whole sections.
    /// - Throws: when a section is unknown, doubled or refused. Some components may then hold the new state: the machine must not
    ///   run.
    package mutating func decode(part bytes: [UInt8]) throws(MigrationError) {
        try decode(bytes, isLast: false)
    }

    /// Reads what comes behind the parts.
    /// - Throws: as for a part, and when a section is missing.
    package mutating func decode(_ bytes: [UInt8]) throws(MigrationError) { try decode(bytes, isLast: true) }

    private mutating func decode(_ bytes: [UInt8], isLast: Bool) throws(MigrationError) {
        var cursor = StreamCursor(bytes, isFinal: true)
        do {
            while isLast || !cursor.isAtEnd {
                switch try reader.next(&cursor) {
                case .section(let header) where header.kind == .full:
                    let component = try register.begin(
                        name: header.name, instance: header.instance, version: header.version)
                    try SectionDecoder.decode(component, header: header, layout: .native, from: &cursor)
                    try reader.endSection(&cursor)
                case .endOfStream where isLast:
                    try register.requireAll()
                    guard cursor.isAtEnd else {
                        throw StreamError(.unexpectedRecord("something follows the last section"), at: cursor.offset)
                    }
                    return
                case let record:
                    throw StreamError(.unexpectedRecord("\(record) among the components' sections"), at: cursor.offset)
                }
            }
        } catch let error as MigrationError {
            throw error
        } catch {
            throw MigrationError(.stateRejected, in: .switchover, "the saved state was refused: \(error)")
        }
    }
}
