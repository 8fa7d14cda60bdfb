import Foundation
import Glibc
import LinuxCalls
import ProcessTestKit
import Testing

/// A memory control group of the test's own, in the first or the second version's hierarchy.
private final class MemoryGroup {
    static let places = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
    private let path: String
    private let limitFile: String
    private let usageFile: String
    private let eventsFile: String

    init?() {
        for place in Self.places {
            let path = "\(place)/sidestep-test-\(getpid())"
            guard mkdir(path, 0o755) == 0 else { continue }
            for (limit, usage, events) in [
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control"),
                ("memory.max", "memory.current", "memory.events"),
            ] where access("\(path)/\(limit)", W_OK) == 0 {
                (self.path, limitFile) = (path, "\(path)/\(limit)")
                (usageFile, eventsFile) = ("\(path)/\(usage)", "\(path)/\(events)")
                return
            }
            rmdir(path)
        }
        return nil
    }

    static var isPossible: Bool { MemoryGroup() != nil }

    deinit {
        // Whoever was in it may not be quite gone.
        for _ in 0..<500 where rmdir(path) != 0 { usleep(20_000) }
    }

    func add(_ process: Int32) throws {
        try "\(process)".write(toFile: "\(path)/cgroup.procs", atomically: false, encoding: .utf8)
    }
    var usage: Int {
        let text = (try? String(contentsOfFile: usageFile, encoding: .utf8)) ?? ""
        return Int(text.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
    }
    /// Processes that the kernel has killed.
    var kills: Int {
        let text = (try? String(contentsOfFile: eventsFile, encoding: .utf8)) ?? ""
        for line in text.split(separator: "\n") where line.hasPrefix("oom_kill ") {
            return Int(line.dropFirst(9)) ?? -1
        }
        return -1
    }
    func limit(to byteCount: Int) throws {
        try "\(byteCount)".write(toFile: limitFile, atomically: false, encoding: .utf8)
    }
}

@Suite(
    "A hand-over where something runs short", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct ScarcityTests {
    private struct Guest {
        let run: MonitorRun
        let program: RunningProgram
        let image: String

        /// - Parameter seesGroups: False hides from it what its control groups are.
        init(_ more: [String] = [], fault: String? = nil, seesGroups: Bool = true) throws {
            run = try MonitorRun()
            image = run.directory.file("disk.img")
            _ = FileManager.default.createFile(atPath: image, contents: Data(count: 1 << 20))
            var environment = run.environment
            environment["SIDESTEP_HANDOVER_FAULT"] = fault
            let words =
                [
                    "run", "--name", "guest", "--console", "stdio", "--firmware", Heartbeat.elf, "--memory", "64M",
                    "--disk", "path=\(image)",
                ] + more
            let hidden = [
                "--mount", "sh", "-c", "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"", "sh", Checkout.tool,
            ]
            program = try RunningProgram(
                seesGroups ? Checkout.tool : HostTools.path(of: "unshare") ?? "unshare",
                seesGroups ? words : hidden + words, name: "guest", environment: environment, limitSeconds: 300)
            try program.wait(for: "tick 1 ", seconds: 60)
        }

        var process: Int32 {
            get throws {
                let text = try String(contentsOfFile: run.directory.path + "/sidestep/guest/pid", encoding: .utf8)
                return try #require(Int32(text.trimmingCharacters(in: .whitespacesAndNewlines)))
            }
        }

        /// It runs, and its image is locked.
        func expectWell(_ what: String, _ location: SourceLocation = #_sourceLocation) throws {
            program.output.skipToEnd()
            try program.wait(for: "tick ", seconds: 30)
            let other = try OwnedDescriptor.open(image, flags: O_RDWR)
            let isFree = try FileLock.take(.shared, on: other)
            #expect(!isFree, "\(what): the image is not locked", sourceLocation: location)
        }

        /// True when the guest moved; otherwise it was refused properly.
        func attempt(_ arguments: [String], _ what: String, _ location: SourceLocation = #_sourceLocation) throws
            -> Bool
        {
            let result = try run.command(["upgrade", "guest"] + arguments)
            try expectWell(what, location)
            if result.end == .exited(status: 0) { return true }
            #expect(
                result.end == .exited(status: 80) && result.errors.contains("unharmed"), "\(what): \(result)",
                sourceLocation: location)
            // Too little to begin with is the loader's and the runtime's affair; later on it says why.
            #expect(
                !result.errors.contains("process ended") || result.errors.contains("greeting: "), "\(what): \(result)",
                sourceLocation: location)
            return false
        }

        func finish(_ location: SourceLocation = #_sourceLocation) throws {
            #expect(try attempt([], "without limits"), "the last attempt does not work", sourceLocation: location)
            try program.endWhole(location)
        }
    }

    /// A program that limits itself and then is the tool.
    private func limited(_ guest: Guest, _ limit: String) throws -> String {
        try guest.run.directory.write(
            Array("#!/bin/bash\nulimit \(limit)\nexec \(Checkout.tool) \"$@\"\n".utf8), to: "limited")
        let path = guest.run.directory.file("limited")
        chmod(path, 0o755)
        return path
    }

    @Test(
        "descriptors run out at the source, one more each time until there are enough",
        arguments: [["--channel", "memfd"], ["--channel", "page-flip"]])
    func sourceDescriptors(arguments: [String]) throws {
        let guest = try Guest()
        let process = try guest.process
        let path = "/proc/\(process)/fd"
        let before = try HostTools.need("sh", ["-c", "ulimit -Sn"]).trimmingCharacters(in: .whitespacesAndNewlines)
        let open = try FileManager.default.contentsOfDirectory(atPath: path).count
        var refusals = 0
        var hasMoved = false
        // The first is for the connection that asks.
        for more in 1...60 {
            try HostTools.need("prlimit", ["--pid", "\(process)", "--nofile=\(open + more):"])
            if try guest.attempt(arguments, "\(more) descriptors") {
                hasMoved = true
                break
            }
            refusals += 1
        }
        #expect(hasMoved && refusals > 2, "\(refusals) refusals")
        // The successor has raised its own.
        try HostTools.need("prlimit", ["--pid", "\(guest.process)", "--nofile=\(before):"])
        try guest.finish()
    }

    @Test(
        "descriptors run out at the successor, one more each time until there are enough",
        arguments: [["--channel", "memfd"], ["--channel", "page-flip"]])
    func successorDescriptors(arguments: [String]) throws {
        let guest = try Guest()
        var refusals = 0
        for count in 8...80 {
            // What it may have at most; it cannot raise that again, and neither can its successors.
            if try guest.attempt(arguments + ["--binary", try limited(guest, "-n \(count)")], "\(count) descriptors") {
                break
            }
            refusals += 1
            if refusals == 5 { #expect(try guest.attempt(arguments, "without limits")) }
        }
        #expect((5..<72).contains(refusals), "\(refusals) refusals")
        try guest.expectWell("after the move")
        try guest.program.type("q")
        #expect(try guest.program.waitForEnd(seconds: 30) == .exited(status: 0))
        let seen = ticks(in: guest.program.output.text)
        #expect(seen == Array(0..<seen.count), "ticks out of order")
    }

    @Test("address space runs out at the successor: mappings fail, a little later each time, until there is enough")
    func addressSpace() throws {
        let guest = try Guest()
        var refusals = 0
        var kibibytes = 40_000
        while kibibytes < 8_000_000 {
            let program = try limited(guest, "-S -v \(kibibytes)")
            if try guest.attempt(["--binary", program], "\(kibibytes) KiB of address space") { break }
            refusals += 1
            kibibytes += kibibytes / 10
        }
        #expect(refusals > 5 && kibibytes < 8_000_000, "\(refusals) refusals, \(kibibytes) KiB")
        try HostTools.need("prlimit", ["--pid", "\(guest.process)", "--as=unlimited:"])
        #expect(try guest.attempt(["--binary", Checkout.tool], "back"))
        try guest.finish()
    }

    /// Ways of a guest with 24 MiB in use.
    private static let sendings = [
        [], Sending.flip.arguments, Sending(channel: "socket", strategy: "precopy").arguments,
    ]

    @Test(
        "the control group's memory does not suffice: refused with the number and the place, and nobody is killed",
        .enabled(if: MemoryGroup.isPossible, "no memory control group can be made here (root, with cgroups writable)"),
        arguments: sendings)
    func memoryLimit(arguments: [String]) throws {
        let group = try #require(MemoryGroup())
        let guest = try Guest()
        try guest.program.type("6000m")
        try group.add(try guest.process)
        // So that all it has is the group's own.
        #expect(try guest.attempt(arguments, "into the group"))
        var refusals = 0
        for mebibytes in stride(from: 4, through: 128, by: 4) {
            try group.limit(to: group.usage + mebibytes << 20)
            let result = try guest.run.command(["upgrade", "guest"] + arguments)
            #expect(group.kills == 0, "\(mebibytes) MiB more")
            try group.limit(to: 1 << 40)
            try guest.expectWell("\(mebibytes) MiB more")
            if result.end == .exited(status: 0) { break }
            #expect(
                result.end == .exited(status: 80) && result.errors.contains("memory is short:")
                    && result.errors.contains("/sidestep-test-\(getpid()) has ") && result.errors.contains("unharmed"),
                "\(mebibytes) MiB more: \(result)")
            refusals += 1
        }
        #expect((1..<32).contains(refusals), "\(refusals) refusals")
        try guest.finish()
        withExtendedLifetime(group) {}
    }

    @Test(
        "memory runs out in a control group that cannot be seen: the kernel takes the successor, never the guest",
        .enabled(if: MemoryGroup.isPossible, "no memory control group can be made here (root, with cgroups writable)"),
        .enabled(
            if: Environment.all["SIDESTEP_FULL"] != nil,
            "a known fault: without CAP_SYS_RESOURCE the kernel may take the guest's process; SIDESTEP_FULL=1 runs it"),
        arguments: sendings)
    func unseenMemoryLimit(arguments: [String]) throws {
        let group = try #require(MemoryGroup())
        let guest = try Guest(seesGroups: false)
        try guest.program.type("6000m")
        try group.add(try guest.process)
        #expect(try guest.attempt(arguments, "into the group"))
        var refusals = 0
        for mebibytes in stride(from: 1, through: 128, by: 1) {
            try group.limit(to: group.usage + mebibytes << 20)
            let hasMoved = try guest.attempt(arguments, "\(mebibytes) MiB more")
            try group.limit(to: 1 << 40)
            if hasMoved { break }
            refusals += 1
        }
        #expect((1..<128).contains(refusals) && group.kills >= 1, "\(refusals) refusals, \(group.kills) killed")
        let priority = try String(contentsOfFile: "/proc/\(guest.process)/oom_score_adj", encoding: .utf8)
        let own = try String(contentsOfFile: "/proc/self/oom_score_adj", encoding: .utf8)
        #expect(priority == own, "what it is to the kernel is what it was")
        try guest.finish()
        withExtendedLifetime(group) {}
    }

    /// Stops the source of an upgrade at a step, and lets it go on, with one more signal to take if so wanted.
    private func stopSource(
        at step: String, sending signal: CInt? = nil, _ then: (Guest, _ asking: RunningProgram) throws -> Void
    ) throws {
        let mark = NSTemporaryDirectory() + "sidestep-stop-\(UUID().uuidString)"
        defer { unlink(mark) }
        let guest = try Guest(fault: "source:\(step):stop:\(mark)")
        let process = try guest.process
        let asking = try RunningProgram(
            Checkout.tool, ["upgrade", "guest"], name: "upgrade", environment: guest.run.environment)
        try MonitorRun.waitForStop(of: process, mark: mark)
        if let signal { kill(process, signal) }
        kill(process, SIGCONT)
        try then(guest, asking)
    }

    @Test("a successor that hangs is given up and the guest runs on", arguments: ["6", "8", "9"])
    func successorHangs(step: String) throws {
        let mark = NSTemporaryDirectory() + "sidestep-hang-\(UUID().uuidString)"
        defer { unlink(mark) }
        let guest = try Guest(fault: "destination:\(step):stop:\(mark)")
        #expect(try !guest.attempt(["--limit", "1000"], "step \(step)"))
        #expect(FileManager.default.fileExists(atPath: mark), "the fault did not happen")
        try guest.finish()
    }

    @Test(
        "who asks the guest to end while it moves gets its end, wherever it is then",
        arguments: ["2", "4", "5", "7", "9", "11", "exit"])
    func endWhileMoving(step: String) throws {
        try stopSource(at: step, sending: SIGTERM) { guest, asking in
            #expect(try guest.program.waitForEnd(seconds: 60) == .exited(status: 0))
            try asking.waitForEnd(seconds: 30)
            #expect(
                !FileManager.default.fileExists(atPath: guest.run.directory.path + "/sidestep/guest"),
                "it is still there")
        }
    }

    @Test("a source that hangs delays, and hurts nothing", arguments: ["3", "5", "7", "9"])
    func sourceHangs(step: String) throws {
        try stopSource(at: step) { guest, asking in
            try asking.waitForEnd(seconds: 30)
            try guest.expectWell("step \(step)")
            try guest.finish()
        }
    }
}
