import LinuxCalls
import ProcessTestKit
import Testing

@Suite(
    "Hostile QMP clients", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct HostileClientTests {
    static let negotiation = Array(#"{"execute":"qmp_capabilities"}"#.utf8)

    /// Descriptors and private memory (KiB) of a process.
    private func resources(_ process: CInt) throws -> (descriptors: Int, kilobytes: Int) {
        let descriptors = try HostTools.need("ls", ["/proc/\(process)/fd"]).split(separator: "\n").count
        let rollup = try HostTools.need("cat", ["/proc/\(process)/smaps_rollup"]).split(separator: "\n")
        let kilobytes = rollup.filter { $0.hasPrefix("Private_Dirty:") || $0.hasPrefix("Private_Clean:") }.compactMap {
            $0.split(separator: " ").dropFirst().first.flatMap { Int($0) }
        }
        return (descriptors, kilobytes.reduce(0, +))
    }

    /// 1,000 connections, half of them dropped in the middle of a message.
    private func storm(_ path: String, _ pipe: OwnedDescriptor, seed: UInt64) throws {
        var state = seed
        func random() -> UInt8 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return UInt8(truncatingIfNeeded: state >> 33)
        }
        var held: [OwnedDescriptor] = []
        for number in 0..<1000 {
            let socket = try StreamSocket.connect(to: .unix(path: path))
            switch number % 8 {
            case 0: break
            case 1: try? StreamSocket.sendAll((0..<512).map { _ in random() }, to: socket)
            case 2: try? StreamSocket.sendAll(Self.negotiation + Array(#"{"execute":"query-"#.utf8), to: socket)
            case 3:
                try? StreamSocket.sendAll(
                    Self.negotiation
                        + Array(#"{"execute":"human-monitor-command","arguments":{"command-line":"in"#.utf8),
                    to: socket)
            case 4:
                let giant = Array("{\"execute\": \"".utf8) + [UInt8](repeating: 0x61, count: 2 << 20)
                if number % 80 == 4 { try? StreamSocket.sendAll(Self.negotiation + giant, to: socket) }
            case 5:
                try? StreamSocket.sendAll(
                    Self.negotiation + [UInt8](repeating: UInt8(ascii: "["), count: 20_000) + [0x0A], to: socket)
            case 6:
                try? StreamSocket.sendAll(
                    Self.negotiation + Array(#"{"execute":"query-status"}"#.utf8),
                    descriptors: Array(repeating: pipe, count: 64), to: socket)
            default:
                try? StreamSocket.sendAll(
                    Self.negotiation + Array(#"{"execute":"query-qmp-schema"}{"execute":"query-qmp-schema"}"#.utf8),
                    to: socket)
            }
            // Every second one stays for a while, so that many are there at once.
            if number % 2 == 0 { held.append(socket) }
            if held.count > 200 { held.removeFirst(100) }
        }
    }

    @Test("the guest ticks on, and memory and descriptors return to where they were") func storm() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat()
        try guest.wait(for: "tick 2 ", seconds: 60)
        let path = run.directory.path + "/sidestep/guest/qmp.sock"
        let process = try #require(
            CInt(try HostTools.need("cat", [run.directory.path + "/sidestep/guest/pid"]).filter(\.isNumber)))
        let pipe = try OwnedDescriptor.pipe()
        try storm(path, pipe.readEnd, seed: 1)  // what is kept for the next time is there after it
        func settled(_ descriptors: Int) throws -> (descriptors: Int, kilobytes: Int) {
            for _ in 0..<200 where try resources(process).descriptors > descriptors {
                _ = try HostTools.run("sleep", ["0.05"])
            }
            return try resources(process)
        }
        let ticks = { try guest.output.wait(for: "tick ", seconds: 30) }
        guest.output.skipToEnd()
        _ = try ticks()
        let before = try settled(0)
        for seed in 2..<5 {
            try storm(path, pipe.readEnd, seed: UInt64(seed))
            guest.output.skipToEnd()
            _ = try ticks()
        }
        let after = try settled(before.descriptors)
        #expect(after.descriptors <= before.descriptors, "\(before), \(after)")
        #expect(after.kilobytes < before.kilobytes + 2048, "\(before), \(after)")
        try guest.type("p")
        #expect(try HeartbeatStatistics(guest.wait(for: "stats ", seconds: 30)).bad == 0)
        let status = try run.command(["qmp", "guest", "query-status"])
        #expect(status.output.contains("\"running\": true"))
        _ = try run.command(["stop", "guest"])
    }

    @Test("a loopback port serves as a socket file does") func loopback() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(["--qmp", "tcp:127.0.0.1:0"])
        try guest.wait(for: "tick 1 ", seconds: 60)
        let list = try run.command(["qmp", "guest", "query-chardev"]).output
        let port = try #require(list.firstMatch(of: /tcp:127\.0\.0\.1:([0-9]+)/)?.1).description
        let socket = try StreamSocket.connect(to: .tcp(host: "127.0.0.1", port: try #require(UInt16(port))))
        try StreamSocket.sendAll(Self.negotiation + Array(#"{"execute":"quit"}"#.utf8), to: socket)
        let answers = try Transcript(name: "the port", reading: socket)
        try answers.wait(for: "\"QMP\"", seconds: 30)
        try answers.wait(for: "\"return\": {}", seconds: 30)
        try answers.wait(for: "SHUTDOWN", seconds: 30)
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
    }
}
