import ArgumentParser
import Glibc
import QMPProtocol
import Supervisor

struct Pause: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "pause", abstract: "Let a guest stand still.")
    @OptionGroup var guest: GuestArgument
    func run() throws { _ = try guest.connect().run("stop") }
}

struct Resume: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "resume", abstract: "Let a guest run on.")
    @OptionGroup var guest: GuestArgument
    func run() throws { _ = try guest.connect().run("cont") }
}

struct Stop: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stop", abstract: "End a guest in order: it is paused, its disks are flushed, its process ends.",
        discussion: "The machine has no power button; a guest that must save its work has to be told by other means.")
    @OptionGroup var guest: GuestArgument

    func run() throws {
        let connection = try guest.connect()
        _ = try connection.run("quit")
        // The process closes the connection as the last thing before it goes.
        do { while try connection.qmp.nextEvent(timeoutMilliseconds: 30_000) != nil {} } catch {
            if case .closed = error { return }
        }
        throw Refusal(.commandFailed, "\(guest.name): the guest's process does not end")
    }
}

struct Kill: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "kill", abstract: "End a guest's process at once, whatever it is doing.")
    @OptionGroup var guest: GuestArgument

    func run() throws {
        let entry = try guest.find()
        guard let process = entry.process, Glibc.kill(process, SIGKILL) == 0 else {
            throw Refusal(.commandFailed, "\(guest.name): cannot end its process: \(errorText(errno))")
        }
    }
}

struct Cancel: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "cancel", abstract: "Give up a guest's migration; the guest runs on where it is.")
    @OptionGroup var guest: GuestArgument
    func run() throws { _ = try guest.connect().run("migrate_cancel") }
}

struct QMP: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "qmp", abstract: "Run one QMP command and show its answer.",
        discussion: "For example: sidestep qmp web query-status")

    @OptionGroup var guest: GuestArgument

    @Argument(help: ArgumentHelp("The command.", valueName: "command"))
    var command: String

    @Argument(help: ArgumentHelp("Its arguments, a JSON object.", valueName: "json"))
    var arguments: String?

    func run() throws {
        var object = JSONObject()
        if let arguments {
            do {
                guard let value = try JSONValue.parse(arguments).objectValue else {
                    throw Refusal(.usage, "the arguments are a JSON object such as {\"uri\": \"unix:/x\"}")
                }
                object = value
            } catch let error as JSONError {
                throw Refusal(.usage, "the arguments are no JSON object: \(error)")
            }
        }
        print(try guest.connect().run(command, object).prettyJSON)
    }
}
