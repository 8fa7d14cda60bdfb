import LinuxCalls
import ProcessTestKit

/// How a guest crosses between a stock QEMU and Sidestep; the two sides need not use the same.
enum PeerTransport: String, CaseIterable, Sendable {
    case unix, tcp, fd, exec, file
    case unixToDescriptor = "unix to fd"
    case execToUnix = "exec to unix"
    case unixToExec = "unix to exec"

    /// Whether anything can come back: the capability return-path is switched on then.
    var hasReturnPath: Bool { [.unix, .tcp, .fd, .unixToDescriptor].contains(self) }
}

/// Moves one guest, which stock QEMU has or `sidestep` under the name `guest`.
struct PeerCrossing {
    let run: MonitorRun
    let disk: String
    /// What stock QEMU was started with, if not Debian's kernel.
    var guest: [String]?

    private func receive(_ uri: String, _ descriptors: [CInt: OwnedDescriptor] = [:]) throws -> RunningProgram {
        try RunningProgram(
            Checkout.tool, ["receive", "guest", uri, "--console", "stdio", "--disk", "path=\(disk)"], name: "sidestep",
            environment: run.environment, descriptors: descriptors, limitSeconds: 900)
    }

    private func path(_ name: String) -> String { run.directory.file(name) }

    private func makePipe(_ name: String) throws -> String {
        try HostTools.need("mkfifo", [path(name)])
        return path(name)
    }

    /// From stock QEMU to `sidestep receive`.
    func takeIn(_ stock: PeerMachine, by transport: PeerTransport, _ name: String) throws -> (
        program: RunningProgram, answer: PeerMachine.Answer
    ) {
        let back = transport.hasReturnPath
        let socket = path(name)
        switch transport {
        case .unix, .execToUnix:
            let guest = try receive("unix:\(socket)")
            try waitForSocket(socket)
            let uri = transport == .unix ? "unix:\(socket)" : "exec:socat -u - UNIX-CONNECT:\(socket)"
            return (guest, try stock.migrate(to: uri, returnPath: back))
        case .tcp:
            let guest = try receive("tcp:127.0.0.1:0")
            let line = try guest.errors.wait(for: "waiting for the guest at tcp:", seconds: 30)
            let address = line.split(separator: " ").last ?? ""
            return (guest, try stock.migrate(to: String(address), returnPath: back))
        case .fd:
            let (one, other) = try StreamSocket.pair()
            try stock.pass(one, as: "leaving")
            let guest = try receive("fd:21", [21: other])
            return (guest, try stock.migrate(to: "fd:leaving", returnPath: back))
        case .exec:
            let pipe = try makePipe(name)
            let guest = try receive("exec:cat \(pipe)")
            return (guest, try stock.migrate(to: "exec:cat >\(pipe)", returnPath: back))
        case .file:
            let uri = stock.kind.hasFileTransport ? "file:\(socket)" : "exec:cat >\(socket)"
            let answer = try stock.migrate(to: uri, returnPath: back)
            return (try receive("file:\(socket)"), answer)
        case .unixToDescriptor:
            let listener = try StreamSocket.listen(at: .unix(path: socket))
            try stock.startMigration(to: "unix:\(socket)", returnPath: back)
            let guest = try receive("fd:21", [21: try StreamSocket.accept(from: listener)])
            return (guest, try stock.waitForMigration())
        case .unixToExec:
            let guest = try receive("exec:socat -u UNIX-LISTEN:\(socket) -")
            try waitForSocket(socket)
            return (guest, try stock.migrate(to: "unix:\(socket)", returnPath: back))
        }
    }

    /// From `sidestep` to a stock QEMU that is started for it.
    func giveBack(_ kind: StockKind, by transport: PeerTransport, _ name: String) throws -> PeerMachine {
        let stock = try give(kind, by: transport, name)
        try stock.waitUntilRunning()
        return stock
    }

    private func give(_ kind: StockKind, by transport: PeerTransport, _ name: String) throws -> PeerMachine {
        let socket = path(name)
        func incoming(_ uri: String, _ descriptors: [CInt: OwnedDescriptor] = [:]) throws -> PeerMachine {
            try PeerMachine(
                kind, in: run, disk: disk, name: name, incoming: uri, guest: guest, descriptors: descriptors)
        }
        func start(_ uri: String, _ descriptors: [CInt: OwnedDescriptor] = [:]) throws -> RunningProgram {
            let words = transport.hasReturnPath ? ["--capability", "return-path"] : []
            return try RunningProgram(
                Checkout.tool, ["migrate", "guest", uri, "--compat", kind.layout] + words, name: "sidestep migrate",
                environment: run.environment, descriptors: descriptors)
        }
        func finish(_ move: RunningProgram) throws {
            let end = try move.waitForEnd(seconds: 60)
            guard end == .exited(status: 0) else {
                throw ExpectationError.failed(
                    command: "migrate by \(transport.rawValue)", end: "\(end)", output: move.errors.tail)
            }
        }
        switch transport {
        case .unix, .execToUnix:
            let stock = try incoming("unix:\(socket)")
            try finish(
                try start(transport == .unix ? "unix:\(socket)" : "exec:socat -u - UNIX-CONNECT:\(socket)"))
            return stock
        case .tcp:
            let stock = try incoming("tcp:127.0.0.1:0")
            try finish(try start("tcp:127.0.0.1:\(try stock.incomingPort())"))
            return stock
        case .fd:
            let (one, other) = try StreamSocket.pair()
            let stock = try incoming("fd:22", [22: one])
            try finish(try start("fd:21", [21: other]))
            return stock
        case .exec:
            let pipe = try makePipe(name)
            let stock = try incoming("exec:cat \(pipe)")
            try finish(try start("exec:cat >\(pipe)"))
            return stock
        case .file:
            try finish(try start("file:\(socket)"))
            return try incoming(kind.hasFileTransport ? "file:\(socket)" : "exec:cat \(socket)")
        case .unixToDescriptor:
            let listener = try StreamSocket.listen(at: .unix(path: socket))
            let move = try start("unix:\(socket)")
            let stock = try incoming("fd:22", [22: try StreamSocket.accept(from: listener)])
            try finish(move)
            return stock
        case .unixToExec:
            let stock = try incoming("exec:socat -u UNIX-LISTEN:\(socket) -")
            try waitForSocket(socket)
            try finish(try start("unix:\(socket)"))
            return stock
        }
    }
}
