import Foundation
import Glibc
import LinuxCalls
import ProcessTestKit
import Testing

/// How RAM is sent when it does not cross by descriptor.
struct Sending: Sendable, CustomTestStringConvertible {
    let channel: String
    let strategy: String
    var arguments: [String] { ["--channel", channel, "--strategy", strategy] }
    var testDescription: String { "\(channel), \(strategy)" }

    static let all = ["page-flip", "socket"].flatMap { channel in
        ["stop-and-flip", "precopy"].map { Sending(channel: channel, strategy: $0) }
    }
    static let flip = Sending(channel: "page-flip", strategy: "stop-and-flip")
}

@Suite(
    "sidestep upgrade, RAM by page flip and socket", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct ChannelTests {
    /// What the guest works on: enough for the engine's pieces to be many.
    private static let workload = "50t2000d6000m"
    private static let anonymous = ["--memory-backend", "anonymous"]

    private func start(_ run: MonitorRun, _ more: [String] = [], fault: String? = nil) throws -> RunningProgram {
        var environment = run.environment
        environment["SIDESTEP_HANDOVER_FAULT"] = fault
        // What happens while memory crosses has to find it crossing still: more of it, then.
        let isInMemory = fault?.contains("memory+") == true
        let guest = try RunningProgram(
            Checkout.tool,
            [
                "run", "--name", "guest", "--console", "stdio", "--firmware", Heartbeat.elf, "--memory",
                isInMemory ? "128M" : "64M",
            ] + more,
            name: "guest", environment: environment, limitSeconds: 300)
        try guest.wait(for: "tick 1 ", seconds: 60)
        try guest.type(isInMemory ? "50t2000d24000mz" : Self.workload)
        try guest.wait(for: "tick ", seconds: 30)
        // A round is over: all of it has been written.
        var rounds = isInMemory ? 0 : 1
        while rounds == 0 {
            try guest.type("p")
            rounds = try HeartbeatStatistics(guest.wait(for: "stats ", seconds: 60)).rounds
            usleep(20_000)
        }
        return guest
    }

    /// Every byte was right in every round so far, and no tick was lost.
    private func verify(_ guest: RunningProgram, _ location: SourceLocation = #_sourceLocation) throws {
        let statistics = try guest.endWhole(location)
        #expect(statistics.rounds > 0, sourceLocation: location)
    }

    @Test("a guest moves again and again: no byte of memory wrong, no tick lost or repeated", arguments: Sending.all)
    func moves(_ sending: Sending) throws {
        let run = try MonitorRun()
        let guest = try start(run, Self.anonymous + ["--cpus", "2"])
        for _ in 0..<4 {
            let report = try run.upgrade("guest", sending.arguments)
            #expect(report.channel == sending.channel && report.strategy == sending.strategy)
            #expect(report.copiedBytes > 6000 * 4096, "two harts' pages crossed")
            #expect(report.pause.sum <= report.pauseMicroseconds + 1)
            try guest.wait(for: "tick ", seconds: 30)
        }
        try verify(guest)
    }

    @Test("auto flips anonymous memory, says why, and goes by descriptor once the memory lies in files")
    func automatic() throws {
        let run = try MonitorRun()
        let guest = try start(run, Self.anonymous)
        let first = try run.upgrade()
        #expect(first.channel == "page-flip" && first.strategy == "stop-and-flip")
        #expect(first.reason.contains("anonymous memory"))
        let second = try run.upgrade()
        #expect(second.channel == "memfd" && second.copiedBytes == 0 && second.strategy == nil)
        #expect(second.reason.contains("memory files"))
        let text = try run.command(["upgrade", "guest", "--channel", "socket"])
        #expect(text.end == .exited(status: 0) && text.output.contains("socket, precopy: asked for"), "\(text)")
        // By precopy both sides keep their memory, so it is what the guest was started with: anonymous.
        #expect(try run.upgrade().channel == "page-flip")
        try verify(guest)
    }

    @Test("pages that nobody ever wrote are not sent and not filled", arguments: Sending.all)
    func untouched(_ sending: Sending) throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(Self.anonymous + ["--memory", "512M"])
        try guest.wait(for: "tick 1 ", seconds: 60)
        let report = try run.upgrade("guest", sending.arguments)
        #expect(report.copiedBytes < 32 << 20, "\(report.copiedBytes)")
        let status = try String(contentsOfFile: "/proc/\(report.process)/status", encoding: .utf8)
        let resident = try #require(status.split(separator: "\n").first { $0.hasPrefix("VmRSS:") })
        #expect(Int(resident.split(separator: " ")[1]).map { $0 < 128 << 10 } == true, "\(resident)")
        try verify(guest)
    }

    @Test("console clients, disk and monitor come along by page flip too")
    func everythingComesAlong() throws {
        let run = try MonitorRun()
        let image = run.directory.path + "/disk.img"
        #expect(FileManager.default.createFile(atPath: image, contents: Data(count: 1 << 20)))
        let guest = try start(run, Self.anonymous + ["--disk", "path=\(image)"])
        let socket = try StreamSocket.connect(to: .unix(path: run.directory.path + "/sidestep/guest/qmp.sock"))
        let transcript = try Transcript(name: "QMP client", reading: try socket.duplicate())
        try transcript.wait(for: "QMP", seconds: 30)
        try StreamSocket.sendAll(Array(#"{"execute": "qmp_capabilities", "id": 1}"#.utf8), to: socket)
        try transcript.wait(for: #""id": 1"#, seconds: 30)
        // The same command that the tool uses, over a connection that stays.
        try StreamSocket.sendAll(
            Array(
                #"{"execute": "x-sidestep-upgrade", "arguments": {"channel": "page-flip", "strategy": "stop-and-flip"}, "id": 2}"#
                    .utf8), to: socket)
        #expect(try transcript.wait(for: #""id": 2"#, seconds: 60).contains(#""status": "completed""#))
        let other = try OwnedDescriptor.open(image, flags: O_RDWR)
        #expect(try FileLock.take(.shared, on: other) == false, "the image is locked")
        let pid = try String(contentsOfFile: run.directory.path + "/sidestep/guest/pid", encoding: .utf8)
        kill(try #require(pid_t(pid.trimmingCharacters(in: .whitespacesAndNewlines))), SIGUSR2)
        try transcript.wait(for: #""status": "completed""#, seconds: 60)
        try verify(guest)
    }

    @Test(
        "the successor is killed before it took over: the guest runs on with every byte right, and the second attempt works",
        arguments: ["1", "3", "memory+1", "memory+3000", "6", "8", "9"])
    func successorKilled(place: String) throws {
        let run = try MonitorRun()
        let guest = try start(
            run, Self.anonymous, fault: "destination:\(place):kill:\(run.directory.file("happened"))")
        for backend in ["page-flip", "page-flip"] {
            let result = try run.command(["upgrade", "guest", "--channel", backend])
            if backend == "page-flip", result.end != .exited(status: 0) {
                #expect(result.end == .exited(status: 80) && result.errors.contains("unharmed"), "\(result.errors)")
            }
            try guest.wait(for: "tick ", seconds: 30)
        }
        #expect(FileManager.default.fileExists(atPath: run.directory.file("happened")), "the fault did not happen")
        #expect(try run.upgrade().channel == "memfd", "the second attempt worked: the memory lies in files now")
        try verify(guest)
    }

    @Test(
        "memory in files that came back from a page flip half way is made whole and crosses by descriptor",
        arguments: ["memory+3000", "8"])
    func madeWhole(place: String) throws {
        let run = try MonitorRun()
        let guest = try start(run, fault: "destination:\(place):kill:\(run.directory.file("happened"))")
        let result = try run.command(["upgrade", "guest"] + Sending.flip.arguments)
        #expect(result.end == .exited(status: 80) && result.errors.contains("unharmed"), "\(result.errors)")
        try guest.wait(for: "tick ", seconds: 30)
        let report = try run.upgrade()
        #expect(report.channel == "memfd" && report.copiedBytes == 0)
        try verify(guest)
    }

    @Test(
        "a successor that hangs half way loses the guest, which has every byte again",
        arguments: ["memory+3000", "6", "8"], Sending.all)
    func successorStopped(place: String, _ sending: Sending) throws {
        guard place == "memory+3000" || sending.channel == "page-flip" else { return }
        let run = try MonitorRun()
        let guest = try start(
            run, Self.anonymous, fault: "destination:\(place):stop:\(run.directory.file("happened"))")
        let result = try run.command(["upgrade", "guest", "--limit", "1500"] + sending.arguments)
        #expect(result.end == .exited(status: 80) && result.errors.contains("unharmed"), "\(result.errors)")
        _ = try run.upgrade("guest", sending.arguments)
        try verify(guest)
    }

    @Test("the old process is killed after its offer: the new one runs the guest", arguments: ["9", "11"])
    func predecessorKilled(place: String) throws {
        let run = try MonitorRun()
        let guest = try start(
            run, Self.anonymous, fault: "source:\(place):kill:\(run.directory.file("happened"))")
        _ = try run.command(["upgrade", "guest", "--channel", "page-flip"])
        #expect(FileManager.default.fileExists(atPath: run.directory.file("happened")), "the fault did not happen")
        try verify(guest)
    }

    @Test("the old process is killed while memory crosses: the guest died with it, and nothing lingers")
    func predecessorKilledEarly() throws {
        let run = try MonitorRun()
        let guest = try start(run, Self.anonymous, fault: "source:memory+2000:kill")
        let result = try run.command(["upgrade", "guest", "--channel", "page-flip"])
        #expect(result.end == .exited(status: 81), "\(result.errors)")
        #expect(try guest.waitForEnd(seconds: 30) != .exited(status: 0))
    }

    @Test("what makes no sense is refused, the guest unharmed")
    func refused() throws {
        let run = try MonitorRun()
        let guest = try start(run)
        for (arguments, status, word) in [
            (["--strategy", "hope"], 64, "none of stop-and-flip, precopy"),
            (["--channel", "memfd", "--strategy", "precopy"], 80, "by memfd no memory is sent"),
            (["--all"], 64, "exclude each other"),
        ] as [([String], Int32, String)] {
            let result = try run.command(["upgrade", "guest"] + arguments)
            #expect(result.end == .exited(status: status) && result.errors.contains(word), "\(arguments): \(result)")
        }
        #expect(try run.command(["upgrade"]).end == .exited(status: 64))
        try verify(guest)
    }
}
