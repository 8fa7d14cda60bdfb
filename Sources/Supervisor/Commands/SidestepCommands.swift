import QMPProtocol

/// Commands of our own, marked as QEMU marks what is not stable: `x-`.
extension CommandTable {
    static let sidestep: [CommandEntry] = [
        CommandEntry(
            "x-sidestep-inspect",
            returns: .object(
                "SidestepGuest",
                [
                    .required("name", .string), .required("status", QMPTypes.runState), .required("process", .integer),
                    .required("version", .string), .required("configuration", .any), .required("console", .string),
                    .required("qmp", .array(of: .string)), .required("clients", .integer),
                    .required("instructions", .integer), .required("moves", .integer),
                    .optional("started-by", .string),
                ])
        ) { supervisor, _ in supervisor.inspection }
    ]
}
