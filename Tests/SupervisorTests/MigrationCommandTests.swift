import Glibc
import LinuxCalls
import MigrationEngine
import MonitorClient
import QMPProtocol
import Testing

@testable import Supervisor

extension SupervisorTests {
    @Suite("Migration by QMP") struct MigrationCommandTests {
        static func incoming() throws -> SupervisorFixture {
            try SupervisorFixture(name: "destination", runState: .inmigrate) {
                $0.isPaused = false
                $0.incoming = "defer"
            }
        }

        /// Asks until the migration is over; answers the last `query-migrate`.
        static func wait(_ client: QMPConnection) throws -> JSONValue {
            while true {
                let answer = try client.run("query-migrate")
                if ["completed", "failed", "cancelled"].contains(answer["status"]?.stringValue) { return answer }
                usleep(1000)
            }
        }

        static func fill(_ guest: ScriptedSupervisedGuest) throws {
            for page in 0..<256 {
                try guest.memory.write(0x8000_0000 + UInt64(page) * 4096, [UInt8(page), 7, UInt8(page ^ 0x55)])
            }
        }

        /// A guest that runs, with contents in its memory, and a client.
        static func running() throws -> (SupervisorFixture, QMPConnection) {
            let from = try SupervisorFixture(name: "source")
            let source = try from.connect()
            _ = try source.run("cont")
            try fill(from.guest)
            return (from, source)
        }

        /// Begins a migration that comes as far as waiting for a command that does not end.
        static func migrateWithoutEnd(_ source: QMPConnection) throws {
            _ = try source.run("migrate", ["uri": "exec:cat >/dev/null; exec sleep 600"])
            while try source.run("query-migrate")["status"] != "device" { usleep(1000) }
        }

        static func agree(_ left: ScriptedSupervisedGuest, _ right: ScriptedSupervisedGuest) throws -> Bool {
            try left.memory.bytes(at: 0x8000_0000, count: 1 << 20)
                == right.memory.bytes(at: 0x8000_0000, count: 1 << 20)
        }

        @Test("a limit that is set while a migration runs holds at once")
        func limitRaised() throws {
            let from = try SupervisorFixture(name: "source")
            let to = try Self.incoming()
            let source = try from.connect()
            let destination = try to.connect()
            try Self.fill(from.guest)
            // A quarter of an hour.
            _ = try source.run("migrate-set-parameters", ["max-bandwidth": 1024])
            let uri = "unix:\(to.path)/migration.sock"
            _ = try destination.run("migrate-incoming", ["uri": .string(uri)])
            _ = try source.run("migrate", ["uri": .string(uri)])
            while try source.run("query-migrate")["status"] == "setup" { usleep(1000) }
            #expect(try source.run("query-migrate")["status"] == "active")
            _ = try source.run("migrate-set-parameters", ["max-bandwidth": 0])
            #expect(try Self.wait(source)["status"] == "completed")
            #expect(try Self.wait(destination)["status"] == "completed")
            #expect(try Self.agree(from.guest, to.guest))
        }

