import Glibc
import LinuxCalls
import ProcessTestKit
import QMPProtocol
import Testing

/// One guest, and everything that can go wrong, one after the other: it runs on each time as if nothing had been.
@Suite(
    "A failed upgrade of stock QEMU", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.stockPC.isMet, "\(Requirement.stockPC)"),
    .enabled(if: Requirement.debianPC.isMet, "\(Requirement.debianPC)"))
struct FailureTests {
    /// Steps before the new process is told to run, in order.
    static let steps = [
        "guarded", "named", "started", "ready", "prepared", "moving", "moved", "handed",
    ]

    let directory: TemporaryDirectory
    let disk: TestDisk
    let guest: StockGuest
    let process: CInt

    init() throws {
        directory = try TemporaryDirectory()
        disk = try TestDisk(in: directory)
        guest = try StockGuest(
            StockQEMUBuild.pc("7.2"),
            ["-M", "pc" + DebianPC.machineOfMemory] + DebianPC.shared + DebianPC.boot() + [
                "-drive", "if=none,id=d0,format=raw,file=\(disk.path)", "-device", "virtio-blk-pci,drive=d0,id=disk0",
                "-device", "virtio-rng-pci", "-pidfile", directory.file("pid"),
            ], in: directory)
        try DebianPC.prepare(guest.console, disk: "/dev/vda")
        process = try guest.runner()
        try expectUnharmed("at first")
    }

