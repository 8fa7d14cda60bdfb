import ArgumentParser
import Glibc
import LinuxCalls
import MonitorClient
import QMPProtocol
import Supervisor

struct Check: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check", abstract: "Tell what would stop a guest from moving, before anything happens.",
        discussion: """
            Each line is ok, warn or fail, with the remedy. Nothing is changed, and nobody is connected to at the URI: who waits \
            there is known if it is a guest of this user, or if --peer names its QMP socket. Exit status: \
            \(ExitStatus.guestUnfit.rawValue) if the guest cannot move as it is, else \(ExitStatus.hostUnfit.rawValue) if this \
            host does not allow it, else \(ExitStatus.destinationUnfit.rawValue) if the destination cannot take it; warnings \
            change nothing.
            """)

    @OptionGroup var guest: GuestArgument

    @Argument(help: ArgumentHelp("Where it would go to; see 'sidestep migrate'.", valueName: "uri"))
    var uri: String?

    @Option(
        help: ArgumentHelp(
            "The QMP socket of the process that waits at the URI, Sidestep's or QEMU's.", valueName: "unix:path"))
    var peer: String?

    @Option(
        help: ArgumentHelp(
            "A capability that 'sidestep migrate' would switch on here. Repeatable.", valueName: "name"))
    var capability: [String] = []

    @OptionGroup var output: FormatOption

    func run() throws {
        let connection = try guest.connect()
        let subject = CheckedGuest(
            name: guest.name, facts: try connection.run("x-sidestep-inspect"),
            migration: try connection.run("query-migrate"),
            capabilities: try connection.run("query-migrate-capabilities"),
            added: Set(capability.map { $0.hasPrefix("x-unix") ? String($0.dropFirst(2)) : $0 }))
        var report = CheckReport()
        subject.check(&report)
        HostCheck.check(subject, needsSecondCopy: uri != nil, &report)
        if let uri { try DestinationCheck(subject: subject, uri: uri, peer: peer).check(&report) }
        let findings = report.findings
        output.show(.array(findings.map(\.json))) { _ in
            table(findings.map { [$0.grade.rawValue, $0.subject, $0.text + ($0.remedy.map { ": \($0)" } ?? "")] })
        }
        for status in [ExitStatus.guestUnfit, .hostUnfit, .destinationUnfit]
        where findings.contains(where: { $0.grade == .fail && $0.status == status }) {
            Sidestep.exit(withError: ExitCode(status.rawValue))
        }
    }
}

/// What was found, line by line.
struct CheckReport {
    enum Grade: String { case ok, warn, fail }

    struct Finding {
        var grade: Grade
        var status: ExitStatus
        var subject: String
        var text: String
        var remedy: String?

        var json: JSONValue {
            var object: JSONObject = [
                "grade": .string(grade.rawValue), "subject": .string(subject), "text": .string(text),
                "exit-status": JSONValue(grade == .fail ? status.rawValue : 0),
            ]
            object["remedy"] = remedy.map { .string($0) }
            return .object(object)
        }
    }

    /// Whose business the next findings are.
    var status = ExitStatus.guestUnfit
    private(set) var findings: [Finding] = []

    mutating func ok(_ subject: String, _ text: String) { add(.ok, subject, text, nil) }
    mutating func warn(_ subject: String, _ text: String, remedy: String) { add(.warn, subject, text, remedy) }
    mutating func fail(_ subject: String, _ text: String, remedy: String) { add(.fail, subject, text, remedy) }

    private mutating func add(_ grade: Grade, _ subject: String, _ text: String, _ remedy: String?) {
        findings.append(Finding(grade: grade, status: status, subject: subject, text: text, remedy: remedy))
    }
}

/// The guest that is to move, as its process tells.
struct CheckedGuest {
    var name: String
    var facts: JSONValue
    var migration: JSONValue
    var capabilities: JSONValue
    /// Capabilities that will be switched on beside those.
    var added: Set<String> = []

    var configuration: JSONValue { facts["configuration"] ?? [:] }
    var memory: UInt64 { RunConfiguration.memory(in: configuration) }
    /// RAM lies in a file whose descriptor can be handed over.
    var isFile: Bool { configuration["memory-backend"] != "anonymous" }

