import MigrationEngine
import QMPProtocol

extension QMPTypes {
    /// MigrationStatus of QEMU 10.0 and later.
    static let migrationStatus = QMPType.enumeration(
        "MigrationStatus",
        MigrationStatus.allCases.map(\.rawValue) + ["postcopy-recover-setup", "colo", "wait-unplug"])

    static let capability = QMPType.enumeration("MigrationCapability", MigrationSettings.capabilityNames)

    static let capabilityStatus = QMPType.object(
        "MigrationCapabilityStatus", [.required("capability", capability), .required("state", .boolean)])

    static let migrationChannel = QMPType.object(
        "MigrationChannel",
        [
            .required("channel-type", .enumeration("MigrationChannelType", ["main", "cpr"])),
            .required(
                "addr",
                .union(
                    "MigrationAddress",
                    tag: .required(
                        "transport", .enumeration("MigrationAddressType", ["socket", "exec", "rdma", "file"])),
                    [
                        "socket": socketAddress,
                        "exec": .object("MigrationExecCommand", [.required("args", .array(of: .string))]),
                        "rdma": .object("MigrationRdma", [.required("host", .string), .required("port", .string)]),
                        "file": .object(
                            "FileMigrationArgs", [.required("filename", .string), .required("offset", .integer)]),
                    ])),
        ])

    static let migrationRAM = QMPType.object(
        "MigrationRAMStats",
        [
            "transferred", "remaining", "total", "duplicate", "normal", "normal-bytes", "dirty-pages-rate",
            "dirty-sync-count", "postcopy-requests", "page-size", "multifd-bytes", "pages-per-second", "precopy-bytes",
            "downtime-bytes", "postcopy-bytes", "dirty-sync-missed-zero-copy",
        ].map { .required($0, .integer) } + [.required("mbps", .number)])

    static let xbzrleCache = QMPType.object(
        "XBZRLECacheStats",
        ["cache-size", "bytes", "pages", "cache-miss", "overflow"].map { .required($0, .integer) }
            + [.required("cache-miss-rate", .number), .required("encoding-rate", .number)])

    static let migrationInformation = QMPType.object(
        "MigrationInfo",
        [
            .optional("status", migrationStatus), .optional("ram", migrationRAM),
            .optional("total-time", .integer), .optional("expected-downtime", .integer),
            .optional("downtime", .integer), .optional("setup-time", .integer),
            .optional("cpu-throttle-percentage", .integer), .optional("error-desc", .string),
            .optional("xbzrle-cache", xbzrleCache),
            .optional("socket-address", .array(of: socketAddress)), .optional("x-channel", .string),
            .optional("x-channel-kind", .string), .optional("x-channel-reason", .string),
            .optional("x-extra-memory", .integer), .optional("x-strategy", .string), .optional("x-outcome", .string),
            .optional("x-notices", .array(of: .string)), .optional("x-phases", .any),
        ])
}

extension CommandTable {
    static let migration: [CommandEntry] = [
        CommandEntry(
            "migrate",
            [
                .optional("uri", .string), .optional("channels", .array(of: QMPTypes.migrationChannel)),
                .optional("detach", .boolean), .optional("resume", .boolean), .optional("blk", .boolean),
                .optional("inc", .boolean),
            ]
        ) { (supervisor, invocation) throws(QMPError) in
            for name in ["blk", "inc"] where invocation.arguments[name]?.boolValue == true {
                throw QMPError("Parameter '\(name)' is not supported: disks are not migrated")
            }
            if invocation.arguments["resume"]?.boolValue == true {
                try supervisor.migration.resume(over: MigrationRoute(arguments: invocation.arguments).main)
            } else {
                try supervisor.migration.migrate(to: MigrationRoute(arguments: invocation.arguments))
            }
            return [:]
        },
        CommandEntry(
            "migrate-incoming",
            [
                .optional("uri", .string), .optional("channels", .array(of: QMPTypes.migrationChannel)),
                .optional("exit-on-error", .boolean),
            ]
        ) { (supervisor, invocation) throws(QMPError) in
            let route = try MigrationRoute(arguments: invocation.arguments)
            guard route.cpr == nil else {
                throw QMPError(
                    "a cpr channel can only be given on the command line: it is read before the monitor opens")
            }
            try supervisor.migration.receive(
                from: route.main,
                exitsOnError: invocation.arguments["exit-on-error"]?.boolValue ?? true)
            return [:]
        },
        CommandEntry("migrate_cancel") { (supervisor, _) throws(QMPError) in
            try supervisor.migration.cancel()
            return [:]
        },
        CommandEntry("migrate-continue", [.required("state", QMPTypes.migrationStatus)]) {
            (supervisor, invocation) throws(QMPError) in
            try supervisor.migration.continueSwitchover(from: invocation.arguments["state"]?.stringValue ?? "")
            return [:]
        },
        CommandEntry("migrate-start-postcopy") { (supervisor, _) throws(QMPError) in
            try supervisor.migration.startPostcopy()
            return [:]
        },
        CommandEntry("migrate-pause", allowsOutOfBand: true) { (supervisor, _) throws(QMPError) in
            try supervisor.migration.pauseChannel()
            return [:]
        },
        CommandEntry("migrate-recover", [.required("uri", .string)], allowsOutOfBand: true) {
            (supervisor, invocation) throws(QMPError) in
            try supervisor.migration.recover(
                from: MigrationAddress(uri: invocation.arguments["uri"]?.stringValue ?? ""))
            return [:]
        },
        CommandEntry("query-migrate", returns: QMPTypes.migrationInformation) { supervisor, _ in
            supervisor.migration.query
        },
        CommandEntry(
            "migrate-set-capabilities", [.required("capabilities", .array(of: QMPTypes.capabilityStatus))]
        ) { (supervisor, invocation) throws(QMPError) in
            guard !supervisor.migration.isActive else { throw QMPError("There's a migration process in progress") }
            try supervisor.migration.settings.set(
                capabilities: invocation.arguments["capabilities"]?.arrayValue ?? [])
            return [:]
        },
        CommandEntry("query-migrate-capabilities", returns: .array(of: QMPTypes.capabilityStatus)) { supervisor, _ in
            supervisor.migration.settings.capabilityList
        },
        CommandEntry("migrate-set-parameters", MigrationSettings.parameterMembers) {
            (supervisor, invocation) throws(QMPError) in
            try supervisor.migration.set(parameters: invocation.arguments)
            return [:]
        },
        CommandEntry(
            "query-migrate-parameters",
            returns: .object("MigrationParameters", MigrationSettings.parameterAnswerMembers)
        ) { supervisor, _ in supervisor.migration.settings.parameterObject },
    ]
}
