import QMPProtocol

extension CommandTable {
    static let humanMonitor: [CommandEntry] = [
        CommandEntry(
            "human-monitor-command",
            [.required("command-line", .string), .optional("cpu-index", .integer)], returns: .string
        ) { (supervisor, invocation) throws(QMPError) in
            let line = invocation.arguments["command-line"]?.stringValue ?? ""
            if let index = invocation.arguments["cpu-index"]?.integerValue,
                !supervisor.guest.processors.contains(where: { Int64($0.index) == index })
            {
                throw .invalidValue(parameter: "cpu-index", expected: "a CPU number")
            }
            HumanMonitor.run(line, on: supervisor) { invocation.reply(.success(.string($0))) }
            return nil
        }
    ]
}

/// The words of QEMU's human monitor that scripts use. The answer is text, errors included, as in QEMU.
enum HumanMonitor {
    typealias Answer = @Sendable (String) -> Void

    struct Word: Sendable {
        var names: [String]
        /// As the help shows them: `uri` must be there, `[-d]` may.
        var parameters: [String] = []
        var summary: String
        var body: @Sendable (Supervisor, [String], @escaping Answer) -> Void

        var help: String {
            "\((([names.joined(separator: "|")] + parameters)).joined(separator: " "))  -- \(summary)\r\n"
        }

        /// Parameters that must be there.
        var required: Int { parameters.count { !$0.hasPrefix("[") } }
    }

    static func run(_ line: String, on supervisor: Supervisor, _ answer: @escaping Answer) {
        let words = line.split(separator: " ").map(String.init)
        guard let first = words.first else { return answer("") }
        guard let word = table.first(where: { $0.names.contains(first) }) else {
            return answer("unknown command: '\(first)'\r\n")
        }
        // Flags may stand anywhere, and stand for nothing here.
        let arguments = words.dropFirst().filter { !$0.hasPrefix("-") || $0.count == 1 || Int($0) != nil }
        if arguments.count < word.required { return answer(wrong(first, "string expected")) }
        if arguments.count > word.parameters.count(where: { !$0.hasPrefix("[-") }) {
            return answer(wrong(first, "extraneous characters at the end of line"))
        }
        word.body(supervisor, arguments, answer)
    }

    static func wrong(_ name: String, _ problem: String) -> String {
        "\(name): \(problem)\r\nTry \"help \(name)\" for more information\r\n"
    }

    static func text(of error: QMPError) -> String { "Error: \(error.description)\r\n" }

    /// Runs a QMP command for its effect.
    private static func forward(
        _ name: String, _ arguments: JSONObject = [:], _ supervisor: Supervisor, _ answer: @escaping Answer
    ) {
        supervisor.run(QMPCommand(name: name, arguments: arguments), client: nil) { result in
            switch result {
            case .success: answer("")
            case .failure(let error): answer(text(of: error))
            }
        }
    }

    /// A word that is a QMP command without arguments.
    private static func plain(_ names: String..., command: String? = nil, summary: String) -> Word {
        Word(names: names, summary: summary) { supervisor, _, answer in
            forward(command ?? names[0], [:], supervisor, answer)
        }
    }

    /// The machine is not kept inside disk images.
    private static func snapshot(_ name: String, _ summary: String, isOptional: Bool, fails: Bool = true) -> Word {
        Word(names: [name], parameters: [isOptional ? "[tag]" : "tag"], summary: summary) { _, _, answer in
            answer(fails ? "Error: no block device can store vmstate for snapshot\r\n" : "")
        }
    }

