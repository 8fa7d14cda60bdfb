import LinuxCalls
import ProcessTestKit
import Testing

/// A terminal, by tmux: what is on it is what a person would see.
final class TerminalScreen {
    private let socket: String
    private let directory: TemporaryDirectory

    /// Starts a command on it.
    init(_ words: [String], environment: [String: String], columns: Int = 80, lines: Int = 24) throws {
        directory = try TemporaryDirectory()
        socket = directory.file("tmux")
        let variables = environment.map { "\($0)='\($1)'" }.joined(separator: " ")
        let command = words.map { "'\($0)'" }.joined(separator: " ")
        try HostTools.need(
            "tmux",
            [
                "-S", socket, "-f", "/dev/null", "new-session", "-d", "-x", "\(columns)", "-y", "\(lines)",
                "env \(variables) \(command); echo \"[status $?]\"; exec sleep 1000",
            ])
    }

    deinit { _ = try? HostTools.run("tmux", ["-S", socket, "kill-server"]) }

    func type(_ keys: String...) throws { try HostTools.need("tmux", ["-S", socket, "send-keys"] + keys) }

    /// What is on it, without blanks at ends of lines.
    var text: String {
        get throws {
            try HostTools.need("tmux", ["-S", socket, "capture-pane", "-p"]).split(
                separator: "\n", omittingEmptySubsequences: false
            ).map { line in
                var line = line
                while line.last == " " { line.removeLast() }
                return line
            }.joined(separator: "\n")
        }
    }

    /// The screen once it shows something.
    func wait(for words: String, seconds: Int = 60) throws -> String {
        for _ in 0..<20 * seconds {
            let now = try text
            if now.contains(words) { return now }
            _ = try HostTools.run("sleep", ["0.05"])
        }
        throw ExpectationError.late(name: "the terminal", what: words, seconds: Double(seconds), tail: try text)
    }
}

