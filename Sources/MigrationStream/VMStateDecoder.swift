package import ComponentState

/// Reads a component's fields as QEMU's VMState writes them.
package final class VMStateDecoder: StateCoder {
    package let layout: StateLayout
    package let version: UInt32
    package let component: String
    package var isDecoding: Bool { true }

    /// Behind the last field read.
    package private(set) var cursor: StreamCursor
    /// What went wrong with the bytes, as opposed to the values; tells `incomplete` from `malformed`.
    package private(set) var streamError: StreamError?
    private var hasSubsections = false
    /// How many structures and subsections we are inside of.
    private var depth = 0

    package init(from cursor: StreamCursor, component: String, version: UInt32, layout: StateLayout) {
        self.cursor = cursor
        self.component = component
        self.version = version
        self.layout = layout
    }

    private func failure(_ error: StreamError) -> StateError {
        streamError = error
        return .malformed(component: component, reason: "\(error.reason)", offset: error.offset)
    }

    private func scalar<Value: FixedWidthInteger & BitwiseCopyable>(_ value: inout Value) throws(StateError) {
        do throws(StreamError) { value = try cursor.readInteger() } catch { throw failure(error) }
    }

    private func array<Value: FixedWidthInteger & BitwiseCopyable>(_ values: inout [Value]) throws(StateError) {
        do throws(StreamError) {
            try cursor.require(values.count * MemoryLayout<Value>.size)
            for index in values.indices { values[index] = try cursor.readInteger() }
        } catch { throw failure(error) }
    }

    package func uint8(_ name: String, _ value: inout UInt8) throws(StateError) { try scalar(&value) }
    package func uint16(_ name: String, _ value: inout UInt16) throws(StateError) { try scalar(&value) }
    package func uint32(_ name: String, _ value: inout UInt32) throws(StateError) { try scalar(&value) }
    package func uint64(_ name: String, _ value: inout UInt64) throws(StateError) { try scalar(&value) }
    package func int32(_ name: String, _ value: inout Int32) throws(StateError) { try scalar(&value) }
    package func int64(_ name: String, _ value: inout Int64) throws(StateError) { try scalar(&value) }

    package func bool(_ name: String, _ value: inout Bool) throws(StateError) {
        var byte: UInt8 = 0
        try scalar(&byte)
        guard byte <= 1 else { throw .invalid(component: component, field: name, value: String(byte)) }
        value = byte == 1
    }

    package func buffer(_ name: String, _ bytes: inout [UInt8]) throws(StateError) {
        do throws(StreamError) { bytes = try cursor.readBytes(bytes.count) } catch { throw failure(error) }
    }

    package func uint8Array(_ name: String, _ values: inout [UInt8]) throws(StateError) {
        try buffer(name, &values)
    }

    package func uint16Array(_ name: String, _ values: inout [UInt16]) throws(StateError) { try array(&values) }
    package func uint32Array(_ name: String, _ values: inout [UInt32]) throws(StateError) { try array(&values) }
    package func uint64Array(_ name: String, _ values: inout [UInt64]) throws(StateError) { try array(&values) }

    package func timer(_ name: String, _ expiry: inout Int64?) throws(StateError) {
        var value: Int64 = 0
        try scalar(&value)
        expiry = value == -1 ? nil : value
    }

    package func unused(_ byteCount: Int) throws(StateError) {
        do throws(StreamError) { try cursor.skip(byteCount) } catch { throw failure(error) }
    }

    private func level(_ body: (inout any StateCoder) throws(StateError) -> Void) throws(StateError) {
        let outerHasSubsections = hasSubsections
        hasSubsections = false
        depth += 1
        defer {
            hasSubsections = outerHasSubsections
            depth -= 1
        }
        var coder: any StateCoder = self
        try body(&coder)
    }

    package func structure(
        _ name: String, type: String, version: UInt32, _ body: (inout any StateCoder) throws(StateError) -> Void
    ) throws(StateError) {
        try level(body)
    }

    package func structures(
        _ name: String, type: String, version: UInt32, count: Int,
        _ body: (inout any StateCoder, _ index: Int) throws(StateError) -> Void
    ) throws(StateError) {
        for index in 0..<count {
            try level { (coder: inout any StateCoder) throws(StateError) in try body(&coder, index) }
        }
    }

    package func opaque(
        _ name: String, type: String, _ body: (inout any StateCoder) throws(StateError) -> Void
    ) throws(StateError) {
        try level(body)
    }

    package func subsections(_ list: [Subsection]) throws(StateError) {
        precondition(!hasSubsections, "subsections are coded once")
        hasSubsections = true
        var taken = [Bool](repeating: false, count: list.count)
        while try subsectionBegins() {
            // Names are compared in place: this is part of a guest's pause.
            guard let index = list.firstIndex(where: { cursor.hasShortString($0.name, at: 1) }) else {
                guard let name = try peekSubsectionName() else { return }
                guard depth > 0 else { throw .unknownSubsection(component: component, name: name) }
                return  // perhaps the parent's: those stand after ours
            }
            let subsection = list[index]
            guard !taken[index] else {
                throw .invalid(component: component, field: subsection.name, value: "present twice")
            }
            taken[index] = true
            do throws(StreamError) {
                try cursor.skip(2 + subsection.name.utf8.count)
                let found = try cursor.readInteger(as: UInt32.self)
                guard found <= subsection.version else {
                    throw StreamError(.unsupportedVersion(found), at: cursor.offset - 4)
                }
            } catch { throw failure(error) }
            try level(subsection.body)
        }
        hasSubsections = true
    }

    private func subsectionBegins() throws(StateError) -> Bool {
        do throws(StreamError) { return try cursor.peekByte() == RecordType.subsection.rawValue } catch {
            throw failure(error)
        }
    }

    /// The name of the subsection that begins here; nil when none does.
    private func peekSubsectionName() throws(StateError) -> String? {
        guard try subsectionBegins() else { return nil }
        var ahead = cursor
        do throws(StreamError) {
            try ahead.skip(1)
            return try ahead.readShortString()
        } catch { throw failure(error) }
    }

    /// Call after the component has read its fields: a subsection that nobody asked for is refused.
    package func finish() throws(StateError) {
        // A section without footer may be the last thing in the buffer; then there is nothing to look at.
        guard cursor.remaining > 0, let name = try peekSubsectionName() else { return }
        throw .unknownSubsection(component: component, name: name)
    }
}

