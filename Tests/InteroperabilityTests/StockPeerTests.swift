import LinuxCalls
import ProcessTestKit
import Testing

/// What a guest has to say about itself, wherever it runs: a busy loop and a memory checker go on all the time, a file
/// system is mounted, and a shell on the console remembers.
private enum Guest {
    static let prepare =
        "modules ext4; mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; (while :; do :; done) & memory-test 4 0 >/tmp/m 2>&1 & "
        + "x=kept; dd if=/dev/urandom of=/mnt/from-guest bs=64k count=8 2>/dev/null; md5sum </mnt/from-guest "
        + ">/mnt/from-guest.md5; echo prepared $((1 + 1))\n"

    /// Prints the time since boot, and that all is as it was.
    static func check(_ round: Int) -> String {
        "echo round-\(round) >>/mnt/rounds; sync; echo 3 >/proc/sys/vm/drop_caches; "
            + "a=$(md5sum </mnt/from-guest); b=$(cat /mnt/from-guest.md5); "
            + "[ \"$a\" = \"$b\" ] && [ $x = kept ] && [ $(wc -l </mnt/rounds) = \(round) ] "
            + "&& ! grep -qi -e bad -e wrong -e mismatch /tmp/m && [ $(jobs | grep -c Running) = 2 ] "
            + "&& echo same $((\(round) + 0)) $(cut -d. -f1 /proc/uptime) end || echo differs $(jobs) $(cat /tmp/m)\n"
    }

    static let finish = "cd /; kill %1 %2; umount /mnt && echo unmounted $((1 + 1)); poweroff -f\n"
}

