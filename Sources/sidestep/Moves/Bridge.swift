import ArgumentParser
import Glibc
import LinuxCalls
import QMPProtocol
import Supervisor

struct BridgeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bridge",
        abstract: "Carry a live guest between QEMU releases that refuse each other's streams.",
        discussion: """
            Waits for the source at --from and sends to the destination at --to, which waits already. RAM passes as it comes, \
            in constant memory; the state of processors and devices is rewritten for the release that --target names. With \
            the capability return-path on at the source the guest stays there until the destination has it. Exit status \
            \(ExitStatus.rolledBack.rawValue): it was not taken. See Documentation/qemu.md.
            """)

    @Option(help: ArgumentHelp("Where the source connects to, or is read from.", valueName: "uri"))
    var from: String

    @Option(help: ArgumentHelp("Where the destination waits.", valueName: "uri"))
    var to: String

    @Option(help: ArgumentHelp("The destination's release.", valueName: "qemu-7.2|qemu-10.0|qemu-11.1"))
    var target: String

    @Option(help: ArgumentHelp("The source's release, if it is to be made sure of.", valueName: "release"))
    var source: String?

    @Flag(help: "Show nothing on the way.")
    var quiet = false

    func run() throws {
        signal(SIGPIPE, SIG_IGN)
        let bridge = Bridge(
            target: try RunConfiguration.compatibility(argument: target),
            source: try source.map { try RunConfiguration.compatibility(argument: $0) })
        let isTerminal = isatty(2) == 1
        if !quiet {
            // Ends with the process.
            _ = try HostThread(name: "progress") {
                var last = ""
                while true {
                    usleep(200_000)
                    let line = Self.line(bridge.progress)
                    guard line != last else { continue }
                    last = line
                    let text = Array((isTerminal ? "\r\u{1B}[K\(line)" : "\(line)\n").utf8)
                    _ = unsafe write(2, text, text.count)
                }
            }
        }
        try bridge.run(from: from, to: to)
        let progress = bridge.progress
        // A guest that passed faster than anybody looks is shown as well.
        if !quiet { Diagnostics.write(isTerminal ? "" : Self.line(progress)) }
        print("the guest has passed: \(Self.line(progress))")
        for name in progress.leftOut { print("left out: \(name)") }
    }

    /// `precopy  41 MiB  10860 of 81935 pages`.
    private static func line(_ progress: Bridge.Progress) -> String {
        let bytes = MigrationProgressView.size(Double(progress.byteCount))
        return "\(progress.phase)  \(bytes)  \(progress.pageCount) pages for "
            + "\(MigrationProgressView.size(Double(progress.ramByteCount))) of RAM"
    }
}
