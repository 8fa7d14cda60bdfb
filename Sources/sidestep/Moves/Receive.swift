import ArgumentParser
import Glibc
import LinuxCalls
import Supervisor

struct Receive: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "receive", abstract: "Take a guest from another process, stock QEMU too, and run it.",
        discussion: """
            The machine is built from what the stream says: RAM, processors, devices and their slots. Flags win over it; what \
            stands behind disks and network cards must be given, in the order of the source's slots from the highest. \
            What is missing is refused by name, and a source with the capability return-path then keeps its guest. See \
            Documentation/qemu.md. Exit status \(ExitStatus.incomingFailed.rawValue): the guest did not arrive.
            """)

    @Argument(help: ArgumentHelp("A name for the guest; commands find it by this.", valueName: "name"))
    var guestName: String

    @Argument(
        help: ArgumentHelp(
            "Where from: unix:PATH and tcp:HOST:PORT are waited at; fd:N, exec:COMMAND, file:PATH.", valueName: "uri"))
    var uri: String

    @Option(
        help: ArgumentHelp(
            "The source has multifd on, with so many multifd-channels.", valueName: "count"))
    var multifd: Int = 0

    @Option(
        help: ArgumentHelp(
            "Take RAM over by its descriptors, which come here first (QEMU 10's mode cpr-transfer).",
            valueName: "unix:PATH"))
    var cpr: String?

    @OptionGroup var options: RunOptions

    @Flag(help: "Return as soon as the guest runs; it goes on in the background.")
    var detach = false

    func run() throws {
        var configuration = try options.effectiveConfiguration()
        if let name = options.name, name != guestName {
            throw Refusal(.usage, "the guest cannot be named both '\(guestName)' and '\(name)'")
        }
        configuration.name = guestName
        configuration.incoming = uri
        guard (0...255).contains(multifd) else { throw Refusal(.usage, "--multifd is from 0 to 255") }
        configuration.incomingCPR = cpr
        if detach { return try Detached.start(configuration) }
        let given = GuestProcess.GivenFlags(
            memory: options.memory != nil, processorCount: options.cpus != nil, isa: options.isa != nil,
            virtio: options.virtio != nil)
        let keeper = GuestProcess.needsNoKeeper ? nil : try ProcessKeeper.fork()
        Glibc.exit(
            try GuestProcess.receive(configuration, given: given, from: uri, multifdChannels: multifd, keeper: keeper))
    }
}
