import Glibc
import LinuxCalls
import ProcessTestKit
import Testing

/// How `sidestep migrate` ends, by its status, when the move does not, and what the console of a guest is to a terminal.
@Suite(
    "Moves that are given up, and consoles", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct MoveEndTests {
    /// A move so slow that it does not end by itself.
    private func slowMove() throws -> (
        run: MonitorRun, guest: RunningProgram, waiting: RunningProgram, move: RunningProgram
    ) {
        let run = try MonitorRun()
        let uri = "unix:" + run.directory.file("migration.sock")
        let guest = try run.heartbeat(name: "web")
        try guest.wait(for: "tick 2 ", seconds: 60)
        let waiting = try run.heartbeat(["--incoming", uri], name: "web-2")
        try ToolRunTests.waitUntilListed("web-2", run)
        let move = try begin(
            ["migrate", "web", uri, "--parameter", "max-bandwidth=20000", "--parameter", "downtime-limit=1"], run)
        return (run, guest, waiting, move)
    }

    /// A command, up to where pages move. Whoever runs the tests may ignore Ctrl-C; the command is not to inherit that.
    private func begin(_ command: [String], _ run: MonitorRun) throws -> RunningProgram {
        let program = try RunningProgram(
            "env", ["--default-signal=INT,TERM", Checkout.tool] + command, name: command[0],
            environment: run.environment)
        try program.errors.wait(for: "% active", seconds: 60)
        return program
    }

    /// What moves out of a guest are like.
    private func settings(_ run: MonitorRun) throws -> [String] {
        try ["query-migrate-capabilities", "query-migrate-parameters"].map {
            let answer = try run.command(["qmp", "web", $0])
            #expect(answer.end == .exited(status: 0), "\(answer.errors)")
            return answer.output
        }
    }

    @Test(
        "what was set for a move that fails, is refused, or leaves its process there is put back",
        arguments: [
            (["unix:/nowhere/at-all", "--postcopy"], 80),
            (["unix:/nowhere/at-all", "--compat", "qemu-7.2", "--cpr", "unix:/nowhere/at-all"], 65),
            (
                [
                    "unix:/nowhere/at-all", "--capability", "x-unix-page-flipping", "--capability", "events",
                    "--parameter",
                    "max-bandwidth=3M", "--parameter", "max-bandwidth=4M", "--parameter", "cpu-throttle-initial=30",
                ], 80
            ),
            (
                [
                    "unix:/nowhere/at-all", "--capability", "xbzrle", "--parameter", "x-stall-limit=7", "--parameter",
                    "no",
                ], 64
            ),
            (["unix:/nowhere/at-all", "--postcopy", "--parameter", "multifd-channels=1000"], 67),
            (["file:FILE", "--capability", "mapped-ram", "--keep"], 0),
        ] as [([String], Int32)])
    func putBack(arguments: [String], status: Int32) throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(name: "web")
        try guest.wait(for: "tick 2 ", seconds: 60)
        // One that the guest's owner has on, and one that he has set.
        for (command, arguments) in [
            ("migrate-set-capabilities", #"{"capabilities": [{"capability": "events", "state": true}]}"#),
            ("migrate-set-parameters", #"{"cpu-throttle-initial": 25, "x-strategy": "precopy"}"#),
        ] {
            #expect(try run.command(["qmp", "web", command, arguments]).end == .exited(status: 0))
        }
        let before = try settings(run)
        let file = run.directory.file("saved")
        let move = try run.command(
            ["migrate", "web"] + arguments.map { $0 == "file:FILE" ? "file:" + file : $0 })
        #expect(move.end == .exited(status: status), "\(move.errors)")
        #expect(try settings(run) == before)
        #expect(try run.command(["resume", "web"]).end == .exited(status: 0))
        guest.output.skipToEnd()
        try guest.wait(for: "tick ", seconds: 30)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test("cancelled: status 82, the guest runs on here, and the next attempt works") func cancelled() throws {
        let (run, guest, _, move) = try slowMove()
        #expect(try run.command(["cancel", "web"]).end == .exited(status: 0))
        #expect(try move.waitForEnd(seconds: 60) == .exited(status: 82))
        try move.errors.wait(for: "the guest runs on here", seconds: 30)
        guest.output.skipToEnd()
        try guest.wait(for: "tick ", seconds: 30)
        let status = try run.command(["status", "web", "--format", "json"])
        #expect(status.output.contains(#""status": "cancelled""#) && status.output.contains(#""status": "running""#))
        let uri = "unix:" + run.directory.file("again.sock")
        let again = try run.heartbeat(["--incoming", uri], name: "web-3")
        try ToolRunTests.waitUntilListed("web-3", run)
        #expect(try run.command(["migrate", "web", uri]).end == .exited(status: 0))
        again.output.skipToEnd()
        try again.wait(for: "tick ", seconds: 30)
        try again.type("q")
        #expect(try again.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test(
        "interrupted or asked to end: the move is cancelled, what was set for it put back, and the guest runs on here",
        arguments: [(SIGINT, 130), (SIGTERM, 143)] as [(CInt, Int32)], ["migrate", "save"])
    func interrupted(signal: (number: CInt, status: Int32), command: String) throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(name: "web")
        try guest.wait(for: "tick 2 ", seconds: 60)
        let slow = #"{"max-bandwidth": 20000, "downtime-limit": 1}"#
        #expect(try run.command(["qmp", "web", "migrate-set-parameters", slow]).end == .exited(status: 0))
        let before = try settings(run)
        let file = run.directory.file("saved")
        let move = try begin(
            command == "save"
                ? ["save", "web", file, "--mapped-ram"]
                : [
                    "migrate", "web", "exec:cat >/dev/null", "--capability", "auto-converge", "--parameter",
                    "x-strategy=precopy",
                ],
            run)
        #expect(try settings(run) != before)
        move.process.signal(signal.number)
        #expect(try move.waitForEnd(seconds: 60) == .exited(status: signal.status))
        try move.errors.wait(for: "the guest runs on here", seconds: 30)
        #expect(try settings(run) == before)
        #expect(try run.command(["status", "web"]).output.hasPrefix("web is running\nmigration cancelled"))
        guest.output.skipToEnd()
        try guest.wait(for: "tick ", seconds: 30)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test("interrupted twice, the command ends at once, though the guest's process does not answer")
    func interruptedTwice() throws {
        let (run, guest, _, move) = try slowMove()
        let facts = try run.command(["inspect", "web", "--format", "json"]).output
        let line = facts.split(separator: "\n").first { $0.contains(#""process""#) } ?? ""
        let process = try #require(CInt(line.filter(\.isNumber)))
        kill(process, SIGSTOP)
        defer { kill(process, SIGCONT) }
        move.process.signal(SIGINT)
        // It may be waiting for an answer and say nothing: as soon as the first has been taken, the next is another one.
        while move.process.wait(timeoutMilliseconds: 100) == nil { move.process.signal(SIGINT) }
        #expect(try move.waitForEnd(seconds: 10) == .exited(status: 130))
        kill(process, SIGCONT)
        guest.output.skipToEnd()
        try guest.wait(for: "tick ", seconds: 30)
        #expect(try run.command(["cancel", "web"]).end == .exited(status: 0))
    }

    @Test("the source dies before the guest has left: status 81, and the waiting process says so by 84") func lost()
        throws
    {
        let (run, guest, waiting, move) = try slowMove()
        #expect(try run.command(["kill", "web"]).end == .exited(status: 0))
        #expect(try move.waitForEnd(seconds: 60) == .exited(status: 81))
        #expect(try waiting.waitForEnd(seconds: 60) == .exited(status: 84))
        _ = guest
    }

    @Test("the waiting process dies: status 80, and query-migrate keeps the reason") func rolledBack() throws {
        let (run, guest, waiting, move) = try slowMove()
        waiting.killAll()
        #expect(try move.waitForEnd(seconds: 60) == .exited(status: 80))
        let answer = try run.command(["qmp", "web", "query-migrate"]).output
        #expect(answer.contains(#""status": "failed""#) && answer.contains("error-desc"), "\(answer)")
        guest.output.skipToEnd()
        try guest.wait(for: "tick ", seconds: 30)
        _ = try run.command(["stop", "web"])
    }

    @Test("a console is attached to by name, takes what is typed, and is left by Ctrl-A D") func console() throws {
        let run = try MonitorRun()
        let start = try run.command(
            ["run", "--name", "web", "--firmware", Heartbeat.elf, "--memory", "64M", "--console", "unix", "--detach"])
        #expect(start.end == .exited(status: 0), "\(start.errors)")
        let console = try RunningProgram(
            Checkout.tool, ["console", "web"], name: "console", environment: run.environment)
        try console.wait(for: "tick ", seconds: 30)
        try console.type("p")
        #expect(try HeartbeatStatistics(console.wait(for: "stats ", seconds: 30)).bad == 0)
        console.killAll()
        if HostTools.path(of: "tmux") != nil {
            let screen = try TerminalScreen(
                [Checkout.tool, "console", "web"],
                environment: run.environment.merging(["PATH": HostTools.searchPath, "TERM": "screen"]) { $1 })
            _ = try screen.wait(for: "tick ")
            try screen.type("C-a", "d")
            #expect(try screen.wait(for: "[status 0]").contains("attached to web; Ctrl-A D detaches"))
        }
        #expect(try run.command(["status", "web"]).output == "web is running\n")
        #expect(try run.command(["stop", "web"]).end == .exited(status: 0))
    }
}
