package import LinuxCalls
package import MonitorClient
package import QMPProtocol

/// Names that change places between the two processes.
package struct MovingNames: Hashable, Sendable {
    package struct Entry: Hashable, Sendable {
        package var publicPath: String
        package var privatePath: String
        /// Of the file under the public path before anything happened.
        package var inode: UInt64
    }

    package var entries: [Entry] = []
    package var directories: [String] = []

    /// Gives the new process the names; all or none.
    package func exchange() throws(UpgradeFailure) {
        for (index, entry) in entries.enumerated() {
            do throws(SystemCallError) {
                guard try FileNames.status(of: entry.publicPath).inode == entry.inode else {
                    throw SystemCallError("stat", .fileExists, subject: "\(entry.publicPath) is another file now")
                }
                try FileNames.copyAccess(of: entry.publicPath, to: entry.privatePath)
                try FileNames.exchange(entry.publicPath, entry.privatePath)
            } catch {
                MovingNames(entries: Array(entries[..<index])).exchangeBack()
                throw UpgradeFailure(.rolledBack, "names could not be given to the new process: \(error)")
            }
        }
    }

    /// Undoes ``exchange()`` where it was done.
    package func exchangeBack() {
        for entry in entries where (try? FileNames.status(of: entry.privatePath).inode) == entry.inode {
            try? FileNames.exchange(entry.publicPath, entry.privatePath)
        }
    }

    /// Removes the private names: the new process's after a failure, the old one's after success.
    package func removePrivate() {
        for entry in entries { FileNames.remove(entry.privatePath) }
        for directory in directories {
            FileNames.remove("\(directory)/m")
            FileNames.removeDirectory(directory)
        }
    }
}

/// Ends an upgrade in one of its two ways, from whatever state it was left in: used by the upgrade itself when something fails,
/// and by its guard when the upgrade's own process died.
///
/// The new process never runs the guest before it is told to, by one command; so whether it does is what decides.
package struct Rescue {
    package var source: QMPConnection
    package var sourceProcess: OwnedDescriptor
    package var destination: QMPConnection
    package var destinationProcess: OwnedDescriptor
    /// The guest ran before the upgrade.
    package var wasRunning: Bool
    package var names: MovingNames
    /// Capabilities that were on at the source.
    package var capabilities: [String]
    /// Parameters of the source as they were.
    package var parameters: JSONObject

    /// Where the guest is.
    package enum Outcome: String, Sendable { case stayed, moved, undecided }

    package func resolve() -> Outcome {
        if Self.hasEnded(sourceProcess) { return Self.hasEnded(destinationProcess) ? .undecided : finish() }
        if destinationRuns { return finish() }
        if let status = try? source.run("query-migrate", timeoutMilliseconds: 5000)["status"]?.stringValue,
            status.hasPrefix("postcopy"), !Self.hasEnded(destinationProcess)
        {
            // The old process has given pages away: there is one way only.
            if wasRunning { _ = try? destination.run("cont", timeoutMilliseconds: 5000) }
            return .undecided
        }
        return rollBack()
    }

    private var destinationRuns: Bool {
        guard !Self.hasEnded(destinationProcess),
            let answer = try? destination.run("query-status", timeoutMilliseconds: 5000)
        else { return false }
        return answer["status"]?.stringValue == "running"
    }

    /// Whether a process has ended, by its pidfd.
    static func hasEnded(_ process: OwnedDescriptor, withinMilliseconds limit: CInt = 0) -> Bool {
        ((try? process.waitUntilReady(for: 1, timeoutMilliseconds: limit)) ?? 0) != 0
    }

    /// The guest is the new process's: the old one goes, without the clean-up that would take its successor's names away.
    @discardableResult package func finish() -> Outcome {
        ProcessSignal.kill(sourceProcess)
        guard Self.hasEnded(sourceProcess, withinMilliseconds: 30_000) else { return .undecided }
        names.removePrivate()
        return .moved
    }

    /// The guest stays: the new process goes first, so that at no time two could run it.
    package func rollBack() -> Outcome {
        ProcessSignal.kill(destinationProcess)
        guard Self.hasEnded(destinationProcess, withinMilliseconds: 30_000) else { return .undecided }
        names.exchangeBack()
        names.removePrivate()
        do {
            for attempt in 0..<500 {
                let status = try source.run("query-migrate")["status"]?.stringValue ?? "none"
                guard ["setup", "active", "pre-switchover", "device", "cancelling", "wait-unplug"].contains(status)
                else { break }
                if attempt % 50 == 0 { _ = try? source.run("migrate_cancel") }
                ProcessSignal.sleep(milliseconds: 10)
            }
            for _ in 0..<200 where wasRunning {
                if try source.run("query-status")["running"]?.boolValue == true { break }
                _ = try? source.run("cont")
                ProcessSignal.sleep(milliseconds: 10)
            }
            if wasRunning, try source.run("query-status")["running"]?.boolValue != true { return .undecided }
            try setCapabilities(capabilities)
            if !parameters.isEmpty { _ = try? source.run("migrate-set-parameters", parameters) }
        } catch { return Self.hasEnded(sourceProcess) ? .undecided : .stayed }
        return .stayed
    }

    /// Sets exactly these capabilities at the source.
    func setCapabilities(_ wanted: [String]) throws {
        try Self.setCapabilities(wanted, on: source)
    }

    static func setCapabilities(_ wanted: [String], on monitor: QMPConnection) throws {
        let known = (try monitor.run("query-migrate-capabilities").arrayValue ?? []).filter { entry in
            entry["state"]?.boolValue != wanted.contains(entry["capability"]?.stringValue ?? "")
        }
        if known.isEmpty { return }
        let changes: [JSONValue] = known.map { entry in
            let name = entry["capability"]?.stringValue ?? ""
            return ["capability": .string(name), "state": .bool(wanted.contains(name))]
        }
        _ = try monitor.run("migrate-set-capabilities", ["capabilities": .array(changes)])
    }
}

