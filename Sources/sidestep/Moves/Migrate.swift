import ArgumentParser
import Glibc
import LinuxCalls
import MonitorClient
import QMPProtocol
import Supervisor

struct Migrate: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "migrate", abstract: "Move a guest to a process that waits for it.",
        discussion: """
            URI is where 'sidestep run --incoming URI' or QEMU waits: unix:PATH, tcp:HOST:PORT, fd:N, exec:COMMAND or file:PATH. \
            Exit status \(ExitStatus.rolledBack.rawValue): the guest runs on here; \(ExitStatus.cancelled.rawValue): cancelled; \
            \(ExitStatus.lost.rawValue): the guest is lost. The process here ends when the guest has left, unless --keep.

            With --postcopy the guest runs there after one pass over its memory, and what it still needs follows; from then on \
            there is no way back. If the channel breaks (status \(ExitStatus.undecided.rawValue)), both sides wait: \
            'sidestep qmp NAME migrate-recover {"uri": URI}' there, then 'sidestep migrate NAME URI --resume' here.

            Ctrl-C (or SIGTERM) cancels the move, if it is not too late for that, and puts back what was set for it: status \
            \(ExitStatus.interrupted.rawValue) (\(ExitStatus.terminated.rawValue)), and the guest runs on here. At the second \
            one the command ends at once, whatever the move does.
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

    @Flag(help: "Let the guest run there before all of its memory is; needs userfaultfd there.")
    var postcopy = false

    @Flag(help: "Go on with a postcopy whose channel broke.")
    var resume = false

    @Flag(help: "Leave the process here when the guest has left; its guest is paused.")
    var keep = false

    @OptionGroup var output: FormatOption

    func run() throws {
        let interruption = try Interruption()
        let connection = try guest.connect()
        let layout = try compat.map { try RunConfiguration.compatibility(argument: $0).rawValue }
        if resume {
            guard capability.isEmpty, parameter.isEmpty, compat == nil, cpr == nil, !postcopy else {
                throw Refusal(.usage, "--resume goes on as the migration was begun: give the URI alone")
            }
        }
        var settings = MoveSettings(connection)
        let answer: JSONValue
        do {
            try settings.switchOn(capability + (postcopy ? ["postcopy-ram"] : []))
            try settings.set(
                (layout.map { ["x-layout=\($0)"] } ?? []) + (cpr == nil ? [] : ["mode=cpr-transfer"])
                    + (postcopy ? ["x-strategy=postcopy"] : []) + parameter)
            answer = try Self.move(
                connection, to: uri, cpr: cpr, resume: resume, format: output.format, interruption)
        } catch {
            // A guest that has left and waits for a channel goes on as it was begun.
            if (try? connection.run("query-migrate"))?["status"] != "postcopy-paused" { settings.putBack() }
            throw error
        }
        output.showLast(answer) {
            "\(guest.name) has moved\n"
                + MigrationProgressView.summary(
                    $0,
                    channel: cpr != nil
                        ? "descriptors" : capability.contains { $0.hasSuffix("page-flipping") } ? "page flip" : "socket"
                )
        }
        if keep { settings.putBack() } else { _ = try connection.run("quit") }
    }

    /// Starts a migration and follows it to its end, which an interruption has it come to sooner.
    static func move(
        _ connection: GuestConnection, to uri: String, cpr: String? = nil, resume: Bool = false, format: OutputFormat,
        _ interruption: Interruption
    ) throws(Refusal) -> JSONValue {
        let name = connection.entry.name
        if let status = interruption.status { throw Refusal(status, "\(name): \(status.meaning)") }
        let uri = try passDescriptor(of: uri, connection)
        var arguments: JSONObject = ["uri": .string(uri)]
        if resume { arguments["resume"] = true }
        if let cpr {
            do throws(QMPError) { arguments = ["channels": try MigrationRoute.channels(main: uri, cpr: cpr)] } catch {
                throw Refusal(.usage, "\(error)")
            }
        }
        do throws(QMPConnection.Failure) {
            _ = try connection.qmp.run("migrate", arguments)
            // A postcopy that is to go on is paused until it does.
            var tries = 0
            while resume, tries < 50, try connection.qmp.run("query-migrate")["status"] == "postcopy-paused" {
                usleep(20_000)
                tries += 1
            }
        } catch {
            throw Refusal(.refused, "\(name): \(error)")
        }
        let answer = try follow(connection, format: format, interruption)
        switch answer["status"]?.stringValue {
        case "completed": return answer
        case "postcopy-paused":
            throw Refusal(
                .undecided,
                "\(name): the guest runs at the destination and still needs memory from here, but the channel is lost: "
                    + "\(answer["error-desc"]?.stringValue ?? "it broke"); recover it, see 'sidestep help migrate'")
        case "cancelled":
            throw Refusal(interruption.status ?? .cancelled, "\(name): cancelled; the guest runs on here")
        default:
            let reason = answer["error-desc"]?.stringValue ?? "the migration failed"
            if answer["x-outcome"] == "undecided" { throw Refusal(.undecided, "\(name): \(reason)") }
            throw Refusal(.rolledBack, "\(name): \(reason); the guest runs on here")
        }
    }

    /// What `fd:N` names is this process's own: the guest's gets it by `getfd`, under a name.
    private static func passDescriptor(of uri: String, _ connection: GuestConnection) throws(Refusal) -> String {
        guard uri.hasPrefix("fd:"), let number = CInt(uri.dropFirst(3)) else { return uri }
        let name = "sidestep-migrate-\(number)"
        let descriptor: OwnedDescriptor
        do { descriptor = try OwnedDescriptor.duplicate(of: number) } catch {
            throw Refusal(.usage, "descriptor \(number) is not open here: \(error)")
        }
        do throws(QMPConnection.Failure) {
            _ = try connection.qmp.run("getfd", ["fdname": .string(name)], descriptors: [descriptor])
        } catch { throw Refusal(.refused, "\(connection.entry.name): \(error)") }
        return "fd:\(name)"
    }

    /// Shows a migration until it has ended, or waits for a channel to go on over.
    /// - Parameter interruption: Of whoever has begun it; of anybody else an interruption is no order to the migration.
    static func follow(
        _ connection: GuestConnection, format: OutputFormat, _ interruption: Interruption? = nil
    ) throws(Refusal) -> JSONValue {
        var view = MigrationProgressView(format: format)
        defer { view.end() }
        var pollMicroseconds: UInt32 = 2_000
        while true {
            let answer: JSONValue
            do throws(QMPConnection.Failure) { answer = try connection.qmp.run("query-migrate") } catch {
                throw Refusal(.lost, "\(connection.entry.name): the guest's process went away: \(error)")
            }
            if ["completed", "failed", "cancelled", "postcopy-paused", nil].contains(answer["status"]?.stringValue) {
                return answer
            }
            view.show(answer)
            if let interruption {
                if interruption.sleep(microseconds: Int64(pollMicroseconds)) {
                    view.end()
                    cancel(connection)
                }
            } else {
                usleep(pollMicroseconds)
            }
            pollMicroseconds = min(200_000, pollMicroseconds * 2)
        }
    }

    private static func cancel(_ connection: GuestConnection) {
        let name = connection.entry.name
        Diagnostics.write("\(name): interrupted, the move is cancelled; once more ends this command at once")
        do throws(QMPConnection.Failure) { _ = try connection.qmp.run("migrate_cancel") } catch {
            Diagnostics.write("\(name): the move goes on: \(error)")
        }
    }
}

struct Status: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Show a guest's state and its migration.")

    @OptionGroup var guest: GuestArgument

    @Flag(help: "Go on showing until the migration ends.")
    var follow = false

    @OptionGroup var output: FormatOption

    func run() throws {
        let connection = try guest.connect()
        if follow { _ = try Migrate.follow(connection, format: output.format) }
        let status = try connection.run("query-status")
        let migration = try connection.run("query-migrate")
        output.showLast(["status": status["status"] ?? .null, "migration": migration]) { _ in
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
