import Glibc
import LinuxCalls
import MonitorClient
import ProcessTestKit
import QMPProtocol
import Testing

/// A QEMU of one's own with a serial console on a unix socket and a QMP socket, and whatever process has its guest by now.
final class StockGuest {
    let directory: TemporaryDirectory
    private let first: RunningProgram
    private let network: PrivateNetwork?
    /// The console's client; one connection unless the test makes another.
    private(set) var console: Console

    var monitorPath: String { directory.file("q.sock") }
    var consolePath: String { directory.file("ser.sock") }

    /// - Parameters:
    ///   - program: The program that runs the guest first.
    ///   - arguments: Beside its sockets.
    ///   - sockets: The arguments that serve console and QMP.
    ///   - wrapper: A program, with arguments, that starts it.
    init(
        _ program: String, _ arguments: [String], in directory: TemporaryDirectory, network: PrivateNetwork? = nil,
        sockets: [String]? = nil, environment: [String: String] = [:], wrapper: [String] = []
    ) throws {
        self.directory = directory
        self.network = network
        let served =
            sockets ?? [
                "-serial", "unix:\(directory.file("ser.sock")),server=on,wait=off",
                "-qmp", "unix:\(directory.file("q.sock")),server=on,wait=off",
            ]
        let words = wrapper + [program, "-display", "none", "-nodefaults"] + served + arguments
        if let network {
            first = try network.start(
                words[0], Array(words.dropFirst()), name: "QEMU", environment: environment, limitSeconds: 900)
        } else {
            first = try RunningProgram(
                words[0], Array(words.dropFirst()), name: "QEMU", environment: environment, limitSeconds: 900)
        }
        for name in ["ser.sock", "q.sock"] { try StockGuest.await(directory.file(name), first) }
        console = try Console(directory.file("ser.sock"))
    }

    static func await(_ path: String, _ program: RunningProgram) throws {
        try waitUntil(seconds: 60) {
            if program.process.wait(timeoutMilliseconds: 0) != nil, !Checkout.exists(path) {
                throw ExpectationError.failed(command: "QEMU", end: "it ended", output: program.errors.tail)
            }
            return Checkout.exists(path)
        }
    }

    deinit {
        // Successors are nobody's children: they are known by what they were started with.
        for process in processes() { kill(process.identifier, SIGKILL) }
        waitUntil(seconds: 30) { processes().isEmpty }
    }

    /// All QEMUs that ever had this guest and still are.
    func processes() -> [ProcessFiles] {
        ((try? FileNames.entries(of: "/proc")) ?? []).compactMap { CInt($0) }.map { ProcessFiles($0) }.filter {
            process in
            guard let words = try? process.commandLine(), words.contains(where: { $0.contains("qemu-system") }),
                words.first?.contains("sidestep") == false, words.first != "nsenter"
            else { return false }
            return words.contains { $0.contains(directory.path) } && (try? process.state()) != "Z"
        }
    }

    /// The new process that an upgrade has started; nil when there is none within half a minute.
    func successor(of upgrade: RunningProgram) -> CInt? {
        var found: CInt?
        waitUntil(seconds: 30) {
            found = processes().map(\.identifier).first { process in
                let stat = (try? FileNames.contents(of: "/proc/\(process)/stat")).map {
                    String(decoding: $0, as: UTF8.self)
                }
                // ") state parent", see proc_pid_stat(5).
                let parent = stat?.split(separator: ")").last?.split(separator: " ").dropFirst().first
                return parent.flatMap { CInt($0) } == upgrade.process.processIdentifier
            }
            return found != nil
        }
        return found
    }

    /// The process that serves the QMP socket under its old name.
    ///
    /// QEMU keeps few waiting while it serves somebody, such as a guard that is about to go: then it is asked again.
    func runner() throws -> CInt {
        func ask() throws(SystemCallError) -> CInt {
            try StreamSocket.peerCredentials(of: try StreamSocket.connect(to: .unix(path: monitorPath), waits: false))
                .process
        }
        var found: CInt?
        waitUntil(seconds: 30) {
            do throws(SystemCallError) { found = try ask() } catch { return error.errno != .wouldBlock }
            return true
        }
        return try found ?? ask()
    }

    /// A QMP connection of the moment.
    func monitor() throws -> QMPConnection { try QMPConnection(path: monitorPath, timeoutMilliseconds: 20_000) }

    func status() throws -> String { try monitor().run("query-status")["status"]?.stringValue ?? "" }

    /// The console's client goes; returns when the guest's process knows that.
    func disconnect() throws {
        console.close()
        waitUntil(seconds: 30) {
            let devices = (try? monitor().run("query-chardev").arrayValue) ?? []
            return devices.contains {
                $0["label"]?.stringValue == "serial0"
                    && $0["filename"]?.stringValue?.hasPrefix("disconnected:") == true
            }
        }
    }

    func reconnect() throws { console = try Console(consolePath) }

    // MARK: The tool

