import LinuxCalls
import ProcessTestKit
import Testing

/// One thing a user can get wrong: what is asked for, the status, and what the message must name.
struct BadInput: CustomTestStringConvertible, Sendable {
    let what: String
    let arguments: [String]
    let status: Int32
    let named: String

    var testDescription: String { what }

    init(_ what: String, _ arguments: [String], _ status: Int32, names named: String) {
        self.what = what
        self.arguments = arguments
        self.status = status
        self.named = named
    }
}

@Suite(
    "What a user can get wrong", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct BadInputTests {
    static let usage: Int32 = 64
    static let refused: Int32 = 65
    static let heartbeat = ["--firmware", Heartbeat.elf]

    static let inputs: [BadInput] = [
        BadInput("nothing to run", [], usage, names: "--kernel"),
        BadInput("a machine that does not exist", heartbeat + ["--machine", "toaster"], usage, names: "toaster"),
        BadInput("a size that is none", heartbeat + ["--memory", "12Q"], usage, names: "12Q"),
        BadInput("no memory at all", heartbeat + ["--memory", "0"], usage, names: "--memory"),
        BadInput("too many harts", heartbeat + ["--cpus", "9"], usage, names: "--cpus"),
        BadInput("no harts", heartbeat + ["--cpus", "0"], usage, names: "--cpus"),
        BadInput("a number that is none", heartbeat + ["--cpus", "many"], usage, names: "many"),
        BadInput("an unknown flag", heartbeat + ["--frobnicate"], usage, names: "--frobnicate"),
        BadInput("an unknown register layout", heartbeat + ["--virtio", "ancient"], usage, names: "ancient"),
        BadInput("an unknown key of a disk", heartbeat + ["--disk", "file=x"], usage, names: "file"),
        BadInput("an unknown kind of network", heartbeat + ["--net", "user=1"], usage, names: "user"),
        BadInput("a name that leaves the run directory", heartbeat + ["--name", "../x"], usage, names: "../x"),
        BadInput(
            "an instruction set that does not exist", heartbeat + ["--isa", "rv64xyz"], usage, names: "rv64xyz"),
        BadInput(
            "firmware that is not there", ["--firmware", "/nonexistent/firmware"], refused,
            names: "/nonexistent/firmware"),
        BadInput("firmware for another processor", ["--firmware", "/bin/true"], refused, names: "/bin/true"),
        BadInput("a directory as firmware", ["--firmware", "/"], refused, names: "/"),
        BadInput(
            "a disk that is not there", heartbeat + ["--disk", "path=/nonexistent/disk"], refused,
            names: "/nonexistent/disk"),
        BadInput("a directory as disk", heartbeat + ["--disk", "path=/usr"], refused, names: "/usr"),
        BadInput("a tap that is not there", heartbeat + ["--net", "tap=nosuchtap0"], refused, names: "nosuchtap0"),
        BadInput(
            "a socket that is not there", heartbeat + ["--net", "socket=/nonexistent/passt"], refused,
            names: "/nonexistent/passt"),
    ]

    @Test("is refused with one line that names it, and a stable status", arguments: inputs)
    func refused(input: BadInput) throws {
        let run = try MonitorRun()
        let (end, output, errors) = try run.command(["run"] + input.arguments)
        #expect(end == .exited(status: input.status), "\(errors)")
        let lines = errors.split(separator: "\n")
        // The parser of arguments adds how the command is used.
        #expect(lines.count == 1 || lines.contains { $0.hasPrefix("Usage:") }, "\(errors)")
        #expect(lines.first?.contains(input.named) == true, "\(errors)")
        #expect(output.isEmpty)
    }

    @Test(
        "a kernel that is not there, cut, no RISC-V image, or given too little memory is refused before it runs",
        .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
        .enabled(if: Requirement.firmware.isMet, "\(Requirement.firmware)"))
    func kernels() throws {
        let run = try MonitorRun()
        let short = run.directory.file("short")
        let header = run.directory.file("header")
        try HostTools.need(
            "sh", ["-ec", "head -c 1000000 \(DebianGuest.image) >\(short); head -c 40 \(short) >\(header)"])
        for (arguments, named) in [
            (["--kernel", "/nonexistent/Image"], "/nonexistent/Image"),
            (["--kernel", header], header), (["--kernel", short], short), (["--kernel", "/bin/true"], "/bin/true"),
            (["--kernel", DebianGuest.image, "--memory", "64M"], "96 MiB"),
            (["--kernel", DebianGuest.image, "--initrd", "/nonexistent/initrd"], "/nonexistent/initrd"),
        ] {
            let (end, _, errors) = try run.command(["run"] + arguments)
            #expect(end == .exited(status: Self.refused), "\(errors)")
            #expect(errors.split(separator: "\n").count == 1 && errors.contains(named), "\(errors)")
        }
    }

    @Test("a disk in use by another guest is refused, and both the guest and the disk are unharmed")
    func diskInUse() throws {
        let run = try MonitorRun()
        let disk = run.directory.file("disk.img")
        try HostTools.need("truncate", ["-s", "1M", disk])
        let first = try run.heartbeat(["--disk", "path=\(disk)"], name: "first")
        try first.wait(for: "tick 1 ", seconds: 30)
        let (end, _, errors) = try run.command(["run", "--name", "second", "--disk", "path=\(disk)"] + Self.heartbeat)
        #expect(end == .exited(status: Self.refused), "\(errors)")
        #expect(errors.split(separator: "\n").count == 1 && errors.contains(disk), "\(errors)")
        first.output.skipToEnd()
        try first.wait(for: "tick ", seconds: 30)
        try first.type("q")
        #expect(try first.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test("two guests cannot have one name")
    func nameInUse() throws {
        let run = try MonitorRun()
        let first = try run.heartbeat(name: "web")
        try first.wait(for: "tick 1 ", seconds: 30)
        let (end, _, errors) = try run.command(["run", "--name", "web"] + Self.heartbeat)
        #expect(end == .exited(status: Self.refused), "\(errors)")
        #expect(errors.split(separator: "\n").count == 1 && errors.contains("web"), "\(errors)")
        try first.type("q")
        #expect(try first.waitForEnd(seconds: 30) == .exited(status: 0))
    }

    @Test("a console that nobody reads any more does not stop the guest")
    func brokenPipe() throws {
        let run = try MonitorRun()
        // The first reader leaves after one line; the guest has 3 s to power off by itself after that.
        let script = """
            (sleep 3; printf q; sleep 5) | "\(Checkout.tool)" run --name pipe --firmware "\(Heartbeat.elf)" --memory 64M |
                head -n 1
            echo "${PIPESTATUS[1]}"
            """
        let (end, output, _) = try HostTools.run("bash", ["-c", script], environment: run.environment, seconds: 60)
        #expect(end == .exited(status: 0))
        #expect(output.hasPrefix("heartbeat ") && output.split(whereSeparator: \.isNewline).last == "0", "\(output)")
    }

    @Test(
        "on a full host disk the guest sees an I/O error and goes on",
        .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
        .enabled(if: Requirement.firmware.isMet, "\(Requirement.firmware)"),
        .enabled(if: Requirement.taps.isMet, "a file system of a fixed size needs root"))
    func fullHostDisk() throws {
        let run = try MonitorRun()
        let place = run.directory.file("small")
        try HostTools.need("sh", ["-ec", "mkdir \(place); mount -t tmpfs -o size=4m tmpfs \(place)"])
        defer { _ = try? HostTools.run("umount", ["-l", place]) }
        try HostTools.need("truncate", ["-s", "64M", "\(place)/disk.img"])
        let guest = try run.debian(words: "quiet notick", ["--disk", "path=\(place)/disk.img"])
        try guest.wait(for: "~ # ", seconds: 120, partial: true)
        try guest.type("dd if=/dev/urandom of=/dev/vda bs=64k count=160 && sync || echo failed $((1 + 1))\n")
        try guest.output.wait(seconds: 60, what: "an I/O error") { line in
            line.contains("failed 2") || line.contains("I/O error") ? () : nil
        }
        try guest.type("echo alive $((2 + 1))\n")
        try guest.wait(for: "alive 3", seconds: 30)
        try guest.type("poweroff -f\n")
        #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0))
    }
}
