import FoundationEssentials
import HostBackends
import LinuxCalls
import MigrationChannels
import QMPProtocol

/// Named blobs in one: u32 count, then per blob u32 name length, name, u64 length, bytes; big-endian. What comes from the
/// predecessor is judged like anything else from outside.
struct NamedBlobs {
    private(set) var names: [String] = []
    private var blobs: [String: [UInt8]] = [:]

    init() {}

    subscript(name: String) -> [UInt8]? {
        get { blobs[name] }
        set {
            if blobs[name] == nil { names.append(name) }
            blobs[name] = newValue
        }
    }

    var bytes: [UInt8] {
        var result: [UInt8] = []
        result.reserveCapacity(names.reduce(64) { $0 + 16 + $1.utf8.count + blobs[$1]!.count })
        func append<Value: FixedWidthInteger>(_ value: Value) {
            for shift in stride(from: Value.bitWidth - 8, through: 0, by: -8) {
                result.append(UInt8(truncatingIfNeeded: value >> Value(shift)))
            }
        }
        append(UInt32(names.count))
        for name in names {
            append(UInt32(name.utf8.count))
            result += Array(name.utf8)
            append(UInt64(blobs[name]!.count))
            result += blobs[name]!
        }
        return result
    }

    init(_ bytes: [UInt8]) throws(Refusal) {
        var offset = 0
        func take(_ count: UInt64) throws(Refusal) -> ArraySlice<UInt8> {
            guard count <= UInt64(bytes.count - offset) else { throw Refusal("the hand-over's contents are cut short") }
            defer { offset += Int(count) }
            return bytes[offset..<(offset + Int(count))]
        }
        func integer(_ byteCount: Int) throws(Refusal) -> UInt64 {
            try take(UInt64(byteCount)).reduce(0) { $0 << 8 | UInt64($1) }
        }
        for _ in 0..<(try integer(4)) {
            guard let name = String(validating: try take(try integer(4)), as: UTF8.self), blobs[name] == nil else {
                throw Refusal("the hand-over's contents are damaged")
            }
            self[name] = Array(try take(try integer(8)))
        }
        guard offset == bytes.count else { throw Refusal("something follows the hand-over's contents") }
    }
}

/// Backends on their way: each one's kind and state as blobs, its files as descriptors named `backend/file`.
struct BackendParcel {
    var blobs = NamedBlobs()
    var descriptors: [NamedDescriptor] = []

    init() {}

    mutating func add(_ name: String, _ handover: BackendHandover) {
        blobs[name] = Array(handover.kind.utf8) + [0] + handover.state
        for file in handover.descriptors {
            descriptors.append(NamedDescriptor("\(name)/\(file.name)", file.descriptor))
        }
    }

    init(_ bytes: [UInt8], _ descriptors: [NamedDescriptor]) throws(Refusal) {
        blobs = try NamedBlobs(bytes)
        self.descriptors = descriptors
    }

    /// All of them; every descriptor belongs to one.
    func unpack() throws(Refusal) -> [(String, BackendHandover)] {
        var rest = descriptors
        var result: [(String, BackendHandover)] = []
        for name in blobs.names {
            let bytes = blobs[name]!
            guard let end = bytes.firstIndex(of: 0), let kind = String(validating: bytes[..<end], as: UTF8.self) else {
                throw Refusal("\(name): what came is damaged")
            }
            var handover = BackendHandover(kind: kind, state: Array(bytes[(end + 1)...]))
            for resource in rest where resource.name.hasPrefix(name + "/") {
                handover.descriptors.append((String(resource.name.dropFirst(name.utf8.count + 1)), resource.descriptor))
            }
            rest.removeAll { $0.name.hasPrefix(name + "/") }
            result.append((name, handover))
        }
        guard rest.isEmpty else { throw Refusal("a descriptor came that belongs to nothing: \(rest[0].name)") }
        return result
    }
}

/// What a successor needs to know before it builds anything.
struct UpgradeDescription: Codable {
    /// Agreed on before; see ``UpgradeStateVersion``.
    var stateVersion: Int
    var program: String
    /// The effective configuration, as the configuration file has it.
    var configuration: JSONValue
    var runDirectory: String
    var consoleDescription: String
    var runState: RunState
    var channel: String
    var reason: String
    /// When memory is sent rather than handed over: how. The socket it comes through is then among the descriptors.
    var strategy: String?
    /// What the guest's process is to the kernel when memory runs out; its successor is the first to go until it has the guest.
    var outOfMemoryPriority: Int?
    /// From version 2 on.
    var history: GuestHistory?

    static func decode(_ bytes: [UInt8]) throws(Refusal) -> UpgradeDescription {
        // The version first: the rest may have another shape.
        struct Version: Codable {
            var stateVersion: Int
            var program: String?
        }
        let data = Data(bytes)
        guard let version = try? JSONDecoder().decode(Version.self, from: data) else {
            throw Refusal("the predecessor's description is damaged")
        }
        _ = try UpgradeStateVersion.common(
            with: version.stateVersion...version.stateVersion, of: version.program ?? "the running process")
        do { return try JSONDecoder().decode(Self.self, from: data) } catch {
            throw Refusal("the predecessor's description is damaged: \(error)")
        }
    }

    var bytes: [UInt8] { (try? JSONEncoder().encode(self)).map { Array($0) } ?? [] }
}

/// The monitor's clients, and the descriptors that they handed over.
struct SavedMonitor: Codable {
    var server: QMPServer.Saved
    var store: DescriptorStore.Saved
}
