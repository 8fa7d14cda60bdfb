import ArgumentParser
import Glibc
import QMPProtocol
import Supervisor

/// The tool: arguments in, exit status out; one file per subcommand. Each of them says its name: to take it from that of the type
/// makes the parser look through everything that any type conforms to, for each command each time.
struct Sidestep: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sidestep", abstract: "Run virtual machines that change process without stopping.",
        version: "\(Product.name) \(Product.version)",
        subcommands: [
            Run.self, Upgrade.self, Adopt.self, List.self, Inspect.self, Console.self, Pause.self, Resume.self,
            Stop.self, Kill.self, Status.self,
            Migrate.self, Receive.self, BridgeCommand.self, Cancel.self, Check.self, Save.self, Restore.self, QEMU.self,
            QMP.self,
            Analyze.self, Completion.self, Manual.self,
            ExitStatusHelp.self,
        ])
}

@main enum Main {
    static func main() {
        do {
            if let socket = Adopt.socket(of: CommandLine.arguments) { exit(try GuestProcess.adopt(socket: socket)) }
            var command = try Sidestep.parseAsRoot()
            try command.run()
        } catch let refusal as Refusal {
            Diagnostics.write(refusal.description)
            exit(refusal.status.rawValue)
        } catch {
            Sidestep.exit(withError: error)
        }
    }
}

/// `sidestep exit-status`: what the numbers mean.
struct ExitStatusHelp: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "exit-status", abstract: "Show what the exit statuses mean.")

    @OptionGroup var output: FormatOption

    func run() {
        let list: [JSONValue] = ExitStatus.allCases.map {
            ["status": JSONValue($0.rawValue), "meaning": .string($0.meaning)]
        }
        output.show(.array(list)) { _ in
            let head =
                "'sidestep run' ends with the status that the guest gave to its test finisher, unless one of these applies:"
            return ([head] + ExitStatus.allCases.map { "\($0.rawValue < 10 ? " " : "")\($0.rawValue)  \($0.meaning)" })
                .joined(separator: "\n")
        }
    }
}
