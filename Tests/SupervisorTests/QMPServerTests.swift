import Glibc
import LinuxCalls
import MonitorClient
import QMPProtocol
import Testing

@testable import Supervisor

/// A supervisor over a scripted guest, in a directory of its own, with a client.
final class SupervisorFixture: @unchecked Sendable {
    let guest: ScriptedSupervisedGuest
    let loop: EventLoop
    let supervisor: Supervisor
    let path: String
    var socketPath: String { path + "/qmp.sock" }

    init(
        name: String = "fixture", runState: RunState = .prelaunch, _ change: (inout RunConfiguration) -> Void = { _ in }
    ) throws {
        path = try TemporaryDirectory.make()
        guest = try ScriptedSupervisedGuest()
        loop = try EventLoop(name: "monitor")
        var configuration = RunConfiguration()
        configuration.name = name
        configuration.isPaused = true
        change(&configuration)
        let lock = try OwnedDescriptor.open(path + "/lock", flags: O_RDWR | O_CREAT)
        let directory = try RunDirectory.adopt(name: name, path: path, lock: lock)
        supervisor = try Supervisor(
            loop: loop, guest: guest, configuration: configuration, directory: directory, consoleDescription: "null",
            runState: runState)
        let (descriptor, address) = try QMPServer.bind(.unix(socketPath))
        onLoop { [supervisor] in
            try! supervisor.server.listen(descriptor, as: address)
            supervisor.start()
        }
    }

    /// Runs on the monitor's thread and waits.
    func onLoop(_ body: @escaping @Sendable () -> Void) {
        loop.perform(body)
        loop.barrier()
    }

    func connect() throws -> QMPConnection { try QMPConnection(path: socketPath) }
    func rawConnect() throws -> OwnedDescriptor { try StreamSocket.connect(to: .unix(path: socketPath)) }

    deinit {
        loop.perform { [supervisor] in supervisor.quit(cause: .hostSignal, status: 0) }
        _ = supervisor.waitForEnd()
        loop.stop()
        supervisor.directory.remove()
    }
}