    /// The guest runs in the process it was in; its console's client was never cut off, QMP answers, the disk is locked, and
    /// nothing is left of the attempt.
    func expectUnharmed(_ after: String) throws {
        #expect(try guest.console.ask("[ $x = kept ] && ! grep -qi bad /tmp/m").hasSuffix(" 0"), "\(after)")
        #expect(try guest.runner() == process, "\(after)")
        let monitor = try guest.monitor()
        #expect(try monitor.run("query-status")["status"]?.stringValue == "running", "\(after)")
        let on = try monitor.run("query-migrate-capabilities").arrayValue?.filter { $0["state"]?.boolValue == true }
        #expect(on?.isEmpty == true, "\(after): \(on ?? [])")
        #expect(
            try monitor.run("query-migrate-parameters")["downtime-limit"]?.integerValue == 300, "\(after)")
        #expect(try StockGuest.locks(process, disk.path), "\(after): the disk's lock")
        #expect(try guest.leftovers() == [], "\(after)")
        let pid = String(decoding: try FileNames.contents(of: directory.file("pid")), as: UTF8.self)
        #expect(pid.hasPrefix("\(process)\n"), "\(after): the pid file says \(pid)")
        waitUntil(seconds: 30) { guest.processes().count <= 1 }
        #expect(guest.processes().map(\.identifier) == [process], "\(after): processes")
    }

    func expectMove(to release: String) throws {
        let answer = try guest.upgrade(to: StockQEMUBuild.pc(release))
        #expect(answer.isMoved, "\(answer.errors) \(answer.json.json)")
        #expect(try guest.console.ask("[ $x = kept ] && ! grep -qi bad /tmp/m").hasSuffix(" 0"))
        #expect(try guest.runner() == answer.newProcess)
        let on = try guest.monitor().run("query-migrate-capabilities").arrayValue?.filter {
            $0["state"]?.boolValue == true
        }
        #expect(on?.isEmpty == true, "capabilities of the move are not left on: \(on ?? [])")
    }

    @Test("whichever dies at whichever step before the new process runs: the guest runs on, and the next attempt works")
    func deaths() throws {
        for step in Self.steps {
            let upgrade = try guest.stoppedUpgrade(at: step, to: StockQEMUBuild.pc("10.0"))
            upgrade.process.kill()
            #expect(try upgrade.waitForEnd(seconds: 30) == .signaled(signal: SIGKILL))
            // The guard ends what was begun; when it is through, nothing is left, and QEMU serves others than it.
            try waitUntil(seconds: 60) {
                try guest.leftovers().isEmpty && guest.processes().count == 1 && (try? guest.status()) == "running"
            }
            try expectUnharmed("the upgrade killed at \(step)")
        }
        for step in Self.steps where step != "guarded" && step != "named" {
            let upgrade = try guest.stoppedUpgrade(at: step, to: StockQEMUBuild.pc("7.2"))
            let other = try #require(guest.successor(of: upgrade), "\(step)")
            kill(other, SIGKILL)
            upgrade.process.signal(SIGCONT)
            let answer = try guest.end(upgrade)
            #expect(answer.end == .exited(status: 80), "\(step): \(answer.errors)")
            #expect(answer.errors.contains("the guest runs on in process \(process)"), "\(step): \(answer.errors)")
            try expectUnharmed("the new process killed at \(step)")
        }
        try expectMove(to: "7.2")

        // Once the new process was told to run, the upgrade's own death changes nothing any more.
        let upgrade = try guest.stoppedUpgrade(at: "running", to: StockQEMUBuild.pc("10.0"))
        upgrade.process.kill()
        waitUntil(seconds: 60) { guest.processes().count <= 1 }
        #expect(guest.processes().count == 1)
        #expect(try guest.console.ask("[ $x = kept ]").hasSuffix(" 0"))
        let runner = try guest.runner()
        #expect(guest.processes().map(\.identifier) == [runner])
        #expect(try StockGuest.locks(runner, disk.path))
        try waitUntil(seconds: 60) { try guest.leftovers().isEmpty }
        #expect(try guest.leftovers().isEmpty)
        try DebianPC.finish(guest.console)
        waitUntil(seconds: 120) { guest.processes().isEmpty }
        #expect(try disk.isClean())
    }

    /// A program that stands in for QEMU: real but for what `body` does before it goes on.
    private func program(_ name: String, _ body: String) throws -> String {
        let script = "#!/bin/sh\nreal=\(StockQEMUBuild.pc("10.0"))\n\(body)\nexec $real \"$@\"\n"
        try directory.write(Array(script.utf8), to: name)
        try HostTools.need("chmod", ["755", directory.file(name)])
        return directory.file(name)
    }

    private func expectRefusal(
        _ what: String, _ binary: String, _ more: [String] = [], status: Int32, _ words: String...
    ) throws {
        let answer = try guest.upgrade(to: binary, more)
        #expect(answer.end == .exited(status: status), "\(what): \(answer.errors)")
        for word in words { #expect(answer.errors.contains(word), "\(what): \(answer.errors)") }
        try expectUnharmed(what)
    }

    @Test("what cannot work is refused or taken back, by its name; the guest runs on, and the next attempt works")
    func refusals() throws {
        let ten = StockQEMUBuild.pc("10.0")
        try expectRefusal("no QEMU", "/bin/false", status: 65, "does not say that it is QEMU")
        try expectRefusal(
            "does not start",
            try program("broken", "case \"$*\" in *-incoming*) echo 'broken: no' >&2; exit 1 ;; esac"), status: 80,
            "ended before it was ready", "broken: no")
        try expectRefusal(
            "lacks the machine", StockQEMUBuild.ten, status: 65, "has no machine type pc-i440fx-7.2")
        try expectRefusal(
            "lacks a device",
            try program(
                "deviceless",
                """
                case "$*" in *'-M none'*)
                    timeout 10 $real -M none -nodefaults -display none -qmp stdio <&3 | sed -u s/virtio-rng/other/g >&3
                    exit ;;
                esac
                """), status: 65, "has no device virtio-rng-pci")
        // The same, found out by the new process itself.
        try expectRefusal(
            "an option it refuses", ten, ["--set", "-device no-such-device"], status: 80, "no-such-device")
        try expectRefusal("refused option", ten, ["--set", "-incoming tcp::1"], status: 64, "decided by the upgrade")

        try hotplug(ten)
        try socketTaken(ten)
        try limit(ten)

        try attached(ten)
        if geteuid() == 0, HostTools.path(of: "setpriv") != nil {
            let tool = directory.file("tool")
            try HostTools.need(
                "sh", ["-ec", "chmod 755 \(directory.path); cp \(Checkout.tool) \(tool); chmod 755 \(tool)"])
            let other = try HostTools.run(
                "setpriv",
                [
                    "--reuid", "65534", "--regid", "65534", "--clear-groups", tool, "qemu", "upgrade", "--pid",
                    "\(process)",
                    "--binary", "/bin/true",
                ])
            #expect(
                other.end == .exited(status: 65) && other.errors.contains("run this as that user"), "\(other.errors)")
            try expectUnharmed("another user")
        }
        try expectMove(to: "10.0")
        try expectMove(to: "10.0")
    }

    /// A client that is attached to the one QMP socket keeps it.
    private func attached(_ binary: String) throws {
        let attached = try guest.monitor()
        for _ in 1...3 {
            let beside = try guest.upgrade(to: binary)
            #expect(beside.end == .exited(status: 65), "\(beside.errors)")
            #expect(beside.errors.contains("another client is attached"), "\(beside.errors)")
        }
        #expect(try attached.run("query-status")["status"]?.stringValue == "running")
    }

    private func hotplug(_ binary: String) throws {
        try run("object-add", ["qom-type": "rng-random", "id": "r1", "filename": "/dev/urandom"])
        try expectRefusal("an object added", binary, status: 65, "object r1", "was added while the guest ran")
        try run("object-del", ["id": "r1"])
        try run("device_add", ["driver": "virtio-balloon-pci", "id": "b1"])
        try expectRefusal("hot-plugged", binary, status: 65, "device b1", "was plugged in while the guest ran")
        try run("device_del", ["id": "b1"])
        for _ in 0..<300 {
            let present = try guest.monitor().run("qom-list", ["path": "/machine/peripheral"])
            if !present.json.contains("\"b1\"") { return }
            ProcessSignal.sleep(milliseconds: 100)
        }
        Issue.record("the guest does not let go of its balloon")
    }

    private func run(_ command: String, _ arguments: JSONObject) throws {
        _ = try guest.monitor().run(command, arguments)
    }

    private func socketTaken(_ binary: String) throws {
        let upgrade = try guest.stoppedUpgrade(at: "moved", to: binary)
        let path = guest.consolePath
        try HostTools.need("sh", ["-ec", "mv \(path) \(path).aside; touch \(path)"])
        upgrade.process.signal(SIGCONT)
        let answer = try guest.end(upgrade)
        #expect(answer.end == .exited(status: 80) && answer.errors.contains("is another file now"), "\(answer.errors)")
        try HostTools.need("mv", ["\(path).aside", path])
        try expectUnharmed("a socket's path was taken")
    }

    private func limit(_ binary: String) throws {
        let upgrade = try guest.stoppedUpgrade(at: "prepared", to: binary, ["--limit", "2"])
        let other = try #require(guest.successor(of: upgrade))
        kill(other, SIGSTOP)
        upgrade.process.signal(SIGCONT)
        let answer = try guest.end(upgrade)
        #expect(
            answer.end == .exited(status: 80) && answer.errors.contains("within its limit of 2 s"), "\(answer.errors)")
        try expectUnharmed("the time limit")
    }
}
