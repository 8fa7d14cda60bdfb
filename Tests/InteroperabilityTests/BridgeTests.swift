import LinuxCalls
import ProcessTestKit
import Testing

@Suite(
    "sidestep bridge", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
    .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"),
    .enabled(if: Requirement.qemu10.isMet, "\(Requirement.qemu10)"))
struct BridgeTests {
    private func bridge(_ from: String, _ to: String, _ kind: StockKind, _ more: [String] = []) throws -> RunningProgram
    {
        try RunningProgram(
            Checkout.tool,
            ["bridge", "--from", "unix:\(from)", "--to", "unix:\(to)", "--target", kind.layout] + more, name: "bridge")
    }

    /// The first release of each boots the guest. Its queues are larger than 11.1 gives a disk unless it is told to, and than it
    /// can give an entropy device; one from 10.0 was offered what 7.2 lacks.
    static let ways: [[String]] = {
        let low = ["7.2"] + Array(repeating: ["10.0", "7.2"], count: 5).flatMap { $0 }
        guard Requirement.qemu11.isMet else { return [low] }
        return [low, ["7.2", "10.0", "11.1", "10.0", "7.2", "11.1", "7.2"], ["10.0", "11.1", "10.0", "11.1", "10.0"]]
    }()

    @Test(
        "a live guest goes from release to release and back, round after round; nothing lost, disk clean",
        arguments: ways)
    func rounds(way: [String]) throws {
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        var kind = StockKind(release: way[0])
        if way.contains("11.1") {
            kind.hasEntropy = false
            kind.queueSize = 1024
        }
        var stock = try PeerMachine(kind, in: run, disk: disk.path, name: "stock0")
        var guest = try LiveGuest(booting: stock.program)
        for (index, release) in way.dropFirst().enumerated() {
            let hop = "hop \(index + 1), from \(kind.release) to \(release)"
            let source = kind.layout
            kind.release = release
            let from = run.directory.file("from\(index)")
            let to = run.directory.file("to\(index)")
            let next = try PeerMachine(
                kind, in: run, disk: disk.path, name: "stock\(index + 1)", incoming: "unix:\(to)")
            let bridge = try bridge(from, to, kind, ["--source", source])
            try waitForSocket(from)
            let answer = try stock.migrate(to: "unix:\(from)", returnPath: true)
            #expect(answer.hasLeft, "\(hop): \(answer)\n\(next.program.errors.tail)\n\(bridge.errors.tail)")
            #expect(try bridge.waitForEnd(seconds: 60) == .exited(status: 0), "\(hop): \(bridge.errors.tail)")
            // What it shows on the way, and at the end.
            try bridge.errors.wait(for: "of RAM", seconds: 30)
            try bridge.output.wait(for: "the guest has passed: ", seconds: 30)
            try guest.check(next.program, hop)
            try stock.quit()
            stock = next
        }
        try LiveGuest.end(stock.program)
        #expect(try disk.isClean())
        #expect(try disk.holdsWhatTheGuestWrote())
    }

    @Test("a destination that goes away, and a source that is not what --source says, leave the guest where it was")
    func refused() throws {
        let run = try MonitorRun()
        let kind = StockKind(release: "10.0")
        let source = try PeerMachine(
            StockKind(release: "7.2"), in: run, disk: nil, name: "source", guest: ["-bios", Heartbeat.elf])
        let destination = try PeerMachine(
            kind, in: run, disk: nil, name: "destination", incoming: "unix:\(run.directory.file("to"))", guest: [])

        let wrong = run.directory.file("wrong")
        let liar = try bridge(wrong, run.directory.file("to"), kind, ["--source", "qemu-10.0"])
        try waitForSocket(wrong)
        var answer = try source.migrate(to: "unix:\(wrong)", returnPath: true)
        #expect(answer.status == "failed" && answer.runState == "running", "\(answer)")
        #expect(try liar.waitForEnd(seconds: 60) == .exited(status: 80))
        try liar.errors.wait(for: "the source is qemu-7.2, --source says qemu-10.0", seconds: 30)
        try destination.program.waitForEnd(seconds: 60)

        let dead = run.directory.file("dead")
        let listener = try StreamSocket.listen(at: .unix(path: dead))
        let orphan = run.directory.file("orphan")
        let broken = try bridge(orphan, dead, kind)
        try waitForSocket(orphan)
        try source.startMigration(to: "unix:\(orphan)", returnPath: true)
        // Taken, and dropped at once.
        _ = try StreamSocket.accept(from: listener)
        answer = try source.waitForMigration()
        #expect(answer.status == "failed" && answer.runState == "running", "\(answer)")
        #expect(try broken.waitForEnd(seconds: 60) == .exited(status: 80), "\(broken.errors.tail)")

        let to = run.directory.file("again")
        let taker = try PeerMachine(kind, in: run, disk: nil, name: "taker", incoming: "unix:\(to)", guest: [])
        let last = run.directory.file("last")
        let good = try bridge(last, to, kind)
        try waitForSocket(last)
        answer = try source.migrate(to: "unix:\(last)", returnPath: true)
        #expect(answer.hasLeft, "\(answer) \(good.errors.tail)")
        #expect(try taker.runState == "running")
    }

