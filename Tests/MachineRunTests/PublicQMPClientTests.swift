import LinuxCalls
import ProcessTestKit
import Testing

/// The public Python client (PyPI: qemu.qmp) drives our monitor and QEMU's with one script.
@Suite(
    "The public QMP client", .serialized,
    .enabled(
        if: PublicQMPClient.python != nil,
        "no Python with the package qemu.qmp: python3 -m venv .cache/qmp && .cache/qmp/bin/pip install qemu.qmp"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct PublicQMPClientTests {
    @Test(
        "moves a guest between two of our processes", .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
        arguments: [[], ["return-path"], ["return-path", "x-unix-page-flipping"]])
    func ours(capabilities: [String]) throws {
        let run = try MonitorRun()
        let source = try run.heartbeat(name: "source")
        try source.wait(for: "tick 3 ", seconds: 60)
        let destination = try run.heartbeat(["--incoming", "defer"], name: "destination")
        try ToolRunTests.waitUntilListed("destination", run)
        try PublicQMPClient.move(
            run.directory.path + "/sidestep/source/qmp.sock", run.directory.path + "/sidestep/destination/qmp.sock",
            run.directory, capabilities)
        #expect(try source.waitForEnd(seconds: 30) == .exited(status: 0))
        try destination.wait(for: "tick ", seconds: 30)
        try destination.type("p")
        #expect(try HeartbeatStatistics(destination.wait(for: "stats ", seconds: 30)).bad == 0)
        try destination.type("q")
        _ = try destination.waitForEnd(seconds: 30)
    }

    @Test(
        "its shell drives a guest through stop, cont, a migration by page flip, and quit",
        .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
        .enabled(if: PublicQMPClient.shell != nil, "no qmp-shell beside the Python that has qemu.qmp"))
    func shell() throws {
        let run = try MonitorRun()
        let source = try run.heartbeat(name: "source")
        try source.wait(for: "tick 2 ", seconds: 60)
        let destination = try run.heartbeat(["--incoming", "defer"], name: "destination")
        try ToolRunTests.waitUntilListed("destination", run)
        let uri = "unix:" + run.directory.file("migration.sock")
        let flip = "migrate-set-capabilities capabilities=[{\"capability\":\"x-unix-page-flipping\",\"state\":true}]"
        func type(_ name: String, _ lines: [String]) throws -> String {
            let shell = try RunningProgram(
                try #require(PublicQMPClient.shell), [run.directory.path + "/sidestep/\(name)/qmp.sock"],
                name: "qmp-shell",
                environment: ["HOME": run.directory.path])
            for line in lines {
                try shell.type(line + "\n")
                // The answer to one before the next: what a person does.
                _ = try HostTools.run("sleep", ["0.3"])
            }
            shell.closeInput()
            _ = try shell.waitForEnd(seconds: 60)
            return shell.output.text + shell.errors.text
        }
        let there = try type("destination", ["query-status", flip, "migrate-incoming uri=\(uri)"])
        #expect(there.contains("inmigrate") && !there.contains("error"), "\(there)")
        let here = try type(
            "source",
            [
                "query-version", "stop", "query-status", "cont", "no-such-command", flip, "migrate uri=\(uri)",
                "query-migrate", "query-status",
            ])
        for words in ["Connected to QEMU 10.0", "paused", "CommandNotFound", "postmigrate", "completed"] {
            #expect(here.contains(words), "\(words): \(here)")
        }
        try destination.wait(for: "tick ", seconds: 30)
        _ = try type("source", ["quit"])
        #expect(try source.waitForEnd(seconds: 30) == .exited(status: 0))
        _ = try type("destination", ["quit"])
        #expect(try destination.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test(
        "moves a guest between two of QEMU's, by the same script",
        .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"),
        arguments: [[], ["return-path"]])
    func stock(capabilities: [String]) throws {
        let program = Requirement.qemu10.isMet ? StockQEMUBuild.ten : StockQEMUBuild.installed
        let directory = try TemporaryDirectory()
        func start(_ name: String, _ more: [String]) throws -> RunningProgram {
            try RunningProgram(
                program,
                [
                    "-M", "virt", "-m", "64M", "-display", "none", "-serial", "stdio", "-monitor", "none", "-bios",
                    Heartbeat.elf, "-qmp", "unix:\(directory.file(name)),server=on,wait=off",
                ] + more, name: name)
        }
        let source = try start("source", [])
        try source.wait(for: "tick 3 ", seconds: 60)
        let destination = try start("destination", ["-incoming", "defer"])
        for _ in 0..<600 where !Checkout.exists(directory.file("destination")) {
            _ = try HostTools.run("sleep", ["0.05"])
        }
        try PublicQMPClient.move(
            directory.file("source"), directory.file("destination"), directory, capabilities)
        // Whether the guest ticks on is QEMU's business: 7.2 does not move the machine timer.
        destination.killAll()
    }
}

enum PublicQMPClient {
    /// An interpreter that has the client.
    static let python: String? = [
        Environment.all["SIDESTEP_PYTHON"], "\(Checkout.cache)/qmp/bin/python", HostTools.path(of: "python3"),
    ].compactMap { $0 }.first { python in
        (try? HostTools.run(python, ["-c", "import qemu.qmp"]).end) == .exited(status: 0)
    }

    /// `qmp-shell` beside it.
    static var shell: String? {
        guard let python, let slash = python.lastIndex(of: "/") else { return nil }
        let path = python[...slash] + "qmp-shell"
        return HostTools.allows(1, String(path)) ? String(path) : HostTools.path(of: "qmp-shell")
    }

    static func move(_ source: String, _ destination: String, _ directory: TemporaryDirectory, _ capabilities: [String])
        throws
    {
        let result = try HostTools.run(
            python ?? "python3",
            [
                "\(Checkout.root)/Tests/Tools/qmp-move.py", source, destination,
                "unix:" + directory.file("migration.sock"),
            ] + capabilities, seconds: 60)
        #expect(result.end == .exited(status: 0), "\(result.errors)")
        #expect(result.output.hasPrefix("moved "))
    }
}
