import ProcessTestKit
import Testing

/// QEMU's own program.
private let analysisOfQEMU = "\(Checkout.cache)/qemu-analysis/analyze-migration.py"

/// QEMU's own analysis of its streams, from Debian's source package (Guests/qemu/fetch-analysis), beside `sidestep analyze`.
@Suite(
    "sidestep analyze beside QEMU's analyze-migration.py", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(
        if: Checkout.exists(analysisOfQEMU),
        "no analyze-migration.py of QEMU: Guests/qemu/fetch-analysis, which needs a Debian mirror with sources"))
struct AnalysisAgreementTests {
    private func compare(_ stream: String) throws -> Int {
        let result = try HostTools.run(
            "python3", ["\(Checkout.root)/Tests/Tools/compare-analysis.py", analysisOfQEMU, Checkout.tool, stream])
        #expect(result.end == .exited(status: 0), "\(result.errors)")
        return Int(result.output.prefix { $0.isNumber }) ?? 0
    }

    /// Captures that the script can read: it knows no XBZRLE, no mapped-ram and no commands in the stream.
    static let captures = [
        "booted-legacy-7.2", "booted-legacy-10.0", "booted-modern-7.2", "booted-modern-10.0", "booted-plain-7.2",
        "booted-plain-10.0", "virt-7.2", "virt-10.0", "virt-devices-7.2", "virt-devices-10.0", "virt-2-harts-7.2",
        "virt-plain-7.2", "virt-plain-10.0", "virt-acpi-10.0",
    ]

    @Test("every field of every section of QEMU's captured streams has the same value", arguments: captures)
    func captured(name: String) throws {
        let directory = try TemporaryDirectory()
        let stream = directory.file("stream")
        try HostTools.need(
            "sh", ["-c", "gzip -dc '\(Checkout.root)/Tests/MigrationStreamTests/Corpus/\(name).gz' > '\(stream)'"])
        #expect(try compare(stream) > 500)
    }

    @Test(
        "a stream of ours too", .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"),
        arguments: [[], ["--compat", "qemu-7.2"], ["--compat", "qemu-10.0"]])
    func ours(flags: [String]) throws {
        let run = try MonitorRun()
        let guest = try run.heartbeat(flags, name: "saved")
        try guest.wait(for: "tick 2 ", seconds: 60)
        let stream = run.directory.file("stream")
        #expect(try run.command(["save", "saved", stream]).end == .exited(status: 0))
        #expect(try compare(stream) > 500)
        // And by way of standard input: the same report.
        let text = try run.command(["analyze", stream, "--fields"]).output
        let piped = try HostTools.run("sh", ["-c", "'\(Checkout.tool)' analyze --fields - < '\(stream)'"])
        #expect(piped.output == text && text.contains("serial"))
    }
}