/// A process of its own that outlives the upgrade's: when that dies, it ends what was begun.
///
/// It is given everything in one message before anything happens, and one byte when all is over.
package enum ReplacementGuard {
    /// What is sent to the guard, descriptors in this order: source's monitor, source, destination's monitor, destination.
    static func arm(_ rescue: Rescue, over socket: OwnedDescriptor) throws(SystemCallError) {
        let names: [JSONValue] = rescue.names.entries.map {
            ["public": .string($0.publicPath), "private": .string($0.privatePath), "inode": JSONValue($0.inode)]
        }
        let message: JSONValue = [
            "was-running": .bool(rescue.wasRunning), "names": .array(names),
            "directories": .array(rescue.names.directories.map { .string($0) }),
            "capabilities": .array(rescue.capabilities.map { .string($0) }), "parameters": .object(rescue.parameters),
        ]
        try StreamSocket.sendAll(
            message.jsonBytes + [0x0A],
            descriptors: [
                rescue.source.socket, rescue.sourceProcess, rescue.destination.socket, rescue.destinationProcess,
            ], to: socket)
    }

    static func disarm(_ socket: OwnedDescriptor) { try? StreamSocket.sendAll([0x64], to: socket) }

    /// The guard's life: waits for the upgrade's end, and acts if it came without a word.
    /// - Returns: What it had to do; nil when nothing.
    package static func serve(_ socket: OwnedDescriptor) throws -> Rescue.Outcome? {
        var bytes: [UInt8] = []
        var descriptors: [OwnedDescriptor] = []
        var piece = [UInt8](repeating: 0, count: 4096)
        while true {
            var message: ReceivedMessage?
            unsafe piece.withUnsafeMutableBytes { buffer in
                message = try? unsafe StreamSocket.receive(into: buffer, descriptorsMax: 4, from: socket)
            }
            guard let message, message.byteCount > 0, bytes.count < 1 << 20 else { break }
            descriptors += message.descriptors
            bytes += piece[..<message.byteCount]
        }
        guard let end = bytes.firstIndex(of: 0x0A), descriptors.count == 4 else { return nil }
        if bytes.last == 0x64 { return nil }
        let plan = try JSONValue.parse(Array(bytes[..<end]))
        var names = MovingNames()
        names.directories = (plan["directories"]?.arrayValue ?? []).compactMap(\.stringValue)
        for entry in plan["names"]?.arrayValue ?? [] {
            guard let one = entry["public"]?.stringValue, let other = entry["private"]?.stringValue,
                let inode = entry["inode"]?.unsignedValue
            else { continue }
            names.entries.append(.init(publicPath: one, privatePath: other, inode: inode))
        }
        return Rescue(
            source: QMPConnection(resuming: descriptors[0], identifierPrefix: "guard-"), sourceProcess: descriptors[1],
            destination: QMPConnection(resuming: descriptors[2], identifierPrefix: "guard-"),
            destinationProcess: descriptors[3], wasRunning: plan["was-running"]?.boolValue ?? true, names: names,
            capabilities: (plan["capabilities"]?.arrayValue ?? []).compactMap(\.stringValue),
            parameters: plan["parameters"]?.objectValue ?? [:]
        ).resolve()
    }
}
