package import ComponentState
import MigrationStream

/// The state of every component of a paused guest as one run of sections: what a hand-over by descriptor carries
/// instead of a whole stream, since neither RAM nor a peer of another kind is involved.
package enum SavedComponents {
    /// Writes every component in the native layout.
    /// - Parameters:
    ///   - partByteCount: After so many bytes the sections that have gathered go ahead, to be read by the other side meanwhile.
    ///   - sendPart: Gets them.
    ///   - ahead: What the other side has already; a section that is still the same is left out.
    /// - Returns: What comes behind the parts, without what stands as it went ahead.
    package static func encode(
        _ components: [any StatefulComponent], partByteCount: Int = .max, ahead: inout ComponentsAhead,
        sendPart: ([UInt8]) throws -> Void = { _ in }
    ) throws -> [UInt8] {
        let writer = StreamWriter()
        var description: VMDescription?
        for (index, component) in components.enumerated() {
            let start = writer.count
            try SectionEncoder.encode(
                component, id: UInt32(index), layout: .native, to: writer, description: &description)
            if ahead.stands(index, as: writer, from: start) { writer.truncate(to: start) }
            if writer.count >= partByteCount {
                try sendPart(writer.bytes)
                writer.removeAll()
            }
        }
        writer.writeEndOfStream()
        return writer.bytes
    }

    /// The same with nothing gone ahead.
    package static func encode(_ components: [any StatefulComponent]) throws -> [UInt8] {
        var nothing = ComponentsAhead()
        return try encode(components, ahead: &nothing)
    }

    /// Gives components their state as it comes, one part after the other.
    package struct Reader {
        private var register: SectionRegister
        private var reader: StreamReader
        /// What came ahead and could not be loaded then, by the component's place.
        private var waiting: [Int: [UInt8]] = [:]
        /// Places of the components whose sections came ahead.
        private var came: Set<Int> = []

        package init(_ components: [any StatefulComponent]) {
            register = SectionRegister(components: components, layouts: [.native])
            reader = .resumed(sectionCount: components.count)
        }
    }
}

extension SavedComponents.Reader {
    /// Takes what went ahead. What the components refuse now, since the guest was in the middle of something, is loaded when it turns out to
    /// stand, and refused then.
    package mutating func take(_ ahead: ComponentsAhead) {
        for (place, section) in ahead.sections {
            var trial = self
            do throws(MigrationError) {
                try trial.decode(part: section)
                guard trial.register.isReceived(place) else { continue }  // another one's
            } catch { waiting[place] = section }
            came.insert(place)
        }
    }

    /// Counts components as loaded whose sections stand as they went ahead.
    /// - Throws: when such a section did not come, or is refused.
    package mutating func stand(_ places: [Int]) throws(MigrationError) {
        for place in places {
            guard came.contains(place) else {
                throw MigrationError(
                    .missingSection, in: .switchover, "component \(place) is to stand as it went ahead, and it did not")
            }
            guard let section = waiting[place] else {
                try register.stand(place)
                continue
            }
            try decode(part: section)
            guard register.isReceived(place) else {
                throw MigrationError(
                    .stateRejected, in: .switchover, "what went ahead as component \(place) is another one's")
            }
        }
    }

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
