/// The type of an argument, a reply or an event's data: what is accepted and what `query-qmp-schema` tells come from the
/// same declaration.
package indirect enum QMPType: Hashable, Sendable {
    case string, integer, boolean, number, any, null
    /// An integer that is stored in so many bits.
    case unsigned(bits: Int)
    /// One of several words.
    case enumeration(String, [String])
    case array(of: QMPType)
    case object(String, [QMPMember])
    /// An object whose further members depend on the value of one of them (`tag`): each branch is an object or a union.
    case union(String, tag: QMPMember, [String: QMPType])
    /// A value whose JSON kind decides which type it is.
    case alternate(String, [QMPType])
}

/// A member of an object.
package struct QMPMember: Hashable, Sendable {
    package var name: String
    package var type: QMPType
    package var isOptional: Bool

    package static func required(_ name: String, _ type: QMPType) -> QMPMember {
        QMPMember(name: name, type: type, isOptional: false)
    }
    package static func optional(_ name: String, _ type: QMPType) -> QMPMember {
        QMPMember(name: name, type: type, isOptional: true)
    }
}

extension QMPType {
    /// Judges the arguments of a command against this type, which is an object or union.
    package func check(arguments: JSONObject) throws(QMPError) { try check(.object(arguments), path: "") }

    /// Judges a value. `path` names it in errors, as QEMU does: `capabilities[0].state`.
    package func check(_ value: JSONValue, path: String) throws(QMPError) {
        switch (self, value) {
        case (.any, _), (.null, .null), (.string, .string), (.boolean, .bool), (.integer, .integer),
            (.integer, .unsigned), (.number, .integer), (.number, .unsigned), (.number, .number),
            (.unsigned(bits: 64), .integer), (.unsigned(bits: 64), .unsigned):
            break
        case (.unsigned(let bits), _):
            guard bits < 64, let value = value.unsignedValue, value >> UInt64(bits) == 0 else {
                let isNumber = value.integerValue != nil || value.unsignedValue != nil
                throw .invalidValue(parameter: path, expected: isNumber ? "uint\(bits)_t" : "uint64")
            }
        case (.enumeration(_, let words), .string(let word)):
            guard words.contains(word) else {
                // QEMU names an element of a list so.
                throw .notAccepted(parameter: path.hasSuffix("]") ? "null" : Self.lastComponent(path), value: word)
            }
        case (.array(of: let element), .array(let values)):
            for (index, value) in values.enumerated() { try element.check(value, path: "\(path)[\(index)]") }
        case (.object(_, let members), .object(let object)):
            try Self.check(object, members: members, path: path)
        case (.union, .object(let object)):
            try Self.check(object, members: try members(in: object, path: path), path: path)
        case (.alternate(let name, let types), _):
            guard let type = types.first(where: { $0.accepts(kindOf: value) }) else {
                throw .invalidType(parameter: path, expected: name)
            }
            try type.check(value, path: path)
        default: throw .invalidType(parameter: path.isEmpty ? "arguments" : path, expected: kind)
        }
    }

    /// The members that an object of this type may have, given what its tags say.
    private func members(in object: JSONObject, path: String) throws(QMPError) -> [QMPMember] {
        switch self {
        case .object(_, let members): return members
        case .union(_, let tag, let branches):
            let tagPath = Self.join(path, tag.name)
            guard let word = object[tag.name] else { throw .missing(parameter: tagPath) }
            try tag.type.check(word, path: tagPath)
            return [tag] + (try branches[word.stringValue ?? ""]?.members(in: object, path: path) ?? [])
        default: return []
        }
    }

    private static func check(_ object: JSONObject, members: [QMPMember], path: String) throws(QMPError) {
        for member in members {
            let memberPath = join(path, member.name)
            if let value = object[member.name] {
                try member.type.check(value, path: memberPath)
            } else if !member.isOptional {
                throw .missing(parameter: memberPath)
            }
        }
        for key in object.keys where !members.contains(where: { $0.name == key }) {
            throw .unexpected(parameter: join(path, key))
        }
    }

    private static func join(_ path: String, _ name: String) -> String { path.isEmpty ? name : "\(path).\(name)" }

