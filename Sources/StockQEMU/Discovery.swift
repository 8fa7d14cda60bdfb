package import LinuxCalls
package import MonitorClient
import QMPProtocol

/// A condition that was looked at.
package struct Finding: Hashable, Sendable {
    /// `fail` stops an upgrade.
    package enum Grade: String, Hashable, Sendable { case ok, warn, fail }

    package var grade: Grade
    package var subject: String
    /// What was found, and where it is not ok, what to do.
    package var text: String

    package init(_ grade: Grade, _ subject: String, _ text: String) {
        self.grade = grade
        self.subject = subject
        self.text = text
    }
}

/// A running QEMU: its process, a monitor of it, and what both tell. Nothing is changed by looking.
package struct Discovery {
    package let process: ProcessFiles
    package let processDescriptor: OwnedDescriptor
    package let monitor: QMPConnection
    package private(set) var facts: SourceFacts
    /// `running`, `paused` and so on, as QEMU calls it.
    package private(set) var status = ""
    package private(set) var findings: [Finding] = []
    package let environment: [String]
    package let controlGroups: [String]

    package var canMove: Bool { !findings.contains { $0.grade == .fail } }
    package var ramByteCount: UInt64 { facts.memory.reduce(0) { $0 + $1.byteCount } }

    /// Looks at the process behind a QMP socket, or at a process whose command line names one.
    package init(qmpPath: String?, process identifier: CInt?) throws(UpgradeFailure) {
        var monitor: QMPConnection?
        var identifier = identifier
        if let qmpPath {
            let socket: OwnedDescriptor
            do { socket = try StreamSocket.connect(to: .unix(path: qmpPath), waits: false) } catch {
                guard error.errno == .wouldBlock else { throw UpgradeFailure(.noSuchGuest, "\(qmpPath): \(error)") }
                throw UpgradeFailure(
                    .refused,
                    "\(qmpPath): another client is attached and more are waiting: detach them, or name the process with --pid "
                        + "if it has a second monitor")
            }
            if identifier == nil { identifier = (try? StreamSocket.peerCredentials(of: socket))?.process }
            monitor = try? QMPConnection(socket, timeoutMilliseconds: 4000)
        }
        guard let identifier, identifier > 0 else {
            throw UpgradeFailure(.noSuchGuest, "whose socket it is cannot be told: name the process with --pid")
        }
        process = ProcessFiles(identifier)
        let words: [String]
        if let owner = try? process.owner(), owner != HostUser.effective {
            throw UpgradeFailure(
                .refused,
                "process \(identifier) is user \(owner)'s and we are \(HostUser.effective): run this as that user")
        }
        do {
            processDescriptor = try .process(identifier)
            words = try process.commandLine()
            environment = try process.environment()
            controlGroups = (try? process.controlGroups()) ?? []
        } catch {
            throw UpgradeFailure(.noSuchGuest, "process \(identifier): \(error)")
        }
        let commandLine = try CommandLine(words: Array(words.dropFirst()))
        var directory = (try? process.workingDirectory()) ?? "/"
        if directory == "/", commandLine.options.contains(where: { $0.name == "daemonize" }),
            let started = environment.first(where: { $0.hasPrefix("PWD=/") })
        {
            directory = String(started.dropFirst(4))  // what -daemonize left behind
        }
        facts = SourceFacts(
            commandLine: commandLine, version: QEMUVersion(0, 0), machineType: "", memory: [],
            workingDirectory: directory)
        if monitor == nil {
            for path in Self.monitorPaths(facts) where path != qmpPath {
                monitor = try? QMPConnection(path: path, timeoutMilliseconds: 4000, waits: false)
                if monitor != nil { break }
            }
        }
        guard let monitor else {
            throw UpgradeFailure(
                .refused,
                "process \(identifier): no monitor of it answers\(qmpPath.map { ", another client is attached to \($0)" } ?? ""): "
                    + "detach that client, or start guests with a second one: -qmp unix:PATH,server=on,wait=off")
        }
        self.monitor = monitor
        do { try look() } catch { throw UpgradeFailure(.noSuchGuest, "process \(identifier): \(error)") }
    }

    /// Where its virtual processors run. On two processors, two programs that start side by side take turns with the guest, each of a
    /// tick of the kernel's (4 ms at 250 Hz).
    var processors: [CInt] { process.processors(ofThreads: facts.processorThreads) }

    /// Unix sockets on which a process serves QMP, as its command line says; none when that cannot be read.
    package static func monitorPaths(of process: CInt) -> [String] {
        let files = ProcessFiles(process)
        guard let words = try? files.commandLine(), let line = try? CommandLine(words: Array(words.dropFirst())) else {
            return []
        }
        return monitorPaths(
            SourceFacts(
                commandLine: line, version: QEMUVersion(0, 0), machineType: "", memory: [],
                workingDirectory: (try? files.workingDirectory()) ?? "/"))
    }

    /// Unix sockets on which QMP is served, from the command line.
    static func monitorPaths(_ facts: SourceFacts) -> [String] {
        var paths: [String] = []
        let control = Set(
            facts.commandLine.arguments("mon").compactMap { try? OptionText($0) }.filter { $0["mode"] == "control" }
                .compactMap { $0.leading("chardev") })
        for option in facts.commandLine.options {
            guard let argument = option.argument else { continue }
            if ["qmp", "qmp-pretty"].contains(option.name), argument.hasPrefix("unix:"),
                let path = (try? OptionText(String(argument.dropFirst(5))))?.pairs.first?.key
            {
                paths.append(facts.absolute(path))
            }
            if option.name == "chardev", let text = try? OptionText(argument), text.isOn("server"),
                let identifier = text["id"], control.contains(identifier), let path = text["path"]
            {
                paths.append(facts.absolute(path))
            }
        }
        return paths
    }

    private mutating func note(_ grade: Finding.Grade, _ subject: String, _ text: String) {
        findings.append(Finding(grade, subject, text))
    }

    private mutating func look() throws {
        let version = try monitor.run("query-version")["qemu"]
        facts.version = QEMUVersion(
            Int(version?["major"]?.integerValue ?? 0), Int(version?["minor"]?.integerValue ?? 0),
            Int(version?["micro"]?.integerValue ?? 0))
        note(
            facts.version >= QEMUVersion(6, 0) ? .ok : .fail, "version",
            "QEMU \(facts.version)"
                + (facts.version >= QEMUVersion(6, 0) ? "" : ": 6.0 and later can be upgraded in place"))
        note(.ok, "user", "the process is ours")
        for (name, kind) in [("mnt", "mount"), ("net", "network"), ("pid", "process"), ("user", "user")] {
            guard let its = try? process.namespace(name), let ours = try? ProcessFiles.own.namespace(name), its != ours
            else { continue }
            note(
                .fail, "namespace",
                "the process is in another \(kind) namespace, where names mean something else: run this there (nsenter --target "
                    + "\(process.identifier) --\(kind == "process" ? "pid" : kind == "network" ? "net" : kind))")
        }
        let type = try monitor.run("qom-get", ["path": "/machine", "property": "type"]).stringValue ?? ""
        facts.machineType = type.hasSuffix("-machine") ? String(type.dropLast(8)) : type
        note(facts.machineType.isEmpty ? .fail : .ok, "machine type", facts.machineType)
        status = try monitor.run("query-status")["status"]?.stringValue ?? "?"
        facts.isRunning = status == "running"
        facts.architecture = try monitor.run("query-target")["arch"]?.stringValue ?? ""
        let movable = ["running", "paused"].contains(status)
        note(movable ? .ok : .fail, "guest", "is \(status)" + (movable ? "" : ": let it run, or pause it, first"))
        let migration = try monitor.run("query-migrate")
        let blockers = (migration["blocked-reasons"]?.arrayValue ?? []).compactMap(\.stringValue)
        for blocker in blockers { note(.fail, "blocker", "QEMU says: \(blocker)") }
        if ["setup", "active", "pre-switchover", "device", "cancelling"].contains(migration["status"]?.stringValue) {
            note(.fail, "migration", "one is running: wait, or migrate_cancel")
        }
        try lookAtDescriptors()
        try lookAtMemory()
        try lookForHotplug()
        try lookAtDisks()
    }

    private mutating func lookAtDescriptors() throws {
        for descriptor in try process.descriptors() {
            if descriptor.target == "/dev/net/tun" {
                let information = try process.information(on: descriptor.number)
                if let name = information["iff"] { facts.taps[name, default: []].append(descriptor.number) }
            } else if let socket = openSocket(descriptor) {
                facts.sockets.append(socket)
            }
        }
    }

    /// What a descriptor is if it is a socket, but for the other end of our own connection: no client that anybody would miss.
    private func openSocket(_ descriptor: ProcessFiles.Descriptor) -> OpenSocket? {
        guard descriptor.target.hasPrefix("socket:"),
            let copy = try? process.take(descriptor.number, from: processDescriptor),
            let socket = SocketFacts(of: copy), let inode = try? copy.status().inode
        else { return nil }
        if !socket.isListening, let peer = try? StreamSocket.peerCredentials(of: copy),
            peer.process == ProcessFiles.own.identifier
        {
            return nil
        }
        return OpenSocket(
            descriptor: descriptor.number, isListening: socket.isListening, local: socket.local?.description ?? "",
            peer: socket.peer?.description ?? "", inode: inode)
    }

    /// The connection of a character device's client: the one that was there when we looked, or, when that has been closed, the one
    /// that came in its place. Nil when there is none.
    func connection(of client: OpenSocket) -> OwnedDescriptor? {
        func take(_ socket: OpenSocket) -> OwnedDescriptor? {
            guard let taken = try? process.take(socket.descriptor, from: processDescriptor),
                (try? taken.status().inode) == socket.inode
            else { return nil }
            return taken
        }
        if let same = take(client) { return same }
        let descriptors = (try? process.descriptors()) ?? []
        return descriptors.lazy.compactMap(openSocket).first { !$0.isListening && $0.local == client.local }
            .flatMap(take)
    }

    private mutating func lookAtMemory() throws {
        let regions = try monitor.run("human-monitor-command", ["command-line": "info mtree -f"]).stringValue ?? ""
        let mappings = try process.mappings()
        let files = try process.descriptors()
        for entry in try monitor.run("query-memdev").arrayValue ?? [] {
            guard let identifier = entry["id"]?.stringValue, let size = entry["size"]?.unsignedValue else { continue }
            var backend = MemoryBackend(
                identifier: identifier, byteCount: size, isShared: entry["share"]?.boolValue ?? false, descriptor: nil)
            if backend.isShared, let place = RAMPlace(of: identifier, in: regions) {
                let answer = try monitor.run(
                    "human-monitor-command", ["command-line": .string("gpa2hva 0x\(String(place.address, radix: 16))")])
                if let pointer = RAMPlace.hostAddress(in: answer.stringValue ?? "", region: identifier),
                    pointer >= place.offset,
                    let mapping = mappings.first(where: { $0.addresses.contains(pointer - place.offset) && $0.isShared }
                    )
                {
                    let candidates = files.filter { $0.inode == mapping.inode && UInt64($0.byteCount) >= size }
                    // Some file systems show two device numbers (btrfs, overlays).
                    let file = candidates.first { $0.device == mapping.device } ?? candidates.first
                    if mapping.offset == 0, mapping.addresses.lowerBound == pointer - place.offset {
                        backend.descriptor = file?.number
                    }
                }
            }
            facts.memory.append(backend)
            let megabytes = size >> 20
            switch (backend.isShared, backend.descriptor) {
            case (true, let number?):
                note(
                    .ok, "memory \(identifier)",
                    "\(megabytes) MiB, shared, descriptor \(number) of the process" + sealing(of: number))
            case (true, nil):
                note(
                    .warn, "memory \(identifier)",
                    "\(megabytes) MiB, shared, but its descriptor was not found: it is copied")
            default:
                note(
                    .warn, "memory \(identifier)",
                    "\(megabytes) MiB is the process's own and must be copied: start the guest with "
                        + "-object memory-backend-memfd,id=ram,size=\(megabytes)M,share=on -machine memory-backend=ram")
            }
        }
        if facts.memory.isEmpty { note(.fail, "memory", "QEMU names no memory back end") }
    }

    /// Whether a memory file's size is sealed: nobody can take pages away under both processes.
    private func sealing(of descriptor: CInt) -> String {
        guard let file = try? process.take(descriptor, from: processDescriptor),
            let seals = try? MemoryFile.seals(of: file)
        else { return "" }
        return MemoryFile.isSizeSealed(seals) ? ", its size sealed" : ", its size not sealed"
    }

    /// Devices that the command line does not name were plugged in later, and a process started from it would lack them.
    private mutating func lookForHotplug() throws {
        func children(_ path: String) throws -> [(name: String, type: String)] {
            do throws(QMPConnection.Failure) {
                let list = try monitor.run("qom-list", ["path": .string(path)]).arrayValue ?? []
                return list.compactMap { entry in
                    guard let name = entry["name"]?.stringValue, let type = entry["type"]?.stringValue,
                        type.hasPrefix("child<")
                    else { return nil }
                    return (name, String(type.dropFirst(6).dropLast()))
                }
            } catch {
                if case .refused = error { return [] }
                throw error
            }
        }
        var named: Set<String> = []
        var unnamed = 0
        for option in facts.commandLine.options {
            guard let argument = option.argument, let text = try? OptionText(argument) else { continue }
            switch option.name {
            case "device": if let identifier = text["id"] { named.insert(identifier) } else { unnamed += 1 }
            case "drive" where text["if"] == "virtio": unnamed += 1
            case "usbdevice", "watchdog", "virtfs", "audio": unnamed += 1
            default: break
            }
        }
        let present = try children("/machine/peripheral")
        for device in present where !named.contains(device.name) {
            note(.fail, "device \(device.name)", "was plugged in while the guest ran (\(device.type)): unplug it first")
        }
        for name in named.subtracting(present.map(\.name)).sorted() {
            note(.fail, "device \(name)", "is on the command line and was unplugged: the new process would have it")
        }
        let anonymous = try children("/machine/peripheral-anon")
        if anonymous.count > unnamed {
            note(
                .fail, "devices",
                "\(anonymous.count - unnamed) without a name were plugged in while the guest ran, of these: "
                    + anonymous.map(\.type).joined(separator: ", "))
        }
        let objects = Set(facts.commandLine.arguments("object").compactMap { (try? OptionText($0))?["id"] })
        let memory = Set(facts.memory.map(\.identifier))
        for object in try children("/objects") where !objects.contains(object.name) && !memory.contains(object.name) {
            // From 11 on QEMU shows its monitors as objects, which are nothing of the guest's.
            if object.type.hasPrefix("monitor-") { continue }
            note(.fail, "object \(object.name)", "was added while the guest ran (\(object.type)): take it away first")
        }
        let listed = try monitor.run("query-cpus-fast").arrayValue ?? []
        let processors = listed.count
        facts.processorThreads = listed.compactMap { $0["thread-id"]?.integerValue.map { Int32(clamping: $0) } }
        if let smp = facts.commandLine.arguments("smp").last.flatMap({ try? OptionText($0) }),
            let count = Int(smp.leading("cpus") ?? ""), count != processors
        {
            note(.fail, "processors", "\(processors) now, \(count) on the command line: unplug what was plugged in")
        }
        if !findings.contains(where: { $0.grade == .fail && $0.subject.hasPrefix("device") }) {
            note(.ok, "devices", "\(present.count + anonymous.count), as on the command line")
        }
    }

    private mutating func lookAtDisks() throws {
        let text = facts.commandLine.options.compactMap(\.argument).joined(separator: "\n")
        for entry in try monitor.run("query-block").arrayValue ?? [] {
            let name =
                entry["device"]?.stringValue.flatMap { $0.isEmpty ? nil : $0 } ?? entry["qdev"]?.stringValue ?? "?"
            guard let file = entry["inserted"]?["file"]?.stringValue else { continue }
            if file.contains("://") || file.hasPrefix("json:") { continue }
            let doubled = file.split(separator: ",", omittingEmptySubsequences: false).joined(separator: ",,")
            let isNamed = text.contains(file) || text.contains(doubled)
            note(
                isNamed ? .ok : .fail, "disk \(name)",
                isNamed
                    ? file
                    : "\(file) is not on the command line (a snapshot, or another medium): the new process would use what is"
            )
        }
        let jobs = try monitor.run("query-block-jobs").arrayValue ?? []
        if !jobs.isEmpty { note(.fail, "block jobs", "\(jobs.count) running: wait for them, or cancel them") }
    }
}

/// Where the first piece of a RAM region lies, read from `info mtree -f`, whose lines are
/// `  0000000000100000-000000001fffffff (prio 0, ram): NAME @0000000000100000`.
package struct RAMPlace: Hashable, Sendable {
    package var address: UInt64
    package var offset: UInt64

    package init?(of region: String, in listing: String) {
        for line in listing.split(whereSeparator: \.isNewline) {  // the monitor ends its lines with CR LF
            guard
                let match = line.wholeMatch(
                    of: /\s*([0-9a-f]{16})-[0-9a-f]{16} \(prio -?\d+, ram\): (.*?)( @([0-9a-f]{16}))?( KVM)?/),
                match.2 == region, let address = UInt64(match.1, radix: 16)
            else { continue }
            self.address = address
            offset = match.4.flatMap { UInt64($0, radix: 16) } ?? 0
            return
        }
        return nil
    }

    /// The pointer in `Host virtual address for 0x100000 (NAME) is 0x7f...`, if it is of that region.
    package static func hostAddress(in answer: String, region: String) -> UInt64? {
        guard let match = answer.firstMatch(of: /\((.*)\) is 0x([0-9a-f]+)/), match.1 == region else { return nil }
        return UInt64(match.2, radix: 16)
    }
}
