import LinuxCalls
import ProcessTestKit
import Testing

/// The guest itself, on a machine that is not ours: what it tells can be believed.
@Suite(
    "The heartbeat guest on stock QEMU", .serialized,
    .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct HeartbeatOnQEMUTests {
    func start(harts: Int, more: [String] = []) throws -> RunningProgram {
        try RunningProgram(
            StockQEMUBuild.installed,
            [
                "-M", "virt", "-m", "64M", "-smp", "\(harts)", "-display", "none", "-monitor", "none", "-serial",
                "stdio", "-bios", Heartbeat.elf,
            ] + more, name: "heartbeat", limitSeconds: 120)
    }

    @Test("it ticks, checks its memory and powers off with the status asked for", arguments: [1, 4])
    func ticksAndPowersOff(harts: Int) throws {
        let guest = try start(harts: harts)
        try guest.wait(for: "heartbeat harts=\(harts) ram=67108864", seconds: 30)
        try guest.wait(for: "tick 5 ", seconds: 60)
        try guest.type("p")
        let statistics = try HeartbeatStatistics(guest.wait(for: "stats ", seconds: 30))
        #expect(statistics.bad == 0)
        #expect(statistics.rounds > 0 && statistics.harts == harts)
        try guest.type("7q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 7))
        #expect(!guest.output.text.contains("BAD"))
    }

    @Test("it starts anew on reset")
    func resets() throws {
        let guest = try start(harts: 2)
        try guest.wait(for: "tick 2 ", seconds: 60)
        try guest.type("r")
        try guest.wait(for: "heartbeat harts=2", seconds: 30)
        try guest.wait(for: "tick 0 ", seconds: 30)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test("it says BAD when one byte of its memory is changed behind its back")
    func noticesChange() throws {
        let directory = try TemporaryDirectory()
        let debugger = directory.file("gdb")
        let guest = try start(harts: 1, more: ["-gdb", "unix:\(debugger),server=on,wait=off"])
        try guest.wait(for: "tick 1 ", seconds: 60)
        try guest.type("0d")  // a page that is rewritten is right again
        try guest.wait(for: "tick 3 ", seconds: 60)
        // QEMU's debugger interface writes guest memory; the pages lie behind image, shared page and table.
        let socket = try StreamSocket.connect(to: .unix(path: debugger))
        for command in ["?", "M80030010,1:5a", "D"] {
            let sum = command.utf8.reduce(0) { ($0 + Int($1)) & 255 }
            let digits = "0123456789abcdef".map { $0 }
            try socket.writeAll(Array("+$\(command)#\(digits[sum >> 4])\(digits[sum & 15])".utf8))
        }
        try guest.wait(for: "BAD page", seconds: 30)
    }
}
