import Foundation
import Glibc
import LinuxCalls
import ProcessTestKit
import Synchronization
import Testing

/// What `sidestep upgrade --format json` reports.
struct Report: Decodable {
    let process: Int
    let channel: String
    let strategy: String?
    let reason: String
    let copiedBytes: Int
    let pauseMicroseconds: Double
    let pause: Pause

    /// Microseconds of each phase.
    struct Pause: Decodable {
        let phases: [String: Double]
        var sum: Double { phases.values.reduce(0, +) }
        init(from decoder: any Decoder) throws {
            phases = try decoder.singleValueContainer().decode([String: Double].self)
        }
    }

    enum CodingKeys: String, CodingKey {
        case process, channel, strategy, reason, pause
        case copiedBytes = "copied-bytes"
        case pauseMicroseconds = "pause-us"
    }
}

extension MonitorRun {
    /// Upgrades a guest and answers the report; fails the test when it does not work.
    func upgrade(_ name: String = "guest", _ more: [String] = []) throws -> Report {
        let result = try command(["upgrade", name, "--format", "json"] + more)
        try #require(result.end == .exited(status: 0), "\(result.errors)")
        return try JSONDecoder().decode(Report.self, from: Data(result.output.utf8))
    }

    /// Waits until a guest's process has come to its fault, which makes `mark` and stops it.
    static func waitForStop(of process: pid_t, mark: String) throws {
        let isStopped = "grep -q '^State:[[:space:]]*T' /proc/\(process)/status"
        try HostTools.need("sh", ["-c", "until [ -e \(mark) ] && \(isStopped); do sleep 0.02; done"], seconds: 30)
    }
}