enum TemporaryDirectory {
    static func make() throws -> String {
        var template = Array("/tmp/sidestep-test.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw SystemCallError.last("mkdtemp") }
        return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}

/// How many descriptors of this process stand for the same open pipe; other tests may open and close what they like.
func descriptorCount(like descriptor: OwnedDescriptor) throws -> Int {
    let wanted = try descriptor.status()
    var count = 0
    for number in 0..<CInt(4096) {
        var status = stat()
        if fstat(number, &status) == 0, UInt64(status.st_ino) == wanted.inode, UInt64(status.st_dev) == wanted.device {
            count += 1
        }
    }
    return count
}

/// One at a time.
@Suite("Supervisor", .serialized) struct SupervisorTests {}

extension SupervisorTests {
    @Suite("QMP over sockets") struct QMPServerTests {
        @Test("a guest is stopped, continued and reset, and every client hears of it") func lifeCycle() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            let witness = try fixture.connect()
            #expect(try client.run("query-status") == ["running": false, "status": "prelaunch"])
            #expect(try client.run("cont") == [:])
            #expect(try client.run("query-status") == ["running": true, "status": "running"])
            #expect(try client.run("stop") == [:])
            #expect(try client.run("stop") == [:])
            #expect(try client.run("query-status") == ["running": false, "status": "paused"])
            #expect(try client.run("system_reset") == [:])
            #expect(try client.run("cont") == [:])
            #expect(fixture.guest.calls == ["resume", "pause", "reset", "resume"])
            var names: [String] = []
            while names.count < 4, let event = try witness.nextEvent(timeoutMilliseconds: 5000) {
                names.append(event.name)
            }
            #expect(names == ["RESUME", "STOP", "RESET", "RESUME"])
        }

        @Test(
            "clients hear of a guest's start and its reset before they hear what it did next",
            arguments: [("cont", "RESUME"), ("system_reset", "RESET")])
        func hastyGuest(command: String, own: String) throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            let witness = try fixture.connect()
            var expected: [String] = []
            if command == "system_reset" {
                _ = try client.run("cont")
                expected = ["RESUME"]
            }
            fixture.guest.haste.withLock { $0 = [.reset, .poweredOff(code: 0)] }
            #expect(try client.run(command) == [:])
            expected += [own, "RESET", "SHUTDOWN"]
            var names: [String] = []
            while names.count < expected.count, let event = try witness.nextEvent(timeoutMilliseconds: 5000) {
                names.append(event.name)
            }
            #expect(names == expected)
            #expect(fixture.supervisor.waitForEnd() == 0)
            // What has ended does not run, whatever came late.
            fixture.onLoop { [supervisor = fixture.supervisor] in #expect(supervisor.runState == .shutdown) }
        }

        @Test(
            "clients hear that a guest has come before they hear that it has ended already", arguments: [true, false])
        func hastyArrival(endsItself: Bool) throws {
            let fixture = try SupervisorFixture(runState: .inmigrate)
            let supervisor = fixture.supervisor
            let client = try fixture.connect()
            let witness = try fixture.connect()
            fixture.onLoop { supervisor.awaitArrival() }
            if endsItself { fixture.guest.happen(.poweredOff(code: 7)) } else { supervisor.requestQuit(bySignal: true) }
            #expect(try client.run("query-status")["status"] == "inmigrate")
            fixture.onLoop {
                supervisor.arrive(as: .running) { supervisor.announce(.migration, ["status": "completed"]) }
            }
            #expect(try witness.nextEvent(timeoutMilliseconds: 5000)?.name == "MIGRATION")
            #expect(try witness.nextEvent(timeoutMilliseconds: 5000)?.name == "SHUTDOWN")
            #expect(supervisor.waitForEnd() == (endsItself ? 7 : 0))
            fixture.onLoop { #expect(supervisor.runState == (endsItself ? .shutdown : .running)) }
        }

        @Test("a reset of a running guest leaves it running") func resetRunning() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            _ = try client.run("cont")
            _ = try client.run("system_reset")
            #expect(fixture.guest.calls == ["resume", "pause", "reset", "resume"])
            #expect(try client.run("query-status")["running"] == true)
        }

        @Test("quit answers, tells, and ends the process with status 0") func quit() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            #expect(try client.run("quit") == [:])
            #expect(try client.nextEvent(timeoutMilliseconds: 5000)?.name == "SHUTDOWN")
            #expect(fixture.supervisor.waitForEnd() == 0)
        }

        @Test(
            "the guest's power-off code is the exit status, and never becomes success",
            arguments: [
                (Int32(0), Int32(0)), (1, 1), (255, 255), (256, 255), (257, 1),
            ])
        func powerOff(code: Int32, status: Int32) throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            fixture.guest.happen(.poweredOff(code: code))
            let event = try client.nextEvent(timeoutMilliseconds: 5000)
            #expect(event?.name == "SHUTDOWN")
            #expect(event?.data == ["guest": true, "reason": "guest-shutdown"])
            #expect(fixture.supervisor.waitForEnd() == status)
        }

