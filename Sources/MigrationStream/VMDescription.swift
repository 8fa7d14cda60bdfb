/// A stream's description of its own component state: from it, sections of a foreign stream can be taken apart.
///
/// Sizes come from the peer; ``FieldDescription/byteCount`` and the like are only judged when bytes are taken apart.
package struct VMDescription: Hashable, Sendable {
    /// Of CONFIGURATION; QEMU 10 on.
    package var configuration: StructureDescription?
    /// Bytes per target page.
    package var pageSize: UInt64
    package var devices: [DeviceDescription]

    package init(
        configuration: StructureDescription? = nil, pageSize: UInt64 = 4096, devices: [DeviceDescription] = []
    ) {
        self.configuration = configuration
        self.pageSize = pageSize
        self.devices = devices
    }

    /// The description of one section; nil when the stream has none for it.
    package func device(_ name: String, instance: UInt32) -> DeviceDescription? {
        devices.first { $0.name == name && $0.instance == instance }
    }
}

/// One section.
package struct DeviceDescription: Hashable, Sendable {
    package var name: String
    package var instance: UInt32
    /// Bytes, of a section whose parts are not described (QEMU's old style).
    package var undescribedByteCount: UInt64?
    /// Name and version are empty for a section whose parts are not described.
    package var content: StructureDescription

    package init(
        name: String, instance: UInt32, undescribedByteCount: UInt64? = nil, content: StructureDescription
    ) {
        self.name = name
        self.instance = instance
        self.undescribedByteCount = undescribedByteCount
        self.content = content
    }
}

/// A description of fields: of a section, a nested structure, or a subsection.
package struct StructureDescription: Hashable, Sendable {
    package var name: String
    package var version: UInt32
    package var fields: [FieldDescription]
    package var subsections: [StructureDescription]

    package init(
        name: String, version: UInt32, fields: [FieldDescription] = [], subsections: [StructureDescription] = []
    ) {
        self.name = name
        self.version = version
        self.fields = fields
        self.subsections = subsections
    }

    /// Bytes on the wire, subsections with their headers included; nil when the sum has no meaning.
    package var byteCount: UInt64? {
        guard var total = fieldsByteCount else { return nil }
        for subsection in subsections {
            guard let body = subsection.byteCount else { return nil }
            let (sum, overflow) = total.addingReportingOverflow(UInt64(subsection.name.utf8.count) + 6)
            let (next, overflowToo) = sum.addingReportingOverflow(body)
            guard !overflow, !overflowToo else { return nil }
            total = next
        }
        return total
    }

    /// Bytes of the fields alone.
    package var fieldsByteCount: UInt64? {
        var total: UInt64 = 0
        for field in fields {
            let (product, overflow) = field.byteCount.multipliedReportingOverflow(by: UInt64(field.elementCount))
            let (sum, overflowToo) = total.addingReportingOverflow(product)
            guard !overflow, !overflowToo else { return nil }
            total = sum
        }
        return total
    }
}

/// One field of a section as the self-description at the end of the stream tells it.
package struct FieldDescription: Hashable, Sendable {
    package enum Repetition: Hashable, Sendable {
        case single
        /// So many equal elements, back to back.
        case array(UInt32)
        /// This is one element of an array whose elements are described one by one.
        case index(UInt32)
    }

    package var name: String
    package var repetition: Repetition
    /// QEMU's type name: `uint32`, `timer`, `struct`.
    package var type: String
    /// The parts of a `struct`, and of the like.
    package var structure: StructureDescription?
    /// The parts stand in the field's own object, as for `tmp`, not under "struct".
    package var isInline: Bool
    /// Bytes of one element, everything nested included.
    package var byteCount: UInt64

    package init(
        name: String, repetition: Repetition = .single, type: String, structure: StructureDescription? = nil,
        isInline: Bool = false, byteCount: UInt64
    ) {
        self.name = name
        self.repetition = repetition
        self.type = type
        self.structure = structure
        self.isInline = isInline
        self.byteCount = byteCount
    }

    package var elementCount: UInt32 {
        if case .array(let count) = repetition { return count }
        return 1
    }
}

// MARK: - JSON

extension VMDescription {
    /// - Parameter offset: Where the JSON stands in the stream, for errors.
    package static func parse(_ json: [UInt8], at offset: UInt64 = 0) throws(StreamError) -> VMDescription {
        let root = try DescriptionJSON.parse(json, at: offset)
        guard case .object = root else { throw StreamError(.invalid("self-description is no object"), at: offset) }
        let reader = DescriptionReader(offset: offset)
        var description = VMDescription(pageSize: 0)
        if let configuration = root["configuration"] {
            description.configuration = try reader.structure(configuration)
        }
        if let pageSize = root["page_size"] { description.pageSize = UInt64(try reader.number(pageSize, UInt32.self)) }
        for device in root["devices"]?.elements ?? [] { description.devices.append(try reader.device(device)) }
        return description
    }

