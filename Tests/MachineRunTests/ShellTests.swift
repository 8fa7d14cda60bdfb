import LinuxCalls
import ProcessTestKit
import Testing

/// What a shell's user gets beside the tool: completion, man pages, a service.
@Suite(
    "Around the tool", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"))
struct ShellTests {
    /// A directory with the tool as `sidestep` in it, and the completion script for a shell.
    private func prepare(_ shell: String) throws -> (run: MonitorRun, script: String, environment: [String: String]) {
        let run = try MonitorRun()
        try HostTools.need("mkdir", [run.directory.file("bin")])
        try HostTools.need("ln", ["-s", Checkout.tool, run.directory.file("bin/sidestep")])
        let script = try run.command(["completion", shell])
        #expect(script.end == .exited(status: 0))
        let path = try run.directory.write(Array(script.output.utf8), to: "completion.\(shell)")
        var environment = run.environment
        environment["PATH"] = run.directory.path + "/bin:" + HostTools.searchPath
        environment["HOME"] = run.directory.path
        return (run, path, environment)
    }

    @Test(
        "bash completes subcommands, flags, values and the names of guests",
        .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
    func bash() throws {
        let (run, script, environment) = try prepare("bash")
        let guest = try run.heartbeat(name: "complete-me")
        try guest.wait(for: "tick 1 ", seconds: 60)
        func complete(_ line: String) throws -> [Substring] {
            let words = line.split(separator: " ", omittingEmptySubsequences: false)
            // bash expects the function to be called with the command, the word and the word before it.
            let program = """
                . \(script)
                f=$(complete -p sidestep | sed 's/.*-F \\([^ ]*\\).*/\\1/')
                COMP_WORDS=(\(words.map { "'\($0)'" }.joined(separator: " "))) COMP_CWORD=\(words.count - 1)
                COMP_LINE='\(line)' COMP_POINT=\(line.count)
                $f sidestep '\(words.last ?? "")' '\(words.dropLast().last ?? "")'
                printf '%s\\n' "${COMPREPLY[@]}"
                """
            return try HostTools.run("bash", ["--norc", "-c", program], environment: environment).output
                .split(separator: "\n").map { $0.drop { $0 == " " } }
        }
        #expect(try complete("sidestep up").contains { $0.hasPrefix("upgrade") })
        #expect(try complete("sidestep run --mem").contains { $0.hasPrefix("--memory") })
        #expect(try complete("sidestep completion ").contains { $0.hasPrefix("fish") })
        #expect(try complete("sidestep pause comp").contains { $0.hasPrefix("complete-me") })
        _ = try run.command(["stop", "complete-me"])
    }

    @Test(
        "fish completes subcommands, flags and values",
        .enabled(if: Requirement.program("fish", package: "fish").isMet, "no fish: Debian package fish"))
    func fish() throws {
        let (run, script, environment) = try prepare("fish")
        defer { withExtendedLifetime(run) {} }
        // Names of guests are asked for by way of fish's command line, which there is at a prompt only.
        func complete(_ line: String) throws -> String {
            let result = try HostTools.run(
                "fish", ["--no-config", "-c", "source \(script); complete --do-complete '\(line)'"],
                environment: environment)
            #expect(result.end == .exited(status: 0))
            return result.output
        }
        #expect(try complete("sidestep up").contains("upgrade"))
        #expect(try complete("sidestep run --mem").contains("--memory"))
        #expect(try complete("sidestep completion ").contains("zsh"))
    }

    @Test(
        "zsh loads the script and completes a subcommand at its prompt",
        .enabled(if: Requirement.program("zsh", package: "zsh").isMet, "no zsh: Debian package zsh"))
    func zsh() throws {
        let (run, script, environment) = try prepare("zsh")
        try HostTools.need("mkdir", [run.directory.file("functions")])
        try HostTools.need("cp", [script, run.directory.file("functions/_sidestep")])
        // A zsh at a terminal of its own, which another zsh types into.
        let program = """
            zmodload zsh/zpty
            zpty shell zsh -f -i
            zpty -w shell 'PS1=; fpath=(\(run.directory.file("functions")) $fpath); autoload -U compinit; compinit -u -D; print R\\EADY'
            until zpty -r shell line && [[ $line == *READY* ]]; do :; done
            zpty -n -w shell $'sidestep upgr\\t'
            sleep 1
            zpty -n -w shell $'\\C-a: \\C-e; print D\\ONE\\n'
            while zpty -r shell line; do print -r -- "$line"; [[ $line == *DONE* ]] && break; done
            """
        let result = try HostTools.run("zsh", ["-f", "-c", program], environment: environment, seconds: 60)
        #expect(result.output.contains("upgrade"), "\(result.output)\(result.errors)")
    }

    @Test(
        "the man pages are there for every subcommand, and mandoc finds nothing to complain about",
        .enabled(if: Requirement.program("mandoc", package: "mandoc").isMet, "no mandoc: Debian package mandoc"))
    func manual() throws {
        let run = try MonitorRun()
        let directory = run.directory.file("man1")
        let made = try run.command(["manual", directory])
        #expect(made.end == .exited(status: 0), "\(made.errors)")
        let pages = made.output.split(separator: "\n").map(String.init)
        for subcommand in HelpText.subcommands {
            let page = (["sidestep"] + subcommand.split(separator: " ").map(String.init)).joined(separator: "-") + ".1"
            #expect(pages.contains(page), "\(page)")
        }
        for page in pages {
            let lint = try HostTools.run("mandoc", ["-T", "lint", "-W", "warning", "\(directory)/\(page)"])
            #expect(lint.end == .exited(status: 0), "\(lint.output)\(lint.errors)")
        }
        let text = try HostTools.need("sh", ["-c", "mandoc -T utf8 '\(directory)/sidestep-run.1' | col -b"])
        for words in ["NAME", "SYNOPSIS", "sidestep run [--name name]", "--memory size", "RAM, for example 512M."] {
            #expect(text.contains(words), "\(words)")
        }
        if HostTools.path(of: "man") != nil {
            let shown = try HostTools.run("man", ["-l", "\(directory)/sidestep.1"], environment: ["MANPAGER": "cat"])
            #expect(shown.end == .exited(status: 0) && shown.output.contains("upgrade"), "\(shown.errors)")
        }
    }

    /// The lines of a section of the unit file, comments left out.
    private func unit() throws -> [String] {
        try HostTools.need("cat", ["\(Checkout.root)/Packaging/sidestep@.service"]).split(separator: "\n").map(
            String.init
        )
        .filter { !$0.hasPrefix("#") }
    }

    @Test(
        "systemd finds nothing to complain about in the service's unit",
        .enabled(if: Requirement.program("systemd-analyze", package: "systemd").isMet, "no systemd-analyze"))
    func unitIsSound() throws {
        let directory = try TemporaryDirectory()
        // The program of the unit has to be there for it.
        let text = try unit().joined(separator: "\n").replacing("/usr/local/bin/sidestep", with: Checkout.tool)
        let path = try directory.write(Array((text + "\n").utf8), to: "sidestep@web.service")
        let verdict = try HostTools.run("systemd-analyze", ["verify", "--man=no", path])
        let complaints = (verdict.output + verdict.errors).split(separator: "\n").filter { $0.contains("sidestep@") }
        #expect(verdict.end == .exited(status: 0) && complaints.isEmpty, "\(verdict.errors)")
    }

    @Test(
        "the service's command line runs its configuration, tells its manager, is upgraded by reload and ended by stop",
        .enabled(if: Requirement.program("socat", package: "socat").isMet, "no socat: Debian package socat"),
        .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
    func service() throws {
        let run = try MonitorRun()
        let notify = run.directory.file("notify")
        let manager = try RunningProgram("socat", ["-u", "UNIX-RECV:\(notify)", "-"], name: "the service manager")
        for _ in 0..<200 where !Checkout.exists(notify) { _ = try HostTools.run("sleep", ["0.05"]) }
        let text = "firmware = \"\(Heartbeat.elf)\"\nmemory = \"64M\"\nconsole = \"unix\"\n"
        try run.directory.write(Array(text.utf8), to: "web.toml")
        let command = try #require(unit().first { $0.hasPrefix("ExecStart=") }).dropFirst("ExecStart=".count)
            .replacing("/etc/sidestep/", with: run.directory.path + "/").replacing("%i", with: "web")
        let words = command.split(separator: " ").map(String.init)
        #expect(words.first == "/usr/local/bin/sidestep")
        let service = try RunningProgram(
            Checkout.tool, Array(words.dropFirst()), name: "web",
            environment: run.environment.merging(["NOTIFY_SOCKET": notify]) { $1 })
        try manager.wait(for: "READY=1", seconds: 60)
        let first = try manager.wait(for: "MAINPID=", seconds: 60)
        #expect(first == "MAINPID=\(service.process.processIdentifier)")
        #expect(try run.command(["status", "web"]).output == "web is running\n")
        try HostTools.need("kill", ["-USR2", String(first.dropFirst(8))])  // ExecReload
        let second = try manager.wait(for: "MAINPID=", seconds: 60)
        #expect(second != first)
        #expect(try run.command(["list", "--format", "json"]).output.contains("\"process\": \(second.dropFirst(8)),"))
        try HostTools.need("kill", ["-TERM", String(second.dropFirst(8))])
        for _ in 0..<200 where try run.command(["list"]).output != "" { _ = try HostTools.run("sleep", ["0.05"]) }
        #expect(try run.command(["list"]).output == "")
    }
}
