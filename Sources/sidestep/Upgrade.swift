import ArgumentParser
import Glibc
import MonitorClient
import QMPProtocol
import Supervisor

/// `sidestep adopt`: what a predecessor starts; not for people.
struct Adopt: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "adopt",
        abstract: "Take a guest over from the process that started this one.", shouldDisplay: false)

    @Argument(help: "The descriptor of the hand-over's socket.")
    var descriptor: Int32

    func run() throws { Glibc.exit(try GuestProcess.adopt(socket: descriptor)) }

    /// The descriptor, if a command line says just that. An upgrade waits for this process to start, and what the parser has to learn
    /// about all commands first takes it longer than everything up to the first word with the predecessor.
    static func socket(of words: [String]) -> Int32? {
        words.count == 3 && words[1] == configuration.commandName ? Int32(words[2]) : nil
    }
}

struct Upgrade: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "upgrade", abstract: "Move a running guest, or all of them, to a new process.",
        discussion: """
            Starts the new program beside the old one, hands the guest over with its memory, console, disks and \
            connections, and ends the old process. The guest pauses for less than a millisecond if its memory is in memory \
            files (memfd); otherwise for as long as its memory takes to cross. If anything goes wrong the guest runs on in \
            the old process, and the exit status is \(ExitStatus.rolledBack.rawValue). With --all it is \
            \(ExitStatus.partlyRolledBack.rawValue) if some guests moved and some did not, and \
            \(ExitStatus.lost.rawValue) if one is gone. Ctrl-C ends this command alone: a move that has begun comes to its end \
            by itself.
            """)

    @Argument(
        help: ArgumentHelp("The guest.", valueName: "name"), completion: .custom { _, _, _ in GuestArgument.names })
    var name: String?

    @Flag(help: "Every guest of this user that runs.")
    var all = false

    @Option(
        help: ArgumentHelp(
            "With --all: how many at a time; without it half as many as the host has processors, since a move keeps two busy.",
            valueName: "n"))
    var atMost: Int?

    @Option(
        help: ArgumentHelp(
            "The program that takes over; without it the file the guest was started from.", valueName: "path"))
    var binary: String?

    @Option(help: ArgumentHelp("How RAM changes process: auto, memfd, page-flip or socket.", valueName: "channel"))
    var channel = "auto"

    @Option(
        help: ArgumentHelp(
            "When RAM crosses, if not by memfd: stop-and-flip (the guest stops first; hardly any memory exists twice) or "
                + "precopy (a short pause; RAM exists twice for a while).", valueName: "strategy"))
    var strategy: String?

    @Option(
        help: ArgumentHelp(
            "Longest pause before the guest is taken back, in milliseconds; without it 5000, and 4000 more for each GiB "
                + "that has to be sent.", valueName: "ms"))
    var limit: Int?

    @OptionGroup var output: FormatOption

    func run() throws {
        let request = try arguments()
        switch (name, all) {
        case (nil, false): throw Refusal(.usage, "which guest? Give a name, or --all")
        case (.some, true): throw Refusal(.usage, "a name and --all exclude each other")
        case (let name?, false):
            let report = try Self.upgrade(try RunDirectory.find(name), request)
            output.show(report) { Self.text(name, $0) }
        case (nil, true):
            let atMost = atMost ?? max(1, sysconf(CInt(_SC_NPROCESSORS_ONLN)) / 2)
            guard (1...1024).contains(atMost) else { throw Refusal(.usage, "--at-most: from 1 to 1024, not \(atMost)") }
            try UpgradeAll(request: request, atMost: atMost, output: output).run()
        }
    }

    private func arguments() throws -> JSONObject {
        guard UpgradeChannel(rawValue: channel) != nil else {
            throw Refusal(.usage, "--channel: '\(channel)' is none of \(Self.words(UpgradeChannel.self))")
        }
        var arguments: JSONObject = ["channel": .string(channel)]
        if let strategy {
            guard UpgradeStrategy(rawValue: strategy) != nil else {
                throw Refusal(.usage, "--strategy: '\(strategy)' is none of \(Self.words(UpgradeStrategy.self))")
            }
            arguments["strategy"] = .string(strategy)
        }
        if let binary {
            guard let path = absolute(binary) else { throw Refusal("--binary: there is no file \(binary)") }
            arguments["binary"] = .string(path)
        }
        arguments["limit"] = limit.map { JSONValue($0) }
        return arguments
    }

    private static func words<Choice: CaseIterable & RawRepresentable>(_: Choice.Type) -> String
    where Choice.RawValue == String {
        Choice.allCases.map(\.rawValue).joined(separator: ", ")
    }

    /// Moves one guest and answers its report.
    static func upgrade(_ guest: RunDirectory.Entry, _ arguments: JSONObject) throws(Refusal) -> JSONValue {
        do throws(QMPConnection.Failure) {
            let connection = try QMPConnection(path: guest.qmpSocketPath)
            return try connection.run("x-sidestep-upgrade", arguments, timeoutMilliseconds: -1)
        } catch {
            switch error {
            case .refused(let refusal): throw Refusal(.rolledBack, "\(guest.name): \(refusal)")
            case .closed: throw Refusal(.lost, "\(guest.name): the guest's process ended during the upgrade")
            default: throw Refusal(.commandFailed, "\(guest.name): \(error)")
            }
        }
    }

    private func absolute(_ path: String) -> String? {
        guard let resolved = unsafe realpath(path, nil) else { return nil }
        defer { unsafe free(resolved) }
        return unsafe String(cString: resolved)
    }

    static func milliseconds(_ value: JSONValue?) -> String {
        let hundredths = Int(((value?.doubleValue ?? 0) / 10).rounded())
        return "\(hundredths / 100).\(hundredths % 100 < 10 ? "0" : "")\(hundredths % 100) ms"
    }

    private static func text(_ name: String, _ report: JSONValue) -> String {
        let pause = report["pause"]
        let phases = ["kick", "quiesce", "memory", "save", "send", "load", "swap", "resume"].compactMap {
            phase -> String? in
            let value = pause?[phase + "-us"]
            return phase == "memory" && report["strategy"] == nil ? nil : "\(phase) \(milliseconds(value))"
        }
        let strategy = report["strategy"]?.stringValue.map { ", \($0)" } ?? ""
        return """
            \(name) runs in process \(report["process"]?.integerValue ?? 0)
              pause    \(milliseconds(report["pause-us"]))  (\(phases.joined(separator: ", ")))
              total    \(milliseconds(report["total-us"])), processor time \(milliseconds(report["cpu-us"]))
              copied   \(report["copied-bytes"]?.integerValue ?? 0) of \(report["ram-bytes"]?.integerValue ?? 0) bytes of RAM
              channel  \(report["channel"]?.stringValue ?? "?")\(strategy): \(report["reason"]?.stringValue ?? "")
            """
    }
}