    /// The JSON, in QEMU's order and spacing.
    package var json: [UInt8] {
        var members: [DescriptionJSON.Member] = []
        if let configuration {
            members.append(.init(key: "configuration", value: .object(configuration.members)))
        }
        members.append(.init(key: "page_size", value: .integer(Int64(clamping: pageSize))))
        members.append(.init(key: "devices", value: .array(devices.map { .object($0.members) })))
        var bytes: [UInt8] = []
        DescriptionJSON.object(members).serialise(into: &bytes)
        return bytes
    }
}

extension DeviceDescription {
    var members: [DescriptionJSON.Member] {
        var members: [DescriptionJSON.Member] = [
            .init(key: "name", value: .string(name)), .init(key: "instance_id", value: .integer(Int64(instance))),
        ]
        if let undescribedByteCount {
            members.append(.init(key: "size", value: .integer(Int64(clamping: undescribedByteCount))))
            members.append(.init(key: "fields", value: .array(content.fields.map { .object($0.undescribedMembers) })))
        } else {
            members += content.members
        }
        return members
    }
}

extension StructureDescription {
    var fieldsJSON: DescriptionJSON { .array(fields.map { .object($0.members) }) }

    var members: [DescriptionJSON.Member] {
        var members: [DescriptionJSON.Member] = [
            .init(key: "vmsd_name", value: .string(name)), .init(key: "version", value: .integer(Int64(version))),
            .init(key: "fields", value: fieldsJSON),
        ]
        if !subsections.isEmpty {
            members.append(.init(key: "subsections", value: .array(subsections.map { .object($0.members) })))
        }
        return members
    }
}

extension FieldDescription {
    var members: [DescriptionJSON.Member] {
        var members: [DescriptionJSON.Member] = [.init(key: "name", value: .string(name))]
        switch repetition {
        case .single: break
        case .array(let count): members.append(.init(key: "array_len", value: .integer(Int64(count))))
        case .index(let index): members.append(.init(key: "index", value: .integer(Int64(index))))
        }
        members.append(.init(key: "type", value: .string(type)))
        if let structure {
            if isInline {
                members += structure.members
            } else {
                members.append(.init(key: "struct", value: .object(structure.members)))
            }
        }
        members.append(.init(key: "size", value: .integer(Int64(clamping: byteCount))))
        return members
    }

    /// In a device whose parts are not described the order is another.
    var undescribedMembers: [DescriptionJSON.Member] {
        guard repetition == .single, structure == nil else { return members }
        return [
            .init(key: "name", value: .string(name)), .init(key: "size", value: .integer(Int64(clamping: byteCount))),
            .init(key: "type", value: .string(type)),
        ]
    }
}

private struct DescriptionReader {
    let offset: UInt64

    func failure(_ text: String) -> StreamError {
        StreamError(.invalid("self-description: \(text)"), at: offset)
    }

    func number<Value: FixedWidthInteger>(
        _ value: DescriptionJSON?, _: Value.Type, else missing: Value? = nil
    ) throws(StreamError) -> Value {
        guard let value else {
            if let missing { return missing }
            throw failure("a number is missing")
        }
        guard let integer = value.integerValue, let number = Value(exactly: integer) else {
            throw failure("a number is out of range")
        }
        return number
    }

    func text(_ value: DescriptionJSON?) throws(StreamError) -> String {
        guard let text = value?.text else { throw failure("a name is missing") }
        return text
    }

    func device(_ value: DescriptionJSON) throws(StreamError) -> DeviceDescription {
        let name = try text(value["name"])
        let instance = try number(value["instance_id"], UInt32.self)
        if value["vmsd_name"] != nil {
            return DeviceDescription(name: name, instance: instance, content: try structure(value))
        }
        var content = StructureDescription(name: "", version: 0)
        for field in value["fields"]?.elements ?? [] { content.fields.append(try self.field(field)) }
        return DeviceDescription(
            name: name, instance: instance,
            undescribedByteCount: UInt64(try number(value["size"], UInt32.self, else: 0)),
            content: content)
    }

    func structure(_ value: DescriptionJSON) throws(StreamError) -> StructureDescription {
        var structure = StructureDescription(
            name: try text(value["vmsd_name"]), version: try number(value["version"], UInt32.self))
        for field in value["fields"]?.elements ?? [] { structure.fields.append(try self.field(field)) }
        for subsection in value["subsections"]?.elements ?? [] {
            structure.subsections.append(try self.structure(subsection))
        }
        return structure
    }

    func field(_ value: DescriptionJSON) throws(StreamError) -> FieldDescription {
        var field = FieldDescription(
            name: try text(value["name"]), type: try text(value["type"]),
            byteCount: UInt64(try number(value["size"], UInt32.self)))
        if let count = value["array_len"] {
            field.repetition = .array(try number(count, UInt32.self))
        } else if let index = value["index"] {
            field.repetition = .index(try number(index, UInt32.self))
        }
        if let nested = value["struct"] {
            field.structure = try structure(nested)
        } else if value["vmsd_name"] != nil {
            field.structure = try structure(value)
            field.isInline = true
        }
        return field
    }
}
