import ArgumentParser
import Glibc
import MonitorClient
import QMPProtocol
import Supervisor

struct Migrate: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Move a guest to a process that waits for it.",
        discussion: """
            URI is where 'sidestep run --incoming URI' or QEMU waits: unix:PATH, tcp:HOST:PORT, fd:N, exec:COMMAND or file:PATH. \
            Exit status \(ExitStatus.rolledBack.rawValue): the guest runs on here; \(ExitStatus.cancelled.rawValue): cancelled; \
            \(ExitStatus.lost.rawValue): the guest is lost. The process here ends when the guest has left, unless --keep.
            """)

    @OptionGroup var guest: GuestArgument

    @Argument(help: ArgumentHelp("Where to.", valueName: "uri"))
    var uri: String

    @Option(
        help: ArgumentHelp(
            "Write the state as that release does; the parameter x-layout.", valueName: "qemu-7.2|qemu-10.0|qemu-11.1"))
    var compat: String?

    @Option(help: ArgumentHelp("Switch a migration capability on. Repeatable.", valueName: "name"))
    var capability: [String] = []

    @Option(help: ArgumentHelp("Set a migration parameter. Repeatable.", valueName: "name=value"))
    var parameter: [String] = []

    @Option(
        help: ArgumentHelp(
            "Hand RAM over by its descriptors (mode cpr-transfer): where 'sidestep run' or QEMU 10 waits for them.",
            valueName: "unix:PATH"))
    var cpr: String?

    @Flag(help: "Leave the process here when the guest has left; its guest is paused.")
    var keep = false

    @OptionGroup var output: FormatOption

    func run() throws {
        let connection = try guest.connect()
        let layout = try compat.map { try RunConfiguration.compatibility(argument: $0).rawValue }
        try Self.setUp(
            connection, capabilities: capability,
            parameters: (layout.map { ["x-layout=\($0)"] } ?? []) + (cpr == nil ? [] : ["mode=cpr-transfer"])
                + parameter)
        let answer = try Self.move(connection, to: uri, cpr: cpr, format: output.format)
        output.show(answer) {
            "\(guest.name) has moved\n"
                + MigrationProgressView.summary(
                    $0,
                    channel: cpr != nil
                        ? "descriptors" : capability.contains { $0.hasSuffix("page-flipping") } ? "page flip" : "socket"
                )
        }
        if !keep { _ = try connection.run("quit") }
    }

    static func setUp(_ connection: GuestConnection, capabilities: [String], parameters: [String]) throws {
        if !capabilities.isEmpty {
            _ = try connection.run(
                "migrate-set-capabilities",
                ["capabilities": .array(capabilities.map { ["capability": .string($0), "state": true] })])
        }
        for text in parameters {
            guard let equals = text.firstIndex(of: "=") else {
                throw Refusal(.usage, "--parameter: '\(text)' is not NAME=VALUE")
            }
            let value = String(text[text.index(after: equals)...])
            let json: JSONValue = SizeText.parse(value).map { JSONValue($0) } ?? .string(value)
            _ = try connection.run("migrate-set-parameters", [String(text[..<equals]): json])
        }
    }

    /// Starts a migration and follows it to its end.
    static func move(
        _ connection: GuestConnection, to uri: String, cpr: String? = nil, format: OutputFormat
    ) throws(Refusal) -> JSONValue {
        let name = connection.entry.name
        var arguments: JSONObject = ["uri": .string(uri)]
        if let cpr {
            do throws(QMPError) { arguments = ["channels": try MigrationRoute.channels(main: uri, cpr: cpr)] } catch {
                throw Refusal(.usage, "\(error)")
            }
        }
        do throws(QMPConnection.Failure) { _ = try connection.qmp.run("migrate", arguments) } catch {
            throw Refusal(.refused, "\(name): \(error)")
        }
        let answer = try follow(connection, format: format)
        switch answer["status"]?.stringValue {
        case "completed": return answer
        case "cancelled": throw Refusal(.cancelled, "\(name): cancelled; the guest runs on here")
        default:
            let reason = answer["error-desc"]?.stringValue ?? "the migration failed"
            if answer["x-outcome"] == "undecided" { throw Refusal(.undecided, "\(name): \(reason)") }
            throw Refusal(.rolledBack, "\(name): \(reason); the guest runs on here")
        }
    }

    static func follow(_ connection: GuestConnection, format: OutputFormat) throws(Refusal) -> JSONValue {
        var view = MigrationProgressView(format: format)
        defer { view.end() }
        var pollMicroseconds: UInt32 = 2_000
        while true {
            let answer: JSONValue
            do throws(QMPConnection.Failure) { answer = try connection.qmp.run("query-migrate") } catch {
                throw Refusal(.lost, "\(connection.entry.name): the guest's process went away: \(error)")
            }
            if ["completed", "failed", "cancelled", nil].contains(answer["status"]?.stringValue) { return answer }
            view.show(answer)
            usleep(pollMicroseconds)
            pollMicroseconds = min(200_000, pollMicroseconds * 2)
        }
    }
}

struct Status: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show a guest's state and its migration.")

    @OptionGroup var guest: GuestArgument

    @Flag(help: "Go on showing until the migration ends.")
    var follow = false

    @OptionGroup var output: FormatOption

    func run() throws {
        let connection = try guest.connect()
        if follow { _ = try Migrate.follow(connection, format: output.format) }
        let status = try connection.run("query-status")
        let migration = try connection.run("query-migrate")
        output.show(["status": status["status"] ?? .null, "migration": migration]) { _ in
            var text = "\(guest.name) is \(status["status"]?.stringValue ?? "?")"
            if let state = migration["status"]?.stringValue {
                text += "\nmigration \(state)"
                if let reason = migration["error-desc"]?.stringValue { text += ": \(reason)" }
                if state == "completed" { text += "\n" + MigrationProgressView.summary(migration, channel: "over") }
            }
            return text
        }
    }
}
