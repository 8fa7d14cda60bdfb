package import ComponentState
package import GuestMemory
package import QMPProtocol

/// The configuration file: what the flags say, by the flags' names.
///
/// ```json
/// {"name": "web", "kernel": "Image", "memory": "512M", "disk": [{"path": "root.img", "readonly": false}],
///  "net": ["socket=/run/passt.sock"], "console": "unix", "qmp": ["unix:/run/web.qmp"]}
/// ```
extension RunConfiguration {
    /// Reads a configuration over this one: members that are there replace what was.
    package mutating func apply(_ value: JSONValue) throws(Refusal) {
        guard let object = value.objectValue else { throw Refusal(.usage, "the configuration is not a JSON object") }
        for member in object.members {
            let reader = MemberReader(key: member.key, value: member.value)
            switch member.key {
            case "name": name = try reader.string()
            case "uuid": uuid = try reader.string()
            case "machine": machine = try reader.string()
            case "firmware": firmware = try reader.string()
            case "kernel": kernel = try reader.string()
            case "initrd": initrd = try reader.string()
            case "append": append = try reader.string()
            case "memory":
                if let count = member.value.unsignedValue {
                    memory = count
                } else {
                    memory = try Self.memory(argument: try reader.string())
                }
            case "memory-backend": memoryBackend = try Self.memoryBackend(argument: try reader.string())
            case "cpus": processorCount = try reader.integer()
            case "isa": isa = try reader.string()
            case "virtio": virtio = try reader.choice(VirtioGeneration.self)
            case "disk": disks = try reader.list { (item) throws(Refusal) in try DiskConfiguration(json: item) }
            case "net": networks = try reader.list { (item) throws(Refusal) in try NetworkConfiguration(json: item) }
            case "slots":
                slots = try reader.list { (item) throws(Refusal) in
                    try DeviceSlot(text: try MemberReader(key: "slots", value: item).string())
                }
            case "compat": compatibility = try Self.compatibility(argument: try reader.string())
            case "console": console = try ConsoleConfiguration(argument: try reader.string())
            case "paused": isPaused = try reader.boolean()
            case "qmp":
                qmp = try reader.list { (item) throws(Refusal) in
                    try ListenAddress(argument: try MemberReader(key: "qmp", value: item).string())
                }
            case "incoming": incoming = try reader.string()
            case "incoming-cpr": incomingCPR = try reader.string()
            default: throw Refusal(.usage, "the configuration has an unknown member '\(member.key)'")
            }
        }
    }

    /// The effective configuration, complete.
    package var json: JSONValue {
        var object = JSONObject()
        object["name"] = name.map { .string($0) }
        object["uuid"] = uuid.map { .string($0) }
        object["machine"] = .string(machine)
        object["firmware"] = firmware.map { .string($0) }
        object["kernel"] = kernel.map { .string($0) }
        object["initrd"] = initrd.map { .string($0) }
        object["append"] = append.map { .string($0) }
        object["memory"] = .string(SizeText.format(memory))
        object["memory-backend"] = .string(memoryBackend.rawValue)
        object["cpus"] = JSONValue(processorCount)
        object["isa"] = isa.map { .string($0) }
        object["virtio"] = .string(virtio.rawValue)
        object["disk"] = .array(disks.map { ["path": .string($0.path), "readonly": .bool($0.isReadOnly)] })
        object["net"] = .array(networks.map { .string($0.argument) })
        object["slots"] = slots.map { .array($0.map { .string($0.text) }) }
        object["compat"] = compatibility.map { .string($0.rawValue) }
        object["console"] = console.map { .string($0.argument) }
        object["paused"] = .bool(isPaused)
        object["qmp"] = .array(qmp.map { .string($0.argument) })
        object["incoming"] = incoming.map { .string($0) }
        object["incoming-cpr"] = incomingCPR.map { .string($0) }
        return .object(object)
    }

    /// Releases that `--compat` takes.
    package static let compatibleReleases = StateLayout.allCases.filter { $0 != .native }.map(\.rawValue)

    /// `--compat`.
    package static func compatibility(argument text: String) throws(Refusal) -> StateLayout {
        guard compatibleReleases.contains(text), let layout = StateLayout(rawValue: text) else {
            throw Refusal(.usage, "--compat: '\(text)' is none of \(compatibleReleases.joined(separator: ", "))")
        }
        return layout
    }

    /// `--memory-backend`.
    package static func memoryBackend(argument text: String) throws(Refusal) -> MemoryBackend {
        guard let backend = MemoryBackend(rawValue: text) else {
            throw Refusal(
                .usage, "--memory-backend: '\(text)' is none of \(MemoryBackend.choices.joined(separator: ", "))")
        }
        return backend
    }

    /// `--memory`.
    package static func memory(argument text: String) throws(Refusal) -> UInt64 {
        guard let count = SizeText.parse(text) else {
            throw Refusal(.usage, "--memory: '\(text)' is not a size such as 512M")
        }
        return count
    }
}

extension RunConfiguration: Codable {
    package init(from decoder: any Decoder) throws {
        self.init()
        try apply(try JSONValue(from: decoder))
    }

    package func encode(to encoder: any Encoder) throws { try json.encode(to: encoder) }
}

extension DiskConfiguration {
    init(json: JSONValue) throws(Refusal) {
        if let text = json.stringValue {
            try self.init(argument: text)
            return
        }
        guard let path = json["path"]?.stringValue, !path.isEmpty else {
            throw Refusal(.usage, "a disk in the configuration needs \"path\"")
        }
        self.init(path: path)
        for member in json.objectValue?.members ?? [] {
            switch member.key {
            case "path": break
            case "readonly": isReadOnly = try MemberReader(key: "readonly", value: member.value).boolean()
            default: throw Refusal(.usage, "a disk in the configuration has an unknown member '\(member.key)'")
            }
        }
    }
}

extension NetworkConfiguration {
    init(json: JSONValue) throws(Refusal) {
        try self.init(argument: try MemberReader(key: "net", value: json).string())
    }
}

private struct MemberReader {
    let key: String
    let value: JSONValue

    private func refuse(_ expected: String) -> Refusal {
        Refusal(.usage, "'\(key)' in the configuration is \(expected), not \(value.kind)")
    }

    func string() throws(Refusal) -> String {
        guard let text = value.stringValue else { throw refuse("a string") }
        return text
    }

    func integer() throws(Refusal) -> Int {
        guard let number = value.integerValue.flatMap({ Int(exactly: $0) }) else { throw refuse("an integer") }
        return number
    }

    func boolean() throws(Refusal) -> Bool {
        guard let flag = value.boolValue else { throw refuse("true or false") }
        return flag
    }

    func choice<Choice: RawRepresentable & CaseIterable>(_: Choice.Type) throws(Refusal) -> Choice
    where Choice.RawValue == String {
        let text = try string()
        guard let choice = Choice(rawValue: text) else {
            let choices = Choice.allCases.map { "'\($0.rawValue)'" }.joined(separator: ", ")
            throw Refusal(.usage, "'\(key)' in the configuration is one of \(choices), not '\(text)'")
        }
        return choice
    }

    func list<Item>(_ item: (JSONValue) throws(Refusal) -> Item) throws(Refusal) -> [Item] {
        guard let values = value.arrayValue else { throw refuse("a list") }
        var items: [Item] = []
        for value in values { items.append(try item(value)) }
        return items
    }
}
