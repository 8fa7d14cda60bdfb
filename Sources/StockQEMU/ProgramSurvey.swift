import LinuxCalls
import MonitorClient
import QMPProtocol

/// What is known of the program that takes over, from what it says of itself: it is started without a machine, and asked.
struct ProgramSurvey {
    private(set) var version = QEMUVersion(0, 0)
    private(set) var findings: [Finding] = []

    private static let limitMilliseconds: Int64 = 10_000

    /// Asks the program for its version, machine types and devices.
    init(_ binary: String, for facts: SourceFacts) {
        do {
            let (program, monitor) = try Self.start(binary)
            defer {
                program.kill()
                _ = program.wait()
            }
            do throws(QMPConnection.Failure) {
                try ask(QMPConnection(monitor, timeoutMilliseconds: Self.limitMilliseconds), binary, facts)
            } catch {
                findings.append(
                    Finding(
                        .fail, "program", "\(binary) does not say that it is QEMU (\(error)): name one with --binary"))
                return
            }
        } catch {
            findings.append(Finding(.fail, "program", "\(binary) cannot be run: \(error)"))
        }
        lookAtProcessor(facts)
    }

    /// A function of its own: the program's end of the monitor must not stay open here.
    private static func start(_ binary: String) throws(SystemCallError) -> (ChildProcess, monitor: OwnedDescriptor) {
        let (near, far) = try StreamSocket.pair()
        let nothing = try OwnedDescriptor.open("/dev/null", flags: 2)
        let monitor: CInt = 3
        let arguments = [
            "-M", "none", "-no-user-config", "-nodefaults", "-display", "none", "-chardev", "socket,id=m,fd=\(monitor)",
            "-mon", "chardev=m,mode=control",
        ]
        let program = try ChildProcess(
            path: binary, arguments: arguments, descriptors: [0: nothing, 1: nothing, 2: nothing, monitor: far])
        return (program, near)
    }

    private mutating func ask(
        _ monitor: QMPConnection, _ binary: String, _ facts: SourceFacts
    ) throws(QMPConnection.Failure) {
        let said = try monitor.run("query-version", timeoutMilliseconds: Self.limitMilliseconds)["qemu"]
        guard let major = said?["major"]?.integerValue, let minor = said?["minor"]?.integerValue,
            let micro = said?["micro"]?.integerValue
        else { throw .notQMP }
        version = QEMUVersion(Int(major), Int(minor), Int(micro))
        let machines = try monitor.run("query-machines", timeoutMilliseconds: Self.limitMilliseconds).arrayValue ?? []
        let has = machines.contains { $0["name"]?.stringValue == facts.machineType }
        findings.append(
            Finding(
                has ? .ok : .fail, "program",
                "\(binary), QEMU \(version)"
                    + (has ? "" : ", has no machine type \(facts.machineType): take one that has it")))
        guard has else { return }
        // The one list that has the other names of devices as well. Without it the new process itself says what it lacks.
        let listing = try? monitor.run(
            "human-monitor-command", ["command-line": "device_add help"], timeoutMilliseconds: Self.limitMilliseconds)
        lookForDevices(listing?.stringValue ?? "", binary, facts)
    }

    /// Lines are `name "virtio-blk-pci", bus PCI, alias "virtio-blk"`.
    private mutating func lookForDevices(_ listing: String, _ binary: String, _ facts: SourceFacts) {
        let known = Set(listing.matches(of: /(?:name|alias) "([^"]+)"/).map { String($0.1) })
        guard known.count > 10 else { return }
        let wanted = facts.commandLine.arguments("device").compactMap {
            (try? OptionText($0))?.leading("driver")
        }
        for driver in Set(wanted).subtracting(known).sorted() {
            findings.append(
                Finding(.fail, "program", "\(binary) has no device \(driver): take one that has it, or unplug it"))
        }
    }

    /// Some processor models are what the host or the release makes of them.
    private mutating func lookAtProcessor(_ facts: SourceFacts) {
        let model = facts.commandLine.arguments("cpu").last?.split(separator: ",").first.map(String.init) ?? ""
        guard model == "max", version.major != facts.version.major || version.minor != facts.version.minor else {
            return
        }
        findings.append(
            Finding(
                .warn, "processor",
                "-cpu max is not the same processor in QEMU \(facts.version) and \(version): the guest may meet features it did "
                    + "not boot with; start guests with a named model"))
    }
}

/// What a program prints.
enum HelpText {
    /// What a child writes until it ends or its time is over; then it is killed.
    static func collect(_ child: ChildProcess, _ pipe: OwnedDescriptor, seconds: Int) -> String {
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 64 << 10)
        for _ in 0..<seconds * 20 where bytes.count < 1 << 20 {
            let hasEnded = child.wait(timeoutMilliseconds: 0) != nil
            while let ready = try? pipe.waitUntilReady(for: 1, timeoutMilliseconds: hasEnded ? 0 : 50), ready & 1 != 0 {
                var count = 0
                unsafe piece.withUnsafeMutableBytes { count = (try? unsafe pipe.read(into: $0)) ?? 0 }
                if count == 0 { break }
                bytes += piece[..<count]
            }
            if hasEnded { break }
        }
        child.kill()
        _ = child.wait()
        return String(decoding: bytes, as: UTF8.self)
    }
}
