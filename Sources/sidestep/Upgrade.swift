import ArgumentParser
import Glibc
import QMPProtocol
import Supervisor

/// `sidestep adopt`: what a predecessor starts; not for people.
struct Adopt: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Take a guest over from the process that started this one.", shouldDisplay: false)

    @Argument(help: "The descriptor of the hand-over's socket.")
    var descriptor: Int32

    func run() throws { Glibc.exit(try GuestProcess.adopt(socket: descriptor)) }
}

struct Upgrade: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Move a running guest to a new process.",
        discussion: """
            Starts the new program beside the old one, hands the guest over with its memory, console, disks and \
            connections, and ends the old process. The guest pauses for less than a millisecond. If anything goes wrong the \
            guest runs on in the old process, and the exit status is \(ExitStatus.rolledBack.rawValue).
            """)

    @Argument(help: ArgumentHelp("The guest.", valueName: "name"))
    var name: String

    @Option(
        help: ArgumentHelp(
            "The program that takes over; without it the file the guest was started from.", valueName: "path"))
    var binary: String?

    @Option(help: ArgumentHelp("How RAM changes process: auto or memfd.", valueName: "channel"))
    var channel = "auto"

    @Option(help: ArgumentHelp("Longest pause before the guest is taken back, in milliseconds.", valueName: "ms"))
    var limit = 5_000

    @Option(help: ArgumentHelp("text or json.", valueName: "form"))
    var format = "text"

    func run() throws {
        guard UpgradeChannel(rawValue: channel) != nil else {
            let choices = UpgradeChannel.allCases.map(\.rawValue).joined(separator: ", ")
            throw Refusal(.usage, "--channel: '\(channel)' is none of \(choices)")
        }
        guard ["text", "json"].contains(format) else {
            throw Refusal(.usage, "--format: '\(format)' is none of text, json")
        }
        let guest = try RunDirectory.find(name)
        var arguments = JSONObject()
        if let binary {
            guard let path = absolute(binary) else { throw Refusal("--binary: there is no file \(binary)") }
            arguments["binary"] = .string(path)
        }
        arguments["channel"] = .string(channel)
        arguments["limit"] = JSONValue(limit)
        let report: JSONValue
        do throws(QMPConnection.Failure) {
            let connection = try QMPConnection(path: guest.qmpSocketPath)
            report = try connection.run("x-sidestep-upgrade", arguments, timeoutMilliseconds: -1)
        } catch {
            switch error {
            case .refused(let refusal): throw Refusal(.rolledBack, "\(name): \(refusal)")
            case .closed: throw Refusal(.lost, "\(name): the guest's process ended during the upgrade")
            default: throw Refusal(.commandFailed, "\(name): \(error)")
            }
        }
        if format == "json" {
            print(report.json)
        } else {
            show(report)
        }
    }

    private func absolute(_ path: String) -> String? {
        guard let resolved = unsafe realpath(path, nil) else { return nil }
        defer { unsafe free(resolved) }
        return unsafe String(cString: resolved)
    }

    private func show(_ report: JSONValue) {
        func milliseconds(_ value: JSONValue?) -> String {
            let hundredths = Int(((value?.doubleValue ?? 0) / 10).rounded())
            return "\(hundredths / 100).\(hundredths % 100 < 10 ? "0" : "")\(hundredths % 100) ms"
        }
        let pause = report["pause"]
        let phases = ["stop", "save", "send", "load", "claim", "resume"].map {
            "\($0) \(milliseconds(pause?[$0 + "-us"]))"
        }
        print(
            """
            \(name) runs in process \(report["process"]?.integerValue ?? 0)
              pause    \(milliseconds(report["pause-us"]))  (\(phases.joined(separator: ", ")))
              total    \(milliseconds(report["total-us"]))
              copied   \(report["copied-bytes"]?.integerValue ?? 0) of \(report["ram-bytes"]?.integerValue ?? 0) bytes of RAM
              channel  \(report["channel"]?.stringValue ?? "?"): \(report["reason"]?.stringValue ?? "")
            """)
    }
}
