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

    func randomFile(in directory: TemporaryDirectory) throws -> (path: String, hash: String) {
        let path = directory.file("payload")
        try HostTools.need("sh", ["-ec", "dd if=/dev/urandom of=\(path) bs=1k count=\(Self.transferKiB) 2>/dev/null"])
        return (path, String(try HostTools.need("md5sum", [path]).prefix(32)))
    }

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
        // passt hands on what the namespace has: a route outwards, and the address it calls gateway.
        let network = try PrivateNetwork(setUp: [
            "ip addr add 10.8.0.1/32 dev lo", "ip tuntap add outside mode tap", "ip addr add 10.7.0.2/24 dev outside",
            "ip link set outside up", "ip route add default via 10.7.0.1",
            "echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range",
        ])
        let run = try MonitorRun()
        // passt gives up its privileges and makes its socket as somebody else.
        try HostTools.need(
            "sh", ["-ec", "chmod 755 \(run.directory.path); mkdir -m 777 \(run.directory.file("passt"))"])
        let socket = run.directory.file("passt/socket")
        let passt = try network.start(
            "passt",
            ["--foreground", "--stderr", "--one-off", "-s", socket, "-a", "10.8.0.2", "-n", "24", "-g", "10.8.0.1"])
        try passt.errors.wait(for: "socket bound at", seconds: 30)
        let file = try randomFile(in: run.directory)
        let server = try network.serve(file: file.path, address: "127.0.0.1", port: 8000, in: run.directory)
        let words = "network,ping+-c+3+10.8.0.1,download+http://10.8.0.1:8000/file+\(file.hash)"
        let guest = try run.debian(
            words: "quiet noshell ntick=1 run=\(words)", ["--net", "socket=\(socket)", "--virtio", generation])
        try check(guest)
        withExtendedLifetime(server) {}
    }

    @Test("packets go through a tap: ping, and a transfer checked by hash", arguments: generations)
    func tap(generation: String) throws {
        let network = try PrivateNetwork(setUp: [
            "ip tuntap add tap0 mode tap vnet_hdr", "ip addr add 10.8.0.1/24 dev tap0", "ip link set tap0 up",
        ])
        let run = try MonitorRun()
        let file = try randomFile(in: run.directory)
        let server = try network.serve(file: file.path, address: "10.8.0.1", port: 8000, in: run.directory)
        let words = "network+10.8.0.2/24+10.8.0.1,ping+-c+3+10.8.0.1,download+http://10.8.0.1:8000/file+\(file.hash)"
        let guest = try run.debian(
            words: "quiet noshell ntick=1 run=\(words)",
            ["--net", "tap=tap0,mac=52:54:00:aa:bb:cc", "--virtio", generation], in: network)
        try check(guest)
        withExtendedLifetime(server) {}
    }
}
