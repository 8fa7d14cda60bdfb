import ArgumentParser
import Supervisor

struct Completion: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "completion", abstract: "Print a script that completes this tool's arguments.",
        discussion: "For example: sidestep completion bash > ~/.local/share/bash-completion/completions/sidestep")

    @Argument(
        help: ArgumentHelp("bash, zsh or fish.", valueName: "shell"), completion: .list(["bash", "zsh", "fish"]))
    var shell: String

    func run() throws {
        guard let shell = CompletionShell(rawValue: shell) else {
            throw Refusal(.usage, "'\(shell)' is none of bash, zsh, fish")
        }
        print(Sidestep.completionScript(for: shell))
    }
}
