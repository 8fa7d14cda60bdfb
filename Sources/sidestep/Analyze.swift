import ArgumentParser
import MigrationStream
import QMPProtocol
import Supervisor

/// `sidestep analyze`: what is in a migration stream.
struct Analyze: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "analyze", abstract: "Show what is in a saved migration stream, Sidestep's or QEMU's.",
        discussion: """
            Sections, RAM blocks and statistics of pages, and with --fields every field of every device, by the stream's own
            description. Plain streams and mapped-ram files are read alike; memory does not grow with them. With --diff, what two
            streams have differently, pages too; the exit status is then 1 if there is anything. Pages that a postcopy or a pipe
            carried are not in the stream and cannot be compared.
            """)

    @Argument(
        help: ArgumentHelp("A migration stream, or - for standard input; two with --diff.", valueName: "file"),
        completion: .file())
    var streams: [String]

    @Flag(help: "Show every field of every device.")
    var fields = false

    @Option(
        help: ArgumentHelp(
            "Show this section alone, with its fields; ram is the RAM blocks. Repeatable.", valueName: "name"))
    var section: [String] = []

    @Flag(help: "Compare two streams.")
    var diff = false

    @OptionGroup var output: FormatOption

    func validate() throws {
        guard streams.count == (diff ? 2 : 1) else {
            throw ValidationError(diff ? "--diff takes two streams" : "one stream at a time, or --diff and two")
        }
        guard streams.count(where: { $0 == "-" }) < 2 else {
            throw ValidationError("standard input can be read once")
        }
    }

    func run() throws {
        if diff { return try compare() }
        let (report, failure) = try analyse(streams[0], StreamAnalysis.Options())
        switch output.format {
        case .json:
            print(String(decoding: report.json(showsFields: fields || !section.isEmpty), as: UTF8.self))
        case .text: print(report.text(showsFields: fields || !section.isEmpty))
        }
        if let failure { throw Refusal("\(streams[0]): \(failure)") }
    }

    private func compare() throws {
        var options = StreamAnalysis.Options()
        options.keepsPageDigests = true
        var reports: [StreamReport] = []
        for path in streams {
            let (report, failure) = try analyse(path, options)
            if let failure { throw Refusal("\(path): \(failure)") }
            reports.append(report)
        }
        let lines = StreamDifference.lines(reports[0], reports[1])
        output.show(["differences": .array(lines.map { .string($0) })]) { _ in lines.joined(separator: "\n") }
        if !lines.isEmpty { throw ExitCode(1) }
    }

    /// A stream's report, of the wanted sections.
    private func analyse(_ path: String, _ options: StreamAnalysis.Options) throws(Refusal) -> (
        report: StreamReport, failure: StreamError?
    ) {
        let result = try StreamFiles.analyse(path: path, options: options)
        guard !section.isEmpty else { return (result.report, result.failure) }
        let report = result.report.only(sections: section)
        // One stream of two may lack it; that is a difference.
        for name in section where !diff && result.failure == nil {
            guard !result.report.only(sections: [name]).sectionNames.isEmpty else {
                throw Refusal(
                    .usage,
                    "\(path): no section '\(name)'; there are: \(result.report.sectionNames.joined(separator: ", "))")
            }
        }
        return (report, result.failure)
    }
}
