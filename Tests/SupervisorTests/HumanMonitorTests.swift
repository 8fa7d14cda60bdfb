import MonitorClient
import QMPProtocol
import Testing

@testable import Supervisor

extension SupervisorTests {
    @Suite("The human monitor's words") struct HumanMonitorTests {
        static func say(_ client: QMPConnection, _ line: String) throws -> String {
            try client.run("human-monitor-command", ["command-line": .string(line)]).stringValue ?? "no text"
        }

        @Test("the guest is stopped, looked at and continued") func lifeCycle() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            #expect(try Self.say(client, "info status") == "VM status: paused (prelaunch)\r\n")
            #expect(try Self.say(client, "c") == "")
            #expect(try Self.say(client, "info status") == "VM status: running\r\n")
            #expect(try Self.say(client, "stop") == "")
            #expect(try Self.say(client, "info status") == "VM status: paused\r\n")
            #expect(try Self.say(client, "info registers") == "pc 0\r\n")
            #expect(try Self.say(client, "info cpus") == "* CPU #0: thread_id=1\r\n")
            #expect(try Self.say(client, "info name") == "fixture\r\n")
            #expect(try Self.say(client, "system_reset") == "")
            #expect(fixture.guest.calls == ["resume", "pause", "reset"])
        }

        @Test("bandwidths are in MiB/s unless a unit is given, and what is set shows") func parameters() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            #expect(try Self.say(client, "migrate_set_parameter max-bandwidth 64") == "")
            #expect(try client.run("query-migrate-parameters")["max-bandwidth"] == JSONValue(64 << 20))
            #expect(try Self.say(client, "migrate_set_parameter max-bandwidth 3k") == "")
            #expect(try Self.say(client, "info migrate_parameters").contains("max-bandwidth: 3072 bytes/second\r\n"))
            #expect(try Self.say(client, "migrate_set_parameter downtime-limit 20") == "")
            #expect(try Self.say(client, "info migrate_parameters").contains("downtime-limit: 20 ms\r\n"))
            #expect(try Self.say(client, "migrate_set_capability events on") == "")
            #expect(try Self.say(client, "info migrate_capabilities").contains("events: on\r\n"))
        }

        @Test("a failed migration is told with its reason") func migration() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            _ = try client.run("cont")
            #expect(try Self.say(client, "migrate -d unix:/nonexistent/socket") == "")
            _ = try MigrationCommandTests.wait(client)
            let text = try Self.say(client, "info migrate")
            #expect(text.hasPrefix("Migration status: failed (") && text.contains("/nonexistent/socket"))
        }

        static let refused: [(String, String)] = [
            ("nosuch", "unknown command: 'nosuch'\r\n"), ("info nosuch", "unknown command: 'info nosuch'\r\n"),
            ("migrate", "migrate: string expected\r\nTry \"help migrate\" for more information\r\n"),
            (
                "stop now",
                "stop: extraneous characters at the end of line\r\nTry \"help stop\" for more information\r\n"
            ), ("migrate nope:x", "Error: unknown migration protocol: nope:x\r\n"),
            ("migrate_set_capability nope on", "Error: invalid parameter value: nope\r\n"),
            ("savevm", "Error: no block device can store vmstate for snapshot\r\n"),
            ("loadvm x", "Error: no block device can store vmstate for snapshot\r\n"), ("", ""), ("delvm x", ""),
        ]

        @Test("what is wrong is said in QEMU's words", arguments: refused)
        func refuses(line: String, answer: String) throws {
            let fixture = try SupervisorFixture()
            #expect(try Self.say(fixture.connect(), line) == answer)
        }

        @Test("help names every word, and every word's own help is there") func help() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            let all = try Self.say(client, "help")
            for word in HumanMonitor.table {
                #expect(all.contains(word.help))
                if word.names[0] != "info" { #expect(try Self.say(client, "help \(word.names[0])") == word.help) }
            }
            #expect(try Self.say(client, "info") == (try Self.say(client, "help info")))
            for subject in HumanMonitor.subjects {
                #expect(try !Self.say(client, "info \(subject.names[0])").hasPrefix("unknown"), "\(subject.names)")
            }
        }
    }
}