/// Hands the body of a section to the component it belongs to.
package enum SectionDecoder {
    /// Reads the body; the cursor then stands before the footer.
    ///
    /// After ``StreamError/Reason/incomplete(needed:)`` the cursor has not moved: read more and call again. Components
    /// take nothing over before they have read everything.
    /// - Throws: ``StreamError``; a refusal by the component is its reason ``StreamError/Reason/state(_:)``.
    package static func decode(
        _ component: any StatefulComponent, header: SectionHeader, layout: StateLayout,
        from cursor: inout StreamCursor, limits: StreamLimits = StreamLimits()
    ) throws(StreamError) {
        let start = cursor.offset
        guard component.readableVersions.contains(header.version) else {
            throw StreamError(
                .state(
                    .version(component: header.name, found: header.version, supported: component.readableVersions)),
                at: start)
        }
        let decoder = VMStateDecoder(
            from: cursor, component: header.name, version: header.version, layout: layout)
        do throws(StateError) {
            var coder: any StateCoder = decoder
            try component.codeState(with: &coder)
            try decoder.finish()
        } catch {
            if let streamError = decoder.streamError {
                if case .incomplete(let needed) = streamError.reason,
                    decoder.cursor.offset - start + UInt64(needed) > limits.deviceSectionByteCount
                {
                    throw StreamError(.limitExceeded("section \(header.name)"), at: start)
                }
                throw streamError
            }
            throw StreamError(.state(error), at: decoder.cursor.offset)
        }
        cursor = decoder.cursor
    }
}

/// Writes a component's section.
package enum SectionEncoder {
    /// Header, body and footer. Nothing is written when the layout has no such section, or when the component throws.
    /// - Parameters:
    ///   - description: Gets the section's description appended; nil when none is wanted.
    /// - Returns: Whether the layout has the section.
    @discardableResult package static func encode(
        _ component: any StatefulComponent, id: UInt32, layout: StateLayout, to writer: StreamWriter,
        description: inout VMDescription?
    ) throws(StateError) -> Bool {
        guard let version = component.sectionVersion(for: layout) else { return false }
        let name = component.sectionName
        let position = writer.count
        writer.beginSection(
            SectionHeader(.full, id: id, name: name, instance: component.instance, version: version))
        let encoder = VMStateEncoder(
            to: writer, component: name, version: version, layout: layout, describing: description != nil)
        do throws(StateError) {
            var coder: any StateCoder = encoder
            try component.codeState(with: &coder)
        } catch {
            writer.truncate(to: position)
            throw error
        }
        writer.endSection(id: id)
        if let structure = encoder.structure {
            description?.devices.append(
                DeviceDescription(name: name, instance: component.instance, content: structure))
        }
        return true
    }
}
