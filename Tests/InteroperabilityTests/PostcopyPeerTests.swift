import LinuxCalls
import ProcessTestKit
import Testing

/// What a guest does all the time, and how it says that all is as it was.
private enum BusyGuest {
    static let prepare =
        "modules ext4; mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; memory-test 4 0 >/tmp/m 2>&1 & x=kept; "
        + "dd if=/dev/urandom of=/mnt/from-guest bs=64k count=8 2>/dev/null; md5sum </mnt/from-guest "
        + ">/mnt/from-guest.md5; sync; echo prepared $((1 + 1))\n"
    static func check(_ round: Int) -> String {
        // Not `jobs | grep`: in a pipe the shell's jobs are not its own.
        "echo 3 >/proc/sys/vm/drop_caches; jobs >/tmp/jobs; a=$(md5sum </mnt/from-guest); b=$(cat /mnt/from-guest.md5); "
            + "[ \"$a\" = \"$b\" ] && [ $x = kept ] && ! grep -qi -e bad -e wrong -e mismatch /tmp/m "
            + "&& [ $(grep -c Running /tmp/jobs) = 1 ] && echo sa''me $((\(round) + 0)) end "
            + "|| echo dif''fers $a $b $(cat /tmp/jobs /tmp/m)\n"
    }
    static let finish = "cd /; kill %1; umount /mnt && echo unmounted $((1 + 1)); poweroff -f\n"
}

@Suite(
    "Postcopy between stock QEMU and Sidestep", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
    .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"))
struct PostcopyPeerTests {
    private func check(_ program: RunningProgram, round: Int) throws {
        program.output.skipToEnd()
        try program.type(BusyGuest.check(round))
        let answer = try program.output.wait(seconds: 120, what: "the answer of round \(round)") { line in
            line.hasPrefix("same \(round) ") || line.hasPrefix("differs") ? line : nil
        }
        #expect(answer.hasPrefix("same"), "\(answer)")
    }

    private func waitFor(_ text: String, _ guest: String, _ run: MonitorRun) throws {
        for _ in 0..<1200 {
            if try run.command(["status", guest]).output.contains(text) { return }
            _ = try HostTools.run("sleep", ["0.05"])
        }
        Issue.record("\(guest) does not come to \(text): \(try run.command(["status", guest]).output)")
    }

    /// A channel that is lost before the guest runs at the destination is not recovered: the move has failed.
    private func waitUntilRunning(_ guest: String, _ run: MonitorRun) throws {
        var answer = ""
        for _ in 0..<1200 {
            answer = try run.command(["qmp", guest, "query-status"]).output
            if answer.contains(#""running": true"#) { return }
            _ = try HostTools.run("sleep", ["0.05"])
        }
        Issue.record("\(guest) does not run: \(answer)")
    }

    /// A machine that is built from its devices' state comes too late in a postcopy, and a QEMU whose package was refused does
    /// not run its guest again: so it is refused before a page moves.
    private func refuseToReceive(_ stock: PeerMachine, disk: String, _ run: MonitorRun) throws {
        let path = run.directory.file("received")
        let receiver = try RunningProgram(
            Checkout.tool, ["receive", "received", "unix:\(path)", "--console", "null", "--disk", "path=\(disk)"],
            name: "sidestep", environment: run.environment)
        try waitForSocket(path)
        try stock.command("migrate", ["uri": .string("unix:\(path)")])
        #expect(try receiver.waitForEnd(seconds: 60) == .exited(status: 84))
        try receiver.errors.wait(for: "postcopy-ram is on at the source", seconds: 10)
        let answer = try stock.waitForMigration()
        #expect(answer.status == "failed" && answer.runState == "running", "\(answer)")
    }

    @Test(
        "a guest goes there and comes back, on the way its channel breaks and is recovered; no byte is wrong, its disk clean",
        arguments: ["7.2", "10.0"])
    func thereAndBack(release: String) throws {
        let kind = StockKind(release: release)
        guard kind.isHere else { return }
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let source = try run.debian(
            words: "quiet notick", withDisk: true, ["--compat", kind.layout, "--disk", "path=\(disk.path)"],
            name: "source")
        try source.wait(for: "~ # ", seconds: 120, partial: true)
        try source.type(BusyGuest.prepare)
        try source.wait(for: "prepared 2", seconds: 120)

        // There: the source breaks the channel off.
        let there = run.directory.file("there")
        let stock = try PeerMachine(kind, in: run, disk: disk.path, name: "stock", incoming: "defer")
        try stock.setCapabilities(["postcopy-ram": true])
        try stock.command("migrate-incoming", ["uri": .string("unix:\(there)")])
        for (command, arguments) in [
            ("migrate-set-capabilities", #"{"capabilities": [{"capability": "postcopy-ram", "state": true}]}"#),
            ("migrate-set-parameters", #"{"max-bandwidth": 10000000, "max-postcopy-bandwidth": 5000000}"#),
            ("migrate", #"{"uri": "unix:\#(there)"}"#), ("migrate-start-postcopy", "{}"),
        ] {
            let answer = try run.command(["qmp", "source", command, arguments])
            #expect(answer.end == .exited(status: 0), "\(command): \(answer.errors)")
        }
        try waitFor("postcopy-active", "source", run)
        try stock.waitUntilRunning()
        #expect(try run.command(["qmp", "source", "migrate-pause"]).end == .exited(status: 0))
        try stock.waitForMigration("postcopy-paused")
        let recovery = run.directory.file("recovery")
        try stock.command("migrate-recover", ["uri": .string("unix:\(recovery)")])
        try waitForSocket(recovery)
        let move = try run.command(["migrate", "source", "unix:\(recovery)", "--resume"], seconds: 240)
        #expect(move.end == .exited(status: 0), "\(move.errors)")
        try stock.waitForMigration("completed")
        try check(stock.program, round: 1)

        try refuseToReceive(stock, disk: disk.path, run)
        try check(stock.program, round: 2)

        // Back: the destination does.
        let back = run.directory.file("back")
        let destination = try run.start(
            ["--memory", "256M", "--compat", kind.layout, "--disk", "path=\(disk.path)", "--incoming", "unix:\(back)"],
            name: "destination")
        try waitForSocket(back)
        try stock.command(
            "migrate-set-parameters", ["max-bandwidth": 10_000_000, "max-postcopy-bandwidth": 5_000_000])
        try stock.command("migrate", ["uri": .string("unix:\(back)")])
        try stock.waitForMigration("active")
        try stock.command("migrate-start-postcopy")
        try waitFor("postcopy-active", "destination", run)
        try stock.waitForMigration("postcopy-active")
        try waitUntilRunning("destination", run)
        #expect(try run.command(["qmp", "destination", "migrate-pause"]).end == .exited(status: 0))
        try stock.waitForMigration("postcopy-paused")
        try waitFor("postcopy-paused", "destination", run)
        let again = run.directory.file("again")
        #expect(
            try run.command(["qmp", "destination", "migrate-recover", #"{"uri": "unix:\#(again)"}"#]).end
                == .exited(status: 0))
        try waitForSocket(again)
        try stock.command("migrate", ["uri": .string("unix:\(again)"), "resume": true])
        try stock.waitForMigration("completed")
        try waitFor("completed", "destination", run)
        try stock.quit()
        try check(destination, round: 3)
        try destination.type(BusyGuest.finish)
        try destination.wait(for: "unmounted 2", seconds: 120)
        try destination.waitForEnd(seconds: 120)
        #expect(try disk.isClean())
        #expect(try disk.holdsWhatTheGuestWrote())
    }
}
