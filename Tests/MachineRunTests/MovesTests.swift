import LinuxCalls
import ProcessTestKit
import Testing

/// A short run of what `Benchmarks/run moves` does a hundred times.
@Suite(
    "A guest moves time and again", .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"),
    .enabled(if: Requirement.program("python3", package: "python3").isMet, "no python3"))
struct MovesTests {
    @Test("over each channel and strategy, and through files: no page wrong, no tick lost or repeated")
    func moves() throws {
        let (end, output, errors) = try HostTools.run(
            "python3",
            ["\(Checkout.root)/Benchmarks/moves", "2", "--guests", "heartbeat", "--harts", "4", "--loads", "busy"],
            environment: ["SIDESTEP": Checkout.tool, "SIDESTEP_CACHE": Checkout.cache], seconds: 240)
        #expect(end == .exited(status: 0), "\(output)\(errors)")
        #expect(output.split(separator: "\n").count >= 11)
    }
}
