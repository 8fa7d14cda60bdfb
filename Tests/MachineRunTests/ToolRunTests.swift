import LinuxCalls
import ProcessTestKit
import Testing

/// What `sidestep COMMAND` does with guests that run, each in a process of its own.
@Suite(
    "The tool's subcommands", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct ToolRunTests {
    static let done = ProcessEnd.exited(status: 0)

    @Test("a guest is found by name, inspected, paused, continued and stopped") func lifeCycle() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(name: "one")
        try guest.wait(for: "tick 2 ", seconds: 60)
        let list = try run.command(["list"])
        #expect(list.end == Self.done && list.output.contains("one  ") && list.output.contains("running"))
        #expect(try run.command(["list", "--format", "json"]).output.contains(#""status": "running""#))
        let facts = try run.command(["inspect", "one", "--format", "json"])
        #expect(facts.output.contains(#""memory": "64M""#))
        #expect(try run.command(["pause", "one"]).end == Self.done)
        #expect(try run.command(["status", "one"]).output == "one is paused\n")
        #expect(try run.command(["resume", "one"]).end == Self.done)
        #expect(try run.command(["qmp", "one", "query-status"]).output.contains(#""running": true"#))
        #expect(try run.command(["qmp", "one", "nosuch"]).end == .exited(status: 67))
        #expect(try run.command(["stop", "one"]).end == Self.done)
        #expect(try guest.waitForEnd(seconds: 30) == Self.done)
        #expect(try run.command(["list"]).output == "")
        #expect(try run.command(["pause", "one"]).end == .exited(status: 66))
    }

    @Test("a name is taken once; what a killed guest leaves behind is cleaned up") func names() throws {
        let run = try MonitorRun()
        let first = try run.heartbeat(name: "same")
        try first.wait(for: "tick 1 ", seconds: 60)
        let second = try run.heartbeat(name: "same")
        #expect(try second.waitForEnd(seconds: 30) == .exited(status: 65))
        #expect(second.errors.text.contains("same"))
        #expect(try run.command(["kill", "same"]).end == Self.done)
        _ = try first.waitForEnd(seconds: 30)
        let third = try run.heartbeat(name: "same")
        try third.wait(for: "tick 1 ", seconds: 60)
        #expect(try run.command(["stop", "same"]).end == Self.done)
    }

    @Test(
        "a guest moves to a waiting process and goes on ticking",
        arguments: [[], ["--capability", "unix-page-flipping"]])
    func migrate(more: [String]) throws {
        let run = try MonitorRun()
        let uri = "unix:" + run.directory.file("migration.sock")
        let source = try run.heartbeat(name: "source")
        try source.wait(for: "tick 5 ", seconds: 60)
        let destination = try run.heartbeat(["--incoming", "defer"], name: "destination")
        try Self.waitUntilListed("destination", run)
        if !more.isEmpty {
            let capabilities = #"{"capabilities": [{"capability": "unix-page-flipping", "state": true}]}"#
            #expect(
                try run.command(["qmp", "destination", "migrate-set-capabilities", capabilities]).end == Self.done)
        }
        #expect(try run.command(["qmp", "destination", "migrate-incoming", #"{"uri": "\#(uri)"}"#]).end == Self.done)
        let check = try run.command(["check", "source", uri] + more)
        #expect(check.end == Self.done, "\(check.output)")
        #expect(check.output.contains("RAM  ") && check.output.contains("64M at both ends"), "\(check.output)")
        let move = try run.command(["migrate", "source", uri] + more)
        #expect(move.end == Self.done, "\(move.errors)")
        #expect(move.output.contains("source has moved"))
        #expect(try source.waitForEnd(seconds: 30) == Self.done)
        try destination.wait(for: "tick ", seconds: 30)
        try destination.type("p")
        let statistics = try HeartbeatStatistics(destination.wait(for: "stats ", seconds: 30))
        #expect(statistics.bad == 0 && statistics.rounds > 0)
        try destination.type("7q")
        #expect(try destination.waitForEnd(seconds: 30) == .exited(status: 7))
    }

    @Test("a move to nowhere leaves the guest running and says so by its status") func rolledBack() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(name: "stays")
        try guest.wait(for: "tick 1 ", seconds: 60)
        let move = try run.command(["migrate", "stays", "unix:/nonexistent/socket"])
        #expect(move.end == .exited(status: 80))
        #expect(move.errors.contains("/nonexistent/socket") && move.errors.contains("runs on here"))
        #expect(try run.command(["check", "stays", "unix:/nonexistent/socket"]).end == .exited(status: 92))
        #expect(try run.command(["migrate", "stays", "pigeon:home"]).end == .exited(status: 65))
        try guest.wait(for: "tick ", seconds: 30)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == Self.done)
    }

    @Test("check tells what stands in the way, with the remedy, and its status says whose business it is") func check()
        throws
    {
        let run = try MonitorRun()
        let guest = try run.heartbeat(["--memory-backend", "anonymous"], name: "checked")
        try guest.wait(for: "tick 1 ", seconds: 60)
        let plain = try run.command(["check", "checked", "--format", "json"])
        #expect(plain.end == Self.done)
        for words in [
            "\"descriptors\"", "\"vmsplice\"", "\"userfaultfd\"", "start the guest with --memory-backend memfd",
        ] {
            #expect(plain.output.contains(words), "\(words): \(plain.output)")
        }
        // A destination with other RAM, processors and capabilities, found by its URI or named by its monitor.
        let uri = "unix:" + run.directory.file("migration.sock")
        let other = try run.start(
            ["--firmware", Heartbeat.elf, "--memory", "32M", "--cpus", "2", "--incoming", "defer"], name: "other")
        try Self.waitUntilListed("other", run)
        let flip = #"{"capabilities": [{"capability": "unix-page-flipping", "state": true}]}"#
        _ = try run.command(["qmp", "other", "migrate-set-capabilities", flip])
        _ = try run.command(["qmp", "other", "migrate-incoming", #"{"uri": "\#(uri)"}"#])
        let peer = "unix:" + run.directory.path + "/sidestep/other/qmp.sock"
        for more in [[], ["--peer", peer]] {
            let found = try run.command(["check", "checked", uri] + more)
            #expect(found.end == .exited(status: 92))
            for words in ["32M there, 64M here", "2 there, 1 here", "unix-page-flipping is on there and off here"] {
                #expect(found.output.contains(words), "\(words): \(found.output)")
            }
        }
        #expect(try run.command(["check", "checked", "file:/nonexistent/x"]).end == .exited(status: 92))
        #expect(try run.command(["check", "checked", "pigeon:home"]).end == .exited(status: 92))
        // This host: too few descriptors.
        let few = try HostTools.run(
            "sh", ["-c", "ulimit -n 64; exec '\(Checkout.tool)' check checked"], environment: run.environment)
        #expect(few.end == .exited(status: 91) && few.output.contains("ulimit -Hn"), "\(few.output)")
        // The guest: it is on its way in.
        #expect(try run.command(["check", "other"]).end == .exited(status: 90))
        #expect(try run.command(["check", "nobody"]).end == .exited(status: 66))
        _ = (other, try run.command(["stop", "other"]), try run.command(["stop", "checked"]))
    }

    @Test(
        "a saved guest comes back from its file as it was, which 'analyze' reads",
        arguments: [[], ["--mapped-ram"]])
    func saveAndRestore(more: [String]) throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(name: "saved")
        try guest.wait(for: "tick 10 ", seconds: 60)
        let file = run.directory.file("guest.stream")
        let save = try run.command(["save", "saved", file] + more)
        #expect(save.end == Self.done, "\(save.errors)")
        let report = try run.command(["analyze", file, "--format", "json"])
        #expect(report.end == Self.done && report.output.contains("riscv_virt_board.ram"), "\(report.errors)")
        #expect(report.output.contains("mapped-ram") == !more.isEmpty, "\(report.output.prefix(2000))")
        #expect(try guest.waitForEnd(seconds: 30) == Self.done)
        let back = try RunningProgram(
            Checkout.tool, ["restore", file, "--name", "back"], name: "back", environment: run.environment)
        try back.wait(for: "tick ", seconds: 30)
        #expect(!back.output.text.contains("heartbeat harts="))  // it did not start anew
        try back.type("p")
        #expect(try HeartbeatStatistics(back.wait(for: "stats ", seconds: 30)).bad == 0)
        try back.type("q")
        #expect(try back.waitForEnd(seconds: 30) == Self.done)
    }

    @Test(
        "a disk that is full in the middle of a save leaves the guest running, and the next save works",
        arguments: [[], ["--mapped-ram"]])
    func fullDisk(more: [String]) throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(name: "cramped")
        try guest.wait(for: "tick 5 ", seconds: 60)
        let facts = try run.command(["qmp", "cramped", "x-sidestep-inspect"]).output
        let process = try #require(facts.firstMatch(of: /"process": ([0-9]+)/)).1
        func limit(_ text: String) throws {
            _ = try HostTools.need("prlimit", ["--pid", String(process), "--fsize=\(text)"])
        }
        // What this process writes into a file may be a megabyte long.
        try limit("1048576:unlimited")
        let file = run.directory.file("guest.stream")
        let save = try run.command(["save", "cramped", file] + more)
        #expect(save.end == .exited(status: 80), "\(save.output) \(save.errors)")
        #expect(save.errors.contains("runs on here") && save.errors.contains("too large"), "\(save.errors)")
        guest.output.skipToEnd()
        try guest.wait(for: "tick ", seconds: 30)
        try guest.type("p")
        #expect(try HeartbeatStatistics(guest.wait(for: "stats ", seconds: 30)).bad == 0)
        try limit("unlimited")
        #expect(try run.command(["save", "cramped", file] + more).end == Self.done)
        _ = try guest.waitForEnd(seconds: 30)
        let back = try RunningProgram(
            Checkout.tool, ["restore", file, "--name", "back"], name: "back", environment: run.environment)
        try back.wait(for: "tick ", seconds: 30)
        try back.type("q")
        #expect(try back.waitForEnd(seconds: 30) == Self.done)
    }

    @Test("a configuration file says what flags say, and inspect's is one") func configurationFile() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(name: "first")
        try guest.wait(for: "tick 1 ", seconds: 60)
        let facts = try run.command(["qmp", "first", "x-sidestep-inspect"]).output
        #expect(facts.contains("configuration"))
        try guest.type("q")
        _ = try guest.waitForEnd(seconds: 30)
        let text = #"{"firmware": "\#(Heartbeat.elf)", "memory": "64M", "cpus": 2, "name": "file"}"#
        let file = try run.directory.write(Array(text.utf8), to: "guest.json")
        let second = try RunningProgram(
            Checkout.tool, ["run", "--config", file, "--cpus", "1", "--console", "stdio"], name: "second",
            environment: run.environment)
        try second.wait(for: "heartbeat harts=1", seconds: 60)  // flags win
        try second.type("q")
        #expect(try second.waitForEnd(seconds: 30) == Self.done)
        let toml = "firmware = \"\(Heartbeat.elf)\"\nmemory = \"64M\"\nname = \"toml\"\n"
        let third = try RunningProgram(
            Checkout.tool, ["run", "--config", try run.directory.write(Array(toml.utf8), to: "guest.toml")],
            name: "third", environment: run.environment)
        try third.wait(for: "tick 1 ", seconds: 60)
        let inspected = try run.command(["inspect", "toml", "--format", "json"]).output
        #expect(inspected.contains("\"memory\": \"64M\"") && inspected.contains("\"cpus\": 1"))
        let threads = try run.command(["qmp", "toml", "query-cpus-fast"]).output
        let thread = try #require(threads.firstMatch(of: /"thread-id": ([0-9]+)/)?.1)
        let name = try HostTools.need(
            "sh", ["-c", "cat /proc/$(cat '\(run.directory.path)/sidestep/toml/pid')/task/\(thread)/comm"])
        #expect(name == "hart 0\n")
        try third.type("q")
        #expect(try third.waitForEnd(seconds: 30) == Self.done)
        let wrong = try run.directory.write(Array(#"{"memory": 5, "frobnicate": 1}"#.utf8), to: "wrong.json")
        let refused = try run.command(["run", "--config", wrong])
        #expect(refused.end == .exited(status: 64) && refused.errors.contains("frobnicate"))
    }

    @Test("in the background it runs until it is stopped, and a refusal is told") func detached() throws {
        let run = try MonitorRun()
        let flags = ["--firmware", Heartbeat.elf, "--memory", "64M", "--detach"]
        let start = try run.command(["run", "--name", "behind"] + flags)
        #expect(start.end == Self.done, "\(start.errors)")
        #expect(start.output == "behind\n")
        #expect(try run.command(["status", "behind"]).output == "behind is running\n")
        let again = try run.command(["run", "--name", "behind"] + flags)
        #expect(again.end == .exited(status: 65) && again.errors.contains("behind"))
        let wrong = try run.command(["run", "--name", "other", "--firmware", "/nonexistent/firmware", "--detach"])
        #expect(wrong.end == .exited(status: 65) && wrong.errors.contains("/nonexistent/firmware"))
        #expect(try run.command(["stop", "behind"]).end == Self.done)
        #expect(try run.command(["list"]).output == "")
    }

    @Test("the help of every subcommand is what it was", arguments: HelpText.subcommands)
    func help(subcommand: String) throws {
        let run = try MonitorRun()
        let help = try HostTools.run(
            Checkout.tool, ["help"] + subcommand.split(separator: " ").map(String.init),
            environment: run.environment.merging(["COLUMNS": "80"]) { $1 })
        #expect(help.end == Self.done)
        #expect(help.output == (try HelpText.golden(subcommand, now: help.output)))
    }

    /// Until `sidestep list` shows a guest; it is there once its QMP socket answers.
    static func waitUntilListed(_ name: String, _ run: MonitorRun) throws {
        for _ in 0..<600 {
            if try run.command(["status", name]).end == done { return }
            _ = try HostTools.run("sleep", ["0.05"])
        }
        Issue.record("\(name) does not appear")
    }
}

/// Golden help texts in `Tests/Tools/help`. `SIDESTEP_RECORD=1` writes them anew.
enum HelpText {
    static let subcommands = [
        "", "run", "list", "inspect", "console", "pause", "resume", "stop", "kill", "status", "migrate", "receive",
        "bridge", "cancel",
        "check",
        "save", "restore", "upgrade", "qemu", "qemu upgrade", "qemu check", "qmp", "analyze", "completion",
        "exit-status",
    ]

    static func golden(_ subcommand: String, now: String) throws -> String {
        let path = "\(Checkout.root)/Tests/Tools/help/\(subcommand.isEmpty ? "sidestep" : subcommand).txt"
        if Environment.all["SIDESTEP_RECORD"] != nil {
            let file = try OwnedDescriptor.open(path, flags: 0o1101, mode: 0o644)  // write, create, truncate
            try file.writeAll(Array(now.utf8))
        }
        return try HostTools.need("cat", [path])
    }
}
