import LinuxCalls
import MonitorClient
import ProcessTestKit
import QMPProtocol

/// A stock QEMU with Debian's kernel or waiting for a guest: default processor, console on its standard input and output, a disk
/// on a raw image, entropy. One QMP connection for all its life.
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
    ///   - sharesMemory: All of its memory lies in memory files (mode cpr-transfer).
    ///   - sharedFile: Its RAM is this file, by its name (capability x-ignore-shared).
    ///   - cpr: With `incoming`: a path where those files come first; the monitor is opened after they have come.
    init(
        _ kind: StockKind, in run: MonitorRun, disk: String?, name: String, incoming: String? = nil,
        words: String = "notick", guest: [String]? = nil, descriptors: [CInt: OwnedDescriptor] = [:],
        sharesMemory: Bool = false, sharedFile: String? = nil, cpr: String? = nil
    ) throws {
        self.kind = kind
        monitorPath = run.directory.file("\(name).qmp")
        let backend = sharesMemory || sharedFile != nil ? ",memory-backend=\(Self.ram)" : ""
        var arguments = [
            "-M", "virt" + backend + (sharesMemory ? ",aux-ram-share=on" : ""), "-m",
            guest == nil ? "256M" : "64M", "-smp", "\(kind.harts)", "-accel", "tcg", "-nic", "none",
            "-display", "none", "-serial", "stdio", "-monitor", "none", "-global",
            "virtio-mmio.force-legacy=\(kind.isLegacy)", "-qmp", "unix:\(monitorPath),server=on,wait=off",
        ]
        if sharesMemory { arguments += ["-object", "memory-backend-memfd,id=\(Self.ram),size=256M,share=on"] }
        if let sharedFile {
            arguments += ["-object", "memory-backend-file,id=\(Self.ram),size=256M,share=on,mem-path=\(sharedFile)"]
        }
        // In the order of ours: disk, then entropy.
        if let disk {
            arguments += ["-drive", "if=none,id=d,format=raw,file=\(disk)", "-device"]
            arguments.append("virtio-blk-device,drive=d" + (kind.queueSize.map { ",queue-size=\($0)" } ?? ""))
        }
        if kind.hasEntropy { arguments += ["-device", "virtio-rng-device"] }
        if let cpr { arguments += ["-incoming", Self.channel("cpr", cpr).json] }
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
        if cpr == nil { _ = try monitor() }
    }

    private static let ram = "riscv_virt_board.ram"

    private static func channel(_ type: String, _ path: String) -> JSONValue {
        ["channel-type": .string(type), "addr": ["transport": "socket", "type": "unix", "path": .string(path)]]
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

    /// Sends the guest away with its memory by descriptor.
    func migrate(main: String, cpr: String, returnPath: Bool = true) throws -> Answer {
        try setCapabilities(["return-path": returnPath])
        try command("migrate-set-parameters", ["mode": "cpr-transfer"])
        try command("migrate", ["channels": [Self.channel("main", main), Self.channel("cpr", cpr)]])
        return try waitForMigration()
    }

    /// The same with RAM that both ends have by name.
    func migrateState(to uri: String) throws -> Answer {
        try setCapabilities(["x-ignore-shared": true, "return-path": true])
        try command("migrate", ["uri": .string(uri)])
        return try waitForMigration()
    }

    func setCapabilities(_ states: [String: Bool]) throws {
        let list: [JSONValue] = states.map { ["capability": .string($0.key), "state": .bool($0.value)] }
        try command("migrate-set-capabilities", ["capabilities": .array(list)])
    }

    /// Waits until its migration, out or in, is in a state.
    func waitForMigration(_ wanted: String) throws {
        let deadline = ContinuousClock.now + .seconds(120)
        while true {
            let answer = try command("query-migrate")
            let status = answer["status"]?.stringValue ?? "none"
            if status == wanted { return }
            guard status != "failed", ContinuousClock.now < deadline else {
                throw ExpectationError.failed(
                    command: "up to \(wanted)", end: answer.json, output: program.errors.tail)
            }
            try HostTools.need("sleep", ["0.02"])
        }
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
