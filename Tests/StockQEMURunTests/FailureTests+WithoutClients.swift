import Glibc
import LinuxCalls
import ProcessTestKit
import Testing

/// Nobody is connected to the guest's console, so the new process starts it as soon as it has it.
extension FailureTests {
    private func stopped(at step: String, to release: String) throws -> RunningProgram {
        try guest.disconnect()
        return try guest.stoppedUpgrade(at: step, to: StockQEMUBuild.pc(release))
    }

    /// What a failed attempt leaves is nothing; who comes now is served as before.
    private func expectStay(_ after: String) throws {
        try waitUntil(seconds: 60) {
            try guest.leftovers().isEmpty && guest.processes().count == 1 && (try? guest.status()) == "running"
        }
        try guest.reconnect()
        try expectUnharmed(after)
    }

    private func expectMoved(to other: CInt, _ after: String) throws {
        try waitUntil(seconds: 60) { try guest.leftovers().isEmpty && guest.processes().count == 1 }
        #expect(guest.processes().map(\.identifier) == [other], "\(after)")
        #expect(try guest.runner() == other, "\(after)")
        try guest.reconnect()
        #expect(try guest.console.ask("[ $x = kept ] && ! grep -qi bad /tmp/m").hasSuffix(" 0"), "\(after)")
        #expect(try guest.status() == "running", "\(after)")
        #expect(try StockGuest.locks(other, disk.path), "\(after): the disk's lock")
        #expect(try guest.leftovers() == [], "\(after)")
        let pid = String(decoding: try FileNames.contents(of: directory.file("pid")), as: UTF8.self)
        #expect(pid.hasPrefix("\(other)\n"), "\(after): the pid file says \(pid)")
    }

