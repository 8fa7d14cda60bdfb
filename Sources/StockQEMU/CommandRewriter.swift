import QMPProtocol

/// What a new process is started with.
package struct NewCommandLine: Hashable, Sendable {
    /// A name that the new process serves from a private directory until the guest is its own.
    package struct Name: Hashable, Sendable {
        package var publicPath: String
        package var privatePath: String

        package init(publicPath: String, privatePath: String) {
            self.publicPath = publicPath
            self.privatePath = privatePath
        }
    }

    package var options: [CommandLine.Option] = []
    /// Number in the new process to number in the old one.
    package var inherited: [Int32: Int32] = [:]
    package var names: [Name] = []
    /// Connections that the new process is given when the guest is its own.
    package var clients: [CharacterClient] = []
    /// What an operator should know: clients that must connect again, options that were left out.
    package var notes: [String] = []
    /// A guest that ran is run by the new process as soon as it has arrived, and not when it is told to (`-S`).
    package var startsByItself = false
    /// The number of the monitor's end in the new process.
    package static let controlDescriptor: Int32 = 3

    package var words: [String] { options.flatMap(\.words) }
}

/// A client of a character device whose connection goes over.
package struct CharacterClient: Hashable, Sendable {
    /// The character device's name in the new process.
    package var identifier: String
    /// Its connection in the old process.
    package var socket: OpenSocket

    package init(identifier: String, socket: OpenSocket) {
        self.identifier = identifier
        self.socket = socket
    }

    /// Its name in the new process's monitor.
    var descriptorName: String { "sidestep-client-\(socket.descriptor)" }
}