        @Test("unknown commands and wrong arguments are named") func errors() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            func refusal(_ command: String, _ arguments: JSONObject = [:]) -> String? {
                do { _ = try client.run(command, arguments) } catch {
                    if case .refused(let error) = error { return "\(error.errorClass.rawValue): \(error)" }
                }
                return nil
            }
            #expect(refusal("nosuch") == "CommandNotFound: The command nosuch has not been found")
            #expect(refusal("stop", ["now": true]) == "GenericError: Parameter 'now' is unexpected")
            #expect(refusal("getfd") == "GenericError: Parameter 'fdname' is missing")
            #expect(refusal("getfd", ["fdname": "a"]) == "GenericError: No file descriptor supplied via SCM_RIGHTS")
            #expect(refusal("closefd", ["fdname": "a"]) == "GenericError: File descriptor named 'a' not found")
        }

        @Test("every command without arguments answers or refuses in words, and the schema names it")
        func everyCommand()
            throws
        {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            let listed = try #require(try client.run("query-commands").arrayValue).compactMap {
                $0["name"]?.stringValue
            }
            let schema = try #require(try client.run("query-qmp-schema").arrayValue)
            let described = schema.filter { $0["meta-type"] == "command" }.compactMap { $0["name"]?.stringValue }
            #expect(Set(listed) == Set(described))
            for name in listed where name != "quit" && name != "qmp_capabilities" {
                do { _ = try client.run(name) } catch {
                    guard case .refused = error else { throw error }
                }
            }
        }

        @Test("descriptors come by name and in sets") func descriptors() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            let pipe = try OwnedDescriptor.pipe()
            #expect(try client.run("getfd", ["fdname": "a"], descriptors: [pipe.readEnd]) == [:])
            #expect(try client.run("closefd", ["fdname": "a"]) == [:])
            let added = try client.run("add-fd", ["fdset-id": 3, "opaque": "x"], descriptors: [pipe.writeEnd])
            #expect(added["fdset-id"] == 3)
            #expect(try client.run("query-fdsets")[0]?["fds"]?[0]?["opaque"] == "x")
            #expect(try client.run("remove-fd", ["fdset-id": 3]) == [:])
            #expect(try client.run("query-fdsets") == [])
        }

        @Test("pmemsave writes RAM as it is, and nothing where there is none; sizes have limits") func memoryToFile()
            throws
        {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            try fixture.guest.memory.write(0x8000_0000, [1, 2, 3, 4])
            try fixture.guest.memory.write(0x800F_FFFF, [9])
            let path = fixture.path + "/memory"
            defer { unlink(path) }
            func save(_ start: JSONValue, _ size: JSONValue) throws -> [UInt8] {
                #expect(try client.run("pmemsave", ["val": start, "size": size, "filename": .string(path)]) == [:])
                return try WholeFile.read(try OwnedDescriptor.open(path, flags: O_RDONLY), byteCountMax: 4 << 20)
            }
            #expect(try save(0x8000_0001, 2) == [2, 3])
            #expect(try save(0x7FFF_FFFE, 6) == [0, 0, 1, 2, 3, 4])
            #expect(try save(0x800F_FFFF, 3) == [9, 0, 0])
            #expect(try save(-32, 16) == [UInt8](repeating: 0, count: 16))
            let whole = try save(0x8000_0000, 1_048_576)
            #expect(whole.count == 1 << 20 && whole.prefix(4) == [1, 2, 3, 4] && whole.last == 9)
            for size: JSONValue in [-16, .unsigned(.max), .integer(1 << 50)] {
                #expect(throws: QMPConnection.Failure.self) { try save(0, size) }
            }
        }

        @Test("1,000 clients come and go, half of them in the middle of a message, and nothing stays behind")
        func manyClients() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            _ = try client.run("query-status")
            var random = SystemRandomNumberGenerator()
            for number in 0..<1000 {
                let socket = try fixture.rawConnect()
                switch number % 4 {
                case 0: break
                case 1:
                    try StreamSocket.sendAll(
                        Array(#"{"execute":"qmp_capabilities"}{"execute":"query-"#.utf8), to: socket)
                case 2:
                    try StreamSocket.sendAll(
                        (0..<512).map { _ in UInt8.random(in: 0...255, using: &random) }, to: socket)
                default:
                    let other = try QMPConnection(socket)
                    #expect(try other.run("query-status")["status"] == "prelaunch")
                }
            }
            // Closed sockets are noticed on the loop; wait until it has seen them all.
            var polls = 0
            while polls < 5000, try client.run("x-sidestep-inspect")["clients"] != 1 {
                usleep(1000)
                polls += 1
            }
            #expect(try client.run("x-sidestep-inspect")["clients"] == 1)
        }

        @Test("64 descriptors in one message are taken or closed, none is kept") func manyDescriptors() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            let pipe = try OwnedDescriptor.pipe()
            let many = Array(repeating: pipe.readEnd, count: 64)
            do {
                #expect(try client.run("getfd", ["fdname": "first"], descriptors: many) == [:])
                #expect(try client.run("closefd", ["fdname": "first"]) == [:])
                let other = try fixture.connect()
                _ = try other.run("query-status", descriptors: many)
            }
            // What came with a message stays until the next that brings some, or until the client goes.
            _ = try client.run("query-status", descriptors: [client.socket])
            var polls = 0
            while polls < 5000, try descriptorCount(like: pipe.readEnd) > 2 {
                usleep(1000)
                polls += 1
            }
            #expect(try descriptorCount(like: pipe.readEnd) == 2)  // our two ends: a pipe is one inode
        }

        @Test("giant and deeply nested messages are refused and the next is answered") func hostile() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            func send(_ text: String) throws -> String? {
                try StreamSocket.sendAll(Array(text.utf8), to: client.socket)
                do { _ = try client.run("query-name") } catch {
                    guard case .refused(let error) = error else { throw error }
                    #expect(try client.nextAnswer()["name"] == "fixture")
                    return error.description
                }
                return nil
            }
            #expect(try send(String(repeating: "[", count: 5000) + "\n") == "JSON nesting depth limit exceeded")
            #expect(
                try send("{\"execute\": \"" + String(repeating: "a", count: 2 << 20) + "\"}\n")
                    == "JSON token size limit exceeded")
            #expect(
                try send("[" + String(repeating: "1,", count: 100_000) + "1]\n") == "JSON token count limit exceeded")
        }

        @Test("a client that never reads is dropped, the others go on") func neverReads() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            let deaf = try fixture.connect()
            // Questions with long answers, nobody takes the answers: the server stops listening to this client.
            let question = Array(#"{"execute":"query-qmp-schema"}"#.utf8)
            var refused = false
            for _ in 0..<20_000 where !refused {
                let sent = question.withUnsafeBytes { try? StreamSocket.send($0, to: deaf.socket, nonBlocking: true) }
                refused = sent == nil
            }
            #expect(refused)
            #expect(try client.run("query-status")["status"] == "prelaunch")
        }

        @Test("a client that has finished sending still gets its answers") func halfClosed() throws {
            let fixture = try SupervisorFixture()
            let socket = try fixture.rawConnect()
            try StreamSocket.sendAll(
                Array(
                    #"{"execute":"qmp_capabilities"}{"execute":"query-qmp-schema"}{"execute":"query-name","id":9}"#.utf8
                ),
                to: socket)
            StreamSocket.shutDownWriting(socket)
            let bytes = try WholeFile.read(socket, byteCountMax: 16 << 20)
            let last = String(decoding: bytes, as: UTF8.self).split(separator: "\r\n").last.map(String.init)
            #expect(last == #"{"return": {"name": "fixture"}, "id": 9}"#)
        }

        @Test("clients and their half-read messages go over to a successor") func handOver() throws {
            let fixture = try SupervisorFixture()
            let client = try fixture.connect()
            _ = try client.run("query-status")
            try StreamSocket.sendAll(Array(#"{"execute":"query-na"#.utf8), to: client.socket)
            let fresh = try fixture.rawConnect()  // has a greeting waiting, has not negotiated
            // The answer to a further client's question proves that the loop has read what came before it.
            _ = try fixture.connect().run("query-status")

            let successorLoop = try EventLoop(name: "successor")
            let successor = try SuccessorServer(loop: successorLoop)
            fixture.onLoop { [server = fixture.supervisor.server!] in
                server.suspend()
                let (saved, descriptors) = server.handOver()
                // As if through a socket: text and duplicates.
                let text = try! JSONCoding.value(of: saved).json
                let copies = try! descriptors.map { try $0.duplicate() }
                server.release()
                successorLoop.perform { try! successor.adopt(text, copies) }
            }
            successorLoop.barrier()
            try StreamSocket.sendAll(Array(#"me"}"#.utf8), to: client.socket)
            #expect(try client.nextAnswer() == ["command": "query-name"])
            #expect(try client.run("anything") == ["command": "anything"])
            let late = try QMPConnection(fresh)
            #expect(try late.run("hello") == ["command": "hello"])
            let newcomer = try fixture.connect()
            #expect(try newcomer.run("hello") == ["command": "hello"])
            successorLoop.perform { successor.server.close() }
            successorLoop.stop()
        }
    }
}

/// Answers every command with its name.
final class SuccessorServer: QMPCommandExecutor, @unchecked Sendable {
    private(set) var server: QMPServer!

    init(loop: EventLoop) throws {
        server = QMPServer(loop: loop, version: Product.qmpVersion, executor: self)
    }

    func adopt(_ text: String, _ descriptors: [OwnedDescriptor]) throws {
        let saved = try JSONCoding.model(QMPServer.Saved.self, from: try JSONValue.parse(text))
        try server.adopt(saved, descriptors: descriptors)
        server.resume()
    }

    func execute(
        _ command: QMPCommand, from client: QMPClient, reply: @escaping @Sendable (Result<JSONValue, QMPError>) -> Void
    ) {
        reply(.success(["command": .string(command.name)]))
    }
}

extension QMPConnection {
    /// The answer to a command that was sent as bytes.
    func nextAnswer() throws -> JSONValue { try awaitAnswer() }
}