    struct Answer {
        var end: ProcessEnd
        var json: JSONValue
        var errors: String
        var isMoved: Bool { json["outcome"]?.stringValue == "moved" }
        var notes: [String] { (json["notes"]?.arrayValue ?? []).compactMap(\.stringValue) }
        var newProcess: CInt { CInt(json["new-process"]?.integerValue ?? 0) }
    }

    func upgradeArguments(to binary: String, _ more: [String]) -> [String] {
        ["qemu", "upgrade", "--qmp", monitorPath, "--binary", binary, "--format", "json"] + more
    }

    func upgrade(to binary: String, _ more: [String] = []) throws -> Answer {
        try tool(upgradeArguments(to: binary, more))
    }

    func check(to binary: String, _ more: [String] = []) throws -> Answer {
        try tool(["qemu", "check", "--qmp", monitorPath, "--binary", binary, "--format", "json"] + more)
    }

    func tool(_ arguments: [String], seconds: Double = 120) throws -> Answer {
        let program = try startTool(arguments)
        let end = try program.waitForEnd(seconds: seconds)
        return try answer(program, end)
    }

    func answer(_ program: RunningProgram, _ end: ProcessEnd) throws -> Answer {
        try? program.output.wait(seconds: 30, what: "its end") { _ in nil as Void? }
        try? program.errors.wait(seconds: 30, what: "its end") { _ in nil as Void? }
        return Answer(
            end: end, json: (try? JSONValue.parse(program.output.text)) ?? .null, errors: program.errors.text)
    }

    /// Waits for the end of a tool that was started, and answers how it ended and what it had to say.
    func end(_ program: RunningProgram, seconds: Double = 120) throws -> Answer {
        try answer(program, program.waitForEnd(seconds: seconds))
    }

    func startTool(_ arguments: [String], environment: [String: String] = [:]) throws -> RunningProgram {
        if let network { return try network.start(Checkout.tool, arguments, environment: environment) }
        return try RunningProgram(Checkout.tool, arguments, environment: environment)
    }

    /// Starts an upgrade that stands still when it has come to a step.
    func stoppedUpgrade(at step: String, to binary: String, _ more: [String] = []) throws -> RunningProgram {
        let program = try startTool(
            upgradeArguments(to: binary, more), environment: ["SIDESTEP_QEMU_FAULT": step])
        let process = ProcessFiles(program.process.processIdentifier)
        for _ in 0..<12000 {
            let state = try? process.state()
            if state == "T" { return program }
            if state == "Z" || state == nil { break }
            usleep(10_000)
        }
        throw ExpectationError.failed(
            command: "an upgrade up to \(step)", end: "not there", output: program.errors.tail)
    }

    // MARK: What holds of its files

    /// Whether a process holds an open-file-description lock on a file, as its `fdinfo` tells (proc(5)).
    static func locks(_ process: CInt, _ path: String) throws -> Bool {
        let inode = try FileNames.status(of: path).inode
        return try ProcessFiles(process).descriptors().contains { descriptor in
            guard descriptor.inode == inode else { return false }
            let text = try FileNames.contents(of: "/proc/\(process)/fdinfo/\(descriptor.number)")
            return String(decoding: text, as: UTF8.self).contains("OFDLCK")
        }
    }

    /// Private directories that were left behind.
    func leftovers() throws -> [String] {
        try FileNames.entries(of: directory.path).filter { $0.hasPrefix(".sidestep-") }
    }
}

/// A client of a guest's console.
final class Console {
    private let socket: OwnedDescriptor
    let output: Transcript

    /// Connects; a socket whose name is there listens an instant later.
    init(_ path: String) throws {
        var connected: OwnedDescriptor?
        waitUntil(seconds: 60) {
            connected = try? StreamSocket.connect(to: .unix(path: path))
            return connected != nil
        }
        socket = try connected ?? StreamSocket.connect(to: .unix(path: path))
        output = try Transcript(name: "the console", reading: socket)
    }

    init(adopting socket: OwnedDescriptor) throws {
        self.socket = socket
        output = try Transcript(name: "the console", reading: socket)
    }

    deinit { StreamSocket.shutDown(socket) }

    func close() { StreamSocket.shutDown(socket) }

    func type(_ text: String) throws { try StreamSocket.sendAll(Array(text.utf8), to: socket) }

    /// Runs a command in the guest's shell and answers its last line, which it must print with `mark` in front.
    @discardableResult
    func ask(_ command: String, seconds: Double = 60) throws -> String {
        output.skipToEnd()
        let mark = "answer-\(Int.random(in: 1000...9999))"
        // The mark is put together by the shell, so that the echo of the line is not taken for it.
        try type("\(command); echo \"\(mark.prefix(6))\"\"\(mark.dropFirst(6)) $?\"\n")
        return try output.wait(for: mark + " ", seconds: seconds)
    }
}

/// Waits until something holds; what holds too late is told by whoever looks next.
func waitUntil(seconds: Double, _ condition: () throws -> Bool) rethrows {
    let deadline = ContinuousClock.now + .seconds(seconds)
    while try !condition(), ContinuousClock.now < deadline { ProcessSignal.sleep(milliseconds: 20) }
}
