import LinuxCalls
import ProcessTestKit
import Testing

/// The guest's network against the host's real peers, in a network namespace where nothing else is.
@Suite(
    "Debian's network under the tool", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
    .enabled(if: Requirement.firmware.isMet, "\(Requirement.firmware)"),
    .enabled(if: Requirement.taps.isMet, "\(Requirement.taps)"),
    .enabled(
        if: Requirement.program("socat", package: "socat").isMet, "\(Requirement.program("socat", package: "socat"))"))
struct NetworkRunTests {
    /// The promise is 100 MB; SIDESTEP_FULL=1 keeps it to the letter.
    static let transferKiB = Environment.all["SIDESTEP_FULL"] == nil ? 20_000 : 100_000

    func check(_ guest: RunningProgram) throws {
        #expect(try guest.wait(for: "NETWORK ", seconds: 120).hasPrefix("NETWORK UP 10.8.0.2/24"))
        #expect(try guest.wait(for: "packets transmitted", seconds: 60).contains("3 packets received"))
        #expect(try guest.wait(for: "DOWNLOAD ", seconds: 240).hasPrefix("DOWNLOAD OK"))
        #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0))
    }

    @Test("packets go through passt: DHCP, ping, and a transfer checked by hash", arguments: generations)
    func passt(generation: String) throws {
        let missing = Requirement.program("passt", package: "passt")
        guard missing.isMet else { try Test.cancel("\(missing)") }
        let network = try PrivateNetwork(setUp: PrivateNetwork.outside)
        let run = try MonitorRun()
        let (passt, socket) = try network.startPasst(in: run.directory)
        let file = try run.directory.randomFile(kiB: Self.transferKiB)
        let server = try network.serve(file: file.path, address: "127.0.0.1", port: 8000, in: run.directory)
        let words = "network,ping+-c+3+10.8.0.1,download+http://10.8.0.1:8000/file+\(file.hash)"
        let guest = try run.debian(
            words: "quiet noshell ntick=1 run=\(words)", ["--net", "socket=\(socket)", "--virtio", generation])
        try check(guest)
        withExtendedLifetime((server, passt)) {}
    }

    @Test("packets go through a tap: ping, and a transfer checked by hash", arguments: generations)
    func tap(generation: String) throws {
        let network = try PrivateNetwork(setUp: [
            "ip tuntap add tap0 mode tap vnet_hdr", "ip addr add 10.8.0.1/24 dev tap0", "ip link set tap0 up",
        ])
        let run = try MonitorRun()
        let file = try run.directory.randomFile(kiB: Self.transferKiB)
        let server = try network.serve(file: file.path, address: "10.8.0.1", port: 8000, in: run.directory)
        let words = "network+10.8.0.2/24+10.8.0.1,ping+-c+3+10.8.0.1,download+http://10.8.0.1:8000/file+\(file.hash)"
        let guest = try run.debian(
            words: "quiet noshell ntick=1 run=\(words)",
            ["--net", "tap=tap0,mac=52:54:00:aa:bb:cc", "--virtio", generation], in: network)
        try check(guest)
        withExtendedLifetime(server) {}
    }
}

/// What a network sees when a guest says where it is: a stream socket that keeps the frames, each behind its length.
private struct FrameRecorder {
    let program: RunningProgram
    let socket: String
    private let file: String

    init(in directory: TemporaryDirectory, name: String) throws {
        socket = directory.file(name)
        file = directory.file(name + ".frames")
        program = try RunningProgram(
            "socat", ["-d", "-d", "-u", "UNIX-LISTEN:\(socket)", "CREATE:\(file)"], name: "socat")
        try program.errors.wait(for: "listening on", seconds: 20)
    }

    /// Frames so far, in hexadecimal.
    var frames: [String] {
        get throws {
            let text = try HostTools.run("sh", ["-c", "od -An -v -tx1 '\(file)' 2>/dev/null | tr -d ' \\n'"]).output
            var rest = text[...]
            var frames: [String] = []
            while let length = Int(rest.prefix(8), radix: 16), rest.count >= 8 + 2 * length {
                frames.append(String(rest.dropFirst(8).prefix(2 * length)))
                rest = rest.dropFirst(8 + 2 * length)
            }
            return frames
        }
    }

    func wait(for count: Int, where isWanted: (String) -> Bool = { _ in true }) throws -> [String] {
        for _ in 0..<600 {
            let found = try frames.filter(isWanted)
            if found.count >= count { return found }
            _ = try HostTools.run("sleep", ["0.05"])
        }
        throw ExpectationError.late(name: "the network", what: "\(count) frames", seconds: 30, tail: "\(try frames)")
    }
}