        @Test("a script written for QEMU moves a guest", arguments: ["socket", "page-flip", "multifd"])
        func moves(channel: String) throws {
            let from = try SupervisorFixture(name: "source")
            let to = try Self.incoming()
            let source = try from.connect()
            let destination = try to.connect()
            #expect(try source.run("query-migrate") == [:])
            _ = try source.run("cont")
            try Self.fill(from.guest)
            var capabilities: [JSONValue] = [
                ["capability": "events", "state": true], ["capability": "return-path", "state": true],
            ]
            if channel == "page-flip" { capabilities.append(["capability": "x-unix-page-flipping", "state": true]) }
            if channel == "multifd" {
                capabilities.append(["capability": "multifd", "state": true])
                for client in [source, destination] {
                    _ = try client.run("migrate-set-parameters", ["multifd-channels": 3])
                }
            }
            for client in [source, destination] {
                _ = try client.run("migrate-set-capabilities", ["capabilities": .array(capabilities)])
            }
            let uri = "unix:\(to.path)/migration.sock"
            #expect(try destination.run("query-status")["status"] == "inmigrate")
            #expect(try destination.run("migrate-incoming", ["uri": .string(uri)]) == [:])
            #expect(try destination.run("query-migrate")["status"] == "setup")
            #expect(try source.run("migrate", ["uri": .string(uri)]) == [:])
            let answer = try Self.wait(source)
            #expect(answer["status"] == "completed", "\(answer.json)")
            #expect(answer["ram"]?["remaining"] == 0)
            #expect(answer["ram"]?["total"] == JSONValue(1 << 20))
            #expect(answer["downtime"] != nil && answer["total-time"] != nil)
            #expect(try Self.wait(destination)["status"] == "completed")
            #expect(try source.run("query-status") == ["running": false, "status": "postmigrate"])
            #expect(try destination.run("query-status") == ["running": true, "status": "running"])
            #expect(to.guest.isRunning && !from.guest.isRunning)
            var names: [String] = []
            for event in source.events {
                names.append(
                    event.data?["status"]?.stringValue ?? event.data?["pass"].map { "pass \($0.json)" } ?? event.name)
            }
            #expect(names.first == "RESUME" && names.last == "completed")
            #expect(names.contains("setup") && names.contains("STOP"))
            if channel != "page-flip" {
                #expect(names.contains("active"))
                #expect(try Self.agree(from.guest, to.guest))
                #expect(try source.run("cont") == [:])  // QEMU's users may take the guest back by hand
            } else {
                #expect(throws: QMPConnection.Failure.self) { try source.run("cont") }
            }
            #expect(try to.guest.memory.bytes(at: 0x8000_0000 + 9 * 4096, count: 3) == [9, 7, 9 ^ 0x55])
        }

        @Test("nobody there: the migration fails, the guest runs on, and the next attempt works") func failsAndRetries()
            throws
        {
            let (from, source) = try Self.running()
            let uri = "unix:\(from.path)/migration.sock"
            _ = try source.run("migrate", ["uri": .string(uri)])
            let answer = try Self.wait(source)
            #expect(answer["status"] == "failed")
            #expect(answer["error-desc"]?.stringValue?.contains("migration.sock") == true)
            #expect(try source.run("query-status")["status"] == "running")
            let to = try Self.incoming()
            let destination = try to.connect()
            _ = try destination.run("migrate-incoming", ["uri": .string(uri)])
            _ = try source.run("migrate", ["uri": .string(uri)])
            #expect(try Self.wait(source)["status"] == "completed")
            #expect(try Self.wait(destination)["status"] == "completed")
            #expect(try Self.agree(from.guest, to.guest))
        }

