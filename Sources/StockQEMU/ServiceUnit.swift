import LinuxCalls

/// Who else believes to own the process, and how they learn of its successor.
package struct ServiceUnit: Hashable, Sendable {
    /// The name of the systemd unit whose main process it is; nil when it is none's.
    package private(set) var unit: String?
    /// Where the service manager takes messages.
    package private(set) var notifySocket: String?
    package private(set) var findings: [Finding] = []

    /// Set in a successor's environment: it is the main process of a unit as its predecessor was.
    static let mainVariable = "SIDESTEP_SERVICE_MAIN"

    package init(
        arguments: CommandLine, process: Int32, controlGroups: [String], environment: [String], ignoresLibvirt: Bool
    ) {
        let words = arguments.words
        if words.contains(where: { $0.contains("/libvirt/qemu/") || $0.contains(#""id":"masterKey0""#) }) {
            findings.append(
                Finding(
                    ignoresLibvirt ? .warn : .fail, "libvirt",
                    "libvirt started this guest and would take its end for the guest's: use its own migration"
                        + (ignoresLibvirt ? "" : ", or say --ignore-libvirt")))
        }
        let service = controlGroups.lazy.compactMap { $0.split(separator: "/").last }
            .first { $0.hasSuffix(".service") }.map(String.init)
        let isDaemon = arguments.options.contains { $0.name == "daemonize" }
        // systemd tells its main processes their own number (systemd.exec(5), SYSTEMD_EXEC_PID); a daemon is that one's child.
        let isMain =
            environment.contains("SYSTEMD_EXEC_PID=\(process)")
            || environment.contains { $0.hasPrefix("\(Self.mainVariable)=") }
            || isDaemon && environment.contains { $0.hasPrefix("SYSTEMD_EXEC_PID=") }
        guard let service, isMain else { return }
        unit = service
        notifySocket = environment.first { $0.hasPrefix("NOTIFY_SOCKET=") }.map { String($0.dropFirst(14)) }
        if notifySocket != nil {
            findings.append(Finding(.ok, "systemd", "\(service) is told of its new main process (MAINPID)"))
        } else if arguments.arguments("pidfile").isEmpty == false, isDaemon {
            findings.append(
                Finding(
                    .ok, "systemd", "\(service) finds its new main process in the pid file (Type=forking, PIDFile=)"))
        } else {
            findings.append(
                Finding(
                    .fail, "systemd",
                    "\(service) would take the end of its main process for the guest's: give the unit NotifyAccess=all, or "
                        + "Type=forking with -daemonize, -pidfile and PIDFile=, or start guests in a scope (systemd-run --scope)"
                ))
        }
    }

    /// Tells the service manager which process is the main one now. Source: sd_notify(3), MAINPID. A manager takes the word of the
    /// unit's own processes, so the message is sent in the new process's name where the kernel lets us.
    func announce(_ process: CInt) {
        guard let notifySocket else { return }
        let text = Array("MAINPID=\(process)\n".utf8)
        do { try DatagramSocket.send(text, to: notifySocket, as: process) } catch {
            try? DatagramSocket.send(text, to: notifySocket)
        }
    }
}
