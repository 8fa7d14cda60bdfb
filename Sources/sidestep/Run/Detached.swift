import Glibc
import LinuxCalls
import MonitorClient
import QMPProtocol
import Supervisor

/// `--detach`: the guest's process is started in the background, and this one ends when the guest runs or was refused.
enum Detached {
    static func start(_ requested: RunConfiguration) throws(Refusal) {
        var configuration = requested
        let name = configuration.name ?? "guest-\(getpid())"
        configuration.name = name
        try configuration.validate()
        if configuration.console == .stdio {
            throw Refusal(
                .usage, "--detach leaves no terminal for --console stdio; use --console unix and 'sidestep console'")
        }
        if let running = try RunDirectory.list().first(where: { $0.name == name }) {
            throw Refusal("a guest named '\(name)' runs already (process \(running.process ?? 0))")
        }
        var arguments = CommandLine.arguments.dropFirst().filter { $0 != "--detach" }
        // Flags win over a configuration file, so these say again what is the case.
        arguments += ["--name", name]
        if configuration.console == nil { arguments += ["--console", "unix"] }
        let logPath = try RunDirectory.base() + "/.\(name).log"
        do {
            let log = try OwnedDescriptor.open(logPath, flags: O_RDWR | O_CREAT | O_TRUNC)
            // Nobody waits for this process, so it needs no keeper.
            unsafe setenv(GuestProcess.backgroundVariable, "1", 1)
            let null = try OwnedDescriptor.open("/dev/null", flags: O_RDWR)
            let child = try ChildProcess(
                path: "/proc/self/exe", name: CommandLine.arguments.first ?? "sidestep", arguments: Array(arguments),
                descriptors: [0: null, 1: null, 2: log], newProcessGroup: true)
            try waitUntilReady(child, name: name, log: log)
        } catch let refusal as Refusal {
            throw refusal
        } catch {
            throw Refusal("cannot start the guest's process: \(error)")
        }
        print(name)
    }

    /// Until the guest answers, or its process has ended.
    private static func waitUntilReady(_ child: ChildProcess, name: String, log: OwnedDescriptor) throws(Refusal) {
        while true {
            if let end = child.wait(timeoutMilliseconds: 5) {
                _ = lseek(log.rawValue, 0, SEEK_SET)
                let text =
                    (try? WholeFile.read(log, byteCountMax: 1 << 16)).map { String(decoding: $0, as: UTF8.self) } ?? ""
                let prefix = "\(Product.name): "
                let line = text.split(separator: "\n").last.map(String.init) ?? "the guest's process ended: \(end)"
                var status = ExitStatus.refused
                if case .exited(let number) = end { status = ExitStatus(rawValue: number) ?? .refused }
                throw Refusal(status, line.hasPrefix(prefix) ? String(line.dropFirst(prefix.count)) : line)
            }
            if let entry = try? RunDirectory.find(name),
                entry.process == child.processIdentifier || entry.process != nil,
                (try? QMPConnection(path: entry.qmpSocketPath, timeoutMilliseconds: 1000)) != nil
            {
                return
            }
        }
    }
}
