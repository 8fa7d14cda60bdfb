import LinuxCalls
import MonitorClient
import ProcessTestKit
import QMPProtocol

/// As ``StockMachine``, with one QMP connection for all its life.
final class PeerMachine {
    let kind: StockKind
    let program: RunningProgram
    private let monitorPath: String
    private var connection: QMPConnection?

    /// What became of a migration.
    struct Answer: CustomStringConvertible {
        /// `completed`, `failed`.
        var status: String
        /// `running`, `paused`, `postmigrate`.
        var runState: String
        var reason: String?

        var hasLeft: Bool { status == "completed" && runState == "postmigrate" }
        var description: String { "\(status), the guest is \(runState)\(reason.map { ": \($0)" } ?? "")" }
    }

    /// - Parameters:
    ///   - incoming: Where the guest comes from; nil boots Debian's kernel.
    ///   - words: For the kernel's command line.
    ///   - guest: Instead of Debian's kernel and all that goes with it.
    ///   - descriptors: For `fd:`.
    init(
        _ kind: StockKind, in run: MonitorRun, disk: String?, name: String, incoming: String? = nil,
        words: String = "notick", guest: [String]? = nil, descriptors: [CInt: OwnedDescriptor] = [:]
    ) throws {
        self.kind = kind
        monitorPath = run.directory.file("\(name).qmp")
        var arguments = [
            "-M", "virt", "-m",
            guest == nil ? "256M" : "64M", "-smp", "\(kind.harts)", "-accel", "tcg", "-nic", "none",
            "-display", "none", "-serial", "stdio", "-monitor", "none", "-global",
            "virtio-mmio.force-legacy=\(kind.isLegacy)", "-qmp", "unix:\(monitorPath),server=on,wait=off",
        ]
        // In the order of ours: disk, then entropy.
        if let disk {
            arguments += ["-drive", "if=none,id=d,format=raw,file=\(disk)", "-device"]
            arguments.append("virtio-blk-device,drive=d" + (kind.queueSize.map { ",queue-size=\($0)" } ?? ""))
        }
        if kind.hasEntropy { arguments += ["-device", "virtio-rng-device"] }
        if let incoming {
            arguments += ["-incoming", incoming]
        } else {
            arguments +=
                guest ?? [
                    "-kernel", DebianGuest.image, "-initrd", DebianGuest.initramfsWithDisk, "-append",
                    "\(DebianGuest.words) quiet \(words)",
                ]
        }
        program = try RunningProgram(
            kind.program, arguments, name: "QEMU \(kind.release) (\(name))",
            descriptors: descriptors, limitSeconds: 900)
        _ = try monitor()
    }

    private func monitor() throws -> QMPConnection {
        if let connection { return connection }
        do {
            let opened = try QMPConnection(try Self.connect(monitorPath), timeoutMilliseconds: 30_000)
            connection = opened
            return opened
        } catch {
            throw ExpectationError.failed(command: kind.program, end: "\(error)", output: program.errors.tail)
        }
    }

    /// The socket is there before anybody listens at it.
    private static func connect(_ path: String) throws -> OwnedDescriptor {
        let deadline = ContinuousClock.now + .seconds(60)
        while true {
            do { return try StreamSocket.connect(to: .unix(path: path)) } catch {
                guard ContinuousClock.now < deadline else { throw error }
                try HostTools.need("sleep", ["0.02"])
            }
        }
    }

    /// Gives the program a descriptor, for `fd:NAME`.
    func pass(_ descriptor: OwnedDescriptor, as name: String) throws {
        do { _ = try monitor().run("getfd", ["fdname": .string(name)], descriptors: [descriptor]) } catch {
            throw ExpectationError.failed(command: "getfd", end: "\(error)", output: program.errors.tail)
        }
    }

    /// Waits until a guest that comes in runs.
    func waitUntilRunning() throws {
        let deadline = ContinuousClock.now + .seconds(120)
        while try runState != "running" {
            guard ContinuousClock.now < deadline else {
                throw ExpectationError.failed(command: "incoming", end: try runState, output: program.errors.tail)
            }
            try HostTools.need("sleep", ["0.02"])
        }
    }

    @discardableResult
    func command(_ name: String, _ arguments: JSONObject = [:]) throws -> JSONValue {
        do { return try monitor().run(name, arguments) } catch {
            throw ExpectationError.failed(command: name, end: "\(error)", output: program.errors.tail)
        }
    }

    /// `info registers` and the like.
    func humanCommand(_ line: String) throws -> String {
        try command("human-monitor-command", ["command-line": .string(line)]).stringValue ?? ""
    }

    var runState: String { get throws { try command("query-status")["status"]?.stringValue ?? "?" } }

    /// Begins to send the guest away, with a return path when the channel has one.
    func startMigration(to uri: String, returnPath: Bool) throws {
        try setCapabilities(["return-path": returnPath])
        try command("migrate-set-parameters", ["max-bandwidth": 10_000_000_000])
        try command("migrate", ["uri": .string(uri)])
    }

    /// Waits until QEMU says what became of its guest. It says that it failed an instant before it lets the guest run on.
    func waitForMigration() throws -> Answer {
        let deadline = ContinuousClock.now + .seconds(120)
        while true {
            let migration = try command("query-migrate")
            let status = migration["status"]?.stringValue ?? "none"
            let state = try runState
            if ["completed", "failed"].contains(status), state != "finish-migrate" {
                return Answer(status: status, runState: state, reason: migration["error-desc"]?.stringValue)
            }
            guard ContinuousClock.now < deadline else {
                return Answer(status: "still \(status)", runState: state, reason: nil)
            }
            try HostTools.need("sleep", ["0.02"])
        }
    }

    func migrate(to uri: String, returnPath: Bool) throws -> Answer {
        try startMigration(to: uri, returnPath: returnPath)
        return try waitForMigration()
    }

    func setCapabilities(_ states: [String: Bool]) throws {
        let list: [JSONValue] = states.map { ["capability": .string($0.key), "state": .bool($0.value)] }
        try command("migrate-set-capabilities", ["capabilities": .array(list)])
    }

    /// Where it waits for a guest over TCP.
    func incomingPort() throws -> Int {
        let address = try command("query-migrate")["socket-address"]?.arrayValue?.first
        return Int(address?["port"]?.stringValue ?? "") ?? 0
    }

    func quit() throws {
        _ = try? command("quit")
        try program.waitForEnd(seconds: 30)
    }
}

/// Waits until somebody listens there: a socket's name is there an instant before, and whoever connects then is refused.
///
/// Source of the columns: proc_pid_net(5); flag 0x10000 is `SO_ACCEPTCON`.
func waitForSocket(_ path: String) throws {
    let deadline = ContinuousClock.now + .seconds(60)
    while true {
        let table = String(decoding: try FileNames.contents(of: "/proc/net/unix"), as: UTF8.self)
        let isHere = table.split(separator: "\n").contains { line in
            let words = line.split(separator: " ", omittingEmptySubsequences: true)
            return words.count == 8 && words[3] == "00010000" && words[7] == path
        }
        if isHere { return }
        guard ContinuousClock.now < deadline else {
            throw ExpectationError.failed(command: "listen at \(path)", end: "nobody does", output: "")
        }
        try HostTools.need("sleep", ["0.02"])
    }
}
