package import ComponentState
import Glibc
import MigrationStream

/// Components' sections as they were while the guest still ran, sent ahead of its pause. In the pause they are written down once more, and
/// what is still the same stands: the other side has it already, and has loaded it.
///
/// On the wire: u32 count, then per section u32 place of its component among all and u64 length and bytes; big-endian.
package struct ComponentsAhead {
    /// Whole sections, in the order of the components.
    private(set) var sections: [(place: Int, bytes: [UInt8])] = []
    /// Where the last question stopped: they come in order.
    private var next = 0
    /// Components that were found to stand since, in order.
    package private(set) var standing: [Int] = []

    /// Nothing went ahead.
    package init() {}

    /// The components that can go ahead, as they are now. The guest may run.
    package init(of components: [any StatefulComponent]) throws {
        let writer = StreamWriter()
        var description: VMDescription?
        for (place, component) in components.enumerated() where component.canGoAhead {
            writer.removeAll()
            let hasSection = try SectionEncoder.encode(
                component, id: UInt32(place), layout: .native, to: writer, description: &description)
            if hasSection { sections.append((place, writer.bytes)) }
        }
    }

    package var bytes: [UInt8] {
        var writer = ByteWriter(capacity: sections.reduce(4) { $0 + 12 + $1.bytes.count })
        writer.integer(UInt32(sections.count))
        for section in sections {
            writer.integer(UInt32(section.place))
            writer.blob(section.bytes)
        }
        return writer.bytes
    }

    /// - Parameter reader: Stands where ``bytes`` begin.
    package init<Failure>(from reader: inout ByteReader<Failure>) throws(Failure) {
        for _ in 0..<(try reader.count(of: 12, countedBy: UInt32.self)) {
            let place = Int(try reader.integer(as: UInt32.self))
            sections.append((place, try reader.blob()))
        }
    }

    /// ``standing`` for the other side: u32 count, then the places as u32; big-endian.
    package var standingBytes: [UInt8] {
        var writer = ByteWriter(capacity: 4 + 4 * standing.count)
        writer.integer(UInt32(standing.count))
        for place in standing { writer.integer(UInt32(place)) }
        return writer.bytes
    }

    /// - Parameter reader: Stands where ``standingBytes`` begin.
    package static func standing<Failure>(from reader: inout ByteReader<Failure>) throws(Failure) -> [Int] {
        var places: [Int] = []
        for _ in 0..<(try reader.count(of: 4, countedBy: UInt32.self)) {
            places.append(Int(try reader.integer(as: UInt32.self)))
        }
        return places
    }

    /// Whether what was written from `start` on, the section of the component at `place`, is what went ahead; it is noted then.
    mutating func stands(_ place: Int, as writer: StreamWriter, from start: Int) -> Bool {
        guard next < sections.count, sections[next].place == place else { return false }
        defer { next += 1 }
        let isSame = unsafe writer.withBytes { written in
            let section = sections[next].bytes
            return unsafe written.count - start == section.count
                && memcmp(section, written.baseAddress! + start, section.count) == 0
        }
        if isSame { standing.append(place) }
        return isSame
    }
}
