import Foundation
import LinuxCalls
import ProcessTestKit
import QMPProtocol
import Testing

/// A busy loop and a memory checker go on all the time, a file system is mounted, and a shell remembers.
private enum Guest {
    static let prepare =
        "modules ext4; mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; (while :; do :; done) & memory-test 4 0 >/tmp/m 2>&1 & "
        + "x=kept; dd if=/dev/urandom of=/mnt/from-guest bs=64k count=8 2>/dev/null; md5sum </mnt/from-guest "
        + ">/mnt/from-guest.md5; echo prepared $((1 + 1))\n"

    static func check(_ round: Int) -> String {
        "echo round-\(round) >>/mnt/rounds; sync; echo 3 >/proc/sys/vm/drop_caches; jobs >/tmp/jobs; "
            + "a=$(md5sum </mnt/from-guest); b=$(cat /mnt/from-guest.md5); "
            + "[ \"$a\" = \"$b\" ] && [ $x = kept ] && [ $(wc -l </mnt/rounds) = \(round) ] "
            + "&& ! grep -qi -e bad -e wrong -e mismatch /tmp/m && [ $(grep -c Running /tmp/jobs) = 2 ] "
            + "&& echo sa''me $((\(round) + 0)) $(cut -d. -f1 /proc/uptime) end "
            + "|| echo dif''fers $x $(wc -l </mnt/rounds) $a $b $(cat /tmp/jobs /tmp/m)\n"
    }

    static let finish = "cd /; kill %1 %2; umount /mnt && echo unmounted $((1 + 1)); poweroff -f\n"
}

@Suite(
    "A guest between QEMU 10.0 and Sidestep, RAM by descriptor (cpr-transfer)", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
    .enabled(if: Requirement.qemu10.isMet, "\(Requirement.qemu10)"))
struct CPRTransferTests {
    /// Asks the guest, by the console of whoever has it now.
    private func check(_ program: RunningProgram, round: Int) throws {
        program.output.skipToEnd()
        try program.type(Guest.check(round))
        let answer = try program.output.wait(seconds: 120, what: "the answer of round \(round)") { line in
            line.hasPrefix("same \(round) ") && line.hasSuffix(" end") || line.hasPrefix("differs") ? line : nil
        }
        #expect(answer.hasPrefix("same"), "\(answer)")
    }

    /// Identity of a process's file of that many bytes, in /proc: device and inode of the memory that the guest lives in.
    private func memoryFile(of process: Int32, byteCount: Int) throws -> String {
        let directory = "/proc/\(process)/fd"
        for entry in try FileManager.default.contentsOfDirectory(atPath: directory) {
            guard let file = try? OwnedDescriptor.open("\(directory)/\(entry)", flags: 0),
                let status = try? file.status(), status.byteCount == byteCount
            else { continue }
            return "\(status.device):\(status.inode)"
        }
        return "none"
    }

