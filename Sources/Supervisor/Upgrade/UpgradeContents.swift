import ComponentState
import FoundationEssentials
import HostBackends
import LinuxCalls
import MigrationChannels
import QMPProtocol

/// Named blobs in one: u32 count, then per blob u32 name length, name, u64 length, bytes; big-endian. What comes from the
/// predecessor is judged like anything else from outside.
struct NamedBlobs {
    /// In order; there are so few that looking through them is quicker than hashing.
    private var entries: [(name: String, bytes: [UInt8])] = []

    init() { entries.reserveCapacity(8) }

    var names: [String] { entries.map(\.name) }

    subscript(name: String) -> [UInt8]? {
        get { entries.first { $0.name == name }?.bytes }
        set {
            let index = entries.firstIndex { $0.name == name }
            switch (index, newValue) {
            case (let index?, let bytes?): entries[index].bytes = bytes
            case (let index?, nil): entries.remove(at: index)
            case (nil, let bytes?): entries.append((name, bytes))
            case (nil, nil): break
            }
        }
    }

    var bytes: [UInt8] {
        var writer = ByteWriter(capacity: entries.reduce(4) { $0 + 12 + $1.name.utf8.count + $1.bytes.count })
        writer.integer(UInt32(entries.count))
        for entry in entries {
            writer.text(entry.name, countedBy: UInt32.self)
            writer.blob(entry.bytes)
        }
        return writer.bytes
    }

    init(_ bytes: [UInt8]) throws(Refusal) {
        self.init()
        var reader = ByteReader(bytes, of: "what the predecessor sent")
        for _ in 0..<(try reader.count(of: 12, countedBy: UInt32.self)) {
            let name = try reader.text(countedBy: UInt32.self)
            guard self[name] == nil else { throw Refusal("the predecessor sent \(name) twice") }
            entries.append((name, try reader.blob()))
        }
        try reader.finish()
    }

    /// An integer as a blob of its own.
    mutating func set(_ name: String, _ value: Int64) {
        var writer = ByteWriter()
        writer.integer(value)
        self[name] = writer.bytes
    }

    func integer(_ name: String) throws(Refusal) -> Int64? {
        guard let blob = self[name] else { return nil }
        var reader = ByteReader(blob, of: "the guest's \(name)")
        let value: Int64 = try reader.integer()
        try reader.finish()
        return value
    }
}

extension ByteReader where Failure == Refusal {
    init(_ bytes: [UInt8], of what: String) { self.init(bytes) { Refusal("\(what) is damaged: \($0)") } }
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
    /// Whether the guest's processors are preferred: see ``ProcessorPreference``.
    var isPreferred: Bool?

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
