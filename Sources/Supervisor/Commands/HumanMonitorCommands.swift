import QMPProtocol

extension CommandTable {
    static let humanMonitor: [CommandEntry] = [
        CommandEntry(
            "human-monitor-command",
            [.required("command-line", .string), .optional("cpu-index", .integer)], returns: .string
        ) { supervisor, invocation in
            let line = invocation.arguments["command-line"]?.stringValue ?? ""
            HumanMonitor.run(line, on: supervisor) { invocation.reply(.success(.string($0))) }
            return nil
        }
    ]
}

/// The words of QEMU's human monitor that scripts use. The answer is text, errors included, as in QEMU.
enum HumanMonitor {
    static func run(_ line: String, on supervisor: Supervisor, _ answer: @escaping @Sendable (String) -> Void) {
        let words = line.split(separator: " ").map(String.init)
        let done: @Sendable (Result<Void, QMPError>) -> Void = { result in
            switch result {
            case .success: answer("")
            case .failure(let error): answer("Error: \(error.description)\r\n")
            }
        }
        switch words.first {
        case nil: answer("")
        case "info": information(Array(words.dropFirst()), on: supervisor, answer)
        case "help", "?": answer(help)
        case "stop", "s": supervisor.stopGuest(done)
        case "cont", "c": supervisor.continueGuest(done)
        case "system_reset": supervisor.resetGuest(cause: .hostQMPSystemReset, done)
        case "system_powerdown":
            supervisor.announce(.powerdown)
            answer("")
        case "quit", "q":
            answer("")
            supervisor.quit(cause: .hostQMPQuit, status: ExitStatus.done.rawValue)
        case "migrate":
            guard let uri = words.dropFirst().first(where: { !$0.hasPrefix("-") }) else {
                return answer("migrate: uri expected\r\n")
            }
            forward("migrate", ["uri": .string(uri)], supervisor, done)
        case "migrate_cancel": forward("migrate_cancel", [:], supervisor, done)
        case "migrate_continue":
            forward("migrate-continue", ["state": .string(words.dropFirst().first ?? "")], supervisor, done)
        case "migrate_start_postcopy": forward("migrate-start-postcopy", [:], supervisor, done)
        case "migrate_set_capability":
            guard words.count == 3, ["on", "off"].contains(words[2]) else {
                return answer("migrate_set_capability: capability and on|off expected\r\n")
            }
            forward(
                "migrate-set-capabilities",
                ["capabilities": [["capability": .string(words[1]), "state": .bool(words[2] == "on")]]], supervisor,
                done)
        case "migrate_set_parameter":
            guard words.count == 3 else { return answer("migrate_set_parameter: parameter and value expected\r\n") }
            let value: JSONValue = SizeText.parse(words[2]).map { JSONValue($0) } ?? .string(words[2])
            forward("migrate-set-parameters", [words[1]: value], supervisor, done)
        case "savevm", "loadvm", "delvm":
            answer("Error: No block device can store snapshots of the machine; use 'migrate file:PATH'\r\n")
        case let word?: answer("unknown command: '\(word)'\r\n")
        }
    }

    /// Runs a QMP command for its effect.
    private static func forward(
        _ name: String, _ arguments: JSONObject, _ supervisor: Supervisor,
        _ done: @escaping @Sendable (Result<Void, QMPError>) -> Void
    ) {
        supervisor.run(QMPCommand(name: name, arguments: arguments), client: nil) { done($0.map { _ in }) }
    }

    private static func information(
        _ words: [String], on supervisor: Supervisor, _ answer: @escaping @Sendable (String) -> Void
    ) {
        switch words.first {
        case "status":
            let state = supervisor.runState
            answer(
                state == .running
                    ? "VM status: running\r\n"
                    : "VM status: paused\(state == .paused ? "" : " (\(state.rawValue))")\r\n")
        case "version": answer("10.0.0 (\(Product.name) \(Product.version))\r\n")
        case "name": answer("\(supervisor.name)\r\n")
        case "uuid": answer("\(supervisor.configuration.uuid ?? "00000000-0000-0000-0000-000000000000")\r\n")
        case "kvm": answer("kvm support: not compiled\r\n")
        case "registers": supervisor.registerDump(answer)
        case "cpus":
            answer(
                supervisor.guest.processors.map {
                    "\($0.index == 0 ? "*" : " ") CPU #\($0.index): thread_id=\($0.threadIdentifier)\r\n"
                }.joined())
        case "migrate":
            supervisor.run(QMPCommand(name: "query-migrate"), client: nil) { result in
                guard case .success(let value) = result else { return answer("") }
                answer(migrationText(value))
            }
        case "migrate_capabilities":
            supervisor.run(QMPCommand(name: "query-migrate-capabilities"), client: nil) { result in
                guard case .success(let value) = result else { return answer("") }
                answer(
                    (value.arrayValue ?? []).map {
                        "\($0["capability"]?.stringValue ?? ""): \($0["state"]?.boolValue == true ? "on" : "off")\r\n"
                    }.joined())
            }
        case "migrate_parameters":
            supervisor.run(QMPCommand(name: "query-migrate-parameters"), client: nil) { result in
                guard case .success(let value) = result else { return answer("") }
                answer(
                    (value.objectValue?.members ?? []).map {
                        "\($0.key): \($0.value.stringValue ?? $0.value.json)\r\n"
                    }.joined())
            }
        case nil: answer(help)
        case let word?: answer("unknown command: 'info \(word)'\r\n")
        }
    }

    /// `info migrate` in the form that scripts search: one fact per line.
    private static func migrationText(_ value: JSONValue) -> String {
        var text = ""
        func add(_ label: String, _ value: JSONValue?, _ unit: String = "") {
            if let value { text += "\(label): \(value.stringValue ?? value.json)\(unit)\r\n" }
        }
        add("Migration status", value["status"])
        add("error", value["error-desc"])
        add("total time", value["total-time"], " ms")
        add("expected downtime", value["expected-downtime"], " ms")
        add("downtime", value["downtime"], " ms")
        add("setup", value["setup-time"], " ms")
        if let ram = value["ram"] {
            func kilobytes(_ key: String) -> JSONValue? { ram[key]?.unsignedValue.map { JSONValue($0 >> 10) } }
            add("transferred ram", kilobytes("transferred"), " kbytes")
            add("throughput", ram["mbps"], " mbps")
            add("remaining ram", kilobytes("remaining"), " kbytes")
            add("total ram", kilobytes("total"), " kbytes")
            add("duplicate", ram["duplicate"], " pages")
            add("normal", ram["normal"], " pages")
            add("normal bytes", kilobytes("normal-bytes"), " kbytes")
            add("dirty sync count", ram["dirty-sync-count"])
            add("page size", kilobytes("page-size"), " kbytes")
            add("dirty pages rate", ram["dirty-pages-rate"], " pages")
        }
        return text
    }

    private static let help = [
        "info status|version|name|uuid|kvm|registers|cpus|migrate|migrate_capabilities|migrate_parameters",
        "stop", "cont", "system_reset", "system_powerdown", "quit", "migrate [-d] URI", "migrate_cancel",
        "migrate_continue STATE", "migrate_start_postcopy", "migrate_set_capability NAME on|off",
        "migrate_set_parameter NAME VALUE",
    ].map { "\($0)\r\n" }.joined()
}
