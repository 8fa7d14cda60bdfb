import LinuxCalls
import QMPProtocol

/// Descriptors that clients handed over by name or in sets.
struct DescriptorStore {
    struct Member {
        var descriptor: OwnedDescriptor
        var opaque: String?
    }

    static let countMax = 256

    private(set) var named: [String: OwnedDescriptor] = [:]
    private(set) var sets: [Int64: [Member]] = [:]

    var count: Int { named.count + sets.values.reduce(0) { $0 + $1.count } }

    mutating func put(_ descriptor: OwnedDescriptor, name: String) throws(QMPError) {
        guard let first = name.unicodeScalars.first, !("0"..."9").contains(first) else {
            throw .invalidValue(parameter: "fdname", expected: "a name not starting with a digit")
        }
        guard count < Self.countMax || named[name] != nil else { throw QMPError("Too many file descriptors") }
        named[name] = descriptor  // an older one of that name is closed
    }

    mutating func close(name: String) throws(QMPError) {
        guard named.removeValue(forKey: name) != nil else {
            throw QMPError("File descriptor named '\(name)' not found")
        }
    }

    /// Takes a named descriptor out, as the `fd:NAME` of a migration does.
    mutating func take(name: String) -> OwnedDescriptor? { named.removeValue(forKey: name) }

    mutating func add(_ descriptor: OwnedDescriptor, set: Int64?, opaque: String?) throws(QMPError) -> Int64 {
        guard count < Self.countMax else { throw QMPError("Too many file descriptors") }
        if let set, set < 0 { throw .invalidValue(parameter: "fdset-id", expected: "a non-negative value") }
        let identifier = set ?? (0...Int64(Self.countMax)).first { sets[$0] == nil } ?? 0
        sets[identifier, default: []].append(Member(descriptor: descriptor, opaque: opaque))
        return identifier
    }

    mutating func remove(set: Int64, descriptor number: Int64?) throws(QMPError) {
        let text = number.map { "fdset-id:\(set), fd:\($0)" } ?? "fdset-id:\(set)"
        guard var members = sets[set] else { throw QMPError("File descriptor named '\(text)' not found") }
        if let number {
            let before = members.count
            members.removeAll { Int64($0.descriptor.rawValue) == number }
            if members.count == before { throw QMPError("File descriptor named '\(text)' not found") }
        } else {
            members = []
        }
        sets[set] = members.isEmpty ? nil : members
    }

    // MARK: Hand-over

    /// Names and sets; the descriptors follow in the same order.
    struct Saved: Codable, Sendable {
        var names: [String] = []
        var members: [Member] = []
        struct Member: Codable, Sendable {
            var set: Int64
            var opaque: String?
        }
    }

    func handOver() -> (Saved, [OwnedDescriptor]) {
        var saved = Saved()
        var descriptors: [OwnedDescriptor] = []
        for (name, descriptor) in named.sorted(by: { $0.key < $1.key }) {
            saved.names.append(name)
            descriptors.append(descriptor)
        }
        for (set, members) in sets.sorted(by: { $0.key < $1.key }) {
            for member in members {
                saved.members.append(.init(set: set, opaque: member.opaque))
                descriptors.append(member.descriptor)
            }
        }
        return (saved, descriptors)
    }

    init() {}

    init(adopting saved: Saved, descriptors: [OwnedDescriptor]) throws(Refusal) {
        guard descriptors.count == saved.names.count + saved.members.count, descriptors.count <= Self.countMax else {
            throw Refusal("\(descriptors.count) descriptors do not fit the named ones and the sets")
        }
        named = Dictionary(zip(saved.names, descriptors)) { _, last in last }
        for (member, descriptor) in zip(saved.members, descriptors.dropFirst(saved.names.count)) {
            sets[member.set, default: []].append(Member(descriptor: descriptor, opaque: member.opaque))
        }
    }
}

extension CommandTable {
    static let descriptors: [CommandEntry] = [
        CommandEntry("getfd", [.required("fdname", .string)]) { (supervisor, invocation) throws(QMPError) in
            let descriptor = try descriptor(of: invocation)
            try supervisor.descriptorStore.put(descriptor, name: invocation.arguments["fdname"]?.stringValue ?? "")
            return [:]
        },
        CommandEntry("closefd", [.required("fdname", .string)]) { (supervisor, invocation) throws(QMPError) in
            try supervisor.descriptorStore.close(name: invocation.arguments["fdname"]?.stringValue ?? "")
            return [:]
        },
        CommandEntry(
            "add-fd", [.optional("fdset-id", .integer), .optional("opaque", .string)],
            returns: .object("AddfdInfo", [.required("fdset-id", .integer), .required("fd", .integer)])
        ) { (supervisor, invocation) throws(QMPError) in
            let descriptor = try descriptor(of: invocation)
            let set = try supervisor.descriptorStore.add(
                descriptor, set: invocation.arguments["fdset-id"]?.integerValue,
                opaque: invocation.arguments["opaque"]?.stringValue)
            return ["fdset-id": .integer(set), "fd": JSONValue(descriptor.rawValue)]
        },
        CommandEntry("remove-fd", [.required("fdset-id", .integer), .optional("fd", .integer)]) {
            (supervisor, invocation) throws(QMPError) in
            try supervisor.descriptorStore.remove(
                set: invocation.arguments["fdset-id"]?.integerValue ?? -1,
                descriptor: invocation.arguments["fd"]?.integerValue)
            return [:]
        },
        CommandEntry(
            "query-fdsets",
            returns: .array(
                of: .object(
                    "FdsetInfo",
                    [
                        .required("fdset-id", .integer),
                        .required(
                            "fds",
                            .array(
                                of: .object(
                                    "FdsetFdInfo", [.required("fd", .integer), .optional("opaque", .string)]))),
                    ]))
        ) { supervisor, _ in
            .array(
                supervisor.descriptorStore.sets.sorted { $0.key < $1.key }.map { set, members in
                    let list: [JSONValue] = members.map { member in
                        var entry: JSONObject = ["fd": JSONValue(member.descriptor.rawValue)]
                        entry["opaque"] = member.opaque.map { .string($0) }
                        return .object(entry)
                    }
                    return ["fdset-id": .integer(set), "fds": .array(list)]
                })
        },
    ]

    private static func descriptor(of invocation: CommandInvocation) throws(QMPError) -> OwnedDescriptor {
        guard let descriptor = invocation.client?.takeDescriptor() else {
            throw QMPError("No file descriptor supplied via SCM_RIGHTS")
        }
        return descriptor
    }
}
