import Glibc
import LinuxCalls
import MigrationEngine
import MigrationStream
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

        /// A guest that runs and whose memory is full, and where it is to go, with a client of each.
        private static func ends() throws -> (
            from: SupervisorFixture, to: SupervisorFixture, source: QMPConnection, destination: QMPConnection
        ) {
            let from = try SupervisorFixture(name: "source")
            let to = try Migration.incoming()
            let source = try from.connect()
            let destination = try to.connect()
            _ = try source.run("cont")
            try Migration.fill(from.guest)
            return (from, to, source, destination)
        }

        @Test("a script written for QEMU switches over, breaks the channel off, recovers, and is refused a cancel")
        func recovers() throws {
            let (from, to, source, destination) = try Self.ends()
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
            _ = try source.run("migrate-set-parameters", ["max-bandwidth": 16384, "max-postcopy-bandwidth": 65536])
            let uri = "unix:\(to.path)/migration.sock"
            _ = try destination.run("migrate-incoming", ["uri": .string(uri)])
            #expect(throws: QMPConnection.Failure.self) { try source.run("migrate-start-postcopy") }
            _ = try source.run("migrate", ["uri": .string(uri)])
            // The first pass takes a minute at that rate: most pages are left for the postcopy, whenever the order comes.
            let sent = ContinuousClock.now + .seconds(20)
            while try source.run("query-migrate")["ram"]?["normal"]?.integerValue ?? 0 == 0, ContinuousClock.now < sent
            {
                usleep(500)
            }
            #expect(try source.run("query-migrate")["status"] == "active")
            try Migration.fill(from.guest)
            #expect(try source.run("migrate-start-postcopy") == [:])
            try Self.waitFor("postcopy-active", source)
            // It says that it has taken the guest a moment before it runs it.
            let run = ContinuousClock.now + .seconds(20)
            while try destination.run("query-status")["status"] != "running", ContinuousClock.now < run { usleep(500) }
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

        /// Between a source and a destination; breaks both connections instead of passing RAM's END on, which the source
        /// sends when it has heard that all pages are there.
        private static func relayUntilEnd(_ near: OwnedDescriptor, _ far: OwnedDescriptor) throws {
            @Sendable func pass(_ source: OwnedDescriptor, _ destination: OwnedDescriptor, _ isEnd: ([UInt8]) -> Bool) {
                var buffer = [UInt8](repeating: 0, count: 1 << 16)
                while let count = try? buffer.withUnsafeMutableBytes({ bytes in
                    try StreamSocket.receive(into: bytes, descriptorsMax: 0, from: source).byteCount
                }), count > 0, !isEnd(Array(buffer[..<count])),
                    (try? StreamSocket.sendAll(Array(buffer[..<count]), to: destination)) != nil
                {}
                for socket in [source, destination] { StreamSocket.shutDown(socket) }
            }
            let back = try HostThread(name: "back") { pass(far, near) { _ in false } }
            pass(near, far) { $0.first == SectionKind.end.rawValue && $0.count < 64 }
            back.join()
        }

        @Test(
            "a destination that has everything but the source's last word need not wait for it: a cancel ends the waiting"
        )
        func nothingMissing() throws {
            let (from, to, source, destination) = try Self.ends()
            _ = try source.run(
                "migrate-set-capabilities", ["capabilities": [["capability": "postcopy-ram", "state": true]]])
            _ = try source.run("migrate-set-parameters", ["x-strategy": "postcopy"])
            let there = "\(to.path)/migration.sock"
            let here = "\(from.path)/relay.sock"
            _ = try destination.run("migrate-incoming", ["uri": .string("unix:\(there)")])
            let listener = try StreamSocket.listen(at: .unix(path: here))
            let relay = try HostThread(name: "relay") {
                do {
                    let near = try StreamSocket.accept(from: listener)
                    try Self.relayUntilEnd(near, StreamSocket.connect(to: .unix(path: there)))
                } catch { Issue.record("\(error)") }
            }
            _ = try source.run("migrate", ["uri": .string("unix:\(here)")])
            // It knows that the destination has the guest and every page.
            let answer = try Migration.wait(source)
            #expect(answer["status"] == "completed" && answer["x-notices"] != nil, "\(answer.json)")
            relay.join()
            try Self.waitFor("postcopy-paused", destination)
            let reason = try destination.run("query-migrate")["error-desc"]?.stringValue
            #expect(reason?.contains("the guest has all of its memory") == true, "\(reason ?? "")")
            _ = try destination.run("migrate_cancel")
            #expect(try Migration.wait(destination)["status"] == "completed")
            #expect(try destination.run("query-status")["status"] == "running")
            #expect(to.guest.isRunning && !from.guest.isRunning)
            #expect(try Migration.agree(from.guest, to.guest))
        }

        @Test("with release-ram the guest cannot be taken back by hand") func released() throws {
            let (from, to, source, destination) = try Self.ends()
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
            withExtendedLifetime(from) {}
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