    private static func lastComponent(_ path: String) -> String {
        path.split(separator: ".").last.map(String.init) ?? path
    }

    /// What the kind is called in errors.
    private var kind: String {
        switch self {
        case .string, .enumeration: "string"
        case .integer, .unsigned: "integer"
        case .boolean: "boolean"
        case .number: "number"
        case .any: "any"
        case .null: "null"
        case .array: "array"
        case .object, .union: "object"
        case .alternate(let name, _): name
        }
    }

    private func accepts(kindOf value: JSONValue) -> Bool {
        switch (self, value) {
        case (.any, _), (.string, .string), (.enumeration, .string), (.boolean, .bool), (.integer, .integer),
            (.integer, .unsigned), (.number, .number), (.number, .integer), (.number, .unsigned), (.array, .array),
            (.object, .object), (.union, .object), (.null, .null), (.unsigned, .integer), (.unsigned, .unsigned):
            true
        default: false
        }
    }
}

/// Collects types and tells them as `query-qmp-schema` does: a flat list in which types refer to each other by name.
package struct QMPIntrospection {
    private var entries: [JSONValue] = []
    private var known: Set<String> = []

    package init() {}

    package var json: JSONValue { .array(entries) }

    /// Adds a command. A nil reply is `{}`.
    package mutating func add(command: String, arguments: QMPType, returns: QMPType, allowsOutOfBand: Bool) {
        var entry: JSONObject = [
            "name": .string(command), "meta-type": "command", "arg-type": .string(name(of: arguments)),
            "ret-type": .string(name(of: returns)),
        ]
        if allowsOutOfBand { entry["allow-oob"] = true }
        entries.append(.object(entry))
    }

    package mutating func add(event: String, data: QMPType) {
        entries.append(["name": .string(event), "meta-type": "event", "arg-type": .string(name(of: data))])
    }

    /// The name of a type; the type is described first if it was not yet.
    private mutating func name(of type: QMPType) -> String {
        switch type {
        case .string: return builtin("str", "string")
        case .integer, .unsigned: return builtin("int", "int")
        case .boolean: return builtin("bool", "boolean")
        case .number: return builtin("number", "number")
        case .any: return builtin("any", "value")
        case .null: return builtin("null", "null")
        case .enumeration(let name, let words):
            if known.insert(name).inserted {
                entries.append([
                    "name": .string(name), "meta-type": "enum",
                    "members": .array(words.map { ["name": .string($0)] }),
                    "values": .array(words.map { .string($0) }),
                ])
            }
            return name
        case .array(of: let element):
            let elementName = name(of: element)
            let name = "[\(elementName)]"
            if known.insert(name).inserted {
                entries.append(["name": .string(name), "meta-type": "array", "element-type": .string(elementName)])
            }
            return name
        case .object(let name, let members):
            if known.insert(name).inserted {
                let list = members.map { describe($0) }
                entries.append(["name": .string(name), "meta-type": "object", "members": .array(list)])
            }
            return name
        case .union(let name, let tag, let branches):
            if known.insert(name).inserted {
                let variants: [JSONValue] = branches.sorted { $0.key < $1.key }.map { branch in
                    ["case": .string(branch.key), "type": .string(self.name(of: branch.value))]
                }
                entries.append([
                    "name": .string(name), "meta-type": "object", "members": .array([describe(tag)]),
                    "tag": .string(tag.name), "variants": .array(variants),
                ])
            }
            return name
        case .alternate(let name, let types):
            if known.insert(name).inserted {
                let list: [JSONValue] = types.map { ["type": .string(self.name(of: $0))] }
                entries.append(["name": .string(name), "meta-type": "alternate", "members": .array(list)])
            }
            return name
        }
    }

    private mutating func describe(_ member: QMPMember) -> JSONValue {
        var entry: JSONObject = ["name": .string(member.name), "type": .string(name(of: member.type))]
        if member.isOptional { entry["default"] = .null }
        return .object(entry)
    }

    private mutating func builtin(_ name: String, _ kind: String) -> String {
        if known.insert(name).inserted {
            entries.append(["name": .string(name), "meta-type": "builtin", "json-type": .string(kind)])
        }
        return name
    }
}
