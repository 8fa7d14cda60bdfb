import LinuxCalls
import ProcessTestKit
import Testing

/// A Debian guest with a disk in use, between Sidestep and stock QEMU by the ways that are no single stream.
@Suite(
    "Files with a place for every page, and pages over channels of their own, with stock QEMU", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
    .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"))
struct FileAndChannelTests {
    private static let prepare =
        "modules ext4; mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; (while :; do :; done) & memory-test 4 0 >/tmp/m 2>&1 & "
        + "dd if=/dev/urandom of=/mnt/from-guest bs=64k count=8 2>/dev/null; md5sum </mnt/from-guest "
        + ">/mnt/from-guest.md5; echo prepared $((1 + 1))\n"

    /// The file, the memory checker and both jobs are as they were.
    private static func check(_ program: RunningProgram, _ round: Int) throws {
        program.output.skipToEnd()
        try program.type(
            "sync; echo 3 >/proc/sys/vm/drop_caches; a=$(md5sum </mnt/from-guest); b=$(cat /mnt/from-guest.md5); "
                + "jobs >/tmp/j; [ \"$a\" = \"$b\" ] && ! grep -qi -e bad -e wrong -e mismatch /tmp/m && [ $(grep -c Running /tmp/j) = 2 ] "
                + "&& echo sa''me $((\(round) + 0)) end || echo dif''fers $(jobs) $(cat /tmp/m)\n")
        let line = try program.output.wait(seconds: 120, what: "the answer of round \(round)") { line in
            line.hasPrefix("same \(round) end") || line.hasPrefix("differs") ? line : nil
        }
        #expect(line.hasPrefix("same"))
    }

    private static func finish(_ program: RunningProgram, _ disk: TestDisk) throws {
        try program.type("cd /; kill %1 %2; umount /mnt && echo unmounted $((1 + 1)); poweroff -f\n")
        try program.wait(for: "unmounted 2", seconds: 120)
        try program.waitForEnd(seconds: 120)
        #expect(try disk.isClean())
        #expect(try disk.holdsWhatTheGuestWrote())
    }

    private static func switchOn(_ names: [String], at stock: PeerMachine) throws {
        try stock.setCapabilities(Dictionary(uniqueKeysWithValues: names.map { ($0, true) }))
        try stock.command("migrate-set-parameters", ["multifd-channels": 3, "max-bandwidth": 10_000_000_000])
    }

    @Test(
        "a mapped-ram file of QEMU 10.0's runs here, and ours runs there, with the disk in use",
        .enabled(if: Requirement.qemu10.isMet, "\(Requirement.qemu10)"), arguments: [1, 4])
    func mappedRAM(harts: Int) throws {
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let kind = StockKind(release: "10.0", harts: harts)
        let first = try PeerMachine(kind, in: run, disk: disk.path, name: "first")
        try first.program.wait(for: "~ # ", seconds: 120, partial: true)
        try first.program.type(Self.prepare)
        try first.program.wait(for: "prepared 2", seconds: 120)
        let file = run.directory.file("guest.mapped")
        try Self.switchOn(harts == 1 ? ["mapped-ram"] : ["mapped-ram", "multifd"], at: first)
        try first.command("migrate", ["uri": .string("file:\(file)")])
        try first.waitForMigration("completed")
        try first.quit()

        let guest = try RunningProgram(
            Checkout.tool,
            ["receive", "guest", "file:\(file)", "--console", "stdio", "--disk", "path=\(disk.path)"], name: "sidestep",
            environment: run.environment)
        try Self.check(guest, 1)
        let save = try run.command(["save", "guest", file, "--mapped-ram"])
        #expect(save.end == .exited(status: 0), "\(save.errors)")
        try guest.waitForEnd(seconds: 30)

        let second = try PeerMachine(kind, in: run, disk: disk.path, name: "second", incoming: "defer")
        try Self.switchOn(harts == 1 ? ["mapped-ram", "multifd"] : ["mapped-ram"], at: second)
        try second.command("migrate-incoming", ["uri": .string("file:\(file)")])
        try second.waitForMigration("completed")
        // It was saved while it ran, so it runs.
        try Self.check(second.program, 2)
        try Self.finish(second.program, disk)
    }

    @Test("a guest goes to and fro over multifd channels", arguments: ["7.2", "10.0"])
    func multifd(release: String) throws {
        let kind = StockKind(release: release, harts: release == "7.2" ? 1 : 4)
        guard kind.isHere else { return }
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        var stock = try PeerMachine(kind, in: run, disk: disk.path, name: "stock0")
        try stock.program.wait(for: "~ # ", seconds: 120, partial: true)
        try stock.program.type(Self.prepare)
        try stock.program.wait(for: "prepared 2", seconds: 120)
        for (round, isTCP) in [false, true].enumerated() {
            // Below those that the kernel gives to whoever connects.
            let port = 20000 + Int.random(in: 0..<12000)
            let inURI = isTCP ? "tcp:127.0.0.1:\(port)" : "unix:" + run.directory.file("in\(round)")
            let outURI = isTCP ? "tcp:127.0.0.1:\(port + 1)" : "unix:" + run.directory.file("out\(round)")
            let guest = try RunningProgram(
                Checkout.tool,
                ["receive", "guest", inURI, "--multifd", "3", "--console", "stdio", "--disk", "path=\(disk.path)"],
                name: "sidestep", environment: run.environment)
            try guest.errors.wait(for: "waiting for the guest", seconds: 30)
            try Self.switchOn(["multifd", "return-path"], at: stock)
            try stock.command("migrate", ["uri": .string(inURI)])
            try stock.waitForMigration("completed")
            try Self.check(guest, 2 * round + 1)
            try stock.quit()

            stock = try PeerMachine(kind, in: run, disk: disk.path, name: "stock\(round + 1)", incoming: "defer")
            try Self.switchOn(["multifd"], at: stock)
            try stock.command("migrate-incoming", ["uri": .string(outURI)])
            let move = try run.command([
                "migrate", "guest", outURI, "--compat", kind.layout, "--capability", "multifd", "--capability",
                "return-path", "--parameter", "multifd-channels=3",
            ])
            #expect(move.end == .exited(status: 0), "\(move.errors) \(stock.program.errors.tail)")
            try Self.check(stock.program, 2 * round + 2)
        }
        try Self.finish(stock.program, disk)
    }
}