/// Golden screens in `Tests/Tools/screens`; what differs from run to run stands for itself. `SIDESTEP_RECORD=1` writes them anew.
enum GoldenScreen {
    /// Numbers, units, lengths of bars and names of temporary files are not what is compared.
    static func normalized(_ screen: String) -> String {
        var text = screen.replacing(/\/\S*sidestep\.[A-Za-z0-9]{6}/, with: "DIRECTORY")
        text = text.replacing(/\[[#.]+\]/, with: "[###...]")
        text = text.replacing(/[0-9]+(\.[0-9]+)? (B|KiB|MiB|GiB)/, with: "N MiB")
        text = text.replacing(/[0-9]+(\.[0-9]+)?/, with: "N")
        text = text.replacing(/[ ]{2,}/, with: "  ")
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        while lines.last == "" { lines.removeLast() }
        // How many lines alike a guest has written by now is not either.
        let different = lines.enumerated().filter { $0.offset == 0 || $0.element != lines[$0.offset - 1] }
        return different.map(\.element).joined(separator: "\n") + "\n"
    }

    static func matches(_ name: String, _ screen: String) throws -> Bool {
        let path = "\(Checkout.root)/Tests/Tools/screens/\(name).txt"
        let now = normalized(screen)
        if Environment.all["SIDESTEP_RECORD"] != nil {
            try HostTools.need("mkdir", ["-p", "\(Checkout.root)/Tests/Tools/screens"])
            let file = try OwnedDescriptor.open(path, flags: 0o1101, mode: 0o644)  // write, create, truncate
            try file.writeAll(Array(now.utf8))
        }
        let golden = try HostTools.need("cat", [path])
        if golden != now { Issue.record("the screen \(name) is now:\n\(now)\nand was:\n\(golden)") }
        return golden == now
    }
}

@Suite(
    "Screens", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"),
    .enabled(if: Requirement.program("tmux", package: "tmux").isMet, "no tmux: Debian package tmux"))
struct ScreenTests {
    private var environment: [String: String] { ["PATH": HostTools.searchPath, "TERM": "screen", "LC_ALL": "C.UTF-8"] }

    @Test("run: the guest's console, the keys' help, the end") func run() throws {
        let run = try MonitorRun()
        let screen = try TerminalScreen(
            [Checkout.tool, "run", "--name", "web", "--firmware", Heartbeat.elf, "--memory", "64M"],
            environment: environment.merging(run.environment) { $1 }, lines: 100)
        _ = try screen.wait(for: "tick 2 ")
        try screen.type("C-a", "h")
        let shown = try screen.wait(for: "send C-a to the guest")
        #expect(shown.contains("tick 2 "))
        // The guest may have written a line since.
        let upToHelp = shown.components(upTo: "send C-a to the guest")
        #expect(try GoldenScreen.matches("run", upToHelp))
        try screen.type("C-a", "x")
        #expect(try screen.wait(for: "[status 0]").contains("[status 0]"))
    }

    /// A guest that sends slowly to one that waits.
    private func slowMove() throws -> (
        run: MonitorRun, source: RunningProgram, destination: RunningProgram, uri: String
    ) {
        let run = try MonitorRun()
        let uri = "unix:" + run.directory.file("migration.sock")
        let source = try run.heartbeat(name: "web")
        try source.wait(for: "tick 2 ", seconds: 60)
        let destination = try run.heartbeat(["--incoming", uri], name: "web-2")
        try ToolRunTests.waitUntilListed("web-2", run)
        return (run, source, destination, uri)
    }

    @Test("status --follow: a bar while it moves, a table at the end") func follow() throws {
        let (run, source, destination, uri) = try slowMove()
        // So slow that it does not end before it is looked at; what is left after one pass may then take its time.
        _ = try run.command([
            "qmp", "web", "migrate-set-parameters", #"{"max-bandwidth": 300000, "downtime-limit": 100000}"#,
        ])
        _ = try run.command(["qmp", "web", "migrate", #"{"uri": "\#(uri)"}"#])
        let screen = try TerminalScreen(
            [Checkout.tool, "status", "web", "--follow"], environment: environment.merging(run.environment) { $1 },
            columns: 200)
        #expect(try GoldenScreen.matches("status-follow-bar", screen.wait(for: "% active")))
        #expect(try GoldenScreen.matches("status-follow", screen.wait(for: "[status 0]")))
        try destination.wait(for: "tick ", seconds: 60)
        _ = (source, try run.command(["stop", "web"]), try run.command(["stop", "web-2"]))
    }

    @Test("migrate: lines without a terminal, JSON lines on request") func migrate() throws {
        let (run, source, destination, uri) = try slowMove()
        let slow = ["--parameter", "max-bandwidth=300000", "--parameter", "downtime-limit=100000"]
        let move = try run.command(["migrate", "web", uri] + slow + ["--format", "json"])
        #expect(move.end == .exited(status: 0), "\(move.errors)")
        let lines = move.output.split(separator: "\n")
        #expect(lines.count > 1 && lines.allSatisfy { $0.hasPrefix("{\"") && $0.hasSuffix("}") })
        #expect(lines.last?.contains("\"status\": \"completed\"") == true)
        try destination.wait(for: "tick ", seconds: 60)
        _ = (source, try run.command(["stop", "web-2"]))
        let again = try slowMove()
        let text = try again.run.command(["migrate", "web", again.uri] + slow)
        #expect(
            text.errors.contains("% active  ") && text.errors.contains(" left  round ")
                && !text.errors.contains("\u{1B}"))
        #expect(try GoldenScreen.matches("migrate", text.output))
        _ = try again.run.command(["stop", "web-2"])
    }

    @Test("analyze: a saved guest") func analyze() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(name: "web")
        try guest.wait(for: "tick 2 ", seconds: 60)
        // A guest that writes meanwhile has pages sent again, or not.
        #expect(try run.command(["pause", "web"]).end == .exited(status: 0))
        let file = run.directory.file("web.stream")
        #expect(try run.command(["save", "web", file]).end == .exited(status: 0))
        let screen = try TerminalScreen(
            [Checkout.tool, "analyze", file], environment: environment.merging(run.environment) { $1 })
        #expect(try GoldenScreen.matches("analyze", screen.wait(for: "[status 0]")))
        let section = try TerminalScreen(
            [Checkout.tool, "analyze", file, "--section", "serial"],
            environment: environment.merging(run.environment) { $1 })
        #expect(try GoldenScreen.matches("analyze-section", section.wait(for: "[status 0]")))
    }
}

extension String {
    /// Up to and with the first occurrence of a text.
    fileprivate func components(upTo text: String) -> String {
        guard let range = firstRange(of: text) else { return self }
        return String(self[..<range.upperBound])
    }
}
