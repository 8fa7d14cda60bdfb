package import ComponentState
import MigrationStream

/// The state of every component of a paused guest as one run of sections: what a hand-over by descriptor carries
/// instead of a whole stream, since neither RAM nor a peer of another kind is involved.
package enum SavedComponents {
    /// Writes every component in the native layout.
    package static func encode(_ components: [any StatefulComponent]) throws(StateError) -> [UInt8] {
        let writer = StreamWriter()
        var description: VMDescription?
        for (index, component) in components.enumerated() {
            try SectionEncoder.encode(
                component, id: UInt32(index), layout: .native, to: writer, description: &description)
        }
        writer.writeEndOfStream()
        return writer.bytes
    }

    /// Knows the components beforehand, so that nothing has to be looked up while the guest stands still.
    package struct Reader {
        private let register: SectionRegister

        package init(_ components: [any StatefulComponent]) {
            register = SectionRegister(components: components, layouts: [.native])
        }
    }
}

extension SavedComponents.Reader {
    /// Gives each component its state.
    /// - Throws: when a section is unknown, doubled, missing or refused. Some components may then hold the new state: the
    ///   machine must not run.
    package func decode(_ bytes: [UInt8]) throws(MigrationError) {
        var register = register
        var reader = StreamReader.resumed()
        var cursor = StreamCursor(bytes, isFinal: true)
        do {
            while true {
                switch try reader.next(&cursor) {
                case .section(let header) where header.kind == .full:
                    let component = try register.begin(
                        name: header.name, instance: header.instance, version: header.version)
                    try SectionDecoder.decode(component, header: header, layout: .native, from: &cursor)
                    try reader.endSection(&cursor)
                case .endOfStream:
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
