/// One client's conversation, without its socket: bytes in, actions out.
///
/// The greeting is sent by the owner at once; then only `qmp_capabilities` is answered, then everything. Events go only to
/// clients that have negotiated.
package struct QMPSession: Sendable {
    package enum Action: Hashable, Sendable {
        /// Send these bytes.
        case reply([UInt8])
        /// Run the command, then answer with its identifier.
        case execute(QMPCommand)
    }

    /// What a successor needs to go on with the same client.
    package struct Saved: Hashable, Sendable, Codable {
        package var isNegotiated: Bool
        package var isOutOfBandEnabled: Bool
        package var input: JSONFramer.Remainder
    }

    /// What the greeting offers.
    package static let capabilities = ["oob"]

    package private(set) var isNegotiated = false
    private var isOutOfBandEnabled = false
    private var framer: JSONFramer

    package init(limits: JSONLimits = JSONLimits()) { framer = JSONFramer(limits: limits) }

    package init(resuming saved: Saved, limits: JSONLimits = JSONLimits()) {
        framer = JSONFramer(resuming: saved.input, limits: limits)
        isNegotiated = saved.isNegotiated
        isOutOfBandEnabled = saved.isOutOfBandEnabled
    }

    package var saved: Saved {
        Saved(isNegotiated: isNegotiated, isOutOfBandEnabled: isOutOfBandEnabled, input: framer.remainder)
    }

    /// Adds input; take every action with ``next()`` before adding more.
    package mutating func append(_ bytes: some Sequence<UInt8>) { framer.append(bytes) }

    /// The next thing to do; nil when more input is needed.
    package mutating func next() -> Action? {
        switch framer.next() {
        case nil: nil
        case .problem(let problem): fail(QMPError(problem.description), nil)
        case .value(let bytes): handle(bytes)
        }
    }

    private func fail(_ error: QMPError, _ identifier: JSONValue?) -> Action {
        .reply(QMPMessage.failureLine(error, identifier: identifier))
    }

    private mutating func handle(_ bytes: [UInt8]) -> Action {
        let message: JSONValue
        do { message = try JSONValue(json: bytes) } catch {
            return fail(QMPError("JSON parse error, \(error.description)"), nil)
        }
        guard let object = message.objectValue else { return fail(QMPError("QMP input must be a JSON object"), nil) }
        let identifier = object["id"]
        do throws(QMPError) {
            let command = try command(from: object)
            if isNegotiated {
                if command.name == "qmp_capabilities" {
                    try Self.check(command.arguments)
                    throw QMPError(
                        "Capabilities negotiation is already complete, command ignored", class: .commandNotFound)
                }
                return .execute(command)
            }
            guard command.name == "qmp_capabilities" else {
                throw QMPError("Expecting capabilities negotiation with 'qmp_capabilities'", class: .commandNotFound)
            }
            isOutOfBandEnabled = try Self.negotiate(command.arguments).contains("oob")
            isNegotiated = true
            return .reply(QMPMessage.resultLine([:], identifier: identifier))
        } catch {
            return fail(error, identifier)
        }
    }

    private func command(from object: JSONObject) throws(QMPError) -> QMPCommand {
        var name: String?
        var isOutOfBand = false
        var arguments = JSONObject()
        for member in object.members {
            switch member.key {
            case "exec-oob" where !isOutOfBandEnabled: throw QMPError("QMP input member 'exec-oob' is unexpected")
            case "execute", "exec-oob":
                guard let text = member.value.stringValue else {
                    throw QMPError("QMP input member '\(member.key)' must be a string")
                }
                guard name == nil else { throw QMPError("QMP input member 'execute' clashes with 'exec-oob'") }
                name = text
                isOutOfBand = member.key == "exec-oob"
            case "arguments":
                guard let value = member.value.objectValue else {
                    throw QMPError("QMP input member 'arguments' must be an object")
                }
                arguments = value
            case "id": break
            default: throw QMPError("QMP input member '\(member.key)' is unexpected")
            }
        }
        guard let name else { throw QMPError("QMP input lacks member 'execute'") }
        return QMPCommand(name: name, arguments: arguments, identifier: object["id"], isOutOfBand: isOutOfBand)
    }

    private static func check(_ arguments: JSONObject) throws(QMPError) {
        let type = QMPType.object(
            "q_obj_qmp_capabilities-arg",
            [.optional("enable", .array(of: .enumeration("QMPCapability", capabilities)))])
        try type.check(arguments: arguments)
    }

    private static func negotiate(_ arguments: JSONObject) throws(QMPError) -> [String] {
        try check(arguments)
        return arguments["enable"]?.arrayValue?.compactMap(\.stringValue) ?? []
    }
}
