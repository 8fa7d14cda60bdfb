import Foundation
import Glibc
import LinuxCalls
import ProcessTestKit
import Testing

@Suite(
    "What comes along with a guest", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct TravelTests {
    private func waitForFile(_ path: String) throws {
        try HostTools.need("sh", ["-c", "until [ -e \(path) ]; do sleep 0.02; done"], seconds: 30)
    }

    /// Waits until a file has a line that begins so, behind a place; answers the text.
    private func text(of path: String, has line: String, behind count: Int = 0) throws -> String {
        let deadline = Date().addingTimeInterval(30)
        while Date() < deadline {
            // In a Swift string a carriage return and a line feed are one character.
            let text = ((try? String(contentsOfFile: path, encoding: .utf8)) ?? "").replacing("\r\n", with: "\n")
            if text.dropFirst(count).contains("\n\(line)") { return text }
            usleep(10_000)
        }
        throw ExpectationError.failed(command: "waiting for '\(line)' in \(path)", end: "nothing", output: "")
    }

    @Test("a console that is written to a file goes on in it, no line lost or doubled; the pid file says who runs it")
    func logFile() throws {
        let run = try MonitorRun()
        let log = run.directory.file("console.log")
        let guest = try run.heartbeat(["--console", "file:\(log)"])
        var length = try text(of: log, has: "tick 1 ").count
        for channel in ["memfd", "page-flip", "socket"] {
            let report = try run.upgrade("guest", ["--channel", channel])
            let pid = try String(contentsOfFile: run.directory.path + "/sidestep/guest/pid", encoding: .utf8)
            #expect(Int(pid.trimmingCharacters(in: .whitespacesAndNewlines)) == report.process)
            length = try text(of: log, has: "tick ", behind: length).count
        }
        #expect(try run.command(["stop", "guest"]).end == .exited(status: 0))
        try guest.waitForEnd(seconds: 30)
        let seen = ticks(in: try String(contentsOfFile: log, encoding: .utf8))
        #expect(seen.count > 4 && seen == Array(0..<seen.count))
        #expect(!FileManager.default.fileExists(atPath: run.directory.path + "/sidestep/guest"), "it tidied up")
    }

    @Test("a pseudo-terminal stays the same: its reader sees every byte once and can type")
    func pseudoTerminal() throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(["--console", "pty"])
        func name() throws -> String {
            let facts = try run.command(["inspect", "guest", "--format", "json"]).output
            let place = try #require(facts.range(of: "/dev/pts/"))
            return String(facts[place.lowerBound...].prefix { $0 != "\"" && $0 != " " })
        }
        try waitForFile(run.directory.path + "/sidestep/guest/qmp.sock")
        let terminal = try name()
        let slave = try OwnedDescriptor.open(terminal, flags: O_RDWR | O_NOCTTY)
        var settings = termios()
        #expect(tcgetattr(slave.rawValue, &settings) == 0)
        cfmakeraw(&settings)
        #expect(tcsetattr(slave.rawValue, TCSANOW, &settings) == 0)
        let transcript = try Transcript(name: "terminal", reading: try slave.duplicate())
        try transcript.wait(for: "tick ", seconds: 30)
        for channel in ["memfd", "page-flip"] {
            _ = try run.upgrade("guest", ["--channel", channel])
            #expect(try name() == terminal)
            transcript.skipToEnd()
            try transcript.wait(for: "tick ", seconds: 30)
            try slave.writeAll(Array("p".utf8))
            #expect(try HeartbeatStatistics(transcript.wait(for: "stats ", seconds: 30)).bad == 0)
        }
        try slave.writeAll(Array("q".utf8))
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
        let seen = ticks(in: transcript.text)
        #expect(seen.count > 2 && seen == Array(seen[0]..<(seen[0] + seen.count)))
    }

    @Test("descriptor sets and several monitor clients come along, each with what is its own")
    func descriptorSets() throws {
        let run = try MonitorRun()
        let further = run.directory.file("further.sock")
        let guest = try run.heartbeat(["--qmp", "unix:\(further)"])
        try guest.wait(for: "tick 1 ", seconds: 60)
        final class Client {
            let socket: OwnedDescriptor
            let transcript: Transcript
            private var number = 0
            init(_ path: String) throws {
                socket = try StreamSocket.connect(to: .unix(path: path))
                transcript = try Transcript(name: "QMP client", reading: try socket.duplicate())
                try transcript.wait(for: "QMP", seconds: 30)
                _ = try run("qmp_capabilities")
            }
            func run(_ command: String, _ arguments: String = "{}", _ files: [OwnedDescriptor] = []) throws -> String {
                number += 1
                try StreamSocket.sendAll(
                    Array(#"{"execute": "\#(command)", "arguments": \#(arguments), "id": \#(number)}"#.utf8),
                    descriptors: files, to: socket)
                return try transcript.wait(for: #""id": \#(number)}"#, seconds: 30)
            }
        }
        let clients = try [run.directory.path + "/sidestep/guest/qmp.sock", further].map { try Client($0) }
        let (reading, writing) = try OwnedDescriptor.pipe()
        let added = try clients[0].run("add-fd", #"{"fdset-id": 7, "opaque": "kept"}"#, [writing])
        #expect(added.contains(#""fdset-id": 7"#), "\(added)")
        // No other holder: the pipe ends when the set is removed, and not before.
        let before = try clients[1].run("query-fdsets")
        for channel in ["memfd", "page-flip"] {
            _ = try run.upgrade("guest", ["--channel", channel])
            for client in clients {
                let sets = try client.run("query-fdsets")
                #expect(sets.contains(#""fdset-id": 7"#) && sets.contains("kept"), "\(before): \(sets)")
                #expect(client.transcript.text.contains(#""event": "MIGRATION""#))
            }
        }
        _ = reading
        #expect(try clients[1].run("remove-fd", #"{"fdset-id": 7}"#).contains("return"))
        // Its listener came along too.
        _ = try Client(further).run("query-status")
        try guest.type("q")
        #expect(try guest.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test(
        "the guest's wall clock is right after each move, and its uptime goes on",
        .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"))
    func wallClock() throws {
        let run = try MonitorRun()
        let guest = try run.debian(words: "notick")
        try guest.wait(for: "~ # ", seconds: 120, partial: true)
        /// How far the guest's clock is ahead of the host's, and its uptime, in seconds.
        func look(_ round: Int) throws -> (ahead: Double, uptime: Double) {
            guest.output.skipToEnd()
            try guest.type("echo clock-\(round) $((40 + 2)) $(date +%s) $(cut -d' ' -f1 /proc/uptime)\n")
            let line = try guest.wait(for: "clock-\(round) 42 ", seconds: 30)
            let now = Date().timeIntervalSince1970
            let words = line.split(separator: " ").compactMap { Double($0) }
            try #require(words.count == 3, "\(line)")
            return (words[1] - now, words[2])
        }
        let start = try look(0)
        #expect(abs(start.ahead) < 3, "\(start)")
        var uptime = start.uptime
        for (round, channel) in ["memfd", "page-flip", "socket"].enumerated() {
            _ = try run.upgrade("guest", ["--channel", channel])
            let now = try look(round + 1)
            #expect(abs(now.ahead - start.ahead) < 2, "\(channel): \(start) \(now)")
            #expect(now.uptime >= uptime && now.uptime < uptime + 30)
            uptime = now.uptime
        }
        try guest.type("poweroff -f\n")
        #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0))
    }
}
