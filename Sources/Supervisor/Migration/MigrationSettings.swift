import ComponentState
import MigrationEngine
import QMPProtocol

/// Capabilities and parameters as QMP sees them. What QEMU has and this has not is listed as off, and switching it on is
/// an error that names it.
struct MigrationSettings: Sendable {
    /// QEMU's names with `x-` or without, where scripts use both.
    private static let aliases = ["x-unix-page-flipping": "unix-page-flipping"]

    /// Names of QEMU 10.0 that are known and not supported.
    private static let unsupportedCapabilities = [
        "rdma-pin-all", "zero-blocks", "x-colo", "dirty-bitmaps", "postcopy-blocktime", "background-snapshot",
        "zero-copy-send", "postcopy-preempt", "dirty-limit", "x-ignore-shared",
    ]

    /// Why, where there is more to say than that nobody has written it.
    private static let reasons = [
        "x-ignore-shared":
            "both ends would have to map one named file as RAM, and RAM here is private or a memfd without a name; "
            + "'sidestep upgrade' and cpr-transfer hand RAM over by descriptor"
    ]

    private static let supportedCapabilities: [MigrationCapability] = [
        .autoConverge, .events, .returnPath, .pauseBeforeSwitchover, .lateBlockActivate, .validateUUID, .switchoverAck,
        .unixPageFlipping, .multifd, .mappedRAM, .postcopyRAM, .releaseRAM, .xbzrle,
    ]

    static let capabilityNames: [String] =
        (supportedCapabilities.map(\.rawValue) + unsupportedCapabilities + aliases.keys).sorted()

    private(set) var capabilities: Set<MigrationCapability> = []
    private(set) var parameters = MigrationParameters()
    /// Values of parameters that the engine does not know.
    private(set) var others: JSONObject = Self.otherDefaults

    private static let otherDefaults: JSONObject = [
        "announce-initial": 50, "announce-max": 550, "announce-rounds": 5, "announce-step": 100,
        "cpu-throttle-tailslow": false, "tls-creds": "", "tls-hostname": "", "tls-authz": "",
        "x-checkpoint-delay": 20000, "multifd-compression": "none", "multifd-zlib-level": 1, "multifd-zstd-level": 1,
        "multifd-qatzip-level": 1, "x-vcpu-dirty-limit-period": 1000,
        "vcpu-dirty-limit": 1, "mode": "normal", "zero-page-detection": "multifd", "direct-io": false,
        "x-strategy": "auto", "x-layout": .string(StateLayout.native.rawValue),
    ]

    /// Parameters of `others` that may differ from their default.
    private static let choices: [String: [String]] = [
        "x-strategy": ["auto"] + MigrationStrategy.allCases.map(\.rawValue),
        "x-layout": StateLayout.allCases.map(\.rawValue),
        "mode": ["normal", cprTransfer],
    ]
    private static let cprTransfer = "cpr-transfer"
    private static let adjustable: Set<String> = [
        "announce-initial", "announce-max", "announce-rounds", "announce-step",
    ]

    // MARK: Capabilities

    mutating func set(capabilities list: [JSONValue]) throws(QMPError) {
        var result = capabilities
        for item in list {
            let word = item["capability"]?.stringValue ?? ""
            let name = Self.aliases[word] ?? word
            let isOn = item["state"]?.boolValue ?? false
            guard let capability = MigrationCapability(rawValue: name), Self.supportedCapabilities.contains(capability)
            else {
                if isOn {
                    let reason = Self.reasons[word].map { ": \($0)" } ?? ""
                    throw QMPError("Capability '\(word)' is not supported\(reason)")
                }
                continue
            }
            if isOn { result.insert(capability) } else { result.remove(capability) }
        }
        do { try Self.completed(result).validate() } catch { throw QMPError(error.message) }
        capabilities = result
    }