    @Test(
        "queues that 11.1 cannot have are refused by the device's name, or told with what to start it",
        .enabled(if: Requirement.qemu11.isMet, "\(Requirement.qemu11)"))
    func queues() throws {
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        for (hasEntropy, words) in [
            (true, "virtio-rng has a queue of 1024 entries"), (false, "start the destination's with queue-size=1024"),
        ] {
            var kind = StockKind(release: "7.2", hasEntropy: hasEntropy)
            let name = hasEntropy ? "with" : "without"
            let source = try PeerMachine(kind, in: run, disk: disk.path, name: name, words: "")
            try source.program.wait(for: "TICK 1 ", seconds: 120)
            kind.release = "11.1"
            let to = run.directory.file("to-\(name)")
            let destination = try PeerMachine(
                kind, in: run, disk: disk.path, name: "destination-\(name)", incoming: "unix:\(to)")
            let from = run.directory.file("from-\(name)")
            let bridge = try bridge(from, to, kind)
            try waitForSocket(from)
            let answer = try source.migrate(to: "unix:\(from)", returnPath: true)
            #expect(answer.status == "failed" && answer.runState == "running", "\(answer)")
            #expect(try bridge.waitForEnd(seconds: 60) == .exited(status: 80))
            try bridge.errors.wait(for: words, seconds: 30)
            try destination.program.waitForEnd(seconds: 60)
            source.program.output.skipToEnd()
            try source.program.wait(for: "TICK ", seconds: 60)
        }
    }

    @Test("what it needs of memory does not grow with what passes", arguments: [64, 1024])
    func memory(mebibytes: Int) throws {
        let run = try MonitorRun()
        let from = run.directory.file("from")
        let bridge = try RunningProgram(
            Checkout.tool,
            ["bridge", "--from", "unix:\(from)", "--to", "exec:cat >/dev/null", "--target", "qemu-10.0", "--quiet"])
        try waitForSocket(from)
        // A machine whose RAM is not nothing: a loader fills it.
        let file = run.directory.file("contents")
        try HostTools.need(
            "sh", ["-c", "head -c \(mebibytes / 2 * 1_048_576) /dev/urandom >\(file)"])
        let source = try RunningProgram(
            StockKind(release: "7.2").program,
            [
                "-M", "virt", "-m", "\(mebibytes)M", "-S", "-bios", "none", "-nic", "none", "-display", "none",
                "-serial", "null", "-monitor", "stdio", "-device", "loader,addr=0x80000000,force-raw=on,file=\(file)",
            ], name: "QEMU")
        try source.type("migrate_set_parameter max-bandwidth 10G\nmigrate -d unix:\(from)\n")
        // Beyond what a process of the tool has anyway: the most of what it sends in one piece, and the machine whose state it
        // rewrites.
        let status = "/proc/\(bridge.process.processIdentifier)/status"
        var most = 0
        while bridge.process.wait(timeoutMilliseconds: 20) == nil {
            let line = (try? HostTools.need("sed", ["-n", "s/^RssAnon:\\s*//p", status])) ?? ""
            most = max(most, Int(line.split(separator: " ").first ?? "") ?? 0)
        }
        #expect(try bridge.waitForEnd(seconds: 1) == .exited(status: 0), "\(bridge.errors.tail)")
        #expect(most > 0 && most < 32 << 10, "\(most) KiB for \(mebibytes) MiB")
    }
}
