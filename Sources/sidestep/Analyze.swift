import ArgumentParser
import MigrationStream
import Supervisor

/// `sidestep analyze`: what is in a migration stream.
struct Analyze: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show what is in a saved migration stream, Sidestep's or QEMU's.",
        discussion: """
            Sections, RAM blocks and statistics of pages, and with --fields every field of every device, by the stream's own
            description. With --diff, what two streams have differently; the exit status is then 1 if there is anything.
            """)

    @Argument(help: ArgumentHelp("A migration stream, or - for standard input.", valueName: "file"))
    var stream: String

    @Flag(help: "Show every field of every device.")
    var fields = false

    @Flag(help: "Print JSON.")
    var json = false

    @Option(help: ArgumentHelp("Another stream to compare with.", valueName: "file"))
    var diff: String?

    func run() throws {
        var options = StreamAnalysis.Options()
        options.keepsPageDigests = diff != nil
        let first = try StreamFiles.analyse(path: stream, options: options)
        if let diff {
            let second = try StreamFiles.analyse(path: diff, options: options)
            for (path, result) in [(stream, first), (diff, second)] {
                if let failure = result.failure { throw Refusal("\(path): \(failure)") }
            }
            let lines = StreamDifference.lines(first.report, second.report)
            for line in lines { print(line) }
            if !lines.isEmpty { throw ExitCode(1) }
            return
        }
        if json {
            print(String(decoding: first.report.json(showsFields: fields), as: UTF8.self))
        } else {
            print(first.report.text(showsFields: fields))
        }
        if let failure = first.failure { throw Refusal("\(stream): \(failure)") }
    }
}
