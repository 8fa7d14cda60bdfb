import LinuxCalls
import ProcessTestKit

/// A stock QEMU with Debian's kernel or waiting for a guest: default processor, console on its standard input and output,
/// a disk on a raw image, entropy.
final class StockMachine {
    let program: RunningProgram
    private let monitor: String
    private let run: MonitorRun

    /// - Parameters:
    ///   - incoming: Where the guest comes from; nil boots Debian's kernel.
    ///   - descriptors: For `fd:`.
    ///   - sharesMemory: All of its memory lies in memory files (mode cpr-transfer).
    ///   - sharedFile: Its RAM is this file, by its name (capability x-ignore-shared).
    ///   - cpr: With `incoming`: a path where those files come first.
    init(
        _ kind: StockKind, in run: MonitorRun, disk: String, name: String, incoming: String? = nil,
        words: String = "notick", descriptors: [CInt: OwnedDescriptor] = [:], sharesMemory: Bool = false,
        sharedFile: String? = nil, cpr: String? = nil
    ) throws {
        self.run = run
        monitor = run.directory.file("\(name).qmp")
        let backend = sharesMemory || sharedFile != nil ? ",memory-backend=riscv_virt_board.ram" : ""
        var arguments = [
            "-M", "virt" + backend + (sharesMemory ? ",aux-ram-share=on" : ""), "-m", "256M",
            "-smp", "\(kind.harts)", "-accel", "tcg", "-nic", "none", "-display", "none",
            "-serial", "stdio", "-monitor", "none", "-global", "virtio-mmio.force-legacy=\(kind.isLegacy)", "-drive",
            "if=none,id=d,format=raw,file=\(disk)", "-device", "virtio-blk-device,drive=d", "-device",
            "virtio-rng-device", "-qmp", "unix:\(monitor),server=on,wait=off",
        ]
        if sharesMemory {
            arguments += ["-object", "memory-backend-memfd,id=riscv_virt_board.ram,size=256M,share=on"]
        }
        if let sharedFile {
            arguments += [
                "-object",
                "memory-backend-file,id=riscv_virt_board.ram,size=256M,share=on,mem-path=\(sharedFile)",
            ]
        }
        if let cpr {
            arguments += ["-incoming", #"{"channel-type": "cpr", "addr": \#(Self.address(cpr))}"#]
        }
        if let incoming {
            arguments += ["-incoming", incoming]
        } else {
            arguments += [
                "-kernel", DebianGuest.image, "-initrd", DebianGuest.initramfsWithDisk, "-append",
                "\(DebianGuest.words) quiet \(words)",
            ]
        }
        program = try RunningProgram(kind.program, arguments, name: name, descriptors: descriptors, limitSeconds: 300)
        // One that waits for its memory opens its monitor afterwards.
        if cpr == nil { try awaitMonitor() }
    }

    func awaitMonitor() throws {
        try HostTools.need("sh", ["-c", "until [ -S \(monitor) ]; do sleep 0.02; done"], seconds: 30)
    }

    private static func address(_ path: String) -> String {
        #"{"transport": "socket", "type": "unix", "path": "\#(path)"}"#
    }

    /// QMP commands, one connection; answers what each returned.
    @discardableResult
    func command(_ commands: String...) throws -> String { try command(arguments: commands) }

    @discardableResult
    func command(arguments commands: [String]) throws -> String {
        let script = """
            import json, socket, sys
            s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); f = s.makefile('rw'); f.readline()
            for c in ['{"execute": "qmp_capabilities"}'] + sys.argv[2:]:
                f.write(c + '\\n'); f.flush()
                while True:
                    a = json.loads(f.readline())
                    if 'return' in a or 'error' in a: break
                print(json.dumps(a))
            """
        return try HostTools.need("python3", ["-c", script, monitor] + commands, seconds: 60)
    }

    /// Sends the guest away, with a return path when the channel has one, and waits until QEMU says what became of it.
    func migrate(to uri: String, returnPath: Bool) throws -> String {
        let switchOn = #"{"capability": "return-path", "state": \#(returnPath)}"#
        try command(
            #"{"execute": "migrate-set-capabilities", "arguments": {"capabilities": [\#(switchOn)]}}"#,
            #"{"execute": "migrate-set-parameters", "arguments": {"max-bandwidth": 10000000000}}"#,
            #"{"execute": "migrate", "arguments": {"uri": "\#(uri)"}}"#)
        return try awaitVerdict()
    }

    /// The same by descriptor.
    func migrate(main: String, cpr: String, returnPath: Bool = true) throws -> String {
        let switchOn = #"{"capability": "return-path", "state": \#(returnPath)}"#
        let channels = [("main", main), ("cpr", cpr)].map {
            #"{"channel-type": "\#($0)", "addr": \#(Self.address($1))}"#
        }
        try command(
            #"{"execute": "migrate-set-capabilities", "arguments": {"capabilities": [\#(switchOn)]}}"#,
            #"{"execute": "migrate-set-parameters", "arguments": {"mode": "cpr-transfer"}}"#,
            #"{"execute": "migrate", "arguments": {"channels": [\#(channels.joined(separator: ", "))]}}"#)
        return try awaitVerdict()
    }

    /// The same with RAM that both ends have.
    func migrateState(to uri: String) throws -> String {
        try ignoreShared()
        try command(#"{"execute": "migrate", "arguments": {"uri": "\#(uri)"}}"#)
        return try awaitVerdict()
    }

    func ignoreShared() throws {
        try command(
            #"{"execute": "migrate-set-capabilities", "arguments": {"capabilities": ["#
                + #"{"capability": "x-ignore-shared", "state": true}, {"capability": "return-path", "state": true}]}}"#)
    }

    private func awaitVerdict() throws -> String {
        let deadline = ContinuousClock.now + .seconds(60)
        var answer = ""
        while ContinuousClock.now < deadline {
            answer = try command(#"{"execute": "query-migrate"}"#, #"{"execute": "query-status"}"#)
            // It says that it failed an instant before it lets the guest run on.
            let isOver = answer.contains("\"completed\"") || answer.contains("\"failed\"")
            if isOver, !answer.contains("\"finish-migrate\"") { return answer }
        }
        return "it does not end: \(answer)"
    }

    func quit() throws {
        _ = try? command(#"{"execute": "quit"}"#)
        try program.waitForEnd(seconds: 30)
    }
}
