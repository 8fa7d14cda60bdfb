import Glibc
import LinuxCalls
import ProcessTestKit
import QMPProtocol
import Testing

@Suite(
    "How RAM changes process", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.stockPC.isMet, "\(Requirement.stockPC)"),
    .enabled(if: Requirement.debianPC.isMet, "\(Requirement.debianPC)"))
struct StrategyTests {
    private let seven = StockQEMUBuild.pc("7.2")
    private let ten = StockQEMUBuild.pc("10.0")

    /// A guest with a busy disk and a memory checker.
    private func guest(
        _ release: String, _ machine: String, _ memory: [String], accelerator: String = "tcg"
    ) throws -> (
        guest: StockGuest, disk: TestDisk
    ) {
        let directory = try TemporaryDirectory()
        let disk = try TestDisk(in: directory)
        let guest = try StockGuest(
            StockQEMUBuild.pc(release),
            ["-M", machine] + memory + DebianPC.boot(accelerator: accelerator) + [
                "-drive", "if=none,id=d0,format=raw,file=\(disk.path)", "-device", "virtio-blk-pci,drive=d0",
            ], in: directory)
        try DebianPC.prepare(guest.console, disk: "/dev/vda")
        _ = try DebianPC.check(guest.console, round: 1)
        return (guest, disk)
    }

    private func finish(_ guest: StockGuest, _ disk: TestDisk) throws {
        try DebianPC.finish(guest.console)
        waitUntil(seconds: 120) { guest.processes().isEmpty }
        #expect(try disk.isClean())
        #expect(try disk.holdsWhatTheGuestWrote())
    }

    private func expectMove(
        _ guest: StockGuest, to binary: String, _ more: [String], by strategy: String, round: Int
    ) throws -> StockGuest.Answer {
        let answer = try guest.upgrade(to: binary, more)
        try #require(answer.isMoved, "\(strategy): \(answer.errors)")
        #expect(answer.json["strategy"]?.stringValue == strategy)
        if answer.notes.contains(where: { $0.contains("serial0: its client must connect again") }) {
            try guest.reconnect()
        }
        _ = try DebianPC.check(guest.console, round: round)
        #expect(guest.processes().map(\.identifier) == [answer.newProcess])
        return answer
    }

    @Test("cpr-transfer is driven between processes of 10.0 that were started for it; killed half way, the guest stays")
    func cpr() throws {
        let (guest, disk) = try guest(
            "10.0", "pc,memory-backend=ram,aux-ram-share=on",
            ["-m", "256M", "-object", "memory-backend-memfd,id=ram,size=256M,share=on"])
        let first = try expectMove(guest, to: ten, [], by: "cpr", round: 2)
        #expect(first.json["reason"]?.stringValue?.contains("shared: QEMU 10.0") == true, "auto says why")
        for step in ["started", "ready", "prepared", "moved"] {
            let upgrade = try guest.stoppedUpgrade(at: step, to: ten, ["--strategy", "cpr"])
            let other = try #require(guest.successor(of: upgrade))
            kill(other, SIGKILL)
            upgrade.process.signal(SIGCONT)
            let answer = try guest.end(upgrade)
            #expect(answer.end == .exited(status: 80), "\(step): \(answer.errors)")
            #expect(try guest.console.ask("[ $x = kept ]").hasSuffix(" 0"), "\(step)")
            #expect(try guest.monitor().run("query-migrate-parameters")["mode"]?.stringValue == "normal")
            #expect(try guest.leftovers().isEmpty)
        }
        _ = try expectMove(guest, to: ten, ["--strategy", "cpr"], by: "cpr", round: 3)
        try finish(guest, disk)
    }

