import LinuxCalls
import MonitorClient
import ProcessTestKit
import QMPProtocol
import StockQEMU
import Testing

@Suite("Who runs the guest after an upgrade that was cut off") struct RescueTests {
    private static let resume =
        #"{"timestamp": {"seconds": 7, "microseconds": 9}, "event": "RESUME"}"# + "\r\n"
    private static let other =
        #"{"timestamp": {"seconds": 6, "microseconds": 9}, "event": "NIC_RX_FILTER_CHANGED"}"# + "\r\n"

    private func send(_ text: String, to socket: OwnedDescriptor) throws {
        try StreamSocket.sendAll(Array(text.utf8), to: socket)
    }

    @Test("an event that is looked for is found as often as somebody looks; what came before it is read once")
    func unread() throws {
        let (ours, monitor) = try StreamSocket.pair()
        let upgrade = QMPConnection(resuming: ours, identifierPrefix: "upgrade-")
        #expect(try upgrade.findUnread("RESUME") == nil)
        try send(Self.other + Self.resume.prefix(20), to: monitor)
        // Half a message stays whole, for whoever comes after.
        #expect(try upgrade.findUnread("RESUME") == nil)
        try send(String(Self.resume.dropFirst(20)) + Self.other, to: monitor)
        var passed: [String] = []
        for _ in 1...3 {
            let event = try upgrade.findUnread("RESUME") {
                if case .event(let event) = $0 { passed.append(event.name) }
            }
            #expect(event?.microseconds == 7_000_009)
        }
        StreamSocket.shutDown(monitor)
        let heir = QMPConnection(resuming: ours, identifierPrefix: "guard-")
        #expect(try heir.findUnread("RESUME") != nil, "also when whoever said it is gone")
        #expect(throws: QMPConnection.Failure.self) { _ = try heir.findUnread("SHUTDOWN") }
        #expect(passed.isEmpty)
    }

    @Test("what is not looked for is passed on and read, answers too") func passed() throws {
        let (ours, monitor) = try StreamSocket.pair()
        let connection = QMPConnection(resuming: ours, identifierPrefix: "upgrade-")
        try send(Self.other + #"{"return": {"status": "inmigrate"}, "id": "upgrade-1"}"# + "\r\n", to: monitor)
        var messages: [QMPMessage] = []
        #expect(try connection.findUnread("RESUME") { messages.append($0) } == nil)
        #expect(messages.count == 2)
        #expect(try StreamSocket.peekInteger(from: ours) == nil, "nothing is left")
    }

    @Test("what a command's last byte is sent later for is whole then; a monitor is told to forget what has no end")
    func begun() throws {
        let (ours, monitor) = try StreamSocket.pair()
        func sent() throws -> String {
            var bytes = [UInt8](repeating: 0, count: 4096)
            let count = unsafe try bytes.withUnsafeMutableBytes { try unsafe monitor.read(into: $0) }
            return String(decoding: bytes[..<count], as: UTF8.self)
        }
        let connection = QMPConnection(resuming: ours, identifierPrefix: "u")
        let begun = try connection.begin([("add_client", ["fdname": "}"]), ("cont", [:])])
        #expect(begun.identifiers == ["u1", "u2"])
        let first = try sent()
        try connection.complete(begun)
        let rest = try sent()
        #expect(rest.hasPrefix("}{") && rest.hasSuffix("}"))
        let (one, two) = (first + "}", String(rest.dropFirst()))
        #expect(try JSONValue.parse(Array(one.utf8))["arguments"]?["fdname"]?.stringValue == "}")
        #expect(try JSONValue.parse(Array(two.utf8))["id"]?.stringValue == "u2")
        let last = try connection.begin([("cont", [:])])
        #expect(try !sent().contains("}"))
        try connection.complete(last)
        #expect(try sent() == "}")
        try connection.abandon()
        var bytes = [UInt8](repeating: 0, count: 8)
        #expect(unsafe try bytes.withUnsafeMutableBytes { try unsafe monitor.read(into: $0) } == 2)
        #expect(bytes[0] == 0xFF)
    }

    private enum Fate: CaseIterable { case waits, runs, diedBefore, diedAfter }

    /// What the guard of an upgrade has: both processes, of which the old one does not answer, and the new one's monitor.
    private func rescue(
        _ old: ChildProcess, _ new: ChildProcess, _ monitor: OwnedDescriptor, _ names: MovingNames = MovingNames()
    ) throws -> Rescue {
        let (source, oldMonitor) = try StreamSocket.pair()
        StreamSocket.shutDown(oldMonitor)
        var rescue = Rescue(
            source: QMPConnection(resuming: source, identifierPrefix: "guard-"), sourceProcess: old.processDescriptor,
            wasRunning: true, names: names)
        rescue.destination = QMPConnection(resuming: monitor, identifierPrefix: "guard-")
        rescue.destinationProcess = new.processDescriptor
        return rescue
    }

    /// An old and a new process that do nothing, with what the new one has said.
    private func outcome(_ fate: Fate) throws -> (outcome: Rescue.Outcome, old: Bool, new: Bool) {
        let (old, new) = (
            try ChildProcess(path: "/bin/sleep", arguments: ["600"]),
            try ChildProcess(path: "/bin/sleep", arguments: ["600"])
        )
        // Waited for: one that nobody waits for keeps all exit tests of this process from ending.
        defer {
            for process in [old, new] {
                process.kill()
                _ = process.wait()
            }
        }
        let (ours, monitor) = try StreamSocket.pair()
        if fate == .runs || fate == .diedAfter { try send(Self.other + Self.resume, to: monitor) }
        if fate == .diedBefore || fate == .diedAfter {
            new.kill()
            _ = new.wait(timeoutMilliseconds: 10_000)
        }
        StreamSocket.shutDown(monitor)
        let outcome = try rescue(old, new, ours).resolve()
        return (
            outcome, old.wait(timeoutMilliseconds: 0) == nil, new.wait(timeoutMilliseconds: 0) == nil
        )
    }

    @Test("the new process's word that it runs the guest decides, and is found also when it is dead")
    func decides() throws {
        #expect(try outcome(.waits) == (.stayed, true, false))
        #expect(try outcome(.runs) == (.moved, false, true))
        #expect(try outcome(.diedBefore) == (.stayed, true, false))
        #expect(try outcome(.diedAfter) == (.lost, false, false))
    }

    @Test("with the old process gone, a new one that is just ending is waited for, and leaves nothing") func ending()
        throws
    {
        let directory = try TemporaryDirectory()
        let old = try ChildProcess(path: "/bin/true", arguments: [])
        _ = old.wait()
        let new = try ChildProcess(path: "/bin/sleep", arguments: ["0.3"])
        defer { _ = new.wait() }
        let (ours, monitor) = try StreamSocket.pair()
        StreamSocket.shutDown(monitor)
        var names = MovingNames()
        names.directories = [directory.file(".sidestep-test")]
        try names.makeDirectories()
        #expect(try rescue(old, new, ours, names).resolve() == .lost)
        #expect(try FileNames.entries(of: directory.path) == [])
    }
}
