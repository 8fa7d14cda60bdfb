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
        "zero-copy-send", "postcopy-preempt", "dirty-limit",
    ]

    private static let supportedCapabilities: [MigrationCapability] = [
        .autoConverge, .events, .returnPath, .pauseBeforeSwitchover, .lateBlockActivate, .validateUUID, .switchoverAck,
        .unixPageFlipping, .multifd, .mappedRAM, .postcopyRAM, .releaseRAM, .xbzrle, .ignoreShared,
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
    /// Numbers of `others` that may differ from their default, and what they may be. QEMU says "between 0" of the step
    /// and takes no 0.
    private static let adjustable: [String: (range: ClosedRange<UInt64>, text: String)] = [
        "announce-initial": (0...100_000, "a value between 0 and 100000"),
        "announce-max": (0...100_000, "a value between 0 and 100000"),
        "announce-rounds": (0...1000, "a value between 0 and 1000"),
        "announce-step": (1...10_000, "a value between 0 and 10000"),
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
                if isOn { throw QMPError("Capability '\(word)' is not supported") }
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
        MigrationParameters.Key.allCases.map { .optional($0.rawValue, .unsigned(bits: bits(of: $0))) }
        + otherDefaults.members.map { member in
            switch member.value {
            case .bool: .optional(member.key, .boolean)
            case .string:
                .optional(
                    member.key,
                    choices[member.key].map { .enumeration("Migration-\(member.key)", $0) }
                        ?? words[member.key].map { .enumeration($0.type, $0.words) }
                        ?? .alternate("StrOrNull", [.string, .null]))
            default: .optional(member.key, .unsigned(bits: 64))
            }
        }

    /// What QEMU calls the values of parameters that are words here too, though few of them are taken.
    private static let words: [String: (type: String, words: [String])] = [
        "multifd-compression": ("MultiFDCompression", ["none", "zlib", "zstd"]),
        "mode": ("MigMode", ["normal", "cpr-reboot", "cpr-transfer"]),
        "zero-page-detection": ("ZeroPageDetection", ["none", "legacy", "multifd"]),
    ]

    /// The same as they are told: never null.
    static let parameterAnswerMembers: [QMPMember] = parameterMembers.map { member in
        guard case .alternate = member.type else { return member }
        return .optional(member.name, .string)
    }

    /// How wide QEMU stores a parameter: what does not fit is refused in other words.
    private static func bits(of key: MigrationParameters.Key) -> Int {
        switch key {
        case .multifdChannels, .cpuThrottleInitial, .cpuThrottleIncrement, .maxCPUThrottle, .throttleTriggerThreshold: 8
        default: 64
        }
    }

    /// How the network is told where the guest is after it has come.
    var announceParameters: AnnounceParameters {
        func number(_ name: String) -> Int64 { others[name]?.integerValue ?? 0 }
        return AnnounceParameters(
            initialMilliseconds: number("announce-initial"), maxMilliseconds: number("announce-max"),
            rounds: number("announce-rounds"), stepMilliseconds: number("announce-step"))
    }

    mutating func set(parameters arguments: JSONObject) throws(QMPError) {
        var parameters = parameters
        var others = others
        for member in arguments.members {
            if let key = MigrationParameters.Key(rawValue: member.key) {
                guard let value = member.value.unsignedValue, MigrationParameters.range(of: key).contains(value) else {
                    throw .invalidValue(parameter: Self.spelled(member.key), expected: Self.expectation(of: key))
                }
                parameters[key] = value
            } else if let (range, text) = Self.adjustable[member.key] {
                guard let value = member.value.unsignedValue, range.contains(value) else {
                    throw .invalidValue(parameter: Self.spelled(member.key), expected: text)
                }
                others[member.key] = member.value
            } else {
                let value = member.value == .null ? "" : member.value
                guard Self.choices[member.key] != nil || Self.otherDefaults[member.key] == value else {
                    throw QMPError(
                        "Parameter '\(member.key)' is not supported: it stays \(Self.otherDefaults[member.key]?.json ?? "")"
                    )
                }
                others[member.key] = value
            }
        }
        guard parameters.maxCPUThrottlePercent >= parameters.cpuThrottleInitialPercent else {
            throw .invalidValue(
                parameter: Self.spelled(MigrationParameters.Key.maxCPUThrottle.rawValue),
                expected: Self.expectation(of: .maxCPUThrottle))
        }
        do { try parameters.validate() } catch { throw QMPError(error.message) }
        self.parameters = parameters
        self.others = others
    }

    /// QEMU names a parameter that is out of range in its own way.
    private static func spelled(_ name: String) -> String {
        name.hasPrefix("x-") ? name : String(name.map { $0 == "-" ? "_" : $0 })
    }

    /// What a parameter may be, in QEMU's words where QEMU has it.
    private static func expectation(of key: MigrationParameters.Key) -> String {
        let range = MigrationParameters.range(of: key)
        return switch key {
        case .downtimeLimit: "an integer in the range of 0 to (2000 * 1000) ms"
        case .maxBandwidth, .availableSwitchoverBandwidth, .maxPostcopyBandwidth:
            "an integer in the range of 0 to \(range.upperBound) bytes/second"
        case .maxCPUThrottle: "an integer in the range of cpu_throttle_initial to 99"
        case .throttleTriggerThreshold, .cpuThrottleInitial, .cpuThrottleIncrement:
            "an integer in the range of \(range.lowerBound) to \(range.upperBound)"
        default: "a value between \(range.lowerBound) and \(range.upperBound)"
        }
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
