import ProcessTestKit
import Testing

/// The README's session, typed as a new user would into a bare shell: no environment but a path and a home, at a terminal.
@Suite(
    "The README's commands in a bare shell", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
    .enabled(if: Requirement.firmware.isMet, "\(Requirement.firmware)"),
    .enabled(if: Requirement.program("tmux", package: "tmux").isMet, "no tmux: Debian package tmux"))
struct FirstMinutesTests {
    /// Lines of the README behind `$ ` in its blocks.
    private func commands() throws -> [String] {
        try HostTools.need("cat", ["\(Checkout.root)/README.md"]).split(separator: "\n").filter { $0.hasPrefix("$ ") }
            .map { String($0.dropFirst(2)) }
    }

    @Test("they do what it says") func session() throws {
        let home = try TemporaryDirectory()
        try HostTools.need("mkdir", ["-m", "700", home.file("bin"), home.file("run")])
        for (name, target) in [
            ("bin/sidestep", Checkout.tool), ("Image", DebianGuest.image), ("initramfs.cpio.gz", DebianGuest.initramfs),
        ] { try HostTools.need("ln", ["-s", target, home.file(name)]) }
        // Nothing of ours gets in; where guests are kept is this user's, as a login would say.
        let bare = [
            "-i", "PATH=\(home.path)/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=\(home.path)", "TERM=screen",
            "XDG_RUNTIME_DIR=\(home.path)/run", "LC_ALL=C.UTF-8",
        ]
        func shell(_ command: String) throws -> (output: String, errors: String) {
            let result = try HostTools.run("env", bare + ["sh", "-c", "cd '\(home.path)' && \(command)"], seconds: 120)
            #expect(result.end == .exited(status: 0), "\(command): \(result.errors)")
            return (result.output, result.errors)
        }
        let commands = try commands()
        #expect(commands.count >= 2 && commands[0].hasPrefix("sidestep run --name web "))
        let screen = try TerminalScreen(
            ["env"] + bare + ["sh", "-c", "cd \(home.path) && exec \(commands[0])"], environment: [:])
        _ = try screen.wait(for: "INIT UP", seconds: 120)
        _ = try screen.wait(for: "~ #", seconds: 60)
        for command in commands.dropFirst() {
            let output = try shell(command).output
            if command.hasPrefix("sidestep upgrade") {
                for line in ["web runs in process", "  pause ", "  total ", "  copied   0 of ", "  channel  memfd"] {
                    #expect(output.contains(line), "\(output)")
                }
            }
        }
        // The console stays attached.
        try screen.type("echo same $((40 + 2))", "Enter")
        _ = try screen.wait(for: "same 42", seconds: 60)
        #expect(try shell("sidestep list").output.contains("web "))
        #expect(try shell("sidestep upgrade --all").output.contains("web"))
        let process = try shell("cat run/sidestep/web/pid").output
        _ = try shell("kill -USR2 \(process.filter(\.isNumber))")
        for _ in 0..<200 where try shell("cat run/sidestep/web/pid").output == process {
            _ = try HostTools.run("sleep", ["0.05"])
        }
        #expect(try shell("cat run/sidestep/web/pid").output != process)
        #expect(try shell("sidestep help").output.contains("SUBCOMMANDS"))
        try screen.type("echo same $((41 + 2))", "Enter")
        _ = try screen.wait(for: "same 43", seconds: 60)
        try screen.type("C-a", "x")
        _ = try screen.wait(for: "[status 0]", seconds: 60)
        #expect(try shell("sidestep list").output == "")
    }

    @Test("what its links lead to is there") func links() throws {
        let text = try HostTools.need("cat", ["\(Checkout.root)/README.md"])
        let links = text.matches(of: /\]\(([^)#]+)\)/).map { String($0.1) }.filter { !$0.contains("://") }
        #expect(links.count > 5)
        for link in links { #expect(Checkout.exists("\(Checkout.root)/\(link)"), "\(link)") }
    }
}
