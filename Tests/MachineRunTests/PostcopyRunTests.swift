import LinuxCalls
import ProcessTestKit
import Testing

@Suite(
    "sidestep migrate --postcopy", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct PostcopyRunTests {
    static let done = ProcessEnd.exited(status: 0)

    private func pair(_ run: MonitorRun, _ more: [String] = []) throws -> (
        source: RunningProgram, destination: RunningProgram, uri: String
    ) {
        let uri = "unix:" + run.directory.file("migration.sock")
        let source = try run.heartbeat(more, name: "source")
        try source.wait(for: "tick 5 ", seconds: 60)
        let destination = try run.heartbeat(more + ["--incoming", "defer"], name: "destination")
        try ToolRunTests.waitUntilListed("destination", run)
        return (source, destination, uri)
    }

    private func qmp(_ run: MonitorRun, _ guest: String, _ command: String, _ arguments: String = "{}") throws {
        let answer = try run.command(["qmp", guest, command, arguments])
        #expect(answer.end == Self.done, "\(command): \(answer.errors)")
    }

    private func waitFor(_ text: String, _ guest: String, _ run: MonitorRun) throws {
        for _ in 0..<600 {
            if try run.command(["status", guest]).output.contains(text) { return }
            _ = try HostTools.run("sleep", ["0.05"])
        }
        Issue.record("\(guest): \(text) does not come, but \(try run.command(["status", guest]).output)")
    }

    private func isWhole(_ guest: RunningProgram) throws {
        guest.output.skipToEnd()
        try guest.wait(for: "tick ", seconds: 30)
        try guest.type("p")
        let statistics = try HeartbeatStatistics(guest.wait(for: "stats ", seconds: 30))
        #expect(statistics.bad == 0 && statistics.rounds > 0)
    }

    @Test(
        "a guest moves, ticks on, and its memory holds",
        arguments: [[], ["--capability", "unix-page-flipping"], ["--capability", "release-ram"]],
        ["memfd", "anonymous"])
    func moves(more: [String], backend: String) throws {
        let run = try MonitorRun()
        let (source, destination, uri) = try pair(run, ["--memory-backend", backend, "--cpus", "2"])
        if more.contains("unix-page-flipping") {
            try qmp(
                run, "destination", "migrate-set-capabilities",
                #"{"capabilities": [{"capability": "unix-page-flipping", "state": true}]}"#)
        }
        try qmp(run, "destination", "migrate-incoming", #"{"uri": "\#(uri)"}"#)
        let move = try run.command(["migrate", "source", uri, "--postcopy"] + more)
        #expect(move.end == Self.done, "\(move.errors)")
        #expect(try source.waitForEnd(seconds: 30) == Self.done)
        try isWhole(destination)
        try destination.type("7q")
        #expect(try destination.waitForEnd(seconds: 30) == .exited(status: 7))
    }

    @Test("a machine that is built from the stream refuses a postcopy before a page moves, and takes the guest without")
    func receiveRefuses() throws {
        let run = try MonitorRun()
        let source = try run.heartbeat([], name: "source")
        try source.wait(for: "tick 5 ", seconds: 60)
        func receiver(_ uri: String) throws -> RunningProgram {
            let receiver = try RunningProgram(
                Checkout.tool, ["receive", "received", uri, "--console", "stdio"], name: "received",
                environment: run.environment)
            try receiver.errors.wait(for: "waiting for the guest", seconds: 30)
            return receiver
        }
        let uri = "unix:" + run.directory.file("received.sock")
        let refusing = try receiver(uri)
        let refused = try run.command(["migrate", "source", uri, "--postcopy"])
        #expect(refused.end == .exited(status: 80), "\(refused.errors)")
        #expect(try refusing.waitForEnd(seconds: 30) == .exited(status: 84))
        try refusing.errors.wait(for: "postcopy-ram is on at the source", seconds: 10)
        try isWhole(source)
        // What was switched on for a postcopy is off again: the next attempt is a plain one.
        let taking = try receiver(uri)
        let move = try run.command(["migrate", "source", uri])
        #expect(move.end == Self.done, "\(move.errors)")
        try isWhole(taking)
        try taking.type("7q")
        #expect(try taking.waitForEnd(seconds: 30) == .exited(status: 7))
    }

    /// A postcopy so slow that it is not over while a test looks at it.
    private func beginSlowly(_ run: MonitorRun, _ uri: String) throws {
        try qmp(run, "destination", "migrate-incoming", #"{"uri": "\#(uri)"}"#)
        try qmp(
            run, "source", "migrate-set-capabilities",
            #"{"capabilities": [{"capability": "postcopy-ram", "state": true}]}"#)
        try qmp(
            run, "source", "migrate-set-parameters", #"{"max-bandwidth": 65536, "max-postcopy-bandwidth": 40000}"#)
        try qmp(run, "source", "migrate", #"{"uri": "\#(uri)"}"#)
        try qmp(run, "source", "migrate-start-postcopy")
        try waitFor("postcopy-active", "source", run)
    }

    @Test("a channel that is broken off is recovered with the words that the tool gives") func recovers() throws {
        let run = try MonitorRun()
        let (source, destination, uri) = try pair(run)
        try beginSlowly(run, uri)
        let cancel = try run.command(["cancel", "source"])
        #expect(cancel.end != Self.done && cancel.errors.contains("the guest runs at the destination already"))
        try qmp(run, "source", "migrate-pause")
        try waitFor("postcopy-paused", "source", run)
        try waitFor("postcopy-paused", "destination", run)
        // The monitor answers, whatever the guest waits for.
        #expect(try run.command(["qmp", "destination", "query-status"]).output.contains("running"))
        let other = "unix:" + run.directory.file("recovery.sock")
        try qmp(run, "destination", "migrate-recover", #"{"uri": "\#(other)"}"#)
        try qmp(run, "source", "migrate-set-parameters", #"{"max-postcopy-bandwidth": 0}"#)
        let resume = try run.command(["migrate", "source", other, "--resume"])
        #expect(resume.end == Self.done, "\(resume.errors)")
        #expect(try source.waitForEnd(seconds: 30) == Self.done)
        try isWhole(destination)
        try destination.type("q")
        #expect(try destination.waitForEnd(seconds: 30) == Self.done)
    }

    @Test("when the destination is killed after the switch the source says where the guest was, and does not run it")
    func destinationKilled() throws {
        let run = try MonitorRun()
        let (source, destination, uri) = try pair(run)
        try beginSlowly(run, uri)
        #expect(try run.command(["kill", "destination"]).end == Self.done)
        _ = try destination.waitForEnd(seconds: 30)
        try waitFor("postcopy-paused", "source", run)
        #expect(try run.command(["resume", "source"]).end != Self.done)
        #expect(try run.command(["stop", "source"]).end == Self.done)
        try source.waitForEnd(seconds: 30)
    }

    @Test("when the source is killed after the switch the destination waits, and ends as lost when it is told to")
    func sourceKilled() throws {
        let run = try MonitorRun()
        let (source, destination, uri) = try pair(run)
        try beginSlowly(run, uri)
        #expect(try run.command(["kill", "source"]).end == Self.done)
        _ = try source.waitForEnd(seconds: 30)
        try waitFor("postcopy-paused", "destination", run)
        _ = try run.command(["stop", "destination"])
        #expect(try destination.waitForEnd(seconds: 30) == .exited(status: 81))
        try destination.errors.wait(for: "the guest is lost", seconds: 10)
    }
}
