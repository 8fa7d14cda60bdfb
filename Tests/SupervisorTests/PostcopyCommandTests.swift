import Glibc
import LinuxCalls
import MigrationEngine
import MonitorClient
import QMPProtocol
import Testing

@testable import Supervisor

extension SupervisorTests {
    @Suite("Postcopy by QMP") struct PostcopyCommandTests {
        typealias Migration = MigrationCommandTests

        static func waitFor(_ status: String, _ client: QMPConnection) throws {
            for _ in 0..<20_000 {
                let now = try client.run("query-migrate")["status"]?.stringValue
                if now == status { return }
                if now == "failed" || now == "completed" { break }
                usleep(500)
            }
            Issue.record("\(status) does not come: \(try client.run("query-migrate").json)")
        }

        @Test("a script written for QEMU switches over, breaks the channel off, recovers, and is refused a cancel")
        func recovers() throws {
            let from = try SupervisorFixture(name: "source")
            let to = try Migration.incoming()
            let source = try from.connect()
            let destination = try to.connect()
            _ = try source.run("cont")
            try Migration.fill(from.guest)
            for client in [source, destination] {
                _ = try client.run(
                    "migrate-set-capabilities",
                    [
                        "capabilities": [
                            ["capability": "postcopy-ram", "state": true], ["capability": "events", "state": true],
                        ]
                    ])
            }
            // Neither way would it end by itself while this test looks.
            _ = try source.run("migrate-set-parameters", ["max-bandwidth": 65536, "max-postcopy-bandwidth": 65536])
            let uri = "unix:\(to.path)/migration.sock"
            _ = try destination.run("migrate-incoming", ["uri": .string(uri)])
            #expect(throws: QMPConnection.Failure.self) { try source.run("migrate-start-postcopy") }
            _ = try source.run("migrate", ["uri": .string(uri)])
            #expect(try source.run("migrate-start-postcopy") == [:])
            try Self.waitFor("postcopy-active", source)
            #expect(try destination.run("query-status")["status"] == "running")
            #expect(try source.run("query-status")["status"] == "finish-migrate")
            #expect(!from.guest.isRunning && to.guest.isRunning)
            do {
                _ = try source.run("migrate_cancel")
                Issue.record("a cancel was not refused")
            } catch { #expect(error.description.contains("the guest runs at the destination already")) }
            #expect(throws: QMPConnection.Failure.self) { try source.run("cont") }
            #expect(throws: QMPConnection.Failure.self) {
                try source.run("migrate", ["uri": .string(uri), "resume": true])
            }

            #expect(try source.run("migrate-pause") == [:])
            try Self.waitFor("postcopy-paused", source)
            try Self.waitFor("postcopy-paused", destination)
            let lost = try source.run("query-migrate")["error-desc"]
            #expect(lost != nil)
            let other = "unix:\(to.path)/recovery.sock"
            // Nobody listens there yet: it stays paused, and says so.
            _ = try source.run("migrate", ["uri": .string(other), "resume": true])
            // Only when that has failed may there be a listener: else it would succeed after all.
            let deadline = ContinuousClock.now + .seconds(20)
            while try source.run("query-migrate")["error-desc"] == lost, ContinuousClock.now < deadline { usleep(1000) }
            _ = try destination.run("migrate-recover", ["uri": .string(other)])
            try Self.waitFor("postcopy-paused", source)
            _ = try source.run("migrate-set-parameters", ["max-postcopy-bandwidth": 0])
            _ = try source.run("migrate", ["uri": .string(other), "resume": true])
            #expect(try Migration.wait(source)["status"] == "completed")
            let answer = try Migration.wait(destination)
            #expect(answer["status"] == "completed", "\(answer.json)")
            #expect(try Migration.agree(from.guest, to.guest))
            #expect(try source.run("query-migrate")["ram"]?["postcopy-bytes"] != 0)
            let names = source.events.compactMap { $0.data?["status"]?.stringValue }
            #expect(
                names == [
                    "setup", "active", "device", "postcopy-active", "postcopy-paused", "postcopy-recover",
                    "postcopy-active", "completed",
                ])
        }

        @Test("with release-ram the guest cannot be taken back by hand") func released() throws {
            let from = try SupervisorFixture(name: "source")
            let to = try Migration.incoming()
            let source = try from.connect()
            let destination = try to.connect()
            _ = try source.run("cont")
            try Migration.fill(from.guest)
            _ = try source.run(
                "migrate-set-capabilities",
                [
                    "capabilities": [
                        ["capability": "postcopy-ram", "state": true], ["capability": "release-ram", "state": true],
                    ]
                ])
            _ = try source.run("migrate-set-parameters", ["x-strategy": "postcopy"])
            let uri = JSONValue.string("unix:\(to.path)/migration.sock")
            _ = try destination.run("migrate-incoming", ["uri": uri])
            _ = try source.run("migrate", ["uri": uri])
            #expect(try Migration.wait(source)["status"] == "completed")
            #expect(try Migration.wait(destination)["status"] == "completed")
            #expect(try to.guest.memory.bytes(at: 0x8000_0000 + 9 * 4096, count: 3) == [9, 7, 9 ^ 0x55])
            #expect(throws: QMPConnection.Failure.self) { try source.run("cont") }
        }

        @Test("what has changed in a page is sent alone, and counted") func differences() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            _ = try client.run(
                "migrate-set-capabilities", ["capabilities": [["capability": "xbzrle", "state": true]]])
            _ = try client.run("migrate-set-parameters", ["xbzrle-cache-size": 1_048_576])
            #expect(try client.run("query-migrate-parameters")["xbzrle-cache-size"] == 1_048_576)
            #expect(throws: QMPConnection.Failure.self) {
                try client.run("migrate-set-parameters", ["xbzrle-cache-size": 5000])
            }
        }
    }
}