@Suite(
    "A guest between stock QEMU and Sidestep", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
    .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"))
struct StockPeerTests {
    static let isFull = Environment.all["SIDESTEP_FULL"] != nil
    static let kinds: [StockKind] =
        isFull
        ? ["7.2", "10.0"].flatMap { release in
            [1, 4].flatMap { harts in
                [false, true].map { StockKind(release: release, harts: harts, isLegacy: $0) }
            }
        }
        : [StockKind(release: "7.2", harts: 1, isLegacy: true), StockKind(release: "10.0", harts: 4, isLegacy: false)]
    static let transports = ["unix", "tcp", "fd", "exec", "file"]

    private func seconds(_ line: String) throws -> Int {
        let words = line.split(separator: " ")
        return try #require(words.count == 4 ? Int(words[2]) : nil, "\(line)")
    }

    /// Asks the guest, by the console of whoever has it now.
    private func check(_ program: RunningProgram, round: Int, after uptime: inout Int) throws {
        program.output.skipToEnd()
        try program.type(Guest.check(round))
        let now = try seconds(
            try program.output.wait(seconds: 60, what: "the answer of round \(round)") { line in
                line.hasPrefix("same \(round) ") && line.hasSuffix(" end") || line.hasPrefix("differs") ? line : nil
            })
        // It goes on, and not by leaps: its clock stood still while it moved.
        #expect(now >= uptime && now < uptime + 120)
        uptime = now
    }

    private func waitForSocket(_ path: String) throws {
        try HostTools.need("sh", ["-c", "until [ -S \(path) ]; do sleep 0.02; done"], seconds: 30)
    }

    /// Where the source sends to, and where the destination reads from; between the two sides the kinds differ.
    private func uris(_ transport: String, _ run: MonitorRun, _ name: String) -> (source: String, destination: String) {
        let path = run.directory.file(name)
        switch transport {
        case "tcp":
            let port = 20000 + Int.random(in: 0..<20000)
            return ("tcp:127.0.0.1:\(port)", "tcp:127.0.0.1:\(port)")
        case "exec": return ("exec:socat -u - UNIX-CONNECT:\(path)", "unix:\(path)")
        case "fd": return ("unix:\(path)", "exec:socat -u UNIX-LISTEN:\(path) -")
        case "file": return ("exec:cat >\(path)", "file:\(path)")
        default: return ("unix:\(path)", "unix:\(path)")
        }
    }

    @Test("goes round and round: nothing lost, no byte wrong, disk clean", arguments: kinds)
    func rounds(kind: StockKind) throws {
        guard kind.isHere else { return }
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        var stock = try StockMachine(kind, in: run, disk: disk.path, name: "stock0")
        try stock.program.wait(for: "~ # ", seconds: 120, partial: true)
        try stock.program.type(Guest.prepare)
        try stock.program.wait(for: "prepared 2", seconds: 60)
        var uptime = 0
        var count = 0
        for round in 1...(Self.isFull ? 10 : 5) {
            let transport = Self.transports[(round - 1) % Self.transports.count]
            // In. A file is there before anybody reads it.
            let (from, at) = uris(transport, run, "in\(round)")
            var received: RunningProgram?
            func receive() throws {
                received = try RunningProgram(
                    Checkout.tool,
                    ["receive", "guest", at, "--console", "stdio", "--disk", "path=\(disk.path)"], name: "sidestep",
                    environment: run.environment)
            }
            if transport == "file" {
                let left = try stock.migrate(to: from, returnPath: false)
                #expect(left.contains("completed"), "\(left)")
                try receive()
            } else {
                try receive()
                if at.hasPrefix("unix:") {
                    try waitForSocket(String(at.dropFirst(5)))
                } else if from.hasPrefix("unix:") {
                    try waitForSocket(String(from.dropFirst(5)))
                } else {
                    try received?.errors.wait(for: "waiting for the guest", seconds: 30)
                }
                let left = try stock.migrate(to: from, returnPath: ["unix", "tcp"].contains(transport))
                #expect(left.contains("completed") && left.contains("postmigrate"), "\(transport): \(left)")
            }
            let guest = try #require(received)
            count += 1
            try check(guest, round: count, after: &uptime)
            try stock.quit()

            // Out.
            let (to, back) = uris(transport == "file" ? "exec" : transport, run, "out\(round)")
            stock = try StockMachine(kind, in: run, disk: disk.path, name: "stock\(round)", incoming: back)
            if to.hasPrefix("unix:") { try waitForSocket(String(to.dropFirst(5))) }
            if back.hasPrefix("unix:") { try waitForSocket(String(back.dropFirst(5))) }
            let move = try run.command(["migrate", "guest", to, "--compat", kind.layout])
            #expect(move.end == .exited(status: 0), "\(transport): \(move.errors)")
            count += 1
            try check(stock.program, round: count, after: &uptime)
        }
        try stock.program.type(Guest.finish)
        try stock.program.wait(for: "unmounted 2", seconds: 60)
        try stock.program.waitForEnd(seconds: 60)
        #expect(try disk.isClean())
        #expect(try disk.holdsWhatTheGuestWrote())
    }

    @Test("what is missing here is refused by name, and a source with a return path keeps its guest")
    func refused() throws {
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let stock = try StockMachine(StockKind(), in: run, disk: disk.path, name: "stock", words: "")
        try stock.program.wait(for: "TICK 1 ", seconds: 120)
        let path = run.directory.file("in")
        let receiver = try RunningProgram(
            Checkout.tool, ["receive", "guest", "unix:\(path)", "--console", "null"], name: "sidestep",
            environment: run.environment)
        try waitForSocket(path)
        let answer = try stock.migrate(to: "unix:\(path)", returnPath: true)
        #expect(answer.contains("failed") && answer.contains("\"running\""), "\(answer)")
        #expect(try receiver.waitForEnd(seconds: 30) == .exited(status: 65))
        try receiver.errors.wait(for: "the guest has 1 disks (32M), 0 images are given", seconds: 10)
        stock.program.output.skipToEnd()
        try stock.program.wait(for: "TICK ", seconds: 30)
    }

    @Test("one that boots here goes to each release with its default processor", arguments: ["7.2", "10.0"])
    func ours(release: String) throws {
        let kind = StockKind(release: release)
        guard kind.isHere else { return }
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let guest = try run.debian(
            words: "quiet", withDisk: true, ["--compat", kind.layout, "--disk", "path=\(disk.path)"])
        try guest.wait(for: "TICK 1 ", seconds: 120)
        let path = run.directory.file("out")
        let stock = try StockMachine(kind, in: run, disk: disk.path, name: "stock", incoming: "unix:\(path)")
        try waitForSocket(path)
        let move = try run.command(["migrate", "guest", "unix:\(path)"])
        #expect(move.end == .exited(status: 0), "\(move.errors)")
        try stock.program.wait(for: "TICK ", seconds: 20)
        try stock.program.wait(for: "TICK ", seconds: 20)
    }
}
