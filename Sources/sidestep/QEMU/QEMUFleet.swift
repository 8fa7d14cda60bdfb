import ArgumentParser
import Glibc
import LinuxCalls
import QMPProtocol
import StockQEMU
import Supervisor

/// `--all`: an upgrade for each socket of a directory, a process of this tool each, a few at a time.
struct QEMUFleet {
    private let arguments: QEMURequest
    private let sockets: [String]
    private let parallel: Int

    init(_ arguments: QEMURequest, directory: String, parallel: Int) throws {
        guard arguments.qmp == nil, arguments.pid == nil else {
            throw Refusal(.usage, "--all stands for --qmp and --pid")
        }
        guard (1...64).contains(parallel) else { throw Refusal(.usage, "--parallel is between 1 and 64") }
        _ = try arguments.request(qmp: nil)  // what is wrong with the rest is said once
        let found: [String]
        do {
            found = try FileNames.entries(of: directory).sorted().map { "\(directory)/\($0)" }.filter {
                (try? FileNames.status(of: $0))?.type == .socket
            }
        } catch { throw Refusal(.noSuchGuest, "--all: \(error)") }
        sockets = Self.oneForEach(found)
        self.arguments = arguments
        self.parallel = parallel
    }

    /// One socket for each process, its monitor's where several are there. A socket that nobody serves stays, to be told of.
    private static func oneForEach(_ paths: [String]) -> [String] {
        var chosen: [CInt: String] = [:]
        var dead: [String] = []
        for path in paths {
            guard let socket = try? StreamSocket.connect(to: .unix(path: path), waits: false),
                let process = try? StreamSocket.peerCredentials(of: socket).process
            else {
                dead.append(path)
                continue
            }
            let isMonitor = Discovery.monitorPaths(of: process).contains(path)
            if chosen[process] == nil || isMonitor { chosen[process] = path }
        }
        return (Array(chosen.values) + dead).sorted()
    }

    private struct Running {
        var path: String
        var child: ChildProcess
        var output: OwnedDescriptor
    }

    func run() throws {
        var waiting = sockets
        var running: [Running] = []
        var results: [JSONValue] = []
        var worst: Int32 = 0
        while !waiting.isEmpty || !running.isEmpty {
            while running.count < parallel, !waiting.isEmpty { running.append(try start(waiting.removeFirst())) }
            Readiness.awaitAny(running.map(\.child.processDescriptor), timeoutMilliseconds: -1)
            // Asked once: one that ends meanwhile is met in the next turn, not dropped.
            var goesOn: [Running] = []
            for one in running {
                guard let end = one.child.wait(timeoutMilliseconds: 0) else {
                    goesOn.append(one)
                    continue
                }
                var status: Int32 = ExitStatus.hostFailure.rawValue
                if case .exited(let value) = end { status = value }
                var result = (try? JSONValue.parse(read(one.output)))?.objectValue ?? ["outcome": "refused"]
                result["qmp"] = .string(one.path)
                result["status"] = JSONValue(status)
                results.append(.object(result))
                worst = max(worst, status)
            }
            running = goesOn
        }
        arguments.output.show(.array(results)) { _ in
            table(
                [["SOCKET", "OUTCOME", "PAUSE", "TEXT"]]
                    + results.map { result in
                        [
                            result["qmp"]?.stringValue ?? "?", result["outcome"]?.stringValue ?? "refused",
                            result["pause-us"]?.integerValue.map { "\($0) us" } ?? "-",
                            result["error"]?.stringValue ?? "process \(result["new-process"]?.integerValue ?? 0)",
                        ]
                    })
        }
        if worst != 0 { Sidestep.exit(withError: ExitCode(worst)) }
    }

    private func start(_ path: String) throws -> Running {
        var words = [
            "qemu", "upgrade", "--qmp", path, "--binary", arguments.binary, "--strategy", arguments.strategy,
            "--format",
            "json", "--limit", "\(arguments.limit)", "--keep-source-paused", "\(arguments.keepSourcePaused)",
        ]
        for setting in arguments.settings { words += ["--set", setting] }
        if arguments.ignoreLibvirt { words.append("--ignore-libvirt") }
        if arguments.ignoreTimers { words.append("--ignore-timers") }
        let (ours, theirs) = try OwnedDescriptor.pipe()
        let own = try FileNames.target(of: "/proc/self/exe")
        return Running(
            path: path, child: try ChildProcess(path: own, arguments: words, descriptors: [1: theirs]), output: ours)
    }

    private func read(_ pipe: OwnedDescriptor) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 64 << 10)
        let count = unsafe bytes.withUnsafeMutableBytes { (try? unsafe pipe.read(into: $0)) ?? 0 }
        return Array(bytes[..<count])
    }
}
