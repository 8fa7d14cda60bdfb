import Glibc
import LinuxCalls
import MonitorClient
import ProcessTestKit
import QMPProtocol
import Testing

/// What surrounds a guest's process: its names, its clients, who manages it. The guests here are firmware that idles.
@Suite(
    "Around a process of stock QEMU", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.stockPC.isMet, "\(Requirement.stockPC)"))
struct ProcessTests {
    private let seven = StockQEMUBuild.pc("7.2")
    private let ten = StockQEMUBuild.pc("10.0")
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func guest(_ more: [String] = [], memory: [String] = DebianPC.shared, sockets: [String]? = nil) throws
        -> StockGuest
    {
        try StockGuest(seven, FirmwarePC.arguments(memory: memory) + more, in: directory, sockets: sockets)
    }

    @Test("check names every condition with its remedy, and changes nothing")
    func check() throws {
        let disk = try TestDisk(in: directory)
        let guest = try guest(
            ["-drive", "if=none,id=d0,format=raw,file=\(disk.path)", "-device", "virtio-blk-pci,drive=d0"])
        let before = try [guest.monitor().run("query-migrate-capabilities"), guest.monitor().run("query-chardev")]
        let good = try guest.check(to: ten)
        #expect(good.end == .exited(status: 0), "\(good.json.json)")
        let subjects = (good.json.arrayValue ?? []).compactMap { $0["subject"]?.stringValue }
        for subject in [
            "version", "user", "machine type", "guest", "memory ram", "devices", "disk d0", "program", "strategy",
            "command line",
        ] {
            #expect(subjects.contains(subject), "\(subject) in \(subjects)")
        }
        let bad = try guest.check(to: "/bin/false")
        #expect(bad.end == .exited(status: 65))
        #expect(
            try [guest.monitor().run("query-migrate-capabilities"), guest.monitor().run("query-chardev")] == before)
        #expect(try guest.leftovers().isEmpty && guest.processes().count == 1)
        // By the number of the process alone.
        let runner = try guest.runner()
        #expect(
            try guest.tool(["qemu", "check", "--pid", "\(runner)", "--binary", ten]).end == .exited(status: 0))
        #expect(try guest.tool(["qemu", "check", "--pid", "1", "--binary", ten]).end != .exited(status: 0))
    }

    @Test("a paused guest stays paused, its disk locked; the old process can be kept for a while")
    func paused() throws {
        let disk = try TestDisk(in: directory)
        let guest = try guest(
            ["-drive", "if=none,id=d0,format=raw,file=\(disk.path)", "-device", "virtio-blk-pci,drive=d0"])
        _ = try guest.monitor().run("stop")
        let answer = try guest.upgrade(to: ten)
        #expect(answer.isMoved, "\(answer.errors)")
        #expect(try guest.status() == "paused")
        #expect(try StockGuest.locks(try guest.runner(), disk.path))
        _ = try guest.monitor().run("cont")
        #expect(try guest.status() == "running")

        let before = try guest.runner()
        let keeping = try guest.startTool(guest.upgradeArguments(to: ten, ["--keep-source-paused", "8"]))
        try keeping.errors.wait(for: "keeping the old process", seconds: 60)
        #expect(guest.processes().count == 2)
        let runner = try guest.runner()
        #expect(try runner != before && guest.status() == "running")
        #expect(try StockGuest.locks(runner, disk.path) && !StockGuest.locks(before, disk.path))
        #expect(try keeping.waitForEnd(seconds: 60) == .exited(status: 0))
        #expect(guest.processes().map(\.identifier) == [runner])
    }

    @Test("a TCP port never refuses a connection, its client stays, the pid file and a daemon's paths are its own")
    func names() throws {
        // Below those that the kernel gives to whoever connects.
        let port = 20000 + Int.random(in: 0..<12000)
        let guest = try guest(
            [
                "-chardev", "socket,id=t,host=127.0.0.1,port=\(port),server=on,wait=off", "-device",
                "isa-serial,chardev=t",
                "-chardev", "socket,id=u,host=127.0.0.1,port=\(port + 1),server=on,wait=off", "-device",
                "isa-serial,chardev=u",
                "-daemonize", "-pidfile", directory.file("pid"),
            ],
            sockets: [
                "-serial", "unix:\(directory.file("ser.sock")),server=on,wait=off", "-qmp",
                "unix:\(directory.file("q.sock")),server=on,wait=off", "-qmp",
                "unix:\(directory.file("q2.sock")),server=on,wait=off",
            ])
        let stays = try Console(adopting: try StreamSocket.connect(to: .tcp(host: "127.0.0.1", port: UInt16(port))))
        // Somebody who is attached to one monitor is no obstacle when there is another.
        let attached = try QMPConnection(path: directory.file("q2.sock"), timeoutMilliseconds: 10_000)
        for binary in [seven, ten, ten] {
            let upgrade = try guest.startTool(guest.upgradeArguments(to: binary, []))
            var connections = 0
            while upgrade.process.wait(timeoutMilliseconds: 0) == nil {
                // Waits in the port's queue when nobody takes it, and goes again.
                _ = try StreamSocket.connect(to: .tcp(host: "127.0.0.1", port: UInt16(port + 1)))
                connections += 1
                ProcessSignal.sleep(milliseconds: 5)
            }
            #expect(connections > 5)
            let answer = try guest.answer(upgrade, upgrade.waitForEnd(seconds: 30))
            #expect(answer.isMoved, "\(answer.errors)")
            #expect(answer.notes.contains { $0.contains("t: its client stays connected") }, "\(answer.notes)")
            let pid = String(decoding: try FileNames.contents(of: directory.file("pid")), as: UTF8.self)
            #expect(pid == "\(answer.newProcess)\n")
        }
        #expect(stays.output.text.isEmpty)
        #expect(try stays.isOpen(), "the TCP client is connected still")
        withExtendedLifetime(attached) {}
        _ = try guest.monitor().run("quit")
    }

    @Test(
        "a client that leaves while the new process starts is no obstacle; one that comes instead stays connected",
        arguments: [false, true])
    func leaving(anotherComes: Bool) throws {
        let guest = try guest(["-serial", "unix:\(directory.file("other")),server=on,wait=off"])
        /// Waits until QEMU has so many connections there; one that nobody took yet has no inode.
        func wait(forConnections count: Int) throws {
            let taken = "grep -c ' 03  *[1-9][0-9]* \(directory.file("other"))' /proc/net/unix"
            try HostTools.need("sh", ["-c", "until [ $(\(taken)) = \(count) ]; do sleep 0.02; done"], seconds: 30)
        }
        let client = try Console(directory.file("other"))
        try wait(forConnections: 1)
        let upgrade = try guest.stoppedUpgrade(at: "started", to: ten)
        client.close()
        try wait(forConnections: 0)
        let another = anotherComes ? try Console(directory.file("other")) : nil
        try wait(forConnections: anotherComes ? 1 : 0)
        upgrade.process.signal(SIGCONT)
        let answer = try guest.end(upgrade)
        #expect(answer.isMoved, "\(answer.errors)")
        #expect(answer.notes.contains("serial1: its client has left") == !anotherComes, "\(answer.notes)")
        let devices = try guest.monitor().run("query-chardev").arrayValue ?? []
        let other = devices.first { $0["label"]?.stringValue == "serial1" }?["filename"]?.stringValue
        #expect(other?.hasPrefix("disconnected:") == !anotherComes, "\(other ?? "no serial1")")
        #expect(try another?.isOpen() != false && guest.console.isOpen())
    }

    @Test("libvirt's guests are refused unless told otherwise; a systemd service learns of its main process")
    func managers() throws {
        let place = directory.file("libvirt/qemu/domain")
        try HostTools.need("mkdir", ["-p", place])
        var words: [String] = []
        for (option, name) in [("-serial", "ser.sock"), ("-qmp", "q.sock")] {
            words += [option, "unix:\(directory.file(name)),server=on,wait=off"]
        }
        words += [
            "-chardev", "socket,id=m,path=\(place)/monitor.sock,server=on,wait=off", "-mon", "chardev=m,mode=control",
        ]
        var libvirts: StockGuest? = try guest(sockets: words)
        if let guest = libvirts {
            let refused = try guest.upgrade(to: ten)
            #expect(refused.end == .exited(status: 65) && refused.errors.contains("libvirt started this guest"))
            #expect(try guest.status() == "running" && guest.processes().count == 1)
            #expect(try guest.upgrade(to: ten, ["--ignore-libvirt"]).isMoved)
        }
        libvirts = nil
        try HostTools.need("sh", ["-c", "rm -f \(directory.file("*.sock"))"])

        let group = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map {
            "\($0)/sidestep-test-\(getpid()).service"
        }.first { (try? FileNames.makeDirectory($0)) != nil && Checkout.exists("\($0)/cgroup.procs") }
        guard let group else { return }
        defer { FileNames.removeDirectory(group) }
        let mailbox = try RunningProgram("socat", ["-u", "UNIX-RECVFROM:\(directory.file("notify")),fork", "-"])
        try HostTools.need("sh", ["-c", "until [ -S \(directory.file("notify")) ]; do sleep 0.02; done"], seconds: 30)
        let start = "echo $$ >\(group)/cgroup.procs; SYSTEMD_EXEC_PID=$$ exec \"$@\""
        let service = try StockGuest(
            seven, FirmwarePC.arguments(), in: directory,
            environment: ["NOTIFY_SOCKET": directory.file("notify")], wrapper: ["/bin/sh", "-ec", start, "sh"])
        for _ in 1...2 {
            let answer = try service.upgrade(to: ten)
            #expect(answer.isMoved, "\(answer.errors)")
            try mailbox.wait(for: "MAINPID=\(answer.newProcess)", seconds: 30)
            let members = String(decoding: try FileNames.contents(of: "\(group)/cgroup.procs"), as: UTF8.self)
            #expect(members == "\(answer.newProcess)\n")
        }
        // A unit that takes no messages and reads no pid file would take the move for the guest's end.
        kill(try service.runner(), SIGKILL)
        waitUntil(seconds: 60) { service.processes().isEmpty }
        try HostTools.need("sh", ["-c", "rm -f \(directory.file("*.sock"))"])
        let deaf = try StockGuest(
            seven, FirmwarePC.arguments(), in: directory, wrapper: ["/bin/sh", "-ec", start, "sh"])
        let refused = try deaf.upgrade(to: ten)
        #expect(refused.end == .exited(status: 65) && refused.errors.contains("NotifyAccess=all"), "\(refused.errors)")
        kill(try deaf.runner(), SIGKILL)
        waitUntil(seconds: 60) { deaf.processes().isEmpty }
    }

    @Test("memory that is not free is not begun with")
    func memory() throws {
        let guest = try guest(memory: [
            "-m", "400G", "-object", "memory-backend-ram,id=ram,size=400G,reserve=off", "-machine",
            "memory-backend=ram",
        ])
        let refused = try guest.upgrade(to: ten)
        #expect(refused.end == .exited(status: 65))
        #expect(refused.errors.contains("precopy: needs 409664 MiB") && refused.errors.contains("postcopy: needs"))
        #expect(try guest.status() == "running")
    }

    @Test(
        "on a full disk nothing is changed, or all is taken back; with room it works",
        .enabled(if: Requirement.taps.isMet, "\(Requirement.taps)"))
    func fullDisk() throws {
        let small = directory.file("small")
        try FileNames.makeDirectory(small)
        try HostTools.need("mount", ["-t", "tmpfs", "-o", "size=256k,nr_inodes=16", "tmpfs", small])
        defer { _ = try? HostTools.run("umount", ["-l", small]) }
        let guest = try guest([
            "-chardev", "socket,id=c1,path=\(small)/a.sock,server=on,wait=off", "-device", "isa-serial,chardev=c1",
            "-chardev", "socket,id=c2,path=\(small)/b.sock,server=on,wait=off", "-device", "isa-serial,chardev=c2",
        ])
        let runner = try guest.runner()
        try HostTools.need("sh", ["-c", "i=0; while echo >\(small)/f$i; do i=$((i + 1)); done 2>/dev/null; true"])
        let full = try guest.upgrade(to: ten)
        #expect(full.end == .exited(status: 65) && full.errors.contains("make room"), "\(full.errors)")
        // Room for the directory and one socket, not for both.
        try HostTools.need("sh", ["-c", "rm \(small)/f0 \(small)/f1"])
        let half = try guest.upgrade(to: ten)
        #expect(half.end == .exited(status: 80), "\(half.errors)")
        #expect(
            half.errors.contains("No space left") && half.errors.contains("runs on in process \(runner)"),
            "\(half.errors)")
        #expect(try guest.runner() == runner && guest.status() == "running")
        #expect(try FileNames.entries(of: small).allSatisfy { !$0.hasPrefix(".sidestep") })
        try HostTools.need("sh", ["-c", "rm \(small)/f*"])
        #expect(try guest.upgrade(to: ten).isMoved)
    }

    @Test("a directory of guests: so many at a time, a result for each, the worst status for all")
    func fleet() throws {
        var guests: [StockGuest] = []
        let sockets = directory.file("qmp")
        try FileNames.makeDirectory(sockets)
        for index in 0..<4 {
            let own = try TemporaryDirectory()
            let more = index == 3 ? ["-D", own.file("log")] : []
            guests.append(
                try StockGuest(
                    seven,
                    FirmwarePC.arguments(memory: [
                        "-m", "64M", "-object", "memory-backend-memfd,id=ram,size=64M,share=on",
                    ])
                        + ["-machine", "memory-backend=ram", "-qmp", "unix:\(sockets)/\(index),server=on,wait=off"]
                        + more,
                    in: own))
        }
        // A second socket of the first guest is no second guest.
        try HostTools.need("ln", ["-s", guests[0].monitorPath, "\(sockets)/again"])
        let words = ["qemu", "upgrade", "--all", sockets, "--parallel", "2", "--binary", ten, "--format", "json"]
        let all = try guests[0].tool(words, seconds: 300)
        #expect(all.end == .exited(status: 65), "the highest of theirs: \(all.errors)")
        let results = all.json.arrayValue ?? []
        #expect(results.count == 4, "\(all.json.json)")
        for (index, guest) in guests.enumerated() {
            let path = "\(sockets)/\(index)"
            let result = results.first {
                $0["qmp"]?.stringValue == path || index == 0 && $0["qmp"]?.stringValue == "\(sockets)/again"
            }
            #expect(result?["status"]?.integerValue == (index == 3 ? 65 : 0), "\(index): \(all.json.json)")
            #expect(result?["outcome"]?.stringValue == (index == 3 ? "refused" : "moved"))
            #expect(try guest.status() == "running")
        }
        #expect(
            try guests[0].tool(["qemu", "upgrade", "--all", "/nowhere", "--binary", ten]).end == .exited(status: 66))
    }
}

extension Console {
    /// Nobody closed the other end.
    func isOpen() throws -> Bool { !output.hasEnded }
}