@Suite(
    "Announcing a guest", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.program("socat", package: "socat").isMet, "no socat: Debian package socat"))
struct AnnouncementTests {
    static let command = #"{"initial": 10, "max": 50, "rounds": 3, "step": 10}"#
    static let mac = "525400123457"

    @Test(
        "the network is told the same as by QEMU 10.0, as often",
        .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"),
        .enabled(if: Requirement.qemu10.isMet, "\(Requirement.qemu10)"))
    func sameFrames() throws {
        let run = try MonitorRun()
        let ours = try FrameRecorder(in: run.directory, name: "ours")
        let stock = try FrameRecorder(in: run.directory, name: "stock")
        let guest = try run.heartbeat(["--net", "socket=\(ours.socket),mac=52:54:00:12:34:57"])
        try guest.wait(for: "tick 1 ", seconds: 60)
        let monitor = run.directory.file("qmp")
        let qemu = try RunningProgram(
            StockQEMUBuild.ten,
            [
                "-M", "virt", "-m", "64M", "-display", "none", "-serial", "stdio", "-monitor", "none", "-bios",
                Heartbeat.elf, "-qmp", "unix:\(monitor),server=on,wait=off", "-netdev",
                "stream,id=net0,server=off,addr.type=unix,addr.path=\(stock.socket)", "-device",
                "virtio-net-device,netdev=net0,mac=52:54:00:12:34:57",
            ], name: "stock")
        try qemu.wait(for: "tick 1 ", seconds: 60)
        #expect(try run.command(["qmp", "guest", "announce-self", Self.command]).end == .exited(status: 0))
        let script = #"{"execute":"qmp_capabilities"}{"execute":"announce-self","arguments":\#(Self.command)}"#
        try HostTools.need("sh", ["-c", "(echo '\(script)'; sleep 2) | socat - UNIX-CONNECT:\(monitor)"])
        let expected = try stock.wait(for: 3)
        #expect(expected.count == 3 && expected[0].hasPrefix("ffffffffffff\(Self.mac)8035"))
        #expect(try ours.wait(for: 3) == expected)
        // A card of another name is left alone.
        let other = #"{"initial": 0, "max": 0, "rounds": 1, "step": 1, "interfaces": ["net7"]}"#
        #expect(try run.command(["qmp", "guest", "announce-self", other]).end == .exited(status: 0))
        _ = try run.command(["stop", "guest"])
        #expect(try ours.frames.count == 3)
    }

    @Test(
        "Linux, asked by its card, announces its own address, also after it has come from elsewhere",
        .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
        .enabled(if: Requirement.firmware.isMet, "\(Requirement.firmware)"))
    func driver() throws {
        let run = try MonitorRun()
        let before = try FrameRecorder(in: run.directory, name: "before")
        let after = try FrameRecorder(in: run.directory, name: "after")
        let mac = ",mac=52:54:00:12:34:57"
        let source = try run.debian(
            words: "quiet notick run=network+10.9.8.7/24", ["--net", "socket=\(before.socket)\(mac)"], name: "source")
        try source.wait(for: "NETWORK UP 10.9.8.7", seconds: 120)
        // Ethernet to all, ARP, sender and target 10.9.8.7.
        func isAnnouncement(_ frame: String) -> Bool {
            frame.hasPrefix("ffffffffffff\(Self.mac)0806") && frame.count(of: "0a090807") == 2
        }
        let seen = try before.frames.filter(isAnnouncement).count
        let once = #"{"initial": 0, "max": 0, "rounds": 1, "step": 1}"#
        #expect(try run.command(["qmp", "source", "announce-self", once]).end == .exited(status: 0))
        _ = try before.wait(for: seen + 1, where: isAnnouncement)
        // The guest takes the request back when it has obeyed; a second one is obeyed too.
        #expect(try run.command(["qmp", "source", "announce-self", once]).end == .exited(status: 0))
        _ = try before.wait(for: seen + 2, where: isAnnouncement)
        let uri = "unix:" + run.directory.file("migration.sock")
        let destination = try run.debian(
            words: "", ["--net", "socket=\(after.socket)\(mac)", "--incoming", uri], name: "destination")
        try ToolRunTests.waitUntilListed("destination", run)
        #expect(try run.command(["migrate", "source", uri]).end == .exited(status: 0))
        _ = try after.wait(for: 1, where: isAnnouncement)
        let all = try after.frames
        #expect(all.first?.hasPrefix("ffffffffffff\(Self.mac)8035") == true)
        _ = (destination, try run.command(["stop", "destination"]))
    }
}

extension String {
    fileprivate func count(of text: String) -> Int { matches(of: try! Regex(text)).count }
}
