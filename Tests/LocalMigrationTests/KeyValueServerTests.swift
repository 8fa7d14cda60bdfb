import Foundation
import Glibc
import LinuxCalls
import Synchronization
import Testing

/// A connection to the example server.
final class KeyValueClient: Sendable {
    private let socket: OwnedDescriptor

    init(path: String) throws {
        for _ in 0..<500 {
            if let socket = try? StreamSocket.connect(to: .unix(path: path)) {
                self.socket = socket
                return
            }
            usleep(10_000)
        }
        socket = try StreamSocket.connect(to: .unix(path: path))
    }

    /// Sends one line and waits for one line; nil when the connection ended.
    func ask(_ line: String) -> String? {
        guard (try? StreamSocket.sendAll(Array((line + "\n").utf8), to: socket)) != nil else { return nil }
        return readLine()
    }

    func send(raw text: String) throws { try StreamSocket.sendAll(Array(text.utf8), to: socket) }

    func readLine() -> String? {
        var bytes: [UInt8] = []
        var byte: UInt8 = 0
        while read(socket.rawValue, &byte, 1) == 1 {
            if byte == UInt8(ascii: "\n") { return String(decoding: bytes, as: UTF8.self) }
            bytes.append(byte)
        }
        return nil
    }
}

@Suite("The library: a key-value server that changes process under load", .serialized) struct KeyValueServerTests {
    let path = NSTemporaryDirectory() + "sidestep-kv-\(UUID().uuidString)"

    func startServer() throws -> ChildProcess {
        let tool = Bundle.main.bundleURL.appendingPathComponent("key-value-server").path
        return try ChildProcess(path: tool, arguments: [path], newProcessGroup: true)
    }

    /// It and its successors.
    func stop(_ server: ChildProcess) {
        kill(-server.processIdentifier, SIGKILL)
        _ = server.wait()
        unlink(path)
    }

    @Test("twenty upgrades under load lose no write and no connection")
    func upgrades() throws {
        let server = try startServer()
        defer { stop(server) }
        let isOver = Atomic<Bool>(false)
        let failures = Mutex<[String]>([])
        let written = Mutex<[Int: Int]>([:])
        let threads = try (0..<4).map { lane in
            let client = try KeyValueClient(path: path)
            return try HostThread(name: "client") {
                var number = 0
                while !isOver.load(ordering: .relaxed) {
                    let key = "key-\(lane)-\(number % 500)"
                    if client.ask("SET \(key) value-\(number)") != "OK" {
                        return failures.withLock { $0.append("lane \(lane): write \(number) was not answered") }
                    }
                    if client.ask("GET \(key)") != "VALUE value-\(number)" {
                        return failures.withLock { $0.append("lane \(lane): write \(number) was lost") }
                    }
                    number += 1
                    let count = number
                    written.withLock { $0[lane] = count }
                }
            }
        }
        let operatorClient = try KeyValueClient(path: path)
        var processes: Set<String> = [try #require(operatorClient.ask("PROCESS"))]
        for _ in 0..<20 {
            let before = written.withLock { $0 }
            let answer = try #require(operatorClient.ask("UPGRADE"))
            #expect(answer.hasPrefix("UPGRADED"))
            processes.insert(try #require(operatorClient.ask("PROCESS")))
            // Clients get on with their work between upgrades: the load is real.
            let end = Date().addingTimeInterval(10)
            while Date() < end, failures.withLock({ $0.isEmpty }),
                written.withLock({ now in (0..<4).contains { now[$0, default: 0] <= before[$0, default: 0] } })
            { usleep(1_000) }
        }
        isOver.store(true, ordering: .relaxed)
        for thread in threads { thread.join() }
        #expect(failures.withLock { $0 } == [])
        #expect(processes.count == 21, "each upgrade is a new process")
        for (lane, count) in written.withLock({ $0 }) {
            let last = count - 1
            #expect(operatorClient.ask("GET key-\(lane)-\(last % 500)") == "VALUE value-\(last)")
        }
    }

    @Test("half a request that stood in the old process is completed in the new one")
    func halfRequest() throws {
        let server = try startServer()
        defer { stop(server) }
        let client = try KeyValueClient(path: path)
        let other = try KeyValueClient(path: path)
        #expect(client.ask("SET a 1") == "OK")
        try client.send(raw: "GE")
        #expect(other.ask("GET a") == "VALUE 1")  // by now the server has read "GE"
        #expect(other.ask("UPGRADE")?.hasPrefix("UPGRADED") == true)
        try client.send(raw: "T a\n")
        #expect(client.readLine() == "VALUE 1")
    }

    /// prlimit(1) of util-linux; the soft limit only, so that it can be raised again.
    func limitDescriptors(of process: CInt, to count: Int) throws {
        let tool = try ChildProcess(
            path: "/usr/bin/prlimit", arguments: ["--pid", "\(process)", "--nofile=\(count):"])
        #expect(tool.wait() == .exited(status: 0))
    }

    @Test("a successor that cannot start leaves everything where it was")
    func failedUpgrade() throws {
        let server = try startServer()
        defer { stop(server) }
        let client = try KeyValueClient(path: path)
        #expect(client.ask("SET a 1") == "OK")
        // No descriptor left in the server: a socket pair cannot be made.
        try limitDescriptors(of: server.processIdentifier, to: 5)
        #expect(client.ask("UPGRADE")?.hasPrefix("STAYED") == true)
        #expect(client.ask("GET a") == "VALUE 1")
        try limitDescriptors(of: server.processIdentifier, to: 1024)
        #expect(client.ask("UPGRADE")?.hasPrefix("UPGRADED") == true)
        #expect(client.ask("GET a") == "VALUE 1")
    }
}
