import ArgumentParser
import Glibc
import LinuxCalls
import QMPProtocol
import StockQEMU
import Supervisor

/// `sidestep qemu`: guests of stock QEMU processes.
struct QEMU: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "qemu", abstract: "Replace stock QEMU processes under their running guests.",
        subcommands: [QEMUUpgrade.self, QEMUCheck.self, QEMUGuard.self])
}

/// What both subcommands take.
struct QEMURequest: ParsableArguments {
    @Option(help: ArgumentHelp("A QMP socket of the process.", valueName: "path"))
    var qmp: String?

    @Option(help: ArgumentHelp("The process; its QMP sockets are found on its command line.", valueName: "number"))
    var pid: Int32?

    @Option(help: ArgumentHelp("The QEMU that takes over.", valueName: "program"))
    var binary: String

    @Option(
        name: .customLong("set"), parsing: .unconditionalSingleValue,
        help: ArgumentHelp(
            "An option for the new process, with its argument: \"-rtc base=utc\". May be repeated.", valueName: "option"
        ))
    var settings: [String] = []

    @Option(help: ArgumentHelp("How RAM changes process: auto, shared, cpr, postcopy or precopy.", valueName: "way"))
    var strategy = "auto"

    @Option(help: ArgumentHelp("How long the old process stays, paused, after success.", valueName: "seconds"))
    var keepSourcePaused = 0

    @Option(help: ArgumentHelp("Longest time the move may take before it is taken back.", valueName: "seconds"))
    var limit = 120

    @Flag(help: "Go on even where libvirt started the guest.")
    var ignoreLibvirt = false

    @Flag(help: "Take postcopy even where QEMU loses a riscv guest's timers by it.")
    var ignoreTimers = false

    @OptionGroup var output: FormatOption

    func request(qmp: String?) throws -> ReplacementRequest {
        guard let program = unsafe realpath(binary, nil) else {
            throw Refusal(.usage, "--binary: there is no file \(binary)")
        }
        defer { unsafe free(program) }
        guard let own = try? FileNames.target(of: "/proc/self/exe") else {
            throw Refusal(.hostFailure, "/proc is not there")
        }
        var request = ReplacementRequest(
            qmpPath: qmp, process: pid, binary: unsafe String(cString: program), guardProgram: own,
            mender: MendedPassage.run)
        if strategy != "auto" {
            guard let wanted = ReplacementStrategy(rawValue: strategy) else {
                throw Refusal(.usage, "--strategy: '\(strategy)' is none of auto, shared, cpr, postcopy, precopy")
            }
            request.strategy = wanted
        }
        guard (0...86_400).contains(keepSourcePaused), (1...86_400).contains(limit) else {
            throw Refusal(.usage, "--keep-source-paused and --limit are between 0 and 86400 seconds")
        }
        request.keepSourceSeconds = keepSourcePaused
        request.limitSeconds = limit
        request.ignoresLibvirt = ignoreLibvirt
        request.ignoresTimers = ignoreTimers
        for text in settings {
            let parts = text.split(separator: " ", maxSplits: 1).map(String.init)
            do {
                let line = try StockQEMU.CommandLine(words: parts)
                guard line.options.count == 1 else { throw Refusal(.usage, "--set: '\(text)' is not one option") }
                request.settings += line.options
            } catch let failure as UpgradeFailure { throw Refusal(.usage, "--set: \(failure)") }
        }
        return request
    }

    func single() throws -> ReplacementRequest {
        guard qmp != nil || pid != nil else { throw Refusal(.usage, "say which process: --qmp PATH or --pid NUMBER") }
        return try request(qmp: qmp)
    }
}

extension Refusal {
    init(_ failure: UpgradeFailure) {
        let status: ExitStatus =
            switch failure.kind {
            case .usage: .usage
            case .refused: .refused
            case .noSuchGuest: .noSuchGuest
            case .rolledBack: .rolledBack
            case .lost: .lost
            case .undecided: .undecided
            }
        self.init(status, failure.description)
    }
}

