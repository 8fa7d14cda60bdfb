import LinuxCalls
import ProcessTestKit
import Testing

/// How a guest is built, and where its process goes.
struct Journey: Sendable, CustomStringConvertible {
    enum Network: String, Sendable { case tap, passt }

    let machine: String
    let network: Network
    /// The release of each process, the first one's first.
    let releases: [String]

    var description: String { "\(machine), \(network), \(releases.joined(separator: " to "))" }
}

@Suite(
    "A guest of stock QEMU changes process under load", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.stockPC.isMet, "\(Requirement.stockPC)"),
    .enabled(if: Requirement.debianPC.isMet, "\(Requirement.debianPC)"),
    .enabled(if: Requirement.taps.isMet, "\(Requirement.taps)"))
struct RoundsTests {
    static let isFull = Environment.all["SIDESTEP_FULL"] != nil
    static let journeys =
        [
            Journey(
                machine: "pc", network: .tap,
                releases: isFull
                    ? ["7.2", "7.2", "7.2", "7.2", "7.2", "10.0", "10.0", "10.0", "10.0", "10.0", "10.0"]
                    : ["7.2", "7.2", "10.0", "10.0"]),
            Journey(
                machine: "q35", network: .passt,
                releases: ["7.2", "10.0", "10.0"] + (isFull ? [String](repeating: "10.0", count: 8) : [])),
        ] + (isFull ? [Journey(machine: "q35", network: .tap, releases: [String](repeating: "7.2", count: 11))] : [])

    /// Serves a file slowly until a file `journeyed` says that it may be over.
    private func serve(
        _ file: String, chunks: Int, address: String, in network: PrivateNetwork, _ directory: TemporaryDirectory
    ) throws -> RunningProgram {
        let script = """
            #!/bin/sh
            printf 'HTTP/1.0 200 OK\\r\\n\\r\\n'
            n=0
            while [ $n -lt \(chunks) ]; do
                dd if='\(file)' bs=64k skip=$n count=1 2>/dev/null
                n=$((n + 1))
                [ -e '\(directory.file("journeyed"))' ] || sleep 0.4
            done
            """
        try directory.write(Array(script.utf8), to: "serve")
        try HostTools.need("chmod", ["755", directory.file("serve")])
        let server = try network.start(
            "socat",
            ["-d", "-d", "TCP-LISTEN:8000,bind=\(address),fork,reuseaddr", "EXEC:\(directory.file("serve"))"],
            name: "socat", limitSeconds: 900)
        try server.errors.wait(for: "listening on", seconds: 20)
        return server
    }

    private func network(_ kind: Journey.Network) throws -> PrivateNetwork {
        switch kind {
        case .tap:
            return try PrivateNetwork(setUp: [
                "ip tuntap add tap0 mode tap vnet_hdr", "ip addr add 10.8.0.1/24 dev tap0", "ip link set tap0 up",
            ])
        case .passt:
            return try PrivateNetwork(setUp: [
                "ip addr add 10.8.0.1/32 dev lo", "ip tuntap add outside mode tap",
                "ip addr add 10.7.0.2/24 dev outside", "ip link set outside up", "ip route add default via 10.7.0.1",
            ])
        }
    }

