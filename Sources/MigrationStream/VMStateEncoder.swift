package import ComponentState

/// Writes a component's fields as QEMU's VMState does, and describes them on the way if asked to.
package final class VMStateEncoder: StateCoder {
    package let layout: StateLayout
    package let version: UInt32
    package let component: String
    package var isDecoding: Bool { false }

    private let writer: StreamWriter
    private let isDescribing: Bool
    /// Innermost last; empty when not describing.
    private var levels: [StructureDescription] = []
    private var hasSubsections = false

    /// - Parameters:
    ///   - describing: Whether to build ``structure`` for the stream's self-description; it costs more than the bytes.
    package init(
        to writer: StreamWriter, component: String, version: UInt32, layout: StateLayout, describing: Bool = false
    ) {
        self.writer = writer
        self.component = component
        self.version = version
        self.layout = layout
        isDescribing = describing
        if describing { levels = [StructureDescription(name: Self.structureName(component), version: version)] }
    }

    /// What was written so far, described.
    package var structure: StructureDescription? {
        guard var top = levels.first else { return nil }
        Self.numberRepeatedNames(&top.fields)
        return top
    }

    /// The name of a component without the path of the bus it is on.
    static func structureName(_ sectionName: String) -> String {
        String(sectionName.split(separator: "/").last ?? Substring(sectionName))
    }

    /// Fields of one name in one structure get an index appended, each of them.
    private static func numberRepeatedNames(_ fields: inout [FieldDescription]) {
        var counts: [String: Int] = [:]
        for field in fields where field.isFirstOfItsArray { counts[field.name, default: 0] += 1 }
        var seen: [String: Int] = [:]
        for index in fields.indices {
            let name = fields[index].name
            guard let count = counts[name], count > 1, fields[index].isFirstOfItsArray else { continue }
            fields[index].name = "\(name)[\(seen[name, default: 0])]"
            seen[name, default: 0] += 1
        }
    }

    private func describe(_ name: String, _ type: String, byteCount: Int, count: Int = 1) {
        guard isDescribing, count > 0 else { return }
        levels[levels.count - 1].fields.append(
            FieldDescription(
                name: name, repetition: count > 1 ? .array(UInt32(count)) : .single, type: type,
                byteCount: UInt64(byteCount)))
    }

    private func scalar<Value: FixedWidthInteger & BitwiseCopyable>(_ name: String, _ type: String, _ value: Value) {
        writer.write(value)
        describe(name, type, byteCount: MemoryLayout<Value>.size)
    }

    private func array<Value: FixedWidthInteger & BitwiseCopyable>(_ name: String, _ type: String, _ values: [Value]) {
        for value in values { writer.write(value) }
        describe(name, type, byteCount: MemoryLayout<Value>.size, count: values.count)
    }

    package func uint8(_ name: String, _ value: inout UInt8) throws(StateError) { scalar(name, "uint8", value) }
    package func uint16(_ name: String, _ value: inout UInt16) throws(StateError) { scalar(name, "uint16", value) }
    package func uint32(_ name: String, _ value: inout UInt32) throws(StateError) { scalar(name, "uint32", value) }
    package func uint64(_ name: String, _ value: inout UInt64) throws(StateError) { scalar(name, "uint64", value) }
    package func int32(_ name: String, _ value: inout Int32) throws(StateError) { scalar(name, "int32", value) }
    package func int64(_ name: String, _ value: inout Int64) throws(StateError) { scalar(name, "int64", value) }

    package func bool(_ name: String, _ value: inout Bool) throws(StateError) {
        writer.write(UInt8(value ? 1 : 0))
        describe(name, "bool", byteCount: 1)
    }

    package func buffer(_ name: String, _ bytes: inout [UInt8]) throws(StateError) {
        writer.write(bytes)
        describe(name, "buffer", byteCount: bytes.count)
    }

    package func uint8Array(_ name: String, _ values: inout [UInt8]) throws(StateError) {
        writer.write(values)
        describe(name, "uint8", byteCount: 1, count: values.count)
    }

    package func uint16Array(_ name: String, _ values: inout [UInt16]) throws(StateError) {
        array(name, "uint16", values)
    }

    package func uint32Array(_ name: String, _ values: inout [UInt32]) throws(StateError) {
        array(name, "uint32", values)
    }

    package func uint64Array(_ name: String, _ values: inout [UInt64]) throws(StateError) {
        array(name, "uint64", values)
    }

    package func timer(_ name: String, _ expiry: inout Int64?) throws(StateError) {
        writer.write(expiry ?? -1)
        describe(name, "timer", byteCount: 8)
    }

    package func unused(_ byteCount: Int) throws(StateError) {
        writer.writeZeroes(byteCount)
        describe("unused", "unused_buffer", byteCount: byteCount)
    }

    /// Runs `body` as a level of its own and answers its description, if there is one, and its bytes.
    private func level(
        _ name: String, _ version: UInt32, _ body: (inout any StateCoder) throws(StateError) -> Void
    ) throws(StateError) -> (StructureDescription?, byteCount: Int) {
        let start = writer.count
        let depth = levels.count
        let outerHasSubsections = hasSubsections
        hasSubsections = false
        defer { hasSubsections = outerHasSubsections }
        if isDescribing { levels.append(StructureDescription(name: name, version: version)) }
        var coder: any StateCoder = self
        do throws(StateError) {
            try body(&coder)
        } catch {
            if isDescribing { levels.removeSubrange(depth...) }
            throw error
        }
        var description = isDescribing ? levels.removeLast() : nil
        if description != nil { Self.numberRepeatedNames(&description!.fields) }
        return (description, writer.count - start)
    }

    package func structure(
        _ name: String, type: String, version: UInt32, _ body: (inout any StateCoder) throws(StateError) -> Void
    ) throws(StateError) {
        let (description, byteCount) = try level(type, version, body)
        guard isDescribing else { return }
        levels[levels.count - 1].fields.append(
            FieldDescription(name: name, type: "struct", structure: description, byteCount: UInt64(byteCount)))
    }

    package func structures(
        _ name: String, type: String, version: UInt32, count: Int,
        _ body: (inout any StateCoder, _ index: Int) throws(StateError) -> Void
    ) throws(StateError) {
        guard isDescribing else {
            let outerHasSubsections = hasSubsections
            defer { hasSubsections = outerHasSubsections }
            var coder: any StateCoder = self
            for index in 0..<count {
                hasSubsections = false
                try body(&coder, index)
            }
            return
        }
        var elements: [FieldDescription] = []
        for index in 0..<count {
            let (description, byteCount) = try level(type, version) {
                (coder: inout any StateCoder) throws(StateError) in
                try body(&coder, index)
            }
            elements.append(
                FieldDescription(
                    name: name, repetition: count > 1 ? .index(UInt32(index)) : .single, type: "struct",
                    structure: description, byteCount: UInt64(byteCount)))
        }
        guard let first = elements.first else { return }
        let areAlike = elements.allSatisfy { $0.structure == first.structure && $0.byteCount == first.byteCount }
        if count > 1, areAlike, first.structure?.subsections.isEmpty != false {
            elements = [first]
            elements[0].repetition = .array(UInt32(count))
        }
        levels[levels.count - 1].fields += elements
    }

    package func list(
        _ name: String, type: String, version: UInt32, count: inout Int, countMax: Int,
        _ body: (inout any StateCoder, _ index: Int) throws(StateError) -> Void
    ) throws(StateError) {
        let start = writer.count
        for index in 0..<count {
            writer.write(UInt8(1))
            _ = try level(type, version) { (coder: inout any StateCoder) throws(StateError) in try body(&coder, index) }
        }
        writer.write(UInt8(0))
        describe(name, "qtailq", byteCount: writer.count - start)
    }

    package func opaque(
        _ name: String, type: String, _ body: (inout any StateCoder) throws(StateError) -> Void
    ) throws(StateError) {
        let (_, byteCount) = try level(type, version, body)
        describe(name, type, byteCount: byteCount)
    }

    package func subsections(_ list: [Subsection]) throws(StateError) {
        precondition(!hasSubsections, "subsections are coded once")
        for subsection in list where subsection.isNeeded {
            writer.write(RecordType.subsection.rawValue)
            writer.writeShortString(subsection.name)
            writer.write(subsection.version)
            let (description, _) = try level(subsection.name, subsection.version, subsection.body)
            if let description { levels[levels.count - 1].subsections.append(description) }
        }
        hasSubsections = true
    }
}

extension FieldDescription {
    fileprivate var isFirstOfItsArray: Bool {
        if case .index(let index) = repetition { return index == 0 }
        return true
    }
}