    static let table: [Word] = [
        Word(names: ["help", "?"], parameters: ["[cmd]"], summary: "what words there are") { _, arguments, answer in
            if let name = arguments.first {
                if name == "info" { return answer(informationHelp) }
                return answer(table.first { $0.names.contains(name) }?.help ?? "unknown command: '\(name)'\r\n")
            }
            answer(table.map(\.help).joined())
        },
        Word(names: ["info"], parameters: ["[subcommand]"], summary: "what is known of a subject") {
            supervisor, arguments, answer in
            guard let name = arguments.first else { return answer(informationHelp) }
            guard let subject = subjects.first(where: { $0.names.contains(name) }) else {
                return answer("unknown command: 'info \(name)'\r\n")
            }
            subject.body(supervisor, [], answer)
        },
        plain("stop", "s", summary: "let the guest stand still"),
        plain("cont", "c", summary: "let the guest run on"),
        plain("system_reset", summary: "start the guest anew"),
        plain("system_powerdown", summary: "ask the guest to switch itself off"),
        plain("quit", "q", summary: "end the guest and its process"),
        Word(
            names: ["announce_self"], parameters: ["[interfaces]", "[id]"],
            summary: "tell the network where the guest is"
        ) { supervisor, arguments, answer in
            let names = arguments.first.map { $0.split(separator: ",").map(String.init) }
            var parameters = supervisor.migration.settings.announceParameters
            parameters.interfaces = names
            do throws(QMPError) {
                try supervisor.announcer.announce(parameters, as: arguments.dropFirst().first ?? "")
                answer("")
            } catch { answer(text(of: error)) }
        },
        Word(names: ["migrate"], parameters: ["[-d]", "[-r]", "uri"], summary: "move the guest to where uri leads") {
            supervisor, arguments, answer in
            forward("migrate", ["uri": .string(arguments[0])], supervisor, answer)
        },
        plain("migrate_cancel", summary: "give the migration up"),
        Word(names: ["migrate_continue"], parameters: ["state"], summary: "go on from where a migration pauses") {
            supervisor, arguments, answer in
            forward("migrate-continue", ["state": .string(arguments[0])], supervisor, answer)
        },
        Word(names: ["migrate_incoming"], parameters: ["uri"], summary: "wait for a guest at uri") {
            supervisor, arguments, answer in
            forward("migrate-incoming", ["uri": .string(arguments[0])], supervisor, answer)
        },
        Word(names: ["migrate_recover"], parameters: ["uri"], summary: "go on with a broken postcopy at uri") {
            supervisor, arguments, answer in
            forward("migrate-recover", ["uri": .string(arguments[0])], supervisor, answer)
        },
        plain("migrate_pause", command: "migrate-pause", summary: "pause a postcopy"),
        plain("migrate_start_postcopy", command: "migrate-start-postcopy", summary: "go over to postcopy"),
        Word(
            names: ["migrate_set_capability"], parameters: ["capability", "state"],
            summary: "switch a capability on or off"
        ) { supervisor, arguments, answer in setCapability(supervisor, arguments, answer) },
        Word(
            names: ["migrate_set_parameter"], parameters: ["parameter", "value"],
            summary: "set a parameter; bandwidths are in MiB/s unless a unit is given"
        ) { supervisor, arguments, answer in setParameter(supervisor, arguments, answer) },
        snapshot("savevm", "not there: machines are not kept in disk images", isOptional: true),
        snapshot("loadvm", "not there: machines are not kept in disk images", isOptional: false),
        snapshot("delvm", "nothing: no disk image has a machine", isOptional: false, fails: false),
    ]

    private static func setCapability(_ supervisor: Supervisor, _ arguments: [String], _ answer: @escaping Answer) {
        guard ["on", "off"].contains(arguments[1]) else {
            return answer(
                "Expected 'on' or 'off'\r\nTry \"help migrate_set_capability\" for more information\r\n")
        }
        guard MigrationSettings.capabilityNames.contains(arguments[0]) else {
            return answer("Error: invalid parameter value: \(arguments[0])\r\n")
        }
        forward(
            "migrate-set-capabilities",
            ["capabilities": [["capability": .string(arguments[0]), "state": .bool(arguments[1] == "on")]]], supervisor,
            answer)
    }

    private static func setParameter(_ supervisor: Supervisor, _ arguments: [String], _ answer: @escaping Answer) {
        guard let member = MigrationSettings.parameterMembers.first(where: { $0.name == arguments[0] }) else {
            return answer("Error: invalid parameter value: \(arguments[0])\r\n")
        }
        let value: JSONValue
        switch member.type {
        case .boolean:
            guard ["on", "off"].contains(arguments[1]) else {
                return answer("Error: Parameter '\(arguments[0])' expects 'on' or 'off'\r\n")
            }
            value = .bool(arguments[1] == "on")
        case .unsigned, .integer:
            // QEMU's monitor counts bandwidths in MiB where no unit is given.
            let isBandwidth = arguments[0].hasSuffix("bandwidth")
            let text = isBandwidth && UInt64(arguments[1]) != nil ? arguments[1] + "M" : arguments[1]
            guard let number = SizeText.parse(text) else {
                return answer(
                    "Error: Parameter '\(arguments[0])' expects a non-negative number below 2^64\r\n"
                        + "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\r\n"
                        + "and exabytes, respectively.\r\n")
            }
            value = JSONValue(number)
        default: value = .string(arguments[1])
        }
        forward("migrate-set-parameters", [arguments[0]: value], supervisor, answer)
    }
}
