import QMPProtocol

extension CommandTable {
    static let introspection: [CommandEntry] = [
        CommandEntry(
            "query-version",
            returns: .object(
                "VersionInfo",
                [
                    .required(
                        "qemu",
                        .object(
                            "VersionTriple",
                            [.required("major", .integer), .required("minor", .integer), .required("micro", .integer)])),
                    .required("package", .string),
                ])
        ) { _, _ in Product.qmpVersion.json },
        CommandEntry(
            "query-commands", returns: .array(of: .object("CommandInfo", [.required("name", .string)]))
        ) { _, _ in
            .array((["qmp_capabilities"] + CommandTable.entries.map(\.name)).map { ["name": .string($0)] })
        },
        CommandEntry(
            "query-qmp-schema",
            returns: .array(of: schemaInformation)
        ) { _, _ in CommandTable.schema },
    ]

    /// What `query-qmp-schema` says of itself.
    private static let schemaInformation: QMPType = {
        let name = QMPMember.required("name", .string)
        let kinds = ["builtin", "enum", "array", "object", "alternate", "command", "event"]
        let word = QMPType.object("SchemaInfoEnumMember", [.required("name", .string)])
        let member = QMPType.object(
            "SchemaInfoObjectMember",
            [.required("name", .string), .required("type", .string), .optional("default", .any)])
        let variant = QMPType.object(
            "SchemaInfoObjectVariant", [.required("case", .string), .required("type", .string)])
        let alternative = QMPType.object("SchemaInfoAlternateMember", [.required("type", .string)])
        return .union(
            "SchemaInfo", tag: .required("meta-type", .enumeration("SchemaMetaType", kinds)),
            [
                "builtin": .object(
                    "SchemaInfoBuiltin",
                    [
                        name,
                        .required(
                            "json-type",
                            .enumeration(
                                "JSONType",
                                ["string", "number", "int", "boolean", "null", "object", "array", "value"])),
                    ]),
                "enum": .object(
                    "SchemaInfoEnum",
                    [name, .required("members", .array(of: word)), .required("values", .array(of: .string))]),
                "array": .object("SchemaInfoArray", [name, .required("element-type", .string)]),
                "object": .object(
                    "SchemaInfoObject",
                    [
                        name, .required("members", .array(of: member)), .optional("tag", .string),
                        .optional("variants", .array(of: variant)),
                    ]),
                "alternate": .object("SchemaInfoAlternate", [name, .required("members", .array(of: alternative))]),
                "command": .object(
                    "SchemaInfoCommand",
                    [
                        name, .required("arg-type", .string), .required("ret-type", .string),
                        .optional("allow-oob", .boolean),
                    ]),
                "event": .object("SchemaInfoEvent", [name, .required("arg-type", .string)]),
            ])
    }()

    /// Built once: it never changes.
    private static let schema: JSONValue = {
        var introspection = QMPIntrospection()
        introspection.add(
            command: "qmp_capabilities",
            arguments: .object(
                "q_obj_qmp_capabilities-arg",
                [.optional("enable", .array(of: .enumeration("QMPCapability", QMPSession.capabilities)))]),
            returns: QMPTypes.nothing, allowsOutOfBand: false)
        for entry in CommandTable.entries {
            introspection.add(
                command: entry.name, arguments: entry.arguments, returns: entry.returns,
                allowsOutOfBand: entry.allowsOutOfBand)
        }
        for event in SupervisorEvent.allCases { introspection.add(event: event.rawValue, data: event.data) }
        return introspection.json
    }()
}

/// Events that clients are told.
enum SupervisorEvent: String, CaseIterable {
    case stop = "STOP"
    case resume = "RESUME"
    case reset = "RESET"
    case shutdown = "SHUTDOWN"
    case powerdown = "POWERDOWN"
    case migration = "MIGRATION"
    case migrationPass = "MIGRATION_PASS"

    var data: QMPType {
        let reason = QMPType.enumeration("ShutdownCause", ShutdownCause.allCases.map(\.rawValue))
        return switch self {
        case .stop, .resume, .powerdown: QMPTypes.nothing
        case .reset: .object("q_obj_RESET-arg", [.required("guest", .boolean), .required("reason", reason)])
        case .migration: .object("q_obj_MIGRATION-arg", [.required("status", QMPTypes.migrationStatus)])
        case .migrationPass: .object("q_obj_MIGRATION_PASS-arg", [.required("pass", .integer)])
        case .shutdown: .object("q_obj_SHUTDOWN-arg", [.required("guest", .boolean), .required("reason", reason)])
        }
    }
}

/// Why the machine stops or starts afresh; QEMU's words.
enum ShutdownCause: String, CaseIterable {
    case hostError = "host-error"
    case hostQMPQuit = "host-qmp-quit"
    case hostQMPSystemReset = "host-qmp-system-reset"
    case hostSignal = "host-signal"
    case hostUI = "host-ui"
    case guestShutdown = "guest-shutdown"
    case guestReset = "guest-reset"
    case guestPanic = "guest-panic"

    var isGuest: Bool { rawValue.hasPrefix("guest") }
}
