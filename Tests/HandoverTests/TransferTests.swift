import Foundation
import LinuxCalls
import ProcessTestKit
import Testing

/// A transfer through the guest's network while the guest changes process, against the host's real peers.
@Suite(
    "A TCP connection over an upgrade", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
    .enabled(if: Requirement.firmware.isMet, "\(Requirement.firmware)"),
    .enabled(if: Requirement.taps.isMet, "\(Requirement.taps)"),
    .enabled(
        if: Requirement.program("socat", package: "socat").isMet, "\(Requirement.program("socat", package: "socat"))"))
struct TransferTests {
    private static let transferKiB = 40_000

    /// Upgrades the guest by each channel while the file crosses; it must arrive over the one connection.
    private func moveWhileTransferring(
        _ guest: RunningProgram, _ server: RunningProgram, upgrade: (_ arguments: [String]) throws -> Report
    ) throws {
        #expect(try guest.wait(for: "NETWORK ", seconds: 120).hasPrefix("NETWORK UP 10.8.0.2/24"))
        try server.errors.wait(for: "starting data transfer", seconds: 60)
        var movesDuring = 0
        for channel in ["memfd", "page-flip", "memfd", "socket", "memfd"] {
            let report = try upgrade(["--channel", channel])
            #expect(report.channel == channel)
            if !guest.output.text.contains("DOWNLOAD ") { movesDuring += 1 }
        }
        #expect(movesDuring >= 2, "the transfer was over too early to show anything")
        #expect(try guest.wait(for: "DOWNLOAD ", seconds: 240).hasPrefix("DOWNLOAD OK"))
        #expect(server.errors.text.split(separator: "\n").count { $0.contains("accepting connection") } == 1)
        #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0))
    }

    @Test("through passt: five moves, one connection, the hash is right")
    func passt() throws {
        let missing = Requirement.program("passt", package: "passt")
        guard missing.isMet else { try Test.cancel("\(missing)") }
        let network = try PrivateNetwork(setUp: PrivateNetwork.outside)
        let run = try MonitorRun()
        let (passt, socket) = try network.startPasst(in: run.directory)
        let file = try run.directory.randomFile(kiB: Self.transferKiB)
        let server = try network.serve(file: file.path, address: "127.0.0.1", port: 8000, in: run.directory)
        let guest = try run.debian(
            words: "quiet noshell ntick=1 run=network,download+http://10.8.0.1:8000/file+\(file.hash)",
            ["--net", "socket=\(socket)"])
        try moveWhileTransferring(guest, server) { try run.upgrade("guest", $0) }
        withExtendedLifetime(passt) {}
    }

    /// passt shuts itself in, for which an ordinary user needs namespaces.
    private static let usersHaveNamespaces = Requirement(
        OtherUser.requirement.isMet
            && {
                let command = OtherUser.first.command("unshare", ["--user", "--net", "true"])
                return (try? HostTools.run(command.program, command.arguments).end) == .exited(status: 0)
            }(),
        "an ordinary user cannot have a user namespace here, which passt wants")

    @Test(
        "through an ordinary user's passt, to a guest of the same user: five moves, one connection, the hash is right",
        .enabled(if: usersHaveNamespaces.isMet, "\(usersHaveNamespaces)"))
    func usersPasst() throws {
        let missing = Requirement.program("passt", package: "passt")
        guard missing.isMet else { try Test.cancel("\(missing)") }
        let network = try PrivateNetwork(setUp: PrivateNetwork.outside)
        let run = try MonitorRun()
        let user = OtherUser.first
        let (tool, image, initramfs) = (
            run.directory.file("sidestep-tool"), run.directory.file("Image"), run.directory.file("initramfs")
        )
        for (from, to) in [(Checkout.tool, tool), (DebianGuest.image, image), (DebianGuest.initramfs, initramfs)] {
            try FileManager.default.copyItem(atPath: from, toPath: to)
        }
        let file = try run.directory.randomFile(kiB: Self.transferKiB)
        let server = try network.serve(file: file.path, address: "127.0.0.1", port: 8000, in: run.directory)
        try user.own(run.directory.path)
        let socket = run.directory.file("passt.sock")
        let passtCommand = user.command(
            HostTools.path(of: "passt") ?? "passt", PrivateNetwork.passtArguments(socket: socket))
        let passt = try network.start(passtCommand.program, passtCommand.arguments, name: "passt")
        try passt.errors.wait(for: "socket bound at", seconds: 30)
        let guestCommand = user.command(
            tool,
            [
                "run", "--name", "guest", "--console", "stdio", "--kernel", image, "--initrd", initramfs, "--memory",
                "256M",
                "--append",
                "\(DebianGuest.words) quiet noshell ntick=1 run=network,download+http://10.8.0.1:8000/file+\(file.hash)",
                "--net", "socket=\(socket)",
            ])
        let guest = try RunningProgram(
            guestCommand.program, guestCommand.arguments, name: "guest", environment: run.environment,
            limitSeconds: 300)
        try moveWhileTransferring(guest, server) { arguments in
            let command = user.command(tool, ["upgrade", "guest", "--format", "json"] + arguments)
            let result = try HostTools.run(
                command.program, command.arguments, environment: run.environment, seconds: 60)
            try #require(result.end == .exited(status: 0), "\(result.errors)")
            return try JSONDecoder().decode(Report.self, from: Data(result.output.utf8))
        }
        withExtendedLifetime(passt) {}
    }

    @Test("through a tap: five moves, one connection, the hash is right")
    func tap() throws {
        let network = try PrivateNetwork(setUp: [
            "ip tuntap add tap0 mode tap vnet_hdr", "ip addr add 10.8.0.1/24 dev tap0", "ip link set tap0 up",
        ])
        let run = try MonitorRun()
        let file = try run.directory.randomFile(kiB: Self.transferKiB)
        let server = try network.serve(file: file.path, address: "10.8.0.1", port: 8000, in: run.directory)
        let guest = try run.debian(
            words: "quiet noshell ntick=1 "
                + "run=network+10.8.0.2/24+10.8.0.1,download+http://10.8.0.1:8000/file+\(file.hash)",
            ["--net", "tap=tap0,mac=52:54:00:aa:bb:cc"], in: network)
        try moveWhileTransferring(guest, server) { try run.upgrade("guest", $0) }
    }
}
