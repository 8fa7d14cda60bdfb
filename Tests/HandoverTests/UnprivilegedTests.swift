import Foundation
import Glibc
import LinuxCalls
import ProcessTestKit
import Testing

/// Guests of an ordinary user: the tool, the guest and the run directory are copies that are the user's own.
private final class UsersRun: Sendable {
    let run: MonitorRun
    let user = OtherUser.first
    let tool: String
    let elf: String

    init() throws {
        run = try MonitorRun()
        tool = run.directory.file("sidestep-tool")
        elf = run.directory.file("heartbeat.elf")
        try FileManager.default.copyItem(atPath: Checkout.tool, toPath: tool)
        try FileManager.default.copyItem(atPath: Heartbeat.elf, toPath: elf)
        try user.own(run.directory.path)
    }

    func start(_ more: [String], name: String = "guest", environment: [String: String] = [:]) throws -> RunningProgram {
        let command = user.command(
            tool, ["run", "--name", name, "--firmware", elf, "--memory", "64M"] + more)
        return try RunningProgram(
            command.program, command.arguments, name: name,
            environment: run.environment.merging(["HOME": run.directory.path]) { $1 }.merging(environment) { $1 },
            limitSeconds: 300)
    }

    func command(_ arguments: [String]) throws -> (end: ProcessEnd, output: String, errors: String) {
        let command = user.command(tool, arguments)
        return try HostTools.run(command.program, command.arguments, environment: run.environment, seconds: 60)
    }

    func upgrade(_ more: [String] = []) throws -> Report {
        let result = try command(["upgrade", "guest", "--format", "json"] + more)
        try #require(result.end == .exited(status: 0), "\(result.errors)")
        return try JSONDecoder().decode(Report.self, from: Data(result.output.utf8))
    }

    var process: Int32 {
        get throws {
            let text = try String(contentsOfFile: run.directory.path + "/sidestep/guest/pid", encoding: .utf8)
            return try #require(Int32(text.trimmingCharacters(in: .whitespacesAndNewlines)))
        }
    }
}

@Suite(
    "Not root", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"),
    .enabled(if: OtherUser.requirement.isMet, "\(OtherUser.requirement)"))
