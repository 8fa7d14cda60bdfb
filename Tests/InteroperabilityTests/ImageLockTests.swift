import ProcessTestKit
import Testing

/// One disk image, a process of ours and one of stock QEMU's.
@Suite(
    "A disk image between Sidestep and stock QEMU", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"),
    .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"))
struct ImageLockTests {
    static let kinds = StockKind.releases.map { StockKind(release: $0) }.filter(\.isHere)

    private func stock(_ kind: StockKind, _ disk: String, readOnly: Bool) throws -> RunningProgram {
        try RunningProgram(
            kind.program,
            [
                "-M", "virt", "-m", "64M", "-bios", Heartbeat.elf, "-nic", "none", "-display", "none", "-serial",
                "stdio",
                "-monitor", "none", "-drive",
                "if=none,id=d,format=raw,file=\(disk),readonly=\(readOnly ? "on" : "off")", "-device",
                "virtio-blk-device,drive=d",
            ], name: "QEMU", limitSeconds: 180)
    }

    private func ours(_ run: MonitorRun, _ disk: String, readOnly: Bool) throws -> RunningProgram {
        try run.heartbeat(["--disk", "path=\(disk)\(readOnly ? ",readonly=on" : "")"])
    }

    @Test("whoever is second is refused when either writes, and both read it together", arguments: kinds)
    func shared(kind: StockKind) throws {
        for (first, second) in [(false, false), (false, true), (true, false), (true, true)] {
            let what = "\(kind.release), first \(first ? "reads" : "writes"), second \(second ? "reads" : "writes")"
            let run = try MonitorRun()
            let disk = try run.directory.write([UInt8](repeating: 0, count: 1 << 16), to: "disk")
            let both = first && second
            do {
                let here = try ours(run, disk, readOnly: first)
                try here.wait(for: "tick 1 ", seconds: 60)
                let there = try stock(kind, disk, readOnly: second)
                if both {
                    try there.wait(for: "tick 1 ", seconds: 60)
                } else {
                    #expect(try there.waitForEnd(seconds: 60) == .exited(status: 1), "\(what), ours first")
                    try there.errors.wait(for: "lock", seconds: 30)
                }
                try here.type("q")
                try here.waitForEnd(seconds: 60)
            }
            do {
                let there = try stock(kind, disk, readOnly: first)
                try there.wait(for: "tick 1 ", seconds: 60)
                let here = try ours(run, disk, readOnly: second)
                if both {
                    try here.wait(for: "tick 1 ", seconds: 60)
                } else {
                    #expect(try here.waitForEnd(seconds: 60) == .exited(status: 65), "\(what), QEMU first")
                    // It names who has it.
                    let line = try here.errors.wait(for: "is in use by ", seconds: 30)
                    #expect(line.contains(kind.release == "11.1" ? "ld-linux" : "qemu-system-ris"), "\(line)")
                }
            }
        }
    }

    @Test("a guest on its way has its image locked where it is, and nowhere else", arguments: kinds)
    func moving(kind: StockKind) throws {
        let run = try MonitorRun()
        let disk = try run.directory.write([UInt8](repeating: 0, count: 1 << 16), to: "disk")
        let crossing = PeerCrossing(run: run, disk: disk, guest: ["-bios", Heartbeat.elf])
        var stock = try PeerMachine(kind, in: run, disk: disk, name: "stock", guest: crossing.guest)
        try stock.program.wait(for: "tick 1 ", seconds: 60)
        for round in 0..<2 {
            let (here, answer) = try crossing.takeIn(stock, by: .unix, "in\(round)")
            #expect(answer.hasLeft, "\(answer) \(here.errors.tail)")
            try here.wait(for: "tick ", seconds: 60)
            // A third one gets it from neither, and QEMU, which still has it open, cannot take it back.
            #expect(try self.stock(kind, disk, readOnly: true).waitForEnd(seconds: 60) == .exited(status: 1))
            #expect(throws: (any Error).self) { try stock.command("cont") }
            try stock.quit()
            stock = try crossing.giveBack(kind, by: .unix, "out\(round)")
            try stock.program.wait(for: "tick ", seconds: 60)
            let third = try run.heartbeat(["--disk", "path=\(disk)"], name: "third")
            #expect(try third.waitForEnd(seconds: 60) == .exited(status: 65))
        }
    }
}