    @Test("nothing is lost: memory, disks, console, transfer, time", arguments: journeys)
    func rounds(journey: Journey) throws {
        if journey.network == .passt, !Requirement.program("passt", package: "passt").isMet {
            try Test.cancel("no passt: Debian package passt")
        }
        let directory = try TemporaryDirectory()
        let disk = try TestDisk(in: directory)
        let second = try TestDisk(in: directory, named: "second.img")
        let network = try network(journey.network)
        let chunks = Self.isFull ? 1200 : 300
        try HostTools.need(
            "sh", ["-ec", "dd if=/dev/urandom of=\(directory.file("payload")) bs=64k count=\(chunks) 2>/dev/null"])
        let hash = String(try HostTools.need("md5sum", [directory.file("payload")]).prefix(32))
        let server = try serve(
            directory.file("payload"), chunks: chunks,
            address: journey.network == .tap ? "10.8.0.1" : "127.0.0.1", in: network, directory)
        var netdev = "tap,id=n0,ifname=tap0,script=no,downscript=no"
        var passt: RunningProgram?
        if journey.network == .passt {
            // passt gives up its privileges and makes its socket as somebody else.
            try HostTools.need("sh", ["-ec", "chmod 755 \(directory.path); mkdir -m 777 \(directory.file("passt"))"])
            let socket = directory.file("passt/socket")
            passt = try network.start(
                "passt", ["--foreground", "--stderr", "-s", socket, "-a", "10.8.0.2", "-n", "24", "-g", "10.8.0.1"],
                limitSeconds: 900)
            try passt?.errors.wait(for: "socket bound at", seconds: 30)
            netdev = "stream,id=n0,server=off,addr.type=unix,addr.path=\(socket)"
        }
        let controller = journey.machine == "pc" ? ["-device", "ahci,id=ahci0"] : []
        let guest = try StockGuest(
            StockQEMUBuild.pc(journey.releases[0]),
            ["-M", journey.machine + DebianPC.machineOfMemory] + DebianPC.shared + DebianPC.boot() + [
                "-drive", "if=none,id=d0,format=raw,file=\(disk.path)", "-device", "virtio-blk-pci,drive=d0",
            ] + controller + [
                "-drive", "if=none,id=d1,format=raw,file=\(second.path)", "-device",
                "ide-hd,drive=d1,bus=\(journey.machine == "pc" ? "ahci0.0" : "ide.0")", "-netdev", netdev, "-device",
                "virtio-net-pci,netdev=n0,mac=52:54:00:aa:bb:cc,id=net0", "-device", "virtio-rng-pci",
            ], in: directory, network: network)
        try DebianPC.prepare(guest.console, disk: "/dev/vda")
        try guest.console.ask("mkdir -p /mnt2; mount -t ext4 /dev/sda /mnt2; cp /mnt/from-guest* /mnt2/; sync")
        try guest.console.ask(journey.network == .tap ? "network 10.8.0.2/24 10.8.0.1" : "network", seconds: 120)
        try guest.console.type("download http://10.8.0.1:8000/file \(hash) >/tmp/d 2>&1 &\n")
        try server.errors.wait(for: "starting data transfer", seconds: 120)

        var uptime = try DebianPC.check(guest.console, round: 1)
        var clock = ContinuousClock.now
        var movesDuring = 0
        for (index, release) in journey.releases.dropFirst().enumerated() {
            let before = try guest.runner()
            let answer = try guest.upgrade(to: StockQEMUBuild.pc(release))
            try #require(answer.end == .exited(status: 0), "\(answer.errors) \(answer.json.json)")
            #expect(answer.json["strategy"]?.stringValue == "shared")
            // The console's one connection goes on, and says so.
            #expect(answer.notes.contains { $0.contains("serial0: its client stays connected") }, "\(answer.notes)")
            let now = try DebianPC.check(guest.console, round: index + 2)
            let passed = Double((ContinuousClock.now - clock).components.seconds)
            #expect(now >= uptime && now <= uptime + passed + 3, "\(uptime) to \(now) in \(passed) s")
            #expect(now > uptime + passed - 30)
            (uptime, clock) = (now, .now)
            let runner = try guest.runner()
            #expect(runner == answer.newProcess && runner != before)
            #expect(guest.processes().map(\.identifier) == [runner])
            #expect(try StockGuest.locks(runner, disk.path) && StockGuest.locks(runner, second.path))
            #expect(try guest.leftovers().isEmpty)
            if try guest.console.ask("[ ! -s /tmp/d ]").hasSuffix(" 0") { movesDuring += 1 }
        }
        #expect(movesDuring >= 2, "the transfer was over too early to show anything")
        try directory.write([], to: "journeyed")
        try guest.console.type("while [ ! -s /tmp/d ]; do sleep 1; done; cat /tmp/d\n")
        let said = try guest.console.output.wait(for: "DOWNLOAD ", seconds: 400)
        #expect(said.contains("DOWNLOAD OK"), "\(said)")
        #expect(server.errors.text.split(separator: "\n").count { $0.contains("accepting connection") } == 1)
        #expect(
            try guest.console.ask(
                "[ \"$(md5sum </mnt2/from-guest)\" = \"$(cat /mnt2/from-guest.md5)\" ] && umount /mnt2"
            ).hasSuffix(" 0"))
        try DebianPC.finish(guest.console)
        waitUntil(seconds: 60) { guest.processes().isEmpty }
        #expect(guest.processes().isEmpty, "the guest powers off")
        for image in [disk, second] {
            #expect(try image.isClean())
            #expect(try image.holdsWhatTheGuestWrote())
        }
        withExtendedLifetime(passt) {}
    }
}