@Suite(
    "sidestep upgrade", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct UpgradeTests {
    @Test("a guest moves twenty times: no byte of memory wrong, no tick lost or repeated", arguments: [1, 4])
    func heartbeat(harts: Int) throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(["--cpus", "\(harts)"])
        try guest.wait(for: "tick 3 ", seconds: 60)
        try guest.type("50t1000d")
        var processes: Set<Int> = []
        for _ in 0..<20 {
            let report = try run.upgrade()
            #expect(report.channel == "memfd" && report.copiedBytes == 0)
            #expect(
                Set(report.pause.phases.keys)
                    == Set(["kick", "quiesce", "memory", "save", "send", "load", "swap", "resume"].map { "\($0)-us" }))
            #expect(report.pause.phases["kick-us", default: 0] > 0 && report.pause.phases["quiesce-us", default: 0] > 0)
            #expect(abs(report.pause.sum - report.pauseMicroseconds) < 1)
            processes.insert(report.process)
            try guest.wait(for: "tick ", seconds: 30)
        }
        #expect(processes.count == 20, "each move is to a new process")
        let migration = try run.command(["qmp", "guest", "query-migrate"])
        for word in [#""status": "completed""#, #""downtime":"#, #""total-time":"#, #""x-channel-kind": "memfd""#] {
            #expect(migration.output.contains(word), "\(migration)")
        }
        try guest.type("p")
        let statistics = try HeartbeatStatistics(guest.wait(for: "stats ", seconds: 30))
        #expect(statistics.bad == 0 && statistics.harts == harts)
        try guest.type("7q")
        // The process that was started is still there, and ends as the guest does.
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 7))
        let seen = ticks(in: guest.output.text)
        #expect(seen == Array(0..<seen.count), "ticks out of order")
        #expect(!guest.output.text.contains("BAD"))
        #expect(guest.errors.text.isEmpty, "\(guest.errors.text)")
    }

    @Test("clients of the console see every byte once and can type, on both sides of a move")
    func consoleClients() throws {
        let run = try MonitorRun()
        let path = run.directory.path + "/console"
        let guest = try run.heartbeat(["--console", "unix:\(path)"])
        let deadline = Date().addingTimeInterval(30)
        var connection: OwnedDescriptor?
        while connection == nil, Date() < deadline {
            // The name may be there a moment before somebody listens.
            connection = try? StreamSocket.connect(to: .unix(path: path))
            if connection == nil { usleep(10_000) }
        }
        let client = try #require(connection)
        let transcript = try Transcript(name: "console client", reading: try client.duplicate())
        try transcript.wait(for: "tick ", seconds: 30)
        for _ in 0..<5 {
            _ = try run.upgrade()
            try transcript.wait(for: "tick ", seconds: 30)
            try StreamSocket.sendAll(Array("p".utf8), to: client)
            #expect(try HeartbeatStatistics(transcript.wait(for: "stats ", seconds: 30)).bad == 0)
        }
        let seen = ticks(in: transcript.text)
        #expect(seen.count > 3 && seen == Array(seen[0]..<(seen[0] + seen.count)))
        // The listener came along too.
        let second = try StreamSocket.connect(to: .unix(path: path))
        let secondTranscript = try Transcript(name: "second client", reading: try second.duplicate())
        try secondTranscript.wait(for: "tick ", seconds: 30)
        try StreamSocket.sendAll(Array("q".utf8), to: second)
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
        #expect(!FileManager.default.fileExists(atPath: path), "the last runner removes the socket")
    }

    @Test("a QMP client stays connected, keeps its negotiation and its descriptors, and is told")
    func qmpClient() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat()
        try guest.wait(for: "tick 1 ", seconds: 60)
        let socket = try StreamSocket.connect(to: .unix(path: run.directory.path + "/sidestep/guest/qmp.sock"))
        let transcript = try Transcript(name: "QMP client", reading: try socket.duplicate())
        try transcript.wait(for: "QMP", seconds: 30)
        func send(_ text: String, _ descriptors: [OwnedDescriptor] = []) throws {
            try StreamSocket.sendAll(Array(text.utf8), descriptors: descriptors, to: socket)
        }
        try send(#"{"execute": "qmp_capabilities", "id": 1}"#)
        try transcript.wait(for: #""id": 1"#, seconds: 30)
        try send(#"{"execute": "getfd", "arguments": {"fdname": "kept"}, "id": 2}"#, [try .event()])
        try transcript.wait(for: #""id": 2"#, seconds: 30)
        try send(#"{"execute": "query-st"#)  // half a command crosses
        usleep(50_000)
        let report = try run.upgrade()
        try send(#"atus", "id": 3}"#)
        #expect(try transcript.wait(for: #""id": 3"#, seconds: 30).contains("running"))
        #expect(transcript.text.contains("MIGRATION"))
        try send(#"{"execute": "closefd", "arguments": {"fdname": "kept"}, "id": 4}"#)
        #expect(try transcript.wait(for: #""id": 4"#, seconds: 30).contains("return"))
        let pid = try String(contentsOfFile: run.directory.path + "/sidestep/guest/pid", encoding: .utf8)
        #expect(Int(pid.trimmingCharacters(in: .whitespacesAndNewlines)) == report.process)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test("the disk image is locked at every moment")
    func diskLock() throws {
        let run = try MonitorRun()
        let image = run.directory.path + "/disk.img"
        #expect(FileManager.default.createFile(atPath: image, contents: Data(count: 1 << 20)))
        let guest = try run.heartbeat(["--disk", "path=\(image)"])
        try guest.wait(for: "tick 1 ", seconds: 60)
        let isOver = Atomic<Bool>(false)
        let taken = Atomic<Int>(0)
        let tries = Atomic<Int>(0)
        let prober = try HostThread(name: "prober") {
            while !isOver.load(ordering: .relaxed) {
                guard let other = try? OwnedDescriptor.open(image, flags: O_RDWR) else { continue }
                if (try? FileLock.take(.shared, on: other)) == true { taken.add(1, ordering: .relaxed) }
                tries.add(1, ordering: .relaxed)
                usleep(20)
            }
        }
        for _ in 0..<5 { _ = try run.upgrade() }
        isOver.store(true, ordering: .relaxed)
        prober.join()
        #expect(tries.load(ordering: .relaxed) > 100)
        #expect(taken.load(ordering: .relaxed) == 0, "somebody else could lock the image")
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
        let after = try OwnedDescriptor.open(image, flags: O_RDWR)
        #expect(try FileLock.take(.exclusive, on: after), "nobody holds it afterwards")
    }

    @Test("what cannot take over is refused, the guest runs on, and the next attempt works")
    func refused() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat()
        try guest.wait(for: "tick 1 ", seconds: 60)
        for (arguments, word) in [
            (["--binary", "/bin/false"], "ended"), (["--binary", "/bin/cat"], "ended"),
            (["--binary", "/etc/passwd"], "denied"),
            (["--binary", "/nonexistent"], "no file"), (["--channel", "pigeon"], "pigeon"),
        ] {
            let result = try run.command(["upgrade", "guest"] + arguments)
            #expect(result.end != .exited(status: 0), "\(arguments)")
            #expect(result.errors.lowercased().contains(word), "\(arguments): \(result.errors)")
            #expect(result.errors.split(separator: "\n").count == 1, "one line: \(result.errors)")
            try guest.wait(for: "tick ", seconds: 30)
        }
        #expect(try run.command(["upgrade", "nobody"]).end == .exited(status: 66))
        _ = try run.upgrade()
        try guest.wait(for: "tick ", seconds: 30)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
        let seen = ticks(in: guest.output.text)
        #expect(seen == Array(0..<seen.count))
    }

    @Test("anonymous memory has no descriptor: by memfd it is refused with the remedy")
    func anonymous() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(["--memory-backend", "anonymous"])
        try guest.wait(for: "tick 1 ", seconds: 60)
        let result = try run.command(["upgrade", "guest", "--channel", "memfd"])
        #expect(result.end == .exited(status: 80) && result.errors.contains("--memory-backend memfd"))
        try guest.wait(for: "tick ", seconds: 30)
    }

    @Test(
        "a paused guest arrives paused and goes on when told, and its pause is none",
        arguments: [[]] + Sending.all.map(\.arguments))
    func paused(arguments: [String]) throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat()
        try guest.wait(for: "tick 1 ", seconds: 60)
        #expect(try run.command(["pause", "guest"]).end == .exited(status: 0))
        let report = try run.upgrade("guest", arguments)
        #expect(report.pauseMicroseconds < 60_000_000 && abs(report.pause.sum - report.pauseMicroseconds) < 1)
        #expect(try run.command(["status", "guest"]).output.contains("paused"))
        guest.output.skipToEnd()
        #expect(try run.command(["resume", "guest"]).end == .exited(status: 0))
        try guest.wait(for: "tick ", seconds: 30)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
        let seen = ticks(in: guest.output.text)
        #expect(seen == Array(0..<seen.count))
    }

    @Test("SIGUSR2 to the process does it too")
    func signal() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat()
        try guest.wait(for: "tick 1 ", seconds: 60)
        let file = run.directory.path + "/sidestep/guest/pid"
        let before = try String(contentsOfFile: file, encoding: .utf8)
        kill(try #require(pid_t(before.trimmingCharacters(in: .whitespacesAndNewlines))), SIGUSR2)
        let deadline = Date().addingTimeInterval(30)
        while (try? String(contentsOfFile: file, encoding: .utf8)) == before, Date() < deadline { usleep(10_000) }
        #expect(try String(contentsOfFile: file, encoding: .utf8) != before)
        try guest.wait(for: "tick ", seconds: 30)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test("the successor is killed before it took over: the guest runs on", arguments: [1, 3, 6, 8, 9])
    func successorKilled(step: Int) throws {
        let run = try MonitorRun()
        let guest = try run.start(
            ["--firmware", Heartbeat.elf, "--memory", "64M"], fault: "destination:\(step):kill")
        try guest.wait(for: "tick 1 ", seconds: 60)
        let result = try run.command(["upgrade", "guest"])
        #expect(result.end == .exited(status: 80), "\(result.errors)")
        #expect(result.errors.contains("unharmed"))
        try guest.endWhole()
    }

    @Test(
        "no thread stays urgent: not after a move, and not in the old process when its successor died",
        arguments: [6, 8, 9], [1, 2])
    func nobodyStaysUrgent(step: Int, harts: Int) throws {
        let run = try MonitorRun()
        let happened = run.directory.file("happened")
        let image = run.directory.file("disk.img")
        #expect(FileManager.default.createFile(atPath: image, contents: Data(count: 1 << 20)))
        // The disk has a thread of its own.
        let guest = try run.start(
            ["--firmware", Heartbeat.elf, "--memory", "64M", "--cpus", "\(harts)", "--disk", "path=\(image)"],
            fault: "destination:\(step):kill:\(happened)")
        try guest.wait(for: "tick 1 ", seconds: 60)
        try guest.type("1000d1s2000m")
        var names: Set<String> = []
        func expectOrdinary(_ location: SourceLocation = #_sourceLocation) throws {
            let directory = "/proc/\(try runner(of: run))/task"
            let threads = try FileManager.default.contentsOfDirectory(atPath: directory)
            #expect(threads.count > 3, sourceLocation: location)
            for thread in threads.compactMap({ pid_t($0) }) {
                var policy = sched_getscheduler(thread)
                // The guest's processors, and who ends that, are so for a while longer.
                for _ in 0..<500 where policy >= 0 && policy & 0xffff != SCHED_OTHER {
                    usleep(10_000)
                    policy = sched_getscheduler(thread)
                }
                let name = (try? String(contentsOfFile: "\(directory)/\(thread)/comm", encoding: .utf8)) ?? ""
                names.insert(name)
                // One may have ended meanwhile. Besides the policy it says whether made threads are ordinary.
                #expect(
                    policy < 0 || policy & 0xffff == SCHED_OTHER, "thread \(thread) \(name)", sourceLocation: location)
            }
        }
        try expectOrdinary()
        #expect(try run.command(["upgrade", "guest"]).end == .exited(status: 80))
        try expectOrdinary()
        for _ in 1...3 {
            _ = try run.upgrade()
            try expectOrdinary()
        }
        #expect(names.contains { $0.hasPrefix("virtio") }, "\(names)")
        try guest.endWhole()
    }

    /// The process that has the guest.
    private func runner(of run: MonitorRun) throws -> pid_t {
        let text = try String(contentsOfFile: run.directory.path + "/sidestep/guest/pid", encoding: .utf8)
        return try #require(pid_t(text.trimmingCharacters(in: .whitespacesAndNewlines)))
    }

    /// The processes that it started.
    private func children(of process: pid_t) throws -> [pid_t] {
        try FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/task").flatMap { thread in
            let text = try? String(contentsOfFile: "/proc/\(process)/task/\(thread)/children", encoding: .utf8)
            return (text ?? "").split(separator: " ").compactMap { pid_t($0) }
        }
    }

    /// A process's threads: for each its name, policy, priority and where it may run.
    private func threads(of process: pid_t) throws -> [(name: String, policy: CInt, priority: CInt, processors: String)]
    {
        let directory = "/proc/\(process)/task"
        return try FileManager.default.contentsOfDirectory(atPath: directory).compactMap { entry in
            guard let thread = pid_t(entry),
                let status = try? String(contentsOfFile: "\(directory)/\(entry)/status", encoding: .utf8)
            else { return nil }
            func field(_ name: String) -> String {
                status.split(separator: "\n").first { $0.hasPrefix(name) }?.split(separator: "\t").last.map { "\($0)" }
                    ?? ""
            }
            var parameters = sched_param()
            sched_getparam(thread, &parameters)
            return (
                field("Name:"), sched_getscheduler(thread) & 0xffff, parameters.sched_priority,
                field("Cpus_allowed_list:")
            )
        }
    }

    @Test("a guest's processors are preferred where the host has more; threads run where they might before")
    func preferred() throws {
        let run = try MonitorRun()
        let mark = run.directory.file("stopped")
        let guest = try run.start(["--firmware", Heartbeat.elf, "--memory", "64M"], fault: "source:1:stop:\(mark)")
        try guest.wait(for: "tick 2 ", seconds: 60)
        let process = try runner(of: run)
        let before = try threads(of: process)
        let asking = try RunningProgram(
            Checkout.tool, ["upgrade", "guest"], name: "upgrade", environment: run.environment)
        try MonitorRun.waitForStop(of: process, mark: mark)
        let own = HostThread.Detour(haste: .preferred.whereOthersHaveRoom)
        let isPermitted = sched_getscheduler(0) & 0xffff == SCHED_RR
        own.end()
        let hart = try threads(of: process).filter { $0.name.hasPrefix("hart") }
        #expect(
            hart.map(\.policy) == [isPermitted ? SCHED_RR : SCHED_OTHER] && hart[0].priority == (isPermitted ? 1 : 0))
        let limiting = try threads(of: process).filter { $0.name == "preference" }
        #expect(limiting.map(\.priority) == (isPermitted ? [2] : []), "what ends it does not wait for it")
        #expect(limiting.allSatisfy { $0.processors == before[0].processors })
        let successor = try #require(children(of: process).first)
        #expect(try (threads(of: successor)[0].processors != before[0].processors) == isPermitted)
        kill(process, SIGCONT)
        #expect(try asking.waitForEnd(seconds: 60) == .exited(status: 0))
        #expect(try runner(of: run) == successor)
        for thread in try threads(of: successor) {
            #expect(thread.processors == before[0].processors, "\(thread.name)")
        }
        try guest.endWhole()
    }

    @Test("a successor that hangs does not keep the guest's processors preferred")
    func preferenceEnds() throws {
        let run = try MonitorRun()
        let mark = run.directory.file("stopped")
        let guest = try run.start(
            ["--firmware", Heartbeat.elf, "--memory", "64M"], fault: "destination:3:stop:\(mark)")
        try guest.wait(for: "tick 2 ", seconds: 60)
        let process = try runner(of: run)
        let asking = try RunningProgram(
            Checkout.tool, ["upgrade", "guest"], name: "upgrade", environment: run.environment)
        try HostTools.need("sh", ["-c", "until [ -e \(mark) ]; do sleep 0.02; done"], seconds: 30)
        var policies: [CInt] = []
        for _ in 0..<500 {
            policies = try threads(of: process).map(\.policy)
            if policies.allSatisfy({ $0 == SCHED_OTHER }) { break }
            usleep(10_000)
        }
        #expect(policies.allSatisfy { $0 == SCHED_OTHER })
        #expect(asking.process.wait(timeoutMilliseconds: 0) == nil, "it waits for the successor")
        kill(try #require(children(of: process).first), SIGKILL)
        #expect(try asking.waitForEnd(seconds: 60) == .exited(status: 80))
        try guest.endWhole()
    }

    @Test(
        "the old process is killed after its offer: the new one runs the guest, with its console", arguments: [9, 11])
    func predecessorKilled(step: Int) throws {
        let run = try MonitorRun()
        let guest = try run.start(["--firmware", Heartbeat.elf, "--memory", "64M"], fault: "source:\(step):kill")
        try guest.wait(for: "tick 1 ", seconds: 60)
        _ = try run.command(["upgrade", "guest"])
        guest.output.skipToEnd()
        try guest.wait(for: "tick ", seconds: 30)
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
        let seen = ticks(in: guest.output.text)
        #expect(seen == Array(0..<seen.count))
    }

    @Test(
        "Debian moves while it ticks and keeps its uptime",
        .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"))
    func debian() throws {
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let guest = try run.debian(words: "noshell ntick=8", ["--disk", "path=\(disk.path)", "--cpus", "2"])
        try guest.wait(for: "TICK 1 ", seconds: 120)
        for tick in 2...5 {
            _ = try run.upgrade()
            try guest.wait(for: "TICK \(tick) ", seconds: 60)
        }
        #expect(try guest.waitForEnd(seconds: 120) == .exited(status: 0))
        let seen = guest.output.text.split(whereSeparator: \.isNewline).compactMap { line -> Int? in
            line.hasPrefix("TICK ") ? Int(line.split(separator: " ")[1]) : nil
        }
        #expect(seen == Array(0..<8))
        #expect(try disk.isClean())
    }
}

extension MonitorRun {
    /// A guest whose process ends or stops itself at a step of the hand-over.
    fileprivate func start(_ arguments: [String], fault: String) throws -> RunningProgram {
        try RunningProgram(
            Checkout.tool, ["run", "--name", "guest", "--console", "stdio"] + arguments, name: "guest",
            environment: environment.merging(["SIDESTEP_HANDOVER_FAULT": fault]) { $1 }, limitSeconds: 300)
    }
}
