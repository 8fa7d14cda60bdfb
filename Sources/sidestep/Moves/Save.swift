import ArgumentParser
import Glibc
import LinuxCalls
import QMPProtocol
import Supervisor

struct Save: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "save", abstract: "Save a guest to a file and end it.",
        discussion: """
            The file is a migration stream that 'sidestep restore' and QEMU's analysis read; what the guest was made of goes \
            into FILE.json beside it. Disks are not part of it. Ctrl-C (or SIGTERM) gives up: status \
            \(ExitStatus.interrupted.rawValue) (\(ExitStatus.terminated.rawValue)), and the guest runs on; at the second one \
            the command ends at once, and the guest's process goes on saving.
            """)

    @OptionGroup var guest: GuestArgument

    @Argument(help: ArgumentHelp("The file.", valueName: "file"))
    var file: String

    @Flag(
        help: """
            Give each page a place of its own (QEMU's mapped-ram): the file is never longer than RAM, however long the guest \
            writes, and several threads can read it.
            """)
    var mappedRam = false

    @Flag(help: "Let the guest run on afterwards, if it ran.")
    var keepRunning = false

    @OptionGroup var output: FormatOption

    func run() throws {
        let interruption = try Interruption()
        let connection = try guest.connect()
        let facts = try connection.run("x-sidestep-inspect")
        let path = file.hasPrefix("/") ? file : try currentDirectory() + "/" + file
        var configuration = facts["configuration"]?.objectValue ?? [:]
        configuration["incoming"] = nil
        configuration["incoming-cpr"] = nil
        let wasRunning = facts["status"] == "running"
        var settings = MoveSettings(connection)
        let answer: JSONValue
        do {
            if mappedRam { try settings.switchOn(["mapped-ram"]) }
            answer = try Migrate.move(connection, to: "file:\(path)", format: output.format, interruption)
        } catch {
            settings.putBack()
            throw error
        }
        do {
            let description = try OwnedDescriptor.open(path + ".json", flags: O_WRONLY | O_CREAT | O_TRUNC)
            try description.writeAll(Array((JSONValue.object(configuration).prettyJSON + "\n").utf8))
        } catch {
            settings.putBack()
            _ = try connection.run("cont")
            throw Refusal("\(guest.name): cannot write \(path).json: \(error); the guest runs on")
        }
        output.showLast(answer) { "\(guest.name) is saved\n" + MigrationProgressView.summary($0, channel: "file") }
        if keepRunning {
            settings.putBack()
            if wasRunning { _ = try connection.run("cont") }
        } else {
            _ = try connection.run("quit")
        }
    }

    private func currentDirectory() throws -> String {
        guard let path = unsafe getcwd(nil, 0) else { throw SystemCallError.last("getcwd") }
        defer { unsafe free(path) }
        return unsafe String(cString: path)
    }
}

struct Restore: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "restore", abstract: "Run a guest from a file that 'sidestep save' made.",
        discussion: "The guest is built as FILE.json says; flags win over it.")

    @Argument(help: ArgumentHelp("The file.", valueName: "file"))
    var file: String

    @OptionGroup var options: RunOptions

    @Flag(help: "Return as soon as the guest runs; it goes on in the background.")
    var detach = false

    func run() throws {
        guard unsafe access(file, R_OK) == 0 else { throw Refusal("cannot read \(file): \(errorText(errno))") }
        let description = file + ".json"
        let base = unsafe access(description, R_OK) == 0 ? try ConfigurationFile.read(description) : [:]
        var configuration = try options.effectiveConfiguration(over: base)
        configuration.incoming = "file:\(file)"
        if detach { return try Detached.start(configuration) }
        try Run.run(configuration)
    }
}
