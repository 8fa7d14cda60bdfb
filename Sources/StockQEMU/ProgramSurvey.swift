import LinuxCalls

/// What is known of the program that takes over, from what it prints.
struct ProgramSurvey {
    private(set) var version = QEMUVersion(0, 0)
    private(set) var findings: [Finding] = []

    /// Asks the program for its version, machine types and devices.
    init(_ binary: String, for facts: SourceFacts) {
        do throws(SystemCallError) {
            let text = try HelpText.output(of: binary, ["-version"])
            guard let match = text.firstMatch(of: /version (\d+)\.(\d+)\.(\d+)/), let major = Int(match.1),
                let minor = Int(match.2), let micro = Int(match.3)
            else {
                findings.append(
                    Finding(.fail, "program", "\(binary) does not say that it is QEMU: name one with --binary"))
                return
            }
            version = QEMUVersion(major, minor, micro)
            let machines = try HelpText.output(of: binary, ["-machine", "help"])
            let has = machines.split(separator: "\n").contains {
                $0.split(separator: " ").first.map(String.init) == facts.machineType
            }
            findings.append(
                Finding(
                    has ? .ok : .fail, "program",
                    "\(binary), QEMU \(version)"
                        + (has ? "" : ", has no machine type \(facts.machineType): take one that has it")))
            if has { lookForDevices(try HelpText.output(of: binary, ["-device", "help"]), binary, facts) }
        } catch {
            findings.append(Finding(.fail, "program", "\(binary) cannot be run: \(error)"))
        }
        lookAtProcessor(facts)
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

/// What a program prints when it is asked for help.
enum HelpText {
    static func output(of program: String, _ arguments: [String]) throws(SystemCallError) -> String {
        let (ours, theirs) = try OwnedDescriptor.pipe()
        let nothing = try OwnedDescriptor.open("/dev/null", flags: 2)
        var output: OwnedDescriptor? = theirs
        let child = try ChildProcess(
            path: program, arguments: arguments, descriptors: [0: nothing, 1: theirs, 2: theirs])
        output = nil
        _ = output
        return collect(child, ours, seconds: 10)
    }

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
