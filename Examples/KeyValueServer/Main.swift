import Glibc
import LocalMigration

// A small in-memory key-value server on a unix socket whose data, listener and attached clients move to a new
// process while clients go on asking.
//
//   key-value-server PATH
//
// One request a line: SET key value | GET key | COUNT | PROCESS | UPGRADE. UPGRADE (or SIGUSR2) starts this program's file
// anew and hands everything over; the client that asked gets its answer from the new process.

/// Serves until told to end. Everything that must survive is in `table` (the memory) or in `state` (the rest).
final class Server: Migratable {
    private var table: Table
    private let listener: CInt
    private var clients: [CInt: Client] = [:]
    /// The client that asked for the upgrade under way.
    private var asker: CInt?

    struct Client { var unread: [UInt8] = [] }

    init(table: Table, listener: CInt) {
        self.table = table
        self.listener = listener
    }

    var blocks: [MemoryBlock] { [table.block] }

    var descriptors: [String: CInt] {
        var all = ["listener": listener]
        for client in clients.keys { all["client \(client)"] = client }
        return all
    }

    /// One thread serves, and it is here: nothing else runs. What is not in the block: half-read requests.
    func pause() -> [UInt8] {
        var lines = ["asker \(asker ?? -1)"]
        for (client, state) in clients {
            lines.append("client \(client) \(state.unread.map(String.init).joined(separator: ","))")
        }
        return Array(lines.joined(separator: "\n").utf8)
    }

    func resume() {}

    /// The other side of ``pause()``: the same clients under their new numbers.
    convenience init(table: Table, state: [UInt8], descriptors: [String: CInt]) throws {
        guard let listener = descriptors["listener"] else { throw StateMissing(what: "listener") }
        self.init(table: table, listener: listener)
        for line in String(decoding: state, as: UTF8.self).split(separator: "\n") {
            let words = line.split(separator: " ", omittingEmptySubsequences: false)
            if words[0] == "asker" { asker = descriptors["client \(words[1])"] }
            if words[0] == "client" {
                guard let number = descriptors["client \(words[1])"] else {
                    throw StateMissing(what: "client \(words[1])")
                }
                clients[number] = Client(unread: words[2].split(separator: ",").compactMap { UInt8($0) })
            }
        }
    }

    struct StateMissing: Error { let what: String }

    /// After a take-over: the client that asked for it learns that it is done.
    func answerAsker() {
        if let asker { answer(asker, "UPGRADED \(getpid())") }
        asker = nil
    }

    func serve() -> Never {
        while true {
            var ready = [pollfd(fd: listener, events: Int16(POLLIN), revents: 0)]
            ready += clients.keys.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
            let count = unsafe poll(&ready, nfds_t(ready.count), -1)
            if unsafe upgradeRequested {
                unsafe upgradeRequested = false
                upgrade()
            }
            guard count > 0 else { continue }
            for entry in ready where entry.revents != 0 {
                if entry.fd == listener {
                    let client = accept(listener, nil, nil)
                    if client >= 0 {
                        _ = fcntl(client, F_SETFD, FD_CLOEXEC)  // only what is handed over reaches a successor
                        clients[client] = Client()
                    }
                } else {
                    receive(from: entry.fd)
                }
            }
        }
    }

    private func receive(from client: CInt) {
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = unsafe read(client, &buffer, buffer.count)
        guard count > 0, clients[client]!.unread.count < 1 << 16 else {
            close(client)
            clients[client] = nil
            return
        }
        clients[client]!.unread += buffer[..<count]
        while let end = clients[client]?.unread.firstIndex(of: UInt8(ascii: "\n")) {
            let line = String(decoding: clients[client]!.unread[..<end], as: UTF8.self)
            clients[client]!.unread.removeFirst(end + 1)
            handle(line, from: client)
        }
    }

    private func handle(_ line: String, from client: CInt) {
        let words = line.split(separator: " ", maxSplits: 2).map(String.init)
        switch (words.first, words.count) {
        case ("SET", 3): answer(client, table.set(words[1], words[2]) ? "OK" : "FULL")
        case ("GET", 2): answer(client, table[words[1]].map { "VALUE \($0)" } ?? "NONE")
        case ("COUNT", 1): answer(client, "\(table.count)")
        case ("PROCESS", 1): answer(client, "\(getpid())")
        case ("UPGRADE", 1):
            asker = client
            upgrade()
        default: answer(client, "WHAT")
        }
    }

    private func upgrade() {
        do {
            _ = try LocalMigration.handOver(
                self, to: "/proc/self/exe", arguments: Array(CommandLine.arguments.dropFirst()))
            exit(0)
        } catch {
            if let asker { answer(asker, "STAYED \(error)") }
            asker = nil
        }
    }

    private func answer(_ client: CInt, _ text: String) {
        let line = Array((text + "\n").utf8)
        var sent = 0
        while sent < line.count {
            let count = unsafe line[sent...].withUnsafeBytes { unsafe write(client, $0.baseAddress, $0.count) }
            if count <= 0 { return }
            sent += count
        }
    }
}

nonisolated(unsafe) private var upgradeRequested = false

@main enum Main {
    static func main() throws {
        signal(SIGPIPE, SIG_IGN)
        signal(SIGUSR2) { _ in unsafe upgradeRequested = true }
        if let arrival = try LocalMigration.arrival() {
            let table = Table(block: arrival.blocks["table"]!)
            var server: Server?
            try arrival.complete { state, descriptors in
                server = try Server(table: table, state: state, descriptors: descriptors)
            }
            server!.answerAsker()
            server!.serve()
        }
        guard CommandLine.arguments.count == 2 else {
            print("usage: key-value-server PATH")
            exit(64)
        }
        let table = Table(block: try MemoryBlock(name: "table", byteCount: Table.byteCount))
        Server(table: table, listener: listen(at: CommandLine.arguments[1])).serve()
    }

    static func listen(at path: String) -> CInt {
        let listener = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        unsafe withUnsafeMutableBytes(of: &address.sun_path) {
            unsafe $0.copyBytes(from: path.utf8.prefix($0.count - 1))
        }
        unsafe unlink(path)
        let status = unsafe withUnsafePointer(to: &address) {
            unsafe $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard status == 0, Glibc.listen(listener, 64) == 0 else {
            unsafe perror(path)
            exit(1)
        }
        return listener
    }
}
