import LinuxCalls
import ProcessTestKit
import Testing

@Suite(
    "The heartbeat guest under the tool", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct HeartbeatRunTests {
    @Test("it ticks, its memory holds, and its finisher's status is the tool's", arguments: [1, 2, 4, 8], [0, 7])
    func ticksAndPowersOff(harts: Int, status: Int) throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(["--cpus", "\(harts)"])
        try guest.wait(for: "heartbeat harts=\(harts) ram=67108864", seconds: 30)
        try guest.wait(for: "tick 10 ", seconds: 60)
        try guest.type("p")
        let statistics = try HeartbeatStatistics(guest.wait(for: "stats ", seconds: 30))
        #expect(statistics.bad == 0)
        #expect(statistics.rounds > 0 && statistics.writes > 0)
        try guest.type("\(status)q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: Int32(status)))
        #expect(!guest.output.text.contains("BAD"))
        #expect(guest.errors.text.isEmpty)
    }

    @Test("a flat binary runs like the ELF file it was made from")
    func flatBinary() throws {
        let run = try MonitorRun()
        let guest = try run.start(["--firmware", Heartbeat.flat, "--memory", "64M"])
        try guest.wait(for: "tick 3 ", seconds: 60)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test("reset starts it anew", arguments: [1, 4])
    func reset(harts: Int) throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(["--cpus", "\(harts)"])
        for _ in 0..<3 {
            try guest.wait(for: "heartbeat harts=\(harts)", seconds: 30)
            try guest.wait(for: "tick 3 ", seconds: 60)
            try guest.type("r")
        }
        try guest.wait(for: "tick 0 ", seconds: 30)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
        #expect(!guest.output.text.contains("BAD"))
    }

    @Test("all of RAM can be written and holds", arguments: ["anonymous", "memfd"])
    func allOfRAM(backend: String) throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(["--memory-backend", backend, "--cpus", "2"])
        try guest.wait(for: "tick 1 ", seconds: 60)
        try guest.type("1000000m5000d")
        try guest.wait(for: "tick 15 ", seconds: 60)
        try guest.type("z")
        var rounds = 0
        while rounds < 4 {
            try guest.type("p")
            let statistics = try HeartbeatStatistics(guest.wait(for: "stats ", seconds: 60))
            #expect(statistics.bad == 0)
            rounds = statistics.rounds
            try guest.wait(for: "tick ", seconds: 60)
        }
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test("guests run side by side")
    func sideBySide() throws {
        let run = try MonitorRun()
        let guests = try (0..<8).map { try run.heartbeat(name: "guest\($0)") }
        for guest in guests { try guest.wait(for: "tick 5 ", seconds: 90) }
        for guest in guests { try guest.type("q") }
        for guest in guests { #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0)) }
    }
}
