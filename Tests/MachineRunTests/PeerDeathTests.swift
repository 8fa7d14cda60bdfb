import LinuxCalls
import ProcessTestKit
import Testing

@Suite(
    "The other process dies in the middle of a move", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct PeerDeathTests {
    private static let done = ProcessEnd.exited(status: 0)

    /// A capability of the channel; none is the socket alone.
    enum Way: String, CaseIterable, Sendable {
        case socket, multifd
        case flip = "unix-page-flipping"

        var capabilities: [String] { ["return-path"] + (self == .socket ? [] : [rawValue]) }
    }

    private func destination(_ run: MonitorRun, _ name: String, _ uri: String, _ way: Way) throws -> RunningProgram {
        let program = try run.heartbeat(["--incoming", "defer"], name: name)
        try ToolRunTests.waitUntilListed(name, run)
        let capabilities = way.capabilities.map { #"{"capability": "\#($0)", "state": true}"# }.joined(separator: ", ")
        #expect(
            try run.command(["qmp", name, "migrate-set-capabilities", #"{"capabilities": [\#(capabilities)]}"#]).end
                == Self.done)
        #expect(try run.command(["qmp", name, "migrate-incoming", #"{"uri": "\#(uri)"}"#]).end == Self.done)
        return program
    }

    @Test(
        "the guest runs on here, whole, nothing of the move is left, and the next one works", arguments: Way.allCases)
    func killed(way: Way) throws {
        let run = try MonitorRun()
        let source = try run.heartbeat(["--append", "pages=2000 dirty=2000"], name: "source")
        try source.wait(for: "tick 5 ", seconds: 60)
        let facts = try run.command(["qmp", "source", "x-sidestep-inspect"]).output
        let process = try #require(facts.firstMatch(of: /"process": ([0-9]+)/)).1
        func held() throws -> (descriptors: Int, threads: Int) {
            func count(_ directory: String) throws -> Int {
                try HostTools.need("ls", ["/proc/\(process)/\(directory)"]).split(separator: "\n").count
            }
            return (try count("fd"), try count("task"))
        }
        let before = try held()
        // Without rounds before the stop a page flip would be over at once.
        let flags =
            way.capabilities.flatMap { ["--capability", $0] }
            + (way == .flip ? ["--parameter", "x-strategy=precopy"] : [])
        for round in 0..<3 {
            let path = run.directory.file("socket\(round)")
            let other = try destination(run, "other\(round)", "unix:\(path)", way)
            let move = try RunningProgram(
                Checkout.tool,
                [
                    "migrate", "source", "unix:\(path)", "--parameter", "max-bandwidth=1048576", "--parameter",
                    "downtime-limit=1",
                ]
                    + flags, name: "migrate", environment: run.environment)
            try HostTools.need(
                "sh",
                [
                    "-c",
                    "until XDG_RUNTIME_DIR=\(run.directory.path) \(Checkout.tool) qmp source query-migrate | grep -q active; do "
                        + "sleep 0.02; done",
                ], seconds: 30)
            #expect(try run.command(["kill", "other\(round)"]).end == Self.done)
            #expect(try move.waitForEnd(seconds: 30) == .exited(status: 80), "\(move.errors.text)")
            _ = try other.waitForEnd(seconds: 30)
            source.output.skipToEnd()
            try source.wait(for: "tick ", seconds: 30)
        }
        let after = try held()
        #expect(
            after.descriptors <= before.descriptors + 1 && after.threads <= before.threads + 1, "\(before) \(after)")
        let path = run.directory.file("last")
        let last = try destination(run, "last", "unix:\(path)", way)
        let move = try run.command(
            [
                "migrate", "source", "unix:\(path)", "--parameter", "max-bandwidth=100G", "--parameter",
                "downtime-limit=300",
            ]
                + flags)
        #expect(move.end == Self.done, "\(move.errors)")
        try last.wait(for: "tick ", seconds: 30)
        try last.type("p")
        #expect(try HeartbeatStatistics(last.wait(for: "stats ", seconds: 30)).bad == 0)
        try last.type("q")
        #expect(try last.waitForEnd(seconds: 30) == Self.done)
    }
}
