package import LinuxCalls
import MonitorClient
import QMPProtocol

/// A process of its own that outlives the upgrade's: when that dies, it ends what was begun.
///
/// It is told of the old process before there is a new one, of the new one as soon as it is there, each in a line of JSON with
/// descriptors, and gets one byte when all is over. A new process of which it was not told is known by its environment.
package enum ReplacementGuard {
    /// In the new process's environment: the token of the upgrade that started it.
    static let variable = "SIDESTEP_UPGRADE"
    private static let over: UInt8 = 0x64
    /// The guard's own word: it knows the old process.
    private static let ready: UInt8 = 0x72
    private static let readyMillisecondsMax: CInt = 30_000

    /// Descriptors in this order: the source's monitor, the source, taps.
    static func arm(_ rescue: Rescue, token: String, over socket: OwnedDescriptor) throws(SystemCallError) {
        let names: [JSONValue] = rescue.names.entries.map {
            ["public": .string($0.publicPath), "private": .string($0.privatePath), "inode": JSONValue($0.inode)]
        }
        let taps: [JSONValue] = rescue.taps.map {
            ["header": JSONValue($0.settings.headerByteCount), "offloads": JSONValue($0.settings.offloads ?? -1)]
        }
        let message: JSONValue = [
            "token": .string(token), "was-running": .bool(rescue.wasRunning), "postcopy": .bool(rescue.isPostcopy),
            "names": .array(names), "directories": .array(rescue.names.directories.map { .string($0) }),
            "capabilities": .array(rescue.capabilities.map { .string($0) }), "parameters": .object(rescue.parameters),
            "taps": .array(taps),
        ]
        try StreamSocket.sendAll(
            message.jsonBytes + [0x0A],
            descriptors: [rescue.source.socket, rescue.sourceProcess] + rescue.taps.map(\.descriptor), to: socket)
    }

    /// Waits until the guard has been told of the old process.
    static func awaitReadiness(over socket: OwnedDescriptor) throws(SystemCallError) {
        var byte: UInt8 = 0
        guard try socket.waitUntilReady(for: 1, timeoutMilliseconds: readyMillisecondsMax) != 0,
            unsafe try withUnsafeMutableBytes(
                of: &byte, { (buffer) throws(SystemCallError) in try unsafe socket.read(into: buffer) }) == 1
        else { throw SystemCallError("read", .brokenPipe, subject: "the guard does not start") }
    }

    /// Descriptors in this order: the destination's monitor, the destination.
    static func tellOf(_ process: OwnedDescriptor, monitor: OwnedDescriptor, over socket: OwnedDescriptor)
        throws(SystemCallError)
    {
        try StreamSocket.sendAll([0x7B, 0x7D, 0x0A], descriptors: [monitor, process], to: socket)
    }

    static func disarm(_ socket: OwnedDescriptor) { try? StreamSocket.sendAll([over], to: socket) }

    /// The guard's life: waits for the upgrade's end, and acts if it came without a word.
    /// - Returns: What it had to do; nil when nothing.
    package static func serve(_ socket: OwnedDescriptor) throws -> Rescue.Outcome? {
        var bytes: [UInt8] = []
        var descriptors: [OwnedDescriptor] = []
        var piece = [UInt8](repeating: 0, count: 4096)
        while true {
            var message: ReceivedMessage?
            unsafe piece.withUnsafeMutableBytes { buffer in
                message = try? unsafe StreamSocket.receive(
                    into: buffer, descriptorsMax: StreamSocket.descriptorsMax, from: socket)
            }
            guard let message, message.byteCount > 0, bytes.count < 1 << 20 else { break }
            descriptors += message.descriptors
            let knew = bytes.contains(0x0A)
            bytes += piece[..<message.byteCount]
            if !knew, bytes.contains(0x0A) { try? StreamSocket.sendAll([ready], to: socket) }
            // At once, though the upgrade still has its end: it waits for ours. Lines have no newline but their last byte.
            if bytes.suffix(2) == [0x0A, over] { return nil }
        }
        guard let end = bytes.firstIndex(of: 0x0A) else { return nil }
        let plan = try JSONValue.parse(Array(bytes[..<end]))
        var rescue = try rescue(from: plan, &descriptors)
        if descriptors.count >= 2 {
            rescue.destination = QMPConnection(resuming: descriptors[0], identifierPrefix: "guard-")
            rescue.destinationProcess = descriptors[1]
        } else if let token = plan["token"]?.stringValue,
            let found = ProcessFiles.all(withVariable: "\(variable)=\(token)").first
        {
            rescue.destinationProcess = try .process(found.identifier)
        }
        return rescue.resolve()
    }

    /// Takes its descriptors from the front of the list.
    private static func rescue(from plan: JSONValue, _ descriptors: inout [OwnedDescriptor]) throws -> Rescue {
        var names = MovingNames()
        names.directories = (plan["directories"]?.arrayValue ?? []).compactMap(\.stringValue)
        for entry in plan["names"]?.arrayValue ?? [] {
            guard let one = entry["public"]?.stringValue, let other = entry["private"]?.stringValue,
                let inode = entry["inode"]?.unsignedValue
            else { continue }
            names.entries.append(.init(publicPath: one, privatePath: other, inode: inode))
        }
        let taps = plan["taps"]?.arrayValue ?? []
        guard descriptors.count >= 2 + taps.count else {
            throw UpgradeFailure(.undecided, "the guard was not given what it needs")
        }
        var rescue = Rescue(
            source: QMPConnection(resuming: descriptors[0], identifierPrefix: "guard-"), sourceProcess: descriptors[1],
            wasRunning: plan["was-running"]?.boolValue ?? true, isPostcopy: plan["postcopy"]?.boolValue ?? false,
            names: names)
        rescue.capabilities = (plan["capabilities"]?.arrayValue ?? []).compactMap(\.stringValue)
        rescue.parameters = plan["parameters"]?.objectValue ?? [:]
        for (index, tap) in taps.enumerated() {
            let header = CInt(clamping: tap["header"]?.integerValue ?? 0)
            let offloads = CInt(clamping: tap["offloads"]?.integerValue ?? -1)
            rescue.taps.append(
                HeldTap(
                    descriptor: descriptors[2 + index],
                    settings: TapSettings(headerByteCount: header, offloads: offloads < 0 ? nil : offloads)))
        }
        descriptors.removeFirst(2 + taps.count)
        return rescue
    }
}
