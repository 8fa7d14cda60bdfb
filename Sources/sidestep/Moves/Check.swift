import ArgumentParser
import Glibc
import LinuxCalls
import QMPProtocol
import Supervisor

struct Check: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Tell what would stop a guest from moving, before anything happens.",
        discussion: """
            Each line is ok, warn or fail, with the remedy. Nothing is changed and nobody is connected to. Exit status \
            \(ExitStatus.refused.rawValue) if a line says fail.
            """)

    @OptionGroup var guest: GuestArgument

    @Argument(help: ArgumentHelp("Where it would go to; see 'sidestep migrate'.", valueName: "uri"))
    var uri: String?

    @OptionGroup var output: FormatOption

    private enum Grade: String { case ok, warn, fail }

    private struct Finding {
        var grade: Grade
        var subject: String
        var text: String
    }

    func run() throws {
        let connection = try guest.connect()
        let facts = try connection.run("x-sidestep-inspect")
        var findings: [Finding] = []
        checkGuest(facts, try connection.run("query-migrate"), &findings)
        let memory = RunConfiguration.memory(in: facts["configuration"] ?? [:])
        checkHost(memory: memory, &findings)
        if let uri { checkDestination(uri, memory: memory, &findings) }
        let list: [JSONValue] = findings.map {
            ["grade": .string($0.grade.rawValue), "subject": .string($0.subject), "text": .string($0.text)]
        }
        output.show(.array(list)) { _ in table(findings.map { [$0.grade.rawValue, $0.subject, $0.text] }) }
        if findings.contains(where: { $0.grade == .fail }) {
            Sidestep.exit(withError: ExitCode(ExitStatus.refused.rawValue))
        }
    }

    private func checkGuest(_ facts: JSONValue, _ migration: JSONValue, _ findings: inout [Finding]) {
        let status = facts["status"]?.stringValue ?? "?"
        let movable = ["running", "paused", "prelaunch", "postmigrate"].contains(status)
        findings.append(
            Finding(
                grade: movable ? .ok : .fail, subject: "guest",
                text: movable ? "is \(status)" : "is \(status): wait until it runs"))
        if ["setup", "active", "pre-switchover", "device"].contains(migration["status"]?.stringValue) {
            findings.append(
                Finding(
                    grade: .fail, subject: "migration", text: "one is running: 'sidestep cancel \(guest.name)' or wait")
            )
        }
        let version = facts["version"]?.stringValue ?? "?"
        findings.append(
            Finding(
                grade: version == Product.version ? .ok : .warn, subject: "version",
                text: version == Product.version
                    ? version : "the guest's process is \(version), this is \(Product.version)"))
        let backend = facts["configuration"]?["memory-backend"]?.stringValue ?? "?"
        findings.append(
            Finding(
                grade: backend == "memfd" ? .ok : .warn, subject: "memory",
                text: backend == "memfd"
                    ? "memfd: can be handed over without a copy"
                    : "\(backend): every page is copied; start it with --memory-backend memfd to avoid that"))
    }

    private func checkHost(memory: UInt64, _ findings: inout [Finding]) {
        if let available = HostFacts.availableMemoryByteCount {
            let fits = available >= memory
            findings.append(
                Finding(
                    grade: fits ? .ok : .warn, subject: "host memory",
                    text:
                        "\(SizeText.format(available & ~0xF_FFFF)) available for a second copy of \(SizeText.format(memory))"
                        + (fits ? "" : ": use --capability unix-page-flipping, or 'sidestep upgrade'")))
        }
        var limit = rlimit()
        if unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 {
            let enough = limit.rlim_max >= 256
            findings.append(
                Finding(
                    grade: enough ? .ok : .warn, subject: "descriptors",
                    text: "at most \(limit.rlim_max)" + (enough ? "" : ": raise 'ulimit -n'")))
        }
        let splices = HostFacts.allowsVMSplice
        findings.append(
            Finding(
                grade: splices ? .ok : .warn, subject: "vmsplice",
                text: splices ? "allowed" : "refused by the kernel or a sandbox: page flipping copies into the pipe"))
    }

    private func checkDestination(_ uri: String, memory: UInt64, _ findings: inout [Finding]) {
        let address: MigrationAddress
        do { address = try MigrationAddress(uri: uri) } catch {
            findings.append(Finding(grade: .fail, subject: "uri", text: error.description))
            return
        }
        switch address {
        case .unix(let path):
            var status = stat()
            let text: String
            if unsafe stat(path, &status) != 0 {
                text = "\(path): \(errorText(errno)): start 'sidestep run --incoming \(uri) ...' first"
            } else if status.st_mode & S_IFMT != S_IFSOCK {
                text = "\(path) is no socket"
            } else if unsafe access(path, W_OK) != 0 {
                text = "\(path): \(errorText(errno))"
            } else {
                findings.append(Finding(grade: .ok, subject: "destination", text: "\(path) is a socket we may use"))
                return
            }
            findings.append(Finding(grade: .fail, subject: "destination", text: text))
        case .file(let path, _):
            let slash = path.lastIndex(of: "/")
            let directory = slash.map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
            var space = statvfs()
            guard unsafe statvfs(directory, &space) == 0, unsafe access(directory, W_OK) == 0 else {
                findings.append(
                    Finding(grade: .fail, subject: "destination", text: "\(directory): \(errorText(errno))"))
                return
            }
            let free = UInt64(space.f_bavail) * UInt64(space.f_frsize)
            findings.append(
                Finding(
                    grade: free > memory ? .ok : .warn, subject: "destination",
                    text:
                        "\(SizeText.format(free & ~0xF_FFFF)) free in \(directory) for up to \(SizeText.format(memory))"
                ))
        default: findings.append(Finding(grade: .ok, subject: "destination", text: "\(address): not tried"))
        }
    }
}