struct QEMUUpgrade: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "upgrade", abstract: "Move a running guest of QEMU to a new QEMU process on this host.",
        discussion: """
            The new process is started and complete before the guest is paused. If anything goes wrong the guest runs on in \
            the old process, and the exit status is \(ExitStatus.rolledBack.rawValue). Interrupted or killed, the command leaves \
            a process behind that takes the guest back, or lets it be where it runs already. See Documentation/qemu-upgrade.md.
            """)

    @OptionGroup var arguments: QEMURequest

    @Option(help: ArgumentHelp("Upgrade every process that has a QMP socket there.", valueName: "directory"))
    var all: String?

    @Option(help: ArgumentHelp("With --all: how many at a time.", valueName: "count"))
    var parallel = 2

    func run() throws {
        if let all { return try QEMUFleet(arguments, directory: all, parallel: parallel).run() }
        let request = try arguments.single()
        do throws(UpgradeFailure) {
            let report = try Replacement(request) { Diagnostics.write($0) }.run()
            arguments.output.show(Self.json(report)) { _ in Self.text(report) }
        } catch {
            if arguments.output.format == .json {
                let value: JSONValue = ["outcome": .string(error.kind.rawValue), "error": .string(error.description)]
                print(value.prettyJSON)
            }
            throw Refusal(error)
        }
    }

    static func json(_ report: ReplacementReport) -> JSONValue {
        [
            "outcome": "moved", "old-process": JSONValue(report.oldProcess),
            "new-process": JSONValue(report.newProcess),
            "strategy": .string(report.strategy.rawValue), "reason": .string(report.reason),
            "pause-us": JSONValue(report.pauseMicroseconds), "start-us": JSONValue(report.startMicroseconds),
            "total-us": JSONValue(report.totalMicroseconds), "notes": .array(report.notes.map { .string($0) }),
        ]
    }

    private static func text(_ report: ReplacementReport) -> String {
        func milliseconds(_ value: Int64) -> String { "\(value / 1000).\((value % 1000) / 100) ms" }
        return
            ([
                "the guest runs in process \(report.newProcess)",
                "  pause     \(milliseconds(report.pauseMicroseconds))",
                "  total     \(milliseconds(report.totalMicroseconds)), and \(milliseconds(report.startMicroseconds)) to start the process",
                "  strategy  \(report.strategy.rawValue): \(report.reason)",
            ] + report.notes.map { "  note      \($0)" }).joined(separator: "\n")
    }
}

struct QEMUCheck: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check", abstract: "Tell what would stop an upgrade of a QEMU process; nothing is changed.",
        discussion: """
            Each line is ok, warn or fail, with the remedy. Exit status \(ExitStatus.refused.rawValue) if a line says fail.
            """)

    @OptionGroup var arguments: QEMURequest

    func run() throws {
        let findings: [Finding]
        do throws(UpgradeFailure) { findings = try ReplacementPlan(try checked(), token: "check0").findings } catch {
            throw Refusal(error)
        }
        let list: [JSONValue] = findings.map {
            ["grade": .string($0.grade.rawValue), "subject": .string($0.subject), "text": .string($0.text)]
        }
        arguments.output.show(.array(list)) { _ in table(findings.map { [$0.grade.rawValue, $0.subject, $0.text] }) }
        if findings.contains(where: { $0.grade == .fail }) {
            Sidestep.exit(withError: ExitCode(ExitStatus.refused.rawValue))
        }
    }

    private func checked() throws(UpgradeFailure) -> ReplacementRequest {
        do { return try arguments.single() } catch let refusal as Refusal {
            throw UpgradeFailure(refusal.status == .usage ? .usage : .refused, refusal.description)
        } catch { throw UpgradeFailure(.usage, "\(error)") }
    }
}

/// What an upgrade starts beside itself; not for people.
struct QEMUGuard: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "guard", abstract: "End an upgrade whose own process died.", shouldDisplay: false)

    @Argument(help: "The descriptor of the upgrade's socket.")
    var descriptor: Int32

    func run() throws {
        if let outcome = try ReplacementGuard.serve(OwnedDescriptor(adopting: descriptor)) {
            Diagnostics.write("the upgrade's process died; the guest \(outcome.rawValue)")
        }
    }
}
