import ArgumentParser
import QMPProtocol
import Supervisor

/// The flags that describe a machine; `run` and `restore` share them.
struct RunOptions: ParsableArguments {
    @Option(help: ArgumentHelp("A name for the guest; commands find it by this.", valueName: "name"))
    var name: String?

    @Option(
        help: ArgumentHelp("A TOML or JSON file that says what these flags say; flags win.", valueName: "file"),
        completion: .file())
    var config: String?

    @Option(help: ArgumentHelp("The kind of machine: virt.", valueName: "type"))
    var machine: String?

    @Option(
        help: ArgumentHelp("What runs first, in machine mode: a flat binary or an ELF file.", valueName: "file"),
        completion: .file())
    var firmware: String?

    @Option(help: ArgumentHelp("A Linux kernel (RISC-V Image).", valueName: "file"), completion: .file())
    var kernel: String?

    @Option(help: ArgumentHelp("An initial RAM disk for the kernel.", valueName: "file"), completion: .file())
    var initrd: String?

    @Option(help: ArgumentHelp("The kernel's command line.", valueName: "text"))
    var append: String?

    @Option(help: ArgumentHelp("RAM, for example 512M.", valueName: "size"))
    var memory: String?

    @Option(
        help: ArgumentHelp(
            "Where RAM lives: memfd (moves without a copy), anonymous, or a file that others can share by its name.",
            valueName: "memfd|anonymous|file:PATH"))
    var memoryBackend: String?

    @Option(help: ArgumentHelp("Processors, 1 to 8.", valueName: "count"))
    var cpus: Int?

    @Option(
        help: ArgumentHelp("Instruction set, for example rv64imac; without it everything there is.", valueName: "isa"))
    var isa: String?

    @Option(help: ArgumentHelp("Register layout of the virtio slots: modern or legacy.", valueName: "kind"))
    var virtio: String?

    @Option(
        help: ArgumentHelp(
            "Be able to go to a stock QEMU: its processor, and its state when migrated.",
            valueName: "qemu-7.2|qemu-10.0|qemu-11.1"))
    var compat: String?

    @Option(help: ArgumentHelp("A raw disk image. Repeatable.", valueName: "path=F[,readonly=on]"))
    var disk: [String] = []

    @Option(
        help: ArgumentHelp(
            "A network card on a tap, an open descriptor or a passt socket. Repeatable.",
            valueName: "tap=IF|fd=N|socket=PATH|none[,mac=M]"))
    var net: [String] = []

    @Option(help: ArgumentHelp("Where the serial console goes.", valueName: "stdio|unix[:PATH]|pty|file:PATH|null"))
    var console: String?

    @Flag(help: "Build the machine but let it wait for 'resume'.")
    var paused = false

    @Option(help: ArgumentHelp("A further QMP socket. Repeatable.", valueName: "unix:PATH|tcp:HOST:PORT"))
    var qmp: [String] = []

    @Option(help: ArgumentHelp("A UUID for the guest.", valueName: "uuid"))
    var uuid: String?

    /// The configuration file, then the flags over it.
    /// - Parameter base: A configuration that both win over.
    func effectiveConfiguration(over base: JSONValue = [:]) throws(Refusal) -> RunConfiguration {
        var result = RunConfiguration()
        try result.apply(base)
        if let config { try result.apply(try ConfigurationFile.read(config)) }
        if let name { result.name = name }
        if let uuid { result.uuid = uuid }
        if let machine { result.machine = machine }
        if let firmware { result.firmware = firmware }
        if let kernel { result.kernel = kernel }
        if let initrd { result.initrd = initrd }
        if let append { result.append = append }
        if let memory { result.memory = try RunConfiguration.memory(argument: memory) }
        if let memoryBackend {
            result.memoryBackend = try RunConfiguration.memoryBackend(argument: memoryBackend)
        }
        if let cpus { result.processorCount = cpus }
        if let isa { result.isa = isa }
        if let virtio { result.virtio = try Self.choice(virtio, flag: "--virtio") }
        if let compat { result.compatibility = try RunConfiguration.compatibility(argument: compat) }
        for text in disk { result.disks.append(try DiskConfiguration(argument: text)) }
        for text in net { result.networks.append(try NetworkConfiguration(argument: text)) }
        if let console { result.console = try ConsoleConfiguration(argument: console) }
        if paused { result.isPaused = true }
        for text in qmp { result.qmp.append(try ListenAddress(argument: text)) }
        return result
    }

    private static func choice<Choice: RawRepresentable & CaseIterable>(_ text: String, flag: String) throws(Refusal)
        -> Choice where Choice.RawValue == String
    {
        if let choice = Choice(rawValue: text) { return choice }
        let choices = Choice.allCases.map(\.rawValue).joined(separator: ", ")
        throw Refusal(.usage, "\(flag): '\(text)' is none of \(choices)")
    }
}