    @Test("without clients, whichever dies at whichever step: the guest runs on, in the one process that may run it")
    func deathsWithoutClients() throws {
        for step in ["guarded", "named", "started", "ready", "prepared"] {
            let upgrade = try stopped(at: step, to: "10.0")
            upgrade.process.kill()
            #expect(try upgrade.waitForEnd(seconds: 30) == .signaled(signal: SIGKILL))
            try expectStay("the upgrade killed at \(step)")
        }
        for step in ["started", "ready", "prepared"] {
            let upgrade = try stopped(at: step, to: "7.2")
            kill(try #require(guest.successor(of: upgrade), "\(step)"), SIGKILL)
            upgrade.process.signal(SIGCONT)
            let answer = try guest.end(upgrade)
            #expect(answer.end == .exited(status: 80), "\(step): \(answer.errors)")
            try expectStay("the new process killed at \(step)")
        }
        let both = try stopped(at: "prepared", to: "10.0")
        kill(try #require(guest.successor(of: both)), SIGKILL)
        both.process.kill()
        try expectStay("both killed before the move")

        // From here on the guest runs in the new process, whoever else dies.
        for (victim, step) in [
            ("nobody", "moving"), ("the upgrade", "moving"), ("the upgrade", "moved"), ("the upgrade", "running"),
            ("the old process", "moving"),
        ] {
            let old = try guest.runner()
            let upgrade = try stopped(at: step, to: "10.0")
            let other = try #require(guest.successor(of: upgrade), "\(victim), \(step)")
            try StockGuest.awaitStart(of: other, disk.path)
            if victim == "the old process" { kill(old, SIGKILL) }
            if victim == "the upgrade" { upgrade.process.kill() } else { upgrade.process.signal(SIGCONT) }
            let answer = try guest.end(upgrade)
            if victim != "the upgrade" { #expect(answer.isMoved, "\(victim), \(step): \(answer.errors)") }
            try expectMoved(to: other, "\(victim) killed at \(step)")
        }

        // A name that was taken in the meantime is left to whoever took it, and the guest runs.
        let upgrade = try stopped(at: "moving", to: "10.0")
        let other = try #require(guest.successor(of: upgrade))
        try StockGuest.awaitStart(of: other, disk.path)
        let path = guest.consolePath
        try HostTools.need("sh", ["-ec", "mv \(path) \(path).aside; touch \(path)"])
        upgrade.process.signal(SIGCONT)
        let answer = try guest.end(upgrade)
        #expect(answer.isMoved, "\(answer.errors)")
        let note = try #require(answer.notes.first { $0.contains("\(path) is another file now") }, "\(answer.notes)")
        let served = try #require(note.split(separator: " ").last.map(String.init))
        try HostTools.need("sh", ["-ec", "mv \(served) \(path); rm \(path).aside; rmdir $(dirname \(served))"])
        try expectMoved(to: other, "a socket's path was taken")
        try expectMove(to: "10.0")
        try DebianPC.finish(guest.console)
        waitUntil(seconds: 120) { guest.processes().isEmpty }
        #expect(try disk.isClean())
    }
}

/// Guests are firmware, which is lost at little cost.
@Suite(
    "A new process that dies with the guest", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.stockPC.isMet, "\(Requirement.stockPC)"))
struct LostGuestTests {
    static let isFull = Environment.all["SIDESTEP_FULL"] != nil

    private func guest(in directory: TemporaryDirectory, _ disk: TestDisk) throws -> StockGuest {
        let guest = try StockGuest(
            StockQEMUBuild.pc("7.2"),
            FirmwarePC.arguments() + [
                "-drive", "if=none,id=d0,format=raw,file=\(disk.path)", "-device", "virtio-blk-pci,drive=d0",
            ], in: directory)
        try guest.disconnect()
        return guest
    }

    @Test("a guest that ran in a new process that died is never run again in the old one", arguments: [false, true])
    func never(upgradeDiesToo: Bool) throws {
        let directory = try TemporaryDirectory()
        let disk = try TestDisk(in: directory)
        let guest = try guest(in: directory, disk)
        let upgrade = try guest.stoppedUpgrade(at: "moving", to: StockQEMUBuild.pc("10.0"))
        let other = try #require(guest.successor(of: upgrade))
        try StockGuest.awaitStart(of: other, disk.path)
        let ending = try OwnedDescriptor.process(other)
        kill(other, SIGKILL)
        // It has to free the guest's memory first; until then nobody can tell.
        try #require(try ending.waitUntilReady(for: Int16(POLLIN), timeoutMilliseconds: 30_000) != 0)
        if upgradeDiesToo {
            upgrade.process.kill()
        } else {
            upgrade.process.signal(SIGCONT)
            let answer = try guest.end(upgrade)
            #expect(answer.end == .exited(status: 81), "\(answer.errors)")
            #expect(answer.errors.contains("the guest is gone"), "\(answer.errors)")
        }
        try waitUntil(seconds: 60) { try guest.processes().isEmpty && guest.leftovers().isEmpty }
        #expect(guest.processes().isEmpty, "nobody runs a guest of which a part is gone")
        #expect(try guest.leftovers() == [])
    }

    @Test("whoever is killed at a random moment: one process runs the guest, or it was the one that ran it")
    func random() throws {
        var current: (StockGuest, TemporaryDirectory, TestDisk)?
        for round in 0..<(Self.isFull ? 200 : 9) {
            if current == nil {
                let directory = try TemporaryDirectory()
                let disk = try TestDisk(in: directory)
                current = (try guest(in: directory, disk), directory, disk)
            }
            guard let (guest, _, disk) = current else { return }
            let old = try guest.runner()
            let program = StockQEMUBuild.pc("10.0")
            // Stopped when all is ready, it has a random time from then on: the move itself is most of it.
            let upgrade = try guest.stoppedUpgrade(at: "prepared", to: program)
            let other = try #require(guest.successor(of: upgrade))
            let victim = ["the upgrade", "the new process", "the old process"][round % 3]
            let delay = UInt32.random(in: 0..<40_000)
            upgrade.process.signal(SIGCONT)
            usleep(delay)
            switch victim {
            case "the upgrade": upgrade.process.kill()
            case "the new process": kill(other, SIGKILL)
            default: kill(old, SIGKILL)
            }
            let answer = try guest.end(upgrade)
            try waitUntil(seconds: 60) {
                try guest.leftovers().isEmpty && guest.processes().count <= 1
                    && (guest.processes().isEmpty || (try? guest.status()) == "running")
            }
            let left = guest.processes().map(\.identifier)
            let what = "\(victim) after \(delay) us: \(answer.end) \(answer.errors)"
            #expect(try guest.leftovers() == [], "\(what)")
            #expect(left.count <= 1, "\(what)")
            if answer.end == .exited(status: 80) { #expect(left == [old], "\(what)") }
            if answer.end == .exited(status: 0), victim != "the new process" { #expect(left == [other], "\(what)") }
            if answer.end == .exited(status: 81) { #expect(left.isEmpty, "\(what)") }
            if victim == "the upgrade" { #expect(left.count == 1, "\(what)") }
            guard let runner = left.first else {
                current = nil
                continue
            }
            #expect(try guest.runner() == runner && guest.status() == "running", "\(what)")
            #expect(try StockGuest.locks(runner, disk.path), "\(what)")
        }
    }
}

extension StockGuest {
    /// Waits until a process that starts its guest by itself has done so: its disk's lock comes right before.
    static func awaitStart(of process: CInt, _ disk: String) throws {
        try waitUntil(seconds: 30) { try locks(process, disk) }
        #expect(try locks(process, disk), "the new process runs the guest by itself")
        ProcessSignal.sleep(milliseconds: 200)
    }
}
