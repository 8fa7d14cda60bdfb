import LinuxCalls
import ProcessTestKit
import QMPProtocol
import Testing

@Suite(
    "RAM in a file that has a name", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct SharedFileTests {
    private static let ignoreShared = #"{"capabilities": [{"capability": "x-ignore-shared", "state": true}]}"#

    /// A process that waits for the guest, with that memory.
    private func waiting(_ run: MonitorRun, _ name: String, at socket: String, memory: String) throws -> RunningProgram
    {
        let program = try RunningProgram(
            Checkout.tool,
            [
                "run", "--name", name, "--console", "stdio", "--memory", "64M", "--memory-backend", memory,
                "--incoming", "unix:\(socket)",
            ], name: name, environment: run.environment)
        try waitForSocket(socket)
        return program
    }

    @Test("whoever has the same file takes the guest without a page sent, and it can be upgraded in place too")
    func moves() throws {
        let run = try MonitorRun()
        let memory = "file:\(run.directory.file("ram"))"
        var guest = try run.heartbeat(["--memory-backend", memory], name: "guest0")
        try guest.wait(for: "tick 2 ", seconds: 60)
        try guest.type("50t1000d")
        for round in 1...3 {
            let socket = run.directory.file("main\(round)")
            let next = try waiting(run, "guest\(round)", at: socket, memory: memory)
            #expect(
                try run.command(["qmp", "guest\(round)", "migrate-set-capabilities", Self.ignoreShared]).end
                    == .exited(status: 0))
            let move = try run.command(
                [
                    "migrate", "guest\(round - 1)", "unix:\(socket)", "--capability", "x-ignore-shared", "--capability",
                    "return-path", "--format", "json",
                ])
            #expect(move.end == .exited(status: 0), "\(move.errors)")
            let answer = try JSONValue.parse(String(move.output.split(separator: "\n").last ?? ""))
            // Nothing of RAM: what goes is the boot ROM.
            #expect(answer["ram"]?["normal"]?.unsignedValue ?? .max < 16, "\(move.output)")
            #expect(answer["x-channel-kind"] == "shared" && answer["x-extra-memory"] == 0, "\(move.output)")
            try guest.waitForEnd(seconds: 30)
            guest = next
            try guest.wait(for: "tick ", seconds: 30)
            let upgrade = try run.command(["upgrade", "guest\(round)", "--format", "json"])
            #expect(upgrade.end == .exited(status: 0) && upgrade.output.contains(#""memfd""#), "\(upgrade)")
            guest.output.skipToEnd()
            try guest.wait(for: "tick ", seconds: 30)
        }
        try guest.type("p")
        #expect(try HeartbeatStatistics(guest.wait(for: "stats ", seconds: 30)).bad == 0)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
        #expect(try FileNames.status(of: run.directory.file("ram")).byteCount == 64 << 20)
    }

    @Test("a file that does not fit or is in use is refused by name; the guest runs on, and the next attempt works")
    func refused() throws {
        let run = try MonitorRun()
        let memory = "file:\(run.directory.file("ram"))"
        let guest = try run.heartbeat(["--memory-backend", memory])
        try guest.wait(for: "tick 2 ", seconds: 60)
        try run.directory.write(Array("small".utf8), to: "small")
        for (backend, words) in [
            (memory, "is the memory of another guest that is here"),
            ("file:\(run.directory.path)", "Is a directory"),
            ("file:/dev/null", "not a regular file"),
            ("file:\(run.directory.file("small"))", "(it has 5 bytes, the guest's RAM 67108864)"),
            ("file:", "none of memfd, anonymous, file:PATH"),
        ] {
            let other = try run.command(
                ["run", "--name", "other", "--console", "null", "--memory", "64M", "--memory-backend", backend]
                    + ["--firmware", Heartbeat.elf])
            #expect(other.end != .exited(status: 0) && other.errors.contains(words), "\(backend): \(other)")
        }
        for channel in ["page-flip", "socket"] {
            let upgrade = try run.command(["upgrade", "guest", "--channel", channel])
            #expect(upgrade.end == .exited(status: 80) && upgrade.errors.contains("use --channel memfd"), "\(upgrade)")
        }
        // Sent as if the other end had memory of its own, pages would be written over what the guest uses.
        let socket = run.directory.file("main")
        let next = try waiting(run, "next", at: socket, memory: memory)
        let move = try run.command(["migrate", "guest", "unix:\(socket)", "--capability", "return-path"])
        #expect(move.end == .exited(status: 80) && move.errors.contains("runs on here"), "\(move)")
        #expect(try next.waitForEnd(seconds: 30) == .exited(status: 84))
        try next.errors.wait(for: "switch x-ignore-shared on at both ends", seconds: 10)
        guest.output.skipToEnd()
        try guest.wait(for: "tick ", seconds: 30)
        // One end alone has it on.
        let last = try waiting(run, "last", at: socket, memory: memory)
        let half = try run.command(
            ["migrate", "guest", "unix:\(socket)", "--capability", "x-ignore-shared", "--capability", "return-path"])
        #expect(half.end == .exited(status: 80) && half.errors.contains("runs on here"), "\(half)")
        #expect(try last.waitForEnd(seconds: 30) == .exited(status: 84))
        try last.errors.wait(for: "switch x-ignore-shared on at both ends", seconds: 10)
        let final = try waiting(run, "final", at: socket, memory: memory)
        _ = try run.command(["qmp", "final", "migrate-set-capabilities", Self.ignoreShared])
        let moved = try run.command(["migrate", "guest", "unix:\(socket)", "--capability", "x-ignore-shared", "--keep"])
        #expect(moved.end == .exited(status: 0), "\(moved.errors)")
        try final.wait(for: "tick ", seconds: 30)
        let again = try run.command(["resume", "guest"])
        #expect(again.end != .exited(status: 0) && again.errors.contains("given away"), "\(again)")
        try final.type("p")
        #expect(try HeartbeatStatistics(final.wait(for: "stats ", seconds: 30)).bad == 0)
    }
}
