import ArgumentParser

@main
struct Sidestep: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "sidestep", abstract: "Run virtual machines that change process without stopping.")
}
