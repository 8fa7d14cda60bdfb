/// How RAM changes process.
package enum ReplacementStrategy: String, Hashable, Sendable, CaseIterable {
    /// Both processes map the same pages; nothing is copied. QEMU's `x-ignore-shared`.
    case shared
    /// QEMU's own `cpr-transfer`: descriptors of RAM cross; both ends from 10.0 on.
    case cpr
    /// The new process runs first and fetches; the old one frees what it sent.
    case postcopy
    /// Everything is copied while the guest runs.
    case precopy

    /// Whether the two processes end up with the same pages.
    var keepsPages: Bool { self == .shared || self == .cpr }
}

/// A version of QEMU, as far as it decides something.
package struct QEMUVersion: Hashable, Sendable, Comparable, CustomStringConvertible {
    package var major: Int
    package var minor: Int
    package var micro: Int

    package init(_ major: Int, _ minor: Int, _ micro: Int = 0) {
        self.major = major
        self.minor = minor
        self.micro = micro
    }

    package static func < (left: QEMUVersion, right: QEMUVersion) -> Bool {
        (left.major, left.minor, left.micro) < (right.major, right.minor, right.micro)
    }

    package var description: String { "\(major).\(minor).\(micro)" }
}

/// A memory back end of a running guest.
package struct MemoryBackend: Hashable, Sendable {
    package var identifier: String
    package var byteCount: UInt64
    /// Other processes may map the same pages.
    package var isShared: Bool
    /// The number of the descriptor that holds it, in the guest's process; nil when none does.
    package var descriptor: Int32?

    package init(identifier: String, byteCount: UInt64, isShared: Bool, descriptor: Int32?) {
        self.identifier = identifier
        self.byteCount = byteCount
        self.isShared = isShared
        self.descriptor = descriptor
    }
}

/// A socket that the guest's process has open.
package struct OpenSocket: Hashable, Sendable {
    package var descriptor: Int32
    package var isListening: Bool
    /// `unix:/path` or `tcp:host:port`; empty for an unnamed end.
    package var local: String
    package var peer: String
    /// Tells it from a later one with the same descriptor.
    package var inode: UInt64

    package init(descriptor: Int32, isListening: Bool, local: String, peer: String, inode: UInt64 = 0) {
        self.descriptor = descriptor
        self.inode = inode
        self.isListening = isListening
        self.local = local
        self.peer = peer
    }
}

/// What is known of the process to replace; what the new command line is made of.
package struct SourceFacts: Hashable, Sendable {
    package var commandLine: CommandLine
    package var version: QEMUVersion
    /// The versioned name: `pc-i440fx-7.2`.
    package var machineType: String
    package var memory: [MemoryBackend]
    /// Descriptors by the name of the tap they are attached to, in their order.
    package var taps: [String: [Int32]]
    package var sockets: [OpenSocket]
    /// What relative paths of the command line are relative to.
    package var workingDirectory: String
    package var isRunning = true
    /// The threads of its virtual processors.
    package var processorThreads: [Int32] = []
    /// As QMP's `query-target` names it: `x86_64`, `riscv64`.
    package var architecture = ""

    /// Before 10.2 QEMU sends when a riscv hart's timer is due, and does not set it again at the destination.
    package var losesTimers: Bool { architecture.hasPrefix("riscv") && version < QEMUVersion(10, 2) }

    package init(
        commandLine: CommandLine, version: QEMUVersion, machineType: String, memory: [MemoryBackend],
        taps: [String: [Int32]] = [:], sockets: [OpenSocket] = [], workingDirectory: String = "/"
    ) {
        self.commandLine = commandLine
        self.version = version
        self.machineType = machineType
        self.memory = memory
        self.taps = taps
        self.sockets = sockets
        self.workingDirectory = workingDirectory
    }

    /// How private directories' names begin.
    static let privatePrefix = ".sidestep-"

    /// The path in full. A name that an earlier upgrade served from a private directory has long been moved beside it.
    func absolute(_ path: String) -> String {
        let full = path.hasPrefix("/") ? path : "\(workingDirectory)/\(path)"
        var parts = full.split(separator: "/", omittingEmptySubsequences: false)
        if parts.count > 2, parts[parts.count - 2].hasPrefix(Self.privatePrefix) { parts.remove(at: parts.count - 2) }
        return parts.joined(separator: "/")
    }
}
