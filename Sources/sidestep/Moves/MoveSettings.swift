import QMPProtocol
import Supervisor

/// Capabilities and parameters that a command sets in a guest's process for one move, and puts back when the process stays: the
/// next move is to be as the guest's owner has it.
struct MoveSettings {
    private let connection: GuestConnection
    /// As they were, in the order in which they were changed.
    private var capabilities: [(name: String, isOn: Bool)] = []
    private var parameters: [(name: String, value: JSONValue)] = []

    init(_ connection: GuestConnection) { self.connection = connection }

    /// Switches capabilities on.
    mutating func switchOn(_ names: [String]) throws {
        guard !names.isEmpty else { return }
        let known = try connection.run("query-migrate-capabilities").arrayValue ?? []
        let before = names.map { name in
            // Some are known by a second name, and told by their first.
            let entry = known.first { $0["capability"]?.stringValue.map { $0 == name || "x-" + $0 == name } == true }
            return (name, entry?["state"]?.boolValue ?? false)
        }
        try set(names.map { ($0, true) })
        capabilities += before
    }

    /// Sets parameters; a number may have a unit.
    /// - Parameter texts: `NAME=VALUE`.
    mutating func set(_ texts: [String]) throws {
        guard !texts.isEmpty else { return }
        let known = try connection.run("query-migrate-parameters")
        for text in texts {
            guard let equals = text.firstIndex(of: "=") else {
                throw Refusal(.usage, "--parameter: '\(text)' is not NAME=VALUE")
            }
            let name = String(text[..<equals])
            let value = String(text[text.index(after: equals)...])
            let json: JSONValue = SizeText.parse(value).map { JSONValue($0) } ?? .string(value)
            _ = try connection.run("migrate-set-parameters", [name: json])
            if let before = known[name] { parameters.append((name, before)) }
        }
    }

    /// Puts everything back as it was. A process that is gone, or no longer answers, has nothing to put back.
    mutating func putBack() {
        for (name, value) in parameters.reversed() {
            _ = try? connection.run("migrate-set-parameters", [name: value])
        }
        try? set(capabilities)
        parameters = []
        capabilities = []
    }

    private func set(_ capabilities: [(name: String, isOn: Bool)]) throws {
        guard !capabilities.isEmpty else { return }
        _ = try connection.run(
            "migrate-set-capabilities",
            ["capabilities": .array(capabilities.map { ["capability": .string($0.name), "state": .bool($0.isOn)] })])
    }
}