    /// With what a capability needs to work.
    private static func completed(_ capabilities: Set<MigrationCapability>) -> Set<MigrationCapability> {
        capabilities.reduce(into: capabilities) { $0.formUnion($1.prerequisites) }
    }

    var capabilityList: JSONValue {
        .array(
            Self.capabilityNames.filter { Self.aliases[$0] == nil }.map { name in
                let isOn = MigrationCapability(rawValue: name).map { capabilities.contains($0) } ?? false
                return ["capability": .string(name), "state": .bool(isOn)]
            })
    }

    // MARK: Parameters

    static let parameterMembers: [QMPMember] =
        MigrationParameters.Key.allCases.map { .optional($0.rawValue, .integer) }
        + otherDefaults.members.map { member in
            switch member.value {
            case .bool: .optional(member.key, .boolean)
            case .string:
                .optional(
                    member.key,
                    choices[member.key].map { .enumeration("Migration-\(member.key)", $0) }
                        ?? .alternate("StrOrNull", [.string, .null]))
            default: .optional(member.key, .integer)
            }
        }

    mutating func set(parameters arguments: JSONObject) throws(QMPError) {
        var parameters = parameters
        var others = others
        for member in arguments.members {
            if let key = MigrationParameters.Key(rawValue: member.key) {
                guard let value = member.value.unsignedValue else {
                    throw .invalidValue(parameter: member.key, expected: "a non-negative integer")
                }
                guard MigrationParameters.range(of: key).contains(value) else {
                    let range = MigrationParameters.range(of: key)
                    throw .invalidValue(
                        parameter: member.key, expected: "a value between \(range.lowerBound) and \(range.upperBound)")
                }
                parameters[key] = value
            } else {
                let value = member.value == .null ? "" : member.value
                guard
                    Self.choices[member.key] != nil || Self.adjustable.contains(member.key)
                        || Self.otherDefaults[member.key] == value
                else {
                    throw QMPError(
                        "Parameter '\(member.key)' is not supported: it stays \(Self.otherDefaults[member.key]?.json ?? "")"
                    )
                }
                others[member.key] = value
            }
        }
        do { try parameters.validate() } catch { throw QMPError(error.message) }
        self.parameters = parameters
        self.others = others
    }

    var parameterObject: JSONValue {
        var result = JSONObject()
        for key in MigrationParameters.Key.allCases { result[key.rawValue] = JSONValue(parameters[key]) }
        for member in others.members { result[member.key] = member.value }
        return .object(result)
    }

    // MARK: What the engine gets

    /// `x-layout`: whose device state to write.
    var layout: StateLayout {
        get { others["x-layout"]?.stringValue.flatMap(StateLayout.init(rawValue:)) ?? .native }
        set { others["x-layout"] = .string(newValue.rawValue) }
    }

    /// `mode`: RAM crosses by its descriptors.
    var handsOverMemory: Bool {
        get { others["mode"]?.stringValue == Self.cprTransfer }
        set { others["mode"] = .string(newValue ? Self.cprTransfer : "normal") }
    }

    var strategy: MigrationStrategy {
        switch others["x-strategy"]?.stringValue ?? "auto" {
        case MigrationStrategy.precopy.rawValue: .precopy
        case MigrationStrategy.stopAndCopy.rawValue: .stopAndCopy
        case MigrationStrategy.postcopy.rawValue: .postcopy
        // Pages of a guest that runs on are needed here again; only a stopped one's can be given away.
        default: capabilities.contains(.unixPageFlipping) ? .stopAndCopy : .precopy
        }
    }

    func configuration(uuid: [UInt8]?) -> MigrationConfiguration {
        var result = MigrationConfiguration()
        result.capabilities = Self.completed(capabilities)
        result.parameters = parameters
        result.strategy = strategy
        result.layout = layout
        result.handsOverMemory = handsOverMemory
        result.uuid = uuid
        // A destination that has everything and says nothing: after this an operator decides.
        result.verdictLimitMilliseconds = 30_000
        return result
    }
}
