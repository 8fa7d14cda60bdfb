import QMPProtocol

extension CommandTable {
    static let network: [CommandEntry] = [
        CommandEntry(
            "announce-self",
            [
                .required("initial", .integer), .required("max", .integer), .required("rounds", .integer),
                .required("step", .integer), .optional("interfaces", .array(of: .string)), .optional("id", .string),
            ]
        ) { (supervisor, invocation) throws(QMPError) in
            func number(_ name: String) -> Int64 { invocation.arguments[name]?.integerValue ?? .max }
            let parameters = AnnounceParameters(
                initialMilliseconds: number("initial"), maxMilliseconds: number("max"), rounds: number("rounds"),
                stepMilliseconds: number("step"),
                interfaces: invocation.arguments["interfaces"]?.arrayValue?.compactMap(\.stringValue))
            try supervisor.announcer.announce(parameters, as: invocation.arguments["id"]?.stringValue ?? "")
            return [:]
        }
    ]
}
