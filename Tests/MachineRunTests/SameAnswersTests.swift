import LinuxCalls
import ProcessTestKit
import Testing

/// A QEMU 10.0 and a process of ours that run the same guest, with a QMP socket each.
struct MonitorPair {
    let run: MonitorRun
    let stock: RunningProgram
    let ours: RunningProgram
    var stockSocket: String { run.directory.file("stock") }
    var oursSocket: String { run.directory.file("ours") }

    init() throws {
        run = try MonitorRun()
        stock = try RunningProgram(
            StockQEMUBuild.ten,
            [
                "-M", "virt", "-m", "64M", "-display", "none", "-serial", "stdio", "-monitor", "none", "-bios",
                Heartbeat.elf, "-name", "guest", "-qmp", "unix:\(run.directory.file("stock")),server=on,wait=off",
            ], name: "stock")
        ours = try run.heartbeat(["--qmp", "unix:\(run.directory.file("ours")),server=on,wait=off"])
        try stock.wait(for: "tick 1 ", seconds: 60)
        try ours.wait(for: "tick 1 ", seconds: 60)
    }

    func compare(by script: String) throws -> String {
        let result = try HostTools.run(
            "python3", ["\(Checkout.root)/Tests/Tools/\(script)", stockSocket, oursSocket], seconds: 120)
        #expect(result.end == .exited(status: 0), "\(result.output)\(result.errors)")
        return result.output
    }
}

@Suite(
    "QMP beside QEMU 10.0", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"),
    .enabled(if: Requirement.qemu10.isMet, "\(Requirement.qemu10)"))
struct SameAnswersTests {
    @Test("the same questions and the same mistakes get the same answers") func answers() throws {
        let pair = try MonitorPair()
        #expect(try pair.compare(by: "qmp-answers.py").contains("answers agree"))
        try pair.ours.wait(for: "tick ", seconds: 30)
        #expect(try pair.run.command(["stop", "guest"]).end == .exited(status: 0))
    }

    @Test("the schema of what is there is QEMU's") func schema() throws {
        #expect(try MonitorPair().compare(by: "qmp-schema.py").contains(" 0 do not"))
    }
}
