import Foundation
import Glibc
import LinuxCalls
import ProcessTestKit
import Testing

@Suite(
    "sidestep migrate, RAM by descriptor (cpr-transfer)", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct CPRTransferTests {
    private func channel(_ path: String) -> String {
        #"{"channel-type": "cpr", "addr": {"transport": "socket", "type": "unix", "path": "\#(path)"}}"#
    }

    @Test("a guest goes to a machine that waits for it, and on to another; no page is sent, none is wrong")
    func moves() throws {
        let run = try MonitorRun()
        var guest = try run.heartbeat(["--cpus", "2"], name: "guest0")
        try guest.wait(for: "tick 2 ", seconds: 60)
        try guest.type("50t1000d")
        for round in 1...3 {
            let (main, cpr) = (run.directory.file("main\(round)"), run.directory.file("cpr\(round)"))
            let next = try RunningProgram(
                Checkout.tool,
                [
                    "run", "--name", "guest\(round)", "--console", "stdio", "--memory", "64M", "--cpus", "2",
                    "--incoming", "unix:\(main)", "--incoming", channel(cpr),
                ], name: "guest", environment: run.environment)
            try waitForSocket(cpr)
            let move = try run.command(
                ["migrate", "guest\(round - 1)", "unix:\(main)", "--cpr", "unix:\(cpr)", "--format", "json"])
            #expect(move.end == .exited(status: 0), "\(move.errors)")
            #expect(move.output.contains(#""normal": 0"#) && move.output.contains(#""duplicate": 0"#), "\(move.output)")
            try guest.waitForEnd(seconds: 30)
            guest = next
            try guest.wait(for: "tick ", seconds: 30)
        }
        try guest.type("p")
        #expect(try HeartbeatStatistics(guest.wait(for: "stats ", seconds: 30)).bad == 0)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test("what cannot be is refused, the guest runs on, and the next attempt works")
    func refused() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat()
        let anonymous = try run.heartbeat(["--memory-backend", "anonymous"], name: "anonymous")
        try guest.wait(for: "tick 1 ", seconds: 60)
        try anonymous.wait(for: "tick 1 ", seconds: 60)
        let (main, cpr) = (run.directory.file("main"), run.directory.file("cpr"))
        func waiting(_ more: [String] = ["--memory", "64M"]) throws -> RunningProgram {
            let next = try RunningProgram(
                Checkout.tool,
                [
                    "run", "--name", "next", "--console", "stdio", "--incoming", "unix:\(main)", "--incoming",
                    channel(cpr),
                ] + more, name: "next", environment: run.environment)
            try waitForSocket(cpr)
            return next
        }
        // Nobody there.
        let nobody = try run.command(["migrate", "guest", "unix:\(main)", "--cpr", "unix:\(cpr)"])
        #expect(nobody.end == .exited(status: 80) && nobody.errors.contains("runs on here"), "\(nobody)")
        // Another size.
        let other = try waiting(["--memory", "32M"])
        let size = try run.command(["migrate", "guest", "unix:\(main)", "--cpr", "unix:\(cpr)"])
        #expect(size.end == .exited(status: 80), "\(size)")
        #expect(try other.waitForEnd(seconds: 30) == .exited(status: 65))
        try other.errors.wait(for: "RAM block riscv_virt_board.ram has 64M, 32M here", seconds: 30)
        // No descriptor to hand over.
        let third = try waiting()
        let none = try run.command(["migrate", "anonymous", "unix:\(main)", "--cpr", "unix:\(cpr)"])
        #expect(none.end == .exited(status: 80) && none.errors.contains("--memory-backend memfd"), "\(none)")
        #expect(try third.waitForEnd(seconds: 30) == .exited(status: 84))
        // The mode without its channel, and the other way round.
        let mode = try run.command(["migrate", "guest", "unix:\(main)", "--parameter", "mode=cpr-transfer"])
        #expect(mode.end == .exited(status: 65) && mode.errors.contains("missing 'cpr'"), "\(mode)")
        // A second try to the same guest, and one that is not to be a runner any more.
        let last = try waiting()
        let moved = try run.command(["migrate", "guest", "unix:\(main)", "--cpr", "unix:\(cpr)", "--keep"])
        #expect(moved.end == .exited(status: 0), "\(moved.errors)")
        try last.wait(for: "tick ", seconds: 30)
        let again = try run.command(["resume", "guest"])
        #expect(again.end != .exited(status: 0) && again.errors.contains("given away"), "\(again)")
        try last.type("p")
        #expect(try HeartbeatStatistics(last.wait(for: "stats ", seconds: 30)).bad == 0)
        anonymous.output.skipToEnd()
        try anonymous.wait(for: "tick ", seconds: 30)
    }

    @Test("a destination that hangs with the descriptors can be called off, and nothing happened to the guest")
    func cancelled() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat()
        try guest.wait(for: "tick 1 ", seconds: 60)
        let cpr = run.directory.file("cpr")
        let listener = try StreamSocket.listen(at: .unix(path: cpr))
        let move = try RunningProgram(
            Checkout.tool, ["migrate", "guest", "unix:\(run.directory.file("main"))", "--cpr", "unix:\(cpr)"],
            name: "migrate", environment: run.environment)
        let silent = try StreamSocket.accept(from: listener)
        #expect(try run.command(["cancel", "guest"]).end == .exited(status: 0))
        #expect(try move.waitForEnd(seconds: 30) == .exited(status: 82), "\(move.errors.text)")
        guest.output.skipToEnd()
        try guest.wait(for: "tick ", seconds: 30)
        _ = silent
        #expect(try run.upgrade().channel == "memfd")
        try guest.wait(for: "tick ", seconds: 30)
    }
}