struct UnprivilegedTests {
    @Test("a guest of a user without capabilities moves by every channel, with its disk's lock, console and monitor")
    func channels() throws {
        let users = try UsersRun()
        let image = users.run.directory.file("disk.img")
        #expect(FileManager.default.createFile(atPath: image, contents: Data(count: 1 << 20)))
        try users.user.own(image)
        let guest = try users.start(["--console", "stdio", "--cpus", "2", "--disk", "path=\(image)"])
        try guest.wait(for: "tick 1 ", seconds: 60)
        let status = try String(contentsOfFile: "/proc/\(users.process)/status", encoding: .utf8)
        #expect(status.contains("CapEff:\t0000000000000000") || geteuid() != 0, "it has capabilities")
        for arguments in [[], ["--channel", "memfd"]] + Sending.all.map(\.arguments) {
            let report = try users.upgrade(arguments)
            if let channel = arguments.dropFirst().first { #expect(report.channel == channel) }
            let other = try OwnedDescriptor.open(image, flags: O_RDWR)
            #expect(try FileLock.take(.shared, on: other) == false, "the image is not locked")
            try guest.wait(for: "tick ", seconds: 30)
        }
        #expect(try users.command(["upgrade", "--all"]).end == .exited(status: 0))
        kill(try users.process, SIGUSR2)
        try guest.endWhole()
    }

    @Test("threads that cannot be made, at the source and at the successor, leave the guest unharmed")
    func threads() throws {
        let users = try UsersRun()
        let guest = try users.start(["--console", "stdio", "--cpus", "2"])
        try guest.wait(for: "tick 1 ", seconds: 60)
        // The source cannot even start a program.
        func limitThreads(_ count: String) throws {
            let command = users.user.command(
                HostTools.path(of: "prlimit") ?? "prlimit", ["--pid", "\(try users.process)", "--nproc=\(count):"])
            try HostTools.need(command.program, command.arguments)
        }
        try limitThreads("1")
        let none = try users.command(["upgrade", "guest"])
        #expect(none.end == .exited(status: 80) && none.errors.contains("unavailable"), "\(none)")
        #expect(none.errors.contains("unharmed"))
        let hard = try HostTools.need("bash", ["-c", "ulimit -Hu"]).trimmingCharacters(in: .whitespacesAndNewlines)
        try limitThreads(hard)
        // The successor gets so many threads and no more; each number fails at another of them, until there are enough.
        let existing = try HostTools.need("sh", ["-c", "ls /proc/\(users.process)/task | wc -l"])
        let count = try #require(Int(existing.trimmingCharacters(in: .whitespacesAndNewlines)))
        var refusals = 0
        for more in 1...40 {
            let script = users.run.directory.file("limited")
            try users.run.directory.write(
                Array("#!/bin/bash\nulimit -Su \(count + more)\nexec \(users.tool) \"$@\"\n".utf8), to: "limited")
            chmod(script, 0o755)
            let result = try users.command(["upgrade", "guest", "--binary", script])
            guest.output.skipToEnd()
            try guest.wait(for: "tick ", seconds: 30)
            if result.end == .exited(status: 0) { break }
            #expect(result.end == .exited(status: 80) && result.errors.contains("unharmed"), "\(more): \(result)")
            refusals += 1
        }
        #expect((2..<40).contains(refusals), "\(refusals) refusals")
        try limitThreads(hard)
        _ = try users.upgrade(["--binary", users.tool])
        try guest.endWhole()
    }

    /// One that any user may run.
    private static let python = "/usr/bin/python3"

    /// Tries everything it knows to get at a process of another user, until the file that its second argument names is there.
    /// Prints what it got.
    private static let attack = #"""
        import ctypes, os, socket, sys, array, time
        run, mark = sys.argv[1], sys.argv[2]
        libc = ctypes.CDLL(None, use_errno=True)
        tries = got = 0
        def attempt(what, body):
            global tries, got
            tries += 1
            try:
                if body() is not False:
                    got += 1
                    print("GOT", what, flush=True)
            except (OSError, ValueError):
                pass
        def connect(path):
            s = socket.socket(socket.AF_UNIX); s.connect(path)
            s.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]).tobytes())])
        def steal(pid, number):
            pidfd = libc.syscall(434, pid, 0)
            if pidfd < 0: return False
            r = libc.syscall(438, pidfd, number, 0)
            os.close(pidfd)
            return r >= 0
        def read_memory(pid):
            local = ctypes.create_string_buffer(8)
            class V(ctypes.Structure): _fields_ = [("b", ctypes.c_void_p), ("l", ctypes.c_size_t)]
            return libc.process_vm_readv(pid, ctypes.byref(V(ctypes.addressof(local), 8)), 1, ctypes.byref(V(0x400000, 8)), 1, 0) > 0
        end = time.time() + 50
        while time.time() < end and not (tries and os.path.exists(mark)):
            for name in ("qmp.sock", "console.sock", "console"):
                attempt("connect " + name, lambda: connect(run + "/sidestep/guest/" + name))
            attempt("list", lambda: os.listdir(run + "/sidestep/guest"))
            attempt("console", lambda: connect(run + "/open/console"))
            for entry in os.listdir("/proc"):
                if not entry.isdigit(): continue
                try:
                    if os.stat("/proc/" + entry).st_uid != int(sys.argv[3]): continue
                except OSError: continue
                pid = int(entry)
                attempt("mem", lambda: open("/proc/%d/mem" % pid, "rb"))
                attempt("maps", lambda: open("/proc/%d/maps" % pid).read(10) != "")
                attempt("vm", lambda: read_memory(pid))
                attempt("fds", lambda: os.listdir("/proc/%d/fd" % pid))
                for number in range(3, 24):
                    attempt("fd", lambda: os.open("/proc/%d/fd/%d" % (pid, number), os.O_RDONLY))
                    attempt("pidfd_getfd", lambda: steal(pid, number))
                attempt("signal", lambda: os.kill(pid, 0))
        print("tries", tries, "got", got, flush=True)
        """#

    @Test(
        "another user cannot connect, put in a descriptor, or read the guest's memory, also while it moves",
        .enabled(if: OtherUser.isRoot.isMet, "\(OtherUser.isRoot)"),
        .enabled(if: Checkout.exists(python), "no \(python): Debian package python3"))
    func otherUser() throws {
        let users = try UsersRun()
        // The sockets themselves, not only the directory above them, keep others out.
        let open = users.run.directory.file("open")
        try FileManager.default.createDirectory(
            atPath: open, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o777])
        chmod(open, 0o777)
        chmod(users.run.directory.path, 0o711)
        try users.user.own(open)
        let guest = try users.start(["--console", "unix:\(open)/console"])
        try waitForSocket("\(open)/console")
        let command = OtherUser.second.command(
            Self.python,
            ["-c", Self.attack, users.run.directory.path, users.run.directory.file("mark"), "\(users.user.identifier)"])
        let attacker = try RunningProgram(command.program, command.arguments, name: "attacker", limitSeconds: 60)
        var moves = 0
        let begin = Date()
        while attacker.process.wait(timeoutMilliseconds: 0) == nil {
            _ = try users.upgrade(moves % 2 == 0 ? [] : Sending.flip.arguments)
            moves += 1
            if moves > 4 && Date().timeIntervalSince(begin) > 3 { break }
        }
        try users.run.directory.write([], to: "mark")
        chmod(users.run.directory.file("mark"), 0o644)
        try attacker.waitForEnd(seconds: 60)
        let output = attacker.output.text + attacker.errors.text
        try #require(output.contains("tries"), "\(output)")
        let verdict = output.split(separator: "\n").last { $0.hasPrefix("tries") } ?? ""
        #expect(verdict.hasSuffix("got 0"), "\(attacker.output.text)")
        #expect(moves > 3, "the guest moved meanwhile")
        // The same attacks under the user's own name succeed: they are worth something.
        let own = users.user.command(
            Self.python,
            ["-c", Self.attack, users.run.directory.path, users.run.directory.file("mark"), "\(users.user.identifier)"])
        let friend = try HostTools.run(own.program, own.arguments, seconds: 60)
        for word in ["connect qmp.sock", "console", "mem", "fd", "pidfd_getfd", "list"] {
            #expect(friend.output.contains("GOT \(word)"), "\(word): \(friend.errors)")
        }
        #expect(try users.command(["stop", "guest"]).end == .exited(status: 0))
        try guest.waitForEnd(seconds: 30)
    }
}