    @Test("goes round and round: the same memory all the time, no byte copied or wrong, disk clean", arguments: [1, 4])
    func rounds(harts: Int) throws {
        let kind = StockKind(release: "10.0", harts: harts)
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        var stock = try PeerMachine(kind, in: run, disk: disk.path, name: "stock0", sharesMemory: true)
        try stock.program.wait(for: "~ # ", seconds: 120, partial: true)
        try stock.program.type(Guest.prepare)
        try stock.program.wait(for: "prepared 2", seconds: 120)
        let memory = try memoryFile(of: stock.program.process.processIdentifier, byteCount: 256 << 20)
        #expect(memory != "none")
        var count = 0
        for round in 1...3 {
            let (main, cpr) = (run.directory.file("main\(round)"), run.directory.file("cpr\(round)"))
            let guest = try RunningProgram(
                Checkout.tool,
                [
                    "receive", "guest", "unix:\(main)", "--cpr", "unix:\(cpr)", "--console", "stdio", "--disk",
                    "path=\(disk.path)",
                ], name: "sidestep", environment: run.environment)
            try waitForSocket(cpr)
            let left = try stock.migrate(main: main, cpr: cpr)
            #expect(left.hasLeft, "\(left)")
            count += 1
            try check(guest, round: count)
            try stock.quit()
            let process = try String(contentsOfFile: run.directory.path + "/sidestep/guest/pid", encoding: .utf8)
            let number = try #require(Int32(process.trimmingCharacters(in: .whitespacesAndNewlines)))
            #expect(try memoryFile(of: number, byteCount: 256 << 20) == memory, "the memory itself crossed")

            // A hot upgrade in between: the memory that came from QEMU is as good as our own.
            let upgrade = try run.command(["upgrade", "guest", "--format", "json"])
            #expect(upgrade.end == .exited(status: 0) && upgrade.output.contains(#""memfd""#), "\(upgrade)")

            let (back, backCPR) = (run.directory.file("back\(round)"), run.directory.file("back-cpr\(round)"))
            stock = try PeerMachine(
                kind, in: run, disk: disk.path, name: "stock\(round)", incoming: "unix:\(back)", sharesMemory: true,
                cpr: backCPR)
            try waitForSocket(backCPR)
            let move = try run.command(
                [
                    "migrate", "guest", "unix:\(back)", "--cpr", "unix:\(backCPR)", "--compat", kind.layout,
                    "--capability", "return-path",
                ])
            #expect(move.end == .exited(status: 0), "\(move.errors)")
            count += 1
            try check(stock.program, round: count)
            #expect(
                try memoryFile(of: stock.program.process.processIdentifier, byteCount: 256 << 20) == memory,
                "the memory itself crossed")
        }
        try stock.program.type(Guest.finish)
        try stock.program.wait(for: "unmounted 2", seconds: 120)
        try stock.program.waitForEnd(seconds: 120)
        #expect(try disk.isClean())
        #expect(try disk.holdsWhatTheGuestWrote())
    }

    @Test("the same with RAM in a file by its name (x-ignore-shared)", arguments: ["7.2", "10.0"])
    func sharedFile(release: String) throws {
        let kind = StockKind(release: release)
        try #require(kind.isHere)
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let ram = run.directory.file("ram")
        var stock = try PeerMachine(kind, in: run, disk: disk.path, name: "stock0", sharedFile: ram)
        try stock.program.wait(for: "~ # ", seconds: 120, partial: true)
        try stock.program.type(Guest.prepare)
        try stock.program.wait(for: "prepared 2", seconds: 120)
        var count = 0
        for round in 1...2 {
            let main = run.directory.file("main\(round)")
            let guest = try RunningProgram(
                Checkout.tool,
                [
                    "run", "--name", "guest", "--memory", "256M", "--memory-backend", "file:\(ram)", "--console",
                    "stdio",
                    "--disk", "path=\(disk.path)", "--compat", kind.layout, "--incoming",
                    "unix:\(main)",
                ], name: "sidestep", environment: run.environment)
            try waitForSocket(main)
            let capabilities = #"{"capabilities": [{"capability": "x-ignore-shared", "state": true}]}"#
            #expect(
                try run.command(["qmp", "guest", "migrate-set-capabilities", capabilities]).end == .exited(status: 0))
            let left = try stock.migrateState(to: "unix:\(main)")
            #expect(left.hasLeft, "\(left)")
            count += 1
            try check(guest, round: count)
            try stock.quit()

            let back = run.directory.file("back\(round)")
            stock = try PeerMachine(
                kind, in: run, disk: disk.path, name: "stock\(round)", incoming: "defer", sharedFile: ram)
            try stock.setCapabilities(["x-ignore-shared": true, "return-path": true])
            try stock.command("migrate-incoming", ["uri": .string("unix:\(back)")])
            let move = try run.command(
                [
                    "migrate", "guest", "unix:\(back)", "--compat", kind.layout, "--capability", "return-path",
                    "--capability", "x-ignore-shared", "--format", "json",
                ])
            #expect(move.end == .exited(status: 0), "\(move.errors)")
            let answer = try JSONValue.parse(String(move.output.split(separator: "\n").last ?? ""))
            #expect(answer["ram"]?["normal"]?.unsignedValue ?? .max < 16, "\(move.output)")
            count += 1
            try check(stock.program, round: count)
        }
        try stock.program.type(Guest.finish)
        try stock.program.wait(for: "unmounted 2", seconds: 120)
        try stock.program.waitForEnd(seconds: 120)
        #expect(try disk.isClean())
        #expect(try disk.holdsWhatTheGuestWrote())
    }

    @Test("what does not fit is refused by name, and QEMU runs its guest on; the next attempt works")
    func refused() throws {
        let kind = StockKind(release: "10.0")
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let stock = try PeerMachine(kind, in: run, disk: disk.path, name: "stock", words: "", sharesMemory: true)
        try stock.program.wait(for: "TICK 1 ", seconds: 120)
        let (main, cpr) = (run.directory.file("main"), run.directory.file("cpr"))
        for (more, words) in [
            (["--memory", "128M"], "RAM block riscv_virt_board.ram has 256M, 128M here"),
            ([], "the guest has 1 disks (32M), 0 images are given"),
        ] {
            let receiver = try RunningProgram(
                Checkout.tool,
                ["receive", "guest", "unix:\(main)", "--cpr", "unix:\(cpr)", "--console", "null"] + more,
                name: "sidestep", environment: run.environment)
            try waitForSocket(cpr)
            let answer = try stock.migrate(main: main, cpr: cpr)
            #expect(answer.status == "failed" && answer.runState == "running", "\(answer)")
            #expect(try receiver.waitForEnd(seconds: 120) == .exited(status: 65))
            try receiver.errors.wait(for: words, seconds: 30)
            stock.program.output.skipToEnd()
            try stock.program.wait(for: "TICK ", seconds: 60)
        }
        let guest = try RunningProgram(
            Checkout.tool,
            [
                "receive", "guest", "unix:\(main)", "--cpr", "unix:\(cpr)", "--console", "stdio", "--disk",
                "path=\(disk.path)",
            ], name: "sidestep", environment: run.environment)
        try waitForSocket(cpr)
        let answer = try stock.migrate(main: main, cpr: cpr)
        #expect(answer.hasLeft, "\(answer) \(guest.errors.tail)")
        try guest.wait(for: "TICK ", seconds: 60)
    }
}