        @Test("an address that cannot carry what is switched on is refused by name") func wrongAddress() throws {
            let from = try SupervisorFixture(name: "source")
            let source = try from.connect()
            for (name, uri, word) in [
                ("multifd", "exec:cat", "multifd is on"), ("multifd", "file:/dev/null", "multifd is on"),
                ("mapped-ram", "unix:/nonexistent", "mapped-ram is on"), ("mapped-ram", "exec:cat", "mapped-ram is on"),
            ] {
                func set(_ isOn: Bool) throws {
                    _ = try source.run(
                        "migrate-set-capabilities",
                        ["capabilities": [["capability": .string(name), "state": .bool(isOn)]]])
                }
                try set(true)
                let error = #expect(throws: QMPConnection.Failure.self) {
                    try source.run("migrate", ["uri": .string(uri)])
                }
                #expect("\(String(describing: error))".contains(word))
                try set(false)
            }
            let error = #expect(throws: QMPConnection.Failure.self) {
                try source.run(
                    "migrate-set-capabilities",
                    ["capabilities": [["capability": "background-snapshot", "state": true]]])
            }
            #expect("\(String(describing: error))".contains("'background-snapshot' is not supported"))
        }

        @Test(
            "a guest is saved to a file and comes back from it, which says by itself what it is",
            arguments: [[], ["mapped-ram"], ["mapped-ram", "multifd"]])
        func file(capabilities: [String]) throws {
            let from = try SupervisorFixture(name: "source")
            let source = try from.connect()
            try Self.fill(from.guest)
            let uri = JSONValue.string("file:\(from.path)/saved")
            defer { unlink("\(from.path)/saved") }
            _ = try source.run(
                "migrate-set-capabilities",
                ["capabilities": .array(capabilities.map { ["capability": .string($0), "state": true] })])
            _ = try source.run("migrate", ["uri": uri])
            let answer = try Self.wait(source)
            #expect(answer["status"] == "completed", "\(answer.json)")
            let to = try Self.incoming()
            let destination = try to.connect()
            _ = try destination.run("migrate-incoming", ["uri": uri])
            #expect(try Self.wait(destination)["status"] == "completed")
            #expect(try Self.agree(from.guest, to.guest))
            #expect(try destination.run("query-status")["status"] == "paused")
        }

        @Test("a guest goes through commands and comes back; one that fails leaves it here, running")
        func commands() throws {
            let (from, source) = try Self.running()
            _ = try source.run("migrate", ["uri": "exec:cat >/dev/null; exit 3"])
            let answer = try Self.wait(source)
            #expect(answer["status"] == "failed")
            #expect(answer["error-desc"]?.stringValue?.contains("the command ended with") == true, "\(answer.json)")
            #expect(try source.run("query-status")["status"] == "running")
            let path = "\(from.path)/saved"
            defer { unlink(path) }
            _ = try source.run("migrate", ["uri": .string("exec:cat >\(path)")])
            #expect(try Self.wait(source)["status"] == "completed")
            let to = try Self.incoming()
            let destination = try to.connect()
            _ = try destination.run("migrate-incoming", ["uri": .string("exec:cat \(path)")])
            #expect(try Self.wait(destination)["status"] == "completed")
            #expect(try Self.agree(from.guest, to.guest))
        }

        @Test("a command that does not end can be cancelled, and the guest runs on") func endlessCommand() throws {
            let (from, source) = try Self.running()
            try Self.migrateWithoutEnd(source)
            _ = try source.run("migrate_cancel")
            #expect(try Self.wait(source) == ["status": "cancelled"])
            #expect(try source.run("query-status")["status"] == "running")
            withExtendedLifetime(from) {}
        }

        @Test("a migration is said to be over when the next command can be given, and not before") func saidWhenOver()
            throws
        {
            let (from, source) = try Self.running()
            try Self.migrateWithoutEnd(source)
            from.onLoop {
                #expect(throws: Never.self) { try from.supervisor.migration.cancel() }
                // Its thread comes to its end meanwhile; the monitor's, which is this one, has not heard of it.
                usleep(300_000)
                #expect(from.supervisor.migration.isActive)
                let said = from.supervisor.migration.query["status"]?.stringValue
                #expect(said != nil && said != "cancelled", "\(said ?? "nothing")")
            }
            #expect(try Self.wait(source)["status"] == "cancelled")
            _ = try source.run("migrate-set-parameters", ["max-bandwidth": 65536])
            let capability: JSONValue = ["capability": "mapped-ram", "state": true]
            _ = try source.run("migrate-set-capabilities", ["capabilities": [capability]])
        }

        @Test("a cancelled migration leaves the guest running") func cancel() throws {
            let (from, source) = try Self.running()
            _ = try source.run("migrate-set-parameters", ["max-bandwidth": 65536])  // never done before it is cancelled
            #expect(try source.run("migrate_cancel") == [:])
            // Somebody listens and never reads.
            let listener = try StreamSocket.listen(at: .unix(path: from.path + "/deaf.sock"))
            defer { unlink(from.path + "/deaf.sock") }
            _ = try source.run(
                "migrate-set-capabilities", ["capabilities": [["capability": "return-path", "state": true]]])
            _ = try source.run("migrate", ["uri": .string("unix:\(from.path)/deaf.sock")])
            let peer = try StreamSocket.accept(from: listener)
            #expect(throws: QMPConnection.Failure.self) { try source.run("migrate", ["uri": "unix:/x"]) }
            _ = try source.run("migrate_cancel")
            #expect(try Self.wait(source) == ["status": "cancelled"])
            #expect(try source.run("query-status")["status"] == "running")
            _ = peer
        }

        @Test("garbage ends an incoming process with its own status, and stays when asked to") func garbage() throws {
            for stays in [false, true] {
                let to = try Self.incoming()
                let destination = try to.connect()
                let path = to.path + "/migration.sock"
                _ = try destination.run(
                    "migrate-incoming", ["uri": .string("unix:\(path)"), "exit-on-error": .bool(!stays)])
                let socket = try StreamSocket.connect(to: .unix(path: path))
                try StreamSocket.sendAll(Array("this is no migration stream at all".utf8), to: socket)
                StreamSocket.shutDownWriting(socket)
                if stays {
                    #expect(try Self.wait(destination)["status"] == "failed")
                    #expect(try destination.run("query-status")["status"] == "inmigrate")
                } else {
                    #expect(to.supervisor.waitForEnd() == ExitStatus.incomingFailed.rawValue)
                }
            }
        }

        static let refused: [(String, JSONObject, String)] = [
            ("migrate", ["uri": "nope:x"], "unknown migration protocol: nope:x"),
            ("migrate", [:], "need either 'uri' or 'channels' argument"),
            ("migrate", ["uri": "fd:none"], "File descriptor named 'none' has not been found"),
            ("migrate-incoming", ["uri": "defer"], "unknown migration protocol: defer"),
            (
                "migrate-set-capabilities", ["capabilities": [["capability": "nope", "state": true]]],
                "Parameter 'capability' does not accept value 'nope'"
            ),
            (
                "migrate-set-capabilities", ["capabilities": [["capability": "zero-copy-send", "state": true]]],
                "Capability 'zero-copy-send' is not supported"
            ),
            ("migrate-set-parameters", ["nope": 1], "Parameter 'nope' is unexpected"),
            (
                "migrate-set-parameters", ["downtime-limit": -1],
                "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms"
            ),
            (
                "migrate-set-parameters", ["multifd-compression": "zlib"],
                "Parameter 'multifd-compression' is not supported: it stays \"none\""
            ),
            ("migrate-continue", ["state": "pre-switchover"], "Migration not in expected state: none"),
            (
                "migrate-pause", [:],
                "migrate-pause is currently only supported during postcopy-active or postcopy-recover state"
            ),
            ("migrate-recover", ["uri": "unix:/x"], "Migrate recover can only be run when postcopy is paused."),
        ]

        @Test("what is not there is refused by name", arguments: refused)
        func refusals(command: String, arguments: JSONObject, text: String) throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            do {
                _ = try client.run(command, arguments)
                Issue.record("\(command) was not refused")
            } catch {
                #expect(error.description == text || command == "migrate-incoming")
            }
        }

        @Test("parameters keep QEMU's names and what was set") func parameters() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            #expect(try client.run("query-migrate-parameters")["downtime-limit"] == 300)
            #expect(try client.run("query-migrate-parameters")["max-bandwidth"] == 134_217_728)
            _ = try client.run("migrate-set-parameters", ["downtime-limit": 50, "x-strategy": "precopy"])
            #expect(try client.run("query-migrate-parameters")["downtime-limit"] == 50)
            #expect(try client.run("query-migrate-parameters")["x-strategy"] == "precopy")
        }
    }
}