    @Test("a guest whose RAM is nobody else's is copied, by precopy and by postcopy, and is the same")
    func copied() throws {
        let (guest, disk) = try guest("7.2", "pc", ["-m", "256M"])
        let auto = try expectMove(guest, to: seven, [], by: "precopy", round: 2)
        #expect(auto.json["reason"]?.stringValue?.contains("shared: its RAM is not shareable (share=on)") == true)
        #expect(auto.json["reason"]?.stringValue?.contains("needs 320 MiB") == true)
        let after = try expectMove(guest, to: ten, ["--strategy", "postcopy"], by: "postcopy", round: 3)
        #expect(after.json["reason"]?.stringValue?.contains("no way back") == true)
        _ = try expectMove(guest, to: ten, ["--strategy", "precopy"], by: "precopy", round: 4)

        // Before postcopy has begun there is a way back.
        for (victim, step) in [("upgrade", "prepared"), ("destination", "prepared"), ("upgrade", "renamed")] {
            let runner = try guest.runner()
            let upgrade = try guest.stoppedUpgrade(at: step, to: ten, ["--strategy", "postcopy"])
            if victim == "upgrade" {
                upgrade.process.kill()
            } else {
                kill(try #require(guest.successor(of: upgrade)), SIGKILL)
                upgrade.process.signal(SIGCONT)
                let answer = try guest.end(upgrade)
                #expect(answer.end == .exited(status: 80), "\(answer.errors)")
            }
            // The guard ends the new process first, and gives the names back then.
            try waitUntil(seconds: 60) {
                try guest.leftovers().isEmpty && guest.processes().count == 1 && (try? guest.runner()) == runner
            }
            #expect(try guest.runner() == runner)
            #expect(guest.processes().map(\.identifier) == [runner])
            #expect(try guest.console.ask("[ $x = kept ] && ! grep -qi bad /tmp/m").hasSuffix(" 0"))
        }
        // Afterwards there is none, and what was begun is ended by the guard.
        let upgrade = try guest.stoppedUpgrade(at: "moving", to: ten, ["--strategy", "postcopy"])
        upgrade.process.kill()
        try waitUntil(seconds: 60) { try guest.leftovers().isEmpty && guest.processes().count == 1 }
        #expect(guest.processes().count == 1)
        try guest.reconnect()
        #expect(try guest.console.ask("[ $x = kept ] && ! grep -qi bad /tmp/m").hasSuffix(" 0"))
        _ = try expectMove(guest, to: ten, ["--strategy", "postcopy"], by: "postcopy", round: 5)
        try finish(guest, disk)
    }

    @Test(
        "shared RAM in several NUMA nodes, by memory file and by file, changes process as it is",
        arguments: [false, true])
    func nodes(huge: Bool) throws {
        if huge, !HugePages.reserve(72) { try Test.cancel("this host gives no huge pages") }
        defer { if huge { HugePages.release() } }
        let file = "/dev/shm/sidestep-test-\(getpid())"
        defer { unlink(file) }
        let (guest, disk) = try guest(
            "7.2", "pc",
            [
                "-m", "256M", "-smp", "2", "-object",
                "memory-backend-memfd,id=m0,size=128M,share=on" + (huge ? ",hugetlb=on,hugetlbsize=2M" : ""), "-object",
                "memory-backend-file,id=m1,size=128M,share=on,mem-path=\(file),prealloc=on", "-numa",
                "node,nodeid=0,memdev=m0,cpus=0", "-numa", "node,nodeid=1,memdev=m1,cpus=1",
            ], accelerator: DebianPC.turns)
        unlink(file)
        let check = try guest.check(to: ten)
        let texts = (check.json.arrayValue ?? []).compactMap { $0["text"]?.stringValue }
        #expect(
            texts.contains { $0.contains("128 MiB, shared, descriptor") && $0.contains("its size sealed") }, "\(texts)")
        for (round, binary) in [seven, ten, ten].enumerated() {
            _ = try expectMove(guest, to: binary, [], by: "shared", round: round + 2)
        }
        try finish(guest, disk)
    }
}

/// The host's pool of huge pages, for root.
enum HugePages {
    private static let path = "/proc/sys/vm/nr_hugepages"

    /// Whether the pool could be made as large as that.
    static func reserve(_ count: Int) -> Bool {
        guard geteuid() == 0, let file = try? OwnedDescriptor.open(path, flags: O_WRONLY) else { return false }
        try? file.writeAll(Array("\(count)\n".utf8))
        let text = (try? FileNames.contents(of: path)).map { String(decoding: $0, as: UTF8.self) } ?? ""
        return (Int(text.split(separator: "\n").first ?? "") ?? 0) >= count
    }

    static func release() {
        try? OwnedDescriptor.open(path, flags: O_WRONLY).writeAll(Array("0\n".utf8))
    }
}