    func has(_ capability: String) -> Bool { added.contains(capability) || Self.has(capability, capabilities) }

    static func has(_ capability: String, _ list: JSONValue) -> Bool {
        (list.arrayValue ?? []).first { $0["capability"] == .string(capability) }?["state"]?.boolValue ?? false
    }

    func check(_ report: inout CheckReport) {
        report.status = .guestUnfit
        let status = facts["status"]?.stringValue ?? "?"
        if ["running", "paused", "prelaunch", "postmigrate"].contains(status) {
            report.ok("guest", "is \(status)")
        } else {
            report.fail("guest", "is \(status)", remedy: "wait until it runs, or 'sidestep resume \(name)'")
        }
        let move = migration["status"]?.stringValue
        if ["setup", "active", "pre-switchover", "device", "postcopy-active"].contains(move) {
            report.fail("migration", "one is running", remedy: "wait for its end, or 'sidestep cancel \(name)'")
        }
        let version = facts["version"]?.stringValue ?? "?"
        if version == Product.version {
            report.ok("version", version)
        } else {
            report.warn(
                "version", "the guest's process is \(version), this is \(Product.version)",
                remedy: "'sidestep upgrade \(name)' brings it to this version")
        }
        if isFile {
            let backend = configuration["memory-backend"]?.stringValue ?? "?"
            report.ok("memory", "\(backend): 'sidestep upgrade' hands it over without a copy")
        } else {
            report.warn(
                "memory", "\(configuration["memory-backend"]?.stringValue ?? "?"): every page is copied or flipped",
                remedy: "start the guest with --memory-backend memfd")
        }
    }
}

/// What this host allows.
enum HostCheck {
    /// Descriptors that a hand-over of an ordinary guest needs.
    static let descriptorCountMin: UInt64 = 256

    static func check(_ guest: CheckedGuest, needsSecondCopy: Bool, _ report: inout CheckReport) {
        report.status = .hostUnfit
        let needed = needsSecondCopy || !guest.isFile ? guest.memory : 0
        if needed > 0, let available = HostFacts.availableMemoryByteCount {
            let text =
                "\(SizeText.format(available & ~0xF_FFFF)) available, a second copy takes \(SizeText.format(needed))"
            if available >= needed {
                report.ok("host memory", text)
            } else {
                report.warn(
                    "host memory", text, remedy: "use --capability unix-page-flipping, or 'sidestep upgrade'")
            }
        }
        var limit = rlimit()
        if unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 {
            if UInt64(limit.rlim_max) >= descriptorCountMin {
                report.ok("descriptors", "a process may have \(limit.rlim_max)")
            } else {
                report.fail(
                    "descriptors", "a process may have \(limit.rlim_max), \(descriptorCountMin) are needed",
                    remedy: "raise 'ulimit -Hn' (LimitNOFILE= of a service)")
            }
        }
        if unsafe getrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &limit) == 0, limit.rlim_cur != rlim_t.max,
            UInt64(limit.rlim_cur) < guest.memory
        {
            report.fail(
                "address space",
                "limited to \(SizeText.format(UInt64(limit.rlim_cur))), RAM is \(SizeText.format(guest.memory))",
                remedy: "raise 'ulimit -v'")
        }
        if HostFacts.allowsVMSplice {
            report.ok("vmsplice", "allowed")
        } else {
            report.warn(
                "vmsplice", "refused by the kernel or a sandbox: page flipping copies into the pipe",
                remedy: "allow the system call, or do without unix-page-flipping")
        }
        if HostFacts.allowsUserFaults {
            report.ok("userfaultfd", "allowed")
        } else {
            let text = "refused by the kernel or a sandbox: no postcopy to this host"
            let remedy = "allow the system call (sysctl vm.unprivileged_userfaultfd), or do without postcopy-ram"
            if guest.has("postcopy-ram") {
                report.fail("userfaultfd", text, remedy: remedy)
            } else {
                report.warn("userfaultfd", text, remedy: remedy)
            }
        }
    }
}
