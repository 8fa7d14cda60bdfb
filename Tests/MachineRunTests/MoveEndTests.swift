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
        let move = try RunningProgram(
            Checkout.tool,
            ["migrate", "web", uri, "--parameter", "max-bandwidth=20000", "--parameter", "downtime-limit=1"],
            name: "migrate", environment: run.environment)
        try move.errors.wait(for: "% active", seconds: 60)
        return (run, guest, waiting, move)
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
        #expect(try run.command(["migrate", "web", uri, "--parameter", "max-bandwidth=0"]).end == .exited(status: 0))
        again.output.skipToEnd()
        try again.wait(for: "tick ", seconds: 30)
        try again.type("q")
        #expect(try again.waitForEnd(seconds: 30) == .exited(status: 0))
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
