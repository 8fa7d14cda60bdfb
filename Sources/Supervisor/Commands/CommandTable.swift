import QMPProtocol

/// A command as it runs: arguments that fit the declared type, who asked, and where the answer goes.
struct CommandInvocation: Sendable {
    let arguments: JSONObject
    /// Nil when the command comes from inside: from the human monitor, a signal.
    let client: QMPClient?
    /// Called once when the body answered nil.
    let reply: @Sendable (Result<JSONValue, QMPError>) -> Void
}

/// A command of the table: what it is called, takes and gives, and what it does.
struct CommandEntry: Sendable {
    let name: String
    let arguments: QMPType
    let returns: QMPType
    let allowsOutOfBand: Bool
    /// Runs on the monitor's thread. Nil: the answer comes later by ``CommandInvocation/reply``.
    let body: @Sendable (Supervisor, CommandInvocation) throws(QMPError) -> JSONValue?

    init(
        _ name: String, _ arguments: [QMPMember] = [], returns: QMPType = QMPTypes.nothing,
        allowsOutOfBand: Bool = false,
        _ body: @escaping @Sendable (Supervisor, CommandInvocation) throws(QMPError) -> JSONValue?
    ) {
        self.name = name
        self.arguments = arguments.isEmpty ? QMPTypes.nothing : .object("q_obj_\(name)-arg", arguments)
        self.returns = returns
        self.allowsOutOfBand = allowsOutOfBand
        self.body = body
    }
}

/// All commands and events, by group; each group has a file.
enum CommandTable {
    static let entries: [CommandEntry] =
        introspection + status + lifeCycle + descriptors + memory + network + migration + humanMonitor + sidestep
        + upgrade

    static let byName: [String: CommandEntry] = Dictionary(uniqueKeysWithValues: entries.map { ($0.name, $0) })
}
