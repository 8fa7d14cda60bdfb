import LinuxCalls
import ProcessTestKit
import Testing

@Suite(
    "A guest between stock QEMU and Sidestep", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
    .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"))
struct StockPeerTests {
    static let isFull = Environment.all["SIDESTEP_FULL"] != nil
    static let kinds: [StockKind] = {
        let all =
            isFull
            ? StockKind.releases.flatMap { release in
                [1, 4].flatMap { harts in
                    [false, true].map { StockKind(release: release, harts: harts, isLegacy: $0) }
                }
            }
            : [
                StockKind(release: "7.2", harts: 1, isLegacy: true), StockKind(release: "10.0", harts: 4),
                StockKind(release: "11.1", harts: 1),
            ]
        return all.filter { $0.isHere && Environment.isWanted("\($0)") }
    }()

    /// How the rounds of a kind go: with SIDESTEP_FULL each kind by each way, ten rounds and more; else each way once or twice
    /// among all kinds.
    static func transports(of kind: StockKind) -> [PeerTransport] {
        if isFull { return PeerTransport.allCases + [.unix, .tcp] }
        switch kind.release {
        case "7.2": return [.unix, .tcp, .fd, .exec, .file]
        case "10.0": return [.unixToDescriptor, .file, .fd, .unixToExec]
        default: return [.unix, .file, .execToUnix]
        }
    }

    @Test("goes round and round: nothing lost, no byte wrong, disk clean", arguments: kinds)
    func rounds(kind: StockKind) throws {
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let crossing = PeerCrossing(run: run, disk: disk.path)
        var stock = try PeerMachine(kind, in: run, disk: disk.path, name: "stock0")
        var guest = try LiveGuest(booting: stock.program)
        func check(_ program: RunningProgram, _ what: String) throws {
            do { try guest.check(program, what) } catch {
                // What its kernel had to say.
                Attachment.record(program.output.text, named: "\(kind), \(what).txt")
                throw error
            }
        }
        for (index, transport) in Self.transports(of: kind).enumerated() {
            let round = "round \(index + 1) by \(transport.rawValue)"
            let (here, answer) = try crossing.takeIn(stock, by: transport, "in\(index)")
            #expect(answer.hasLeft, "\(round): \(answer); \(here.errors.tail)")
            try check(here, "\(round), in")
            #expect(try stock.runState == "postmigrate")
            try stock.quit()
            stock = try crossing.giveBack(kind, by: transport, "out\(index)")
            try check(stock.program, "\(round), out")
        }
        try LiveGuest.end(stock.program)
        #expect(try disk.isClean())
        #expect(try disk.holdsWhatTheGuestWrote())
    }

    @Test("what is missing here is refused by name, and a source with a return path keeps its guest")
    func refused() throws {
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let stock = try PeerMachine(StockKind(), in: run, disk: disk.path, name: "stock", words: "")
        try stock.program.wait(for: "TICK 1 ", seconds: 120)
        let path = run.directory.file("in")
        let receiver = try RunningProgram(
            Checkout.tool, ["receive", "guest", "unix:\(path)", "--console", "null"], name: "sidestep",
            environment: run.environment)
        try waitForSocket(path)
        let answer = try stock.migrate(to: "unix:\(path)", returnPath: true)
        #expect(answer.status == "failed" && answer.runState == "running", "\(answer)")
        #expect(try receiver.waitForEnd(seconds: 60) == .exited(status: 65))
        try receiver.errors.wait(for: "the guest has 1 disks (32M), 0 images are given", seconds: 10)
        stock.program.output.skipToEnd()
        try stock.program.wait(for: "TICK ", seconds: 60)
    }

    @Test(
        "a stopped source leaves its guest paused here, a running one running; it never runs on there",
        arguments: StockKind.releases.map { StockKind(release: $0) }.filter(\.isHere))
    func stopped(kind: StockKind) throws {
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let crossing = PeerCrossing(run: run, disk: disk.path)
        var stock = try PeerMachine(kind, in: run, disk: disk.path, name: "stock", words: "")
        try stock.program.wait(for: "TICK 1 ", seconds: 120)
        try stock.command("stop")
        stock.program.output.skipToEnd()
        let (paused, answer) = try crossing.takeIn(stock, by: .unix, "stopped")
        #expect(answer.hasLeft, "\(answer)")
        let status = try run.command(["status", "guest"])
        #expect(status.output.contains("guest is paused"), "\(status.output)\(status.errors)")
        try HostTools.need("sleep", ["2"])
        #expect(!paused.output.text.contains("TICK"), "\(paused.output.tail)")
        #expect(try run.command(["resume", "guest"]).end == .exited(status: 0))
        let first = try number(try paused.wait(for: "TICK ", seconds: 60))
        try stock.quit()

        // And back, and here again, running.
        stock = try crossing.giveBack(kind, by: .unix, "back")
        let second = try number(try stock.program.wait(for: "TICK ", seconds: 60))
        #expect(second > first)
        let (running, other) = try crossing.takeIn(stock, by: .unix, "running")
        #expect(other.hasLeft, "\(other)")
        let third = try number(try running.wait(for: "TICK ", seconds: 60))
        #expect(third > second)
        // There it stands still, and cannot be made to run: the disk is ours.
        stock.program.output.skipToEnd()
        let standing = try registers(of: stock)
        try running.wait(for: "TICK ", seconds: 60)
        #expect(try registers(of: stock) == standing)
        #expect(throws: (any Error).self) { try stock.command("cont") }
        #expect(try stock.runState != "running")
        try running.wait(for: "TICK ", seconds: 60)
    }

    /// Program counter and general registers; counters and timers follow the host's clocks.
    private func registers(of stock: PeerMachine) throws -> [String] {
        let lines = try stock.humanCommand("info registers -a").split(whereSeparator: \.isNewline).map(String.init)
        let wanted = lines.filter { $0.hasPrefix(" pc ") || $0.contains("/") }
        #expect(wanted.count > 8)
        return wanted
    }

    private func number(_ line: String) throws -> Int {
        // Behind the shell's prompt, perhaps: which of the two comes first is the guest's affair.
        let words = line.split(separator: " ").drop { !$0.hasSuffix("TICK") }
        return try #require(words.count == 3 ? Int(words.dropFirst().first ?? "") : nil, "\(line)")
    }

    @Test(
        "one that boots here goes to each release with its default processor",
        arguments: StockKind.releases.map { StockKind(release: $0) }.filter(\.isHere))
    func ours(kind: StockKind) throws {
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let guest = try run.debian(
            words: "quiet", withDisk: true, ["--compat", kind.layout, "--disk", "path=\(disk.path)"])
        try guest.wait(for: "TICK 1 ", seconds: 120)
        let path = run.directory.file("out")
        let stock = try PeerMachine(kind, in: run, disk: disk.path, name: "stock", incoming: "unix:\(path)")
        let move = try run.command(["migrate", "guest", "unix:\(path)"])
        #expect(move.end == .exited(status: 0), "\(move.errors)")
        try stock.program.wait(for: "TICK ", seconds: 60)
        try stock.program.wait(for: "TICK ", seconds: 60)
    }
}
