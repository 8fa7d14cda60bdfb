import ArgumentParser
import Glibc
import LinuxCalls
import Supervisor

struct Run: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run", abstract: "Run a guest until it powers off.",
        discussion: """
            Needs --kernel (Debian's OpenSBI is the firmware unless --firmware names another) or --firmware alone, which is
            started in machine mode. The exit status is what the guest gives to its test finisher; see 'sidestep exit-status'.
            On --console stdio, Ctrl-A X ends the guest and Ctrl-A H helps.
            """)

    @OptionGroup var options: RunOptions

    @Option(
        help: ArgumentHelp(
            """
            Wait for a guest from elsewhere instead of starting one. Twice when its RAM comes by descriptor: the other is \
            QEMU's {"channel-type": "cpr", "addr": ...}.
            """, valueName: "URI|defer|JSON"))
    var incoming: [String] = []

    @Flag(help: "Return as soon as the guest runs; it goes on in the background.")
    var detach = false

    func run() throws {
        var configuration = try options.effectiveConfiguration()
        if !incoming.isEmpty {
            (configuration.incoming, configuration.incomingCPR) = (nil, nil)
            try configuration.setIncoming(incoming)
        }
        if detach { return try Detached.start(configuration) }
        try Self.run(configuration)
    }

    /// Runs a guest and ends this process with its status.
    static func run(_ configuration: RunConfiguration) throws {
        // A service manager is told the new main process by itself; a shell waits for this one.
        let keeper = GuestProcess.needsNoKeeper ? nil : try ProcessKeeper.fork()
        Glibc.exit(try GuestProcess.run(configuration, keeper: keeper))
    }
}