/// Makes the command line of a guest's next process from that of its present one. No I/O: facts in, words out.
///
/// Everything is either known to mean the same again, or rewritten, or refused by its name.
package struct CommandRewriter {
    let facts: SourceFacts
    let strategy: ReplacementStrategy
    let destinationVersion: QEMUVersion
    /// Options that replace or join those of the guest.
    let settings: [CommandLine.Option]
    /// The last part of private directories' names.
    let token: String

    var result = NewCommandLine()
    private var nextDescriptor: Int32 = NewCommandLine.controlDescriptor + 1
    private var counts: [String: Int] = [:]

    package init(
        facts: SourceFacts, strategy: ReplacementStrategy, destinationVersion: QEMUVersion,
        settings: [CommandLine.Option] = [], token: String
    ) {
        self.facts = facts
        self.strategy = strategy
        self.destinationVersion = destinationVersion
        self.settings = settings
        self.token = token
    }

    /// The identifier of the monitor that an upgrade gives to the new process, so that the next one leaves it out.
    static let controlIdentifier = "sidestep-control"

    /// Left out: they are how a process starts, not what the guest is.
    static let dropped: Set<String> = ["S", "incoming", "loadvm", "daemonize"]

    static let refused: [String: String] = [
        "snapshot": "what the guest wrote is in a temporary file that only the old process has",
        "preconfig": "the new process would wait for orders", "gdb": "the debugger's port is taken by the old process",
        "s": "the debugger's port is taken by the old process", "D": "the new process would empty the log file",
        "readconfig": "what is in its file may have changed: put it on the command line",
        "add-fd": "whose descriptors the new process cannot be given", "chroot": "paths would mean something else",
        "spice": "its port is taken by the old process", "plugin": "plugins have state that does not move",
        "xen-attach": "Xen guests are Xen's", "xen-domid": "Xen guests are Xen's",
        "xen-domid-restrict": "Xen guests are Xen's",
        "dump-vmstate": "such a process runs no guest", "writeconfig": "the new process would write the file again",
        "tpmdev": "the chip's emulator takes one client", "fsdev": "the new process would serve the same files again",
        "virtfs": "the new process would serve the same files again", "mtdblock": "it is not checked",
        "sd": "it is not checked",
        "async-teardown": "the new process would be another's child",
    ]

    /// Options of which there may be several, each another thing.
    static let repeatable: Set<String> = [
        "device", "drive", "blockdev", "object", "global", "fw_cfg", "smbios", "audiodev", "L", "trace", "acpitable",
        "set",
    ]
    /// What `--set` may not touch, because it is rewritten here.
    static let ours: Set<String> = [
        "machine", "m", "numa", "incoming", "S", "daemonize", "pidfile", "qmp", "qmp-pretty", "mon", "monitor",
        "chardev",
        "serial", "parallel", "debugcon", "netdev", "nic", "net", "loadvm", "vnc", "mem-path", "mem-prealloc",
    ]

    /// - Throws: ``UpgradeFailure`` for the first option that cannot be carried over, by its name.
    package mutating func rewrite() throws(UpgradeFailure) -> NewCommandLine {
        for setting in settings where Self.ours.contains(setting.name) || Self.dropped.contains(setting.name) {
            throw UpgradeFailure(.usage, "--set: -\(setting.name) is decided by the upgrade itself")
        }
        let replaced = Set(settings.map(\.name)).subtracting(Self.repeatable)
        var machineSeen = false
        for option in facts.commandLine.options where !replaced.contains(option.name) {
            if Self.dropped.contains(option.name) { continue }
            if let reason = Self.refused[option.name] { throw refusal(option, reason) }
            if option.name == "machine" { machineSeen = true }
            do throws(JSONError) { try rewrite(option) } catch {
                throw refusal(option, "its argument is no JSON: \(error.description)")
            }
            if let failure = pendingFailure { throw failure }
        }
        if !machineSeen { result.options.insert(.init("machine", facts.machineType), at: 0) }
        result.options += settings
        if strategy == .cpr,
            !facts.commandLine.arguments("machine").contains(where: { $0.contains("aux-ram-share=on") })
        {
            throw UpgradeFailure(.refused, "cpr needs a guest that was started with -machine aux-ram-share=on")
        }
        result.options += [
            .init("chardev", "socket,id=\(Self.controlIdentifier),fd=\(NewCommandLine.controlDescriptor)"),
            .init("mon", "chardev=\(Self.controlIdentifier),mode=control"),
        ]
        // Something is in the way of that: clients that the guest's first words must reach, or a state that passes through us, whose
        // end the old process could take for its failure while the new one has all it needs.
        let waits = !result.clients.isEmpty || facts.losesTimers
        result.startsByItself = facts.isRunning && (strategy == .postcopy || !waits)
        if !result.startsByItself { result.options.append(.init("S")) }
        removeRepeatedDirectories()
        return result
    }

    /// Set where a refusal was found, since parsing throws errors of another type.
    var pendingFailure: UpgradeFailure?

    mutating func refuse(_ option: CommandLine.Option, _ reason: String) {
        if pendingFailure == nil { pendingFailure = refusal(option, reason) }
    }

    func refusal(_ option: CommandLine.Option, _ reason: String) -> UpgradeFailure {
        UpgradeFailure(
            .refused, "-\(option.name)\(option.argument.map { " \($0)" } ?? "") cannot be carried over: \(reason)")
    }

    private mutating func rewrite(_ option: CommandLine.Option) throws(JSONError) {
        guard let argument = option.argument else {
            // Touching every page of memory that a guest runs on would race with it.
            if option.name == "mem-prealloc" && strategy.keepsPages { return }
            result.options.append(option)
            return
        }
        switch option.name {
        case "machine":
            let text = try OptionText(argument)
            let isImplied = text.isJSON == false && text.pairs.first?.value == nil
            add(
                "machine",
                isImplied ? text.settingLeading("type", facts.machineType) : text.setting("type", facts.machineType))
        case "object": try rewriteObject(option, try OptionText(argument))
        case "chardev": try rewriteCharacterDevice(option, try OptionText(argument))
        case "serial", "parallel", "monitor", "qmp", "qmp-pretty", "debugcon":
            try rewriteLegacyCharacter(option, argument)
        case "mon":
            if try OptionText(argument).leading("chardev") != Self.controlIdentifier { result.options.append(option) }
        case "netdev", "nic", "net": try rewriteNetwork(option, try OptionText(argument))
        case "device": try checkDevice(option, try OptionText(argument))
        case "drive", "blockdev":
            let text = try OptionText(argument)
            if text.isOn("snapshot") { refuse(option, Self.refused["snapshot"] ?? "") }
            if text.pairs.contains(where: { $0.value?.hasPrefix("/dev/fdset/") == true }) {
                refuse(option, Self.refused["add-fd"] ?? "")
            }
            result.options.append(option)
        case "vnc":
            if argument == "none" {
                result.options.append(option)
            } else if argument.hasPrefix("unix:") {
                var pieces = try OptionText(String(argument.dropFirst(5))).pairs
                pieces[0] = .init(
                    "unix:" + privatePath(for: pieces[0].value.map { "\(pieces[0].key)=\($0)" } ?? pieces[0].key))
                add("vnc", OptionText(pieces))
                result.notes.append("clients of the VNC socket must connect again")
            } else {
                refuse(option, "its port is taken by the old process: use unix:PATH")
            }
        case "display":
            if argument.hasPrefix("vnc") || argument.hasPrefix("spice") || argument.hasPrefix("dbus") {
                refuse(option, "its port is taken by the old process")
            }
            result.options.append(option)
        case "pidfile": result.options.append(.init("pidfile", privatePath(for: argument)))
        case "run-with":
            if try OptionText(argument)["chroot"] != nil { refuse(option, Self.refused["chroot"] ?? "") }
            result.options.append(option)
        case "trace":
            if try OptionText(argument)["file"] != nil { refuse(option, "the new process would empty the file") }
            result.options.append(option)
        default: result.options.append(option)
        }
    }

    mutating func add(_ name: String, _ text: OptionText) { result.options.append(.init(name, text.text)) }

    /// How many options of a kind came before, for QEMU's own labels.
    mutating func count(_ name: String) -> Int {
        counts[name, default: 0] += 1
        return counts[name, default: 1] - 1
    }

    /// A descriptor of the old process under a number of the new one.
    mutating func inherit(_ descriptor: Int32) -> Int32 {
        defer { nextDescriptor += 1 }
        result.inherited[nextDescriptor] = descriptor
        return nextDescriptor
    }

    /// Where the new process serves a name until it may have it: beside it, so that both are on one file system.
    mutating func privatePath(for path: String) -> String {
        let absolute = facts.absolute(path)
        let slash = absolute.lastIndex(of: "/") ?? absolute.startIndex
        let directory = "\(absolute[..<slash])/\(SourceFacts.privatePrefix)\(token)"
        let name = NewCommandLine.Name(publicPath: absolute, privatePath: "\(directory)\(absolute[slash...])")
        result.names.append(name)
        return name.privatePath
    }

    // MARK: Memory and devices

    private static let objects: Set<String> = [
        "iothread", "rng-random", "rng-builtin", "secret", "secret_keyring", "throttle-group", "thread-context",
        "main-loop",
        "cryptodev-backend-builtin", "tls-creds-x509", "tls-creds-psk", "tls-creds-anon", "tls-cipher-suites",
        "authz-list",
        "authz-list-file", "authz-simple", "authz-pam", "can-bus", "memory-backend-ram", "memory-backend-file",
        "memory-backend-memfd", "memory-backend-shm", "acpi-generic-initiator", "sev-guest",
    ]

    private mutating func rewriteObject(_ option: CommandLine.Option, _ text: OptionText) throws(JSONError) {
        let type = text.leading("qom-type") ?? ""
        guard Self.objects.contains(type) else {
            return refuse(option, "objects of type \(type) are not known to move")
        }
        guard type.hasPrefix("memory-backend-") else {
            result.options.append(option)
            return
        }
        guard let backend = facts.memory.first(where: { $0.identifier == text["id"] }) else {
            return refuse(option, "the guest has no such memory any more")
        }
        if text.isOn("readonly") || text.isOn("pmem") || text["rom"] != nil {
            return refuse(option, "memory that is read-only or persistent is the file's owner's")
        }
        switch strategy {
        case .shared:
            guard backend.isShared, let descriptor = backend.descriptor else {
                return refuse(option, "no other process may map it: start the guest with share=on")
            }
            var new = text.removing([
                "qom-type", "size", "share", "mem-path", "hugetlb", "hugetlbsize", "seal", "prealloc",
                "prealloc-threads",
                "prealloc-context", "discard-data",
            ])
            if !text.isJSON, let first = new.pairs.first, first.value == nil {
                new = OptionText(Array(new.pairs.dropFirst()))
            }
            let number = inherit(descriptor)
            add(
                "object",
                OptionText(
                    [.init("memory-backend-file")] + new.pairs + [
                        .init("size", "\(backend.byteCount)"), .init("share", "on"),
                        .init("mem-path", "/proc/self/fd/\(number)"),
                    ]))
        case .cpr: result.options.append(option)
        case .precopy, .postcopy:
            guard type == "memory-backend-file", backend.isShared else {
                result.options.append(option)
                return
            }
            // The same file again would be the same pages, written while the guest still uses them.
            var new = text.removing(["qom-type", "mem-path", "align", "discard-data", "offset"])
            if !text.isJSON, let first = new.pairs.first, first.value == nil {
                new = OptionText(Array(new.pairs.dropFirst()))
            }
            add("object", OptionText([.init("memory-backend-memfd")] + new.pairs))
        }
    }

    private mutating func checkDevice(_ option: CommandLine.Option, _ text: OptionText) throws(JSONError) {
        let driver = text.leading("driver") ?? ""
        let prefixes = [
            "vhost-", "vfio-", "ivshmem-", "usb-host", "u2f-passthru", "ccid-card-passthru", "scsi-generic",
        ]
        if prefixes.contains(where: { driver.hasPrefix($0) }) {
            refuse(option, "\(driver) belongs to the old process alone: unplug it first")
        }
        if let key = text.pairs.first(where: { $0.key.hasSuffix("fd") || $0.key.hasSuffix("fds") })?.key {
            refuse(option, "\(key) names a descriptor of the old process")
        }
        result.options.append(option)
    }

    /// Wrappers add their directories at each start; a directory that is there already says nothing new.
    private mutating func removeRepeatedDirectories() {
        var seen: Set<String> = []
        result.options.removeAll { $0.name == "L" && !seen.insert($0.argument ?? "").inserted }
    }
}
