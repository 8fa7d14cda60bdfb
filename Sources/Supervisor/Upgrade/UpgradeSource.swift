import FoundationEssentials
import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import QMPProtocol
import Synchronization

/// What `sidestep upgrade` asks for.
package struct UpgradeRequest: Sendable {
    /// The program that takes over; nil is the file this process was started from, as it is now.
    package var binary: String?
    package var channel = UpgradeChannel.auto
    /// Longest pause in milliseconds; when it is over, the guest is taken back.
    package var limitMilliseconds = 5_000

    package init() {}
}

/// How RAM changes process.
package enum UpgradeChannel: String, Sendable, CaseIterable {
    /// The best that both sides can do.
    case auto
    /// RAM's own descriptors; nothing is copied.
    case memfd
}

/// The running guest as the hand-over's driver sees it. All calls come from the driver's thread.
final class UpgradeSource: HandoverSubject {
    private let supervisor: Supervisor
    private let guest: VirtGuest
    private let backends: GuestBackends
    private let keeper: ProcessKeeper?
    private let reason: String
    private var wasRunning = false
    private var isSuspended = false

    init(_ supervisor: Supervisor, guest: VirtGuest, backends: GuestBackends, keeper: ProcessKeeper?, reason: String) {
        self.supervisor = supervisor
        self.guest = guest
        self.backends = backends
        self.keeper = keeper
        self.reason = reason
    }

    func describe() throws -> HandoverDescription {
        let runState = supervisor.loop.sync { self.supervisor.runState }
        let description = UpgradeDescription(
            program: "\(Product.name) \(Product.version)", configuration: supervisor.configuration.json,
            runDirectory: supervisor.directory.path, consoleDescription: backends.consoleDescription,
            runState: runState,
            channel: UpgradeChannel.memfd.rawValue, reason: reason)
        var parcel = BackendParcel()
        for (name, handover) in try backends.handOverDisks() { parcel.add(name, handover) }
        var resources = [NamedDescriptor("run-directory", supervisor.directory.lock)]
        if let keeper { resources.append(NamedDescriptor("keeper", keeper.file)) }
        resources += parcel.descriptors
        var blobs = NamedBlobs()
        blobs["description"] = description.bytes
        blobs["disks"] = parcel.blobs.bytes
        return HandoverDescription(
            configuration: blobs.bytes,
            blocks: guest.ramBlocks.map { .init(name: $0.name, byteCount: $0.byteCount, file: $0.file) },
            resources: resources)
    }

    func suspend() throws -> HandoverState {
        isSuspended = true
        let supervisor = supervisor
        return try supervisor.loop.sync {
            supervisor.server.suspend()
            let (server, sockets) = supervisor.server.handOver()
            let (store, kept) = supervisor.descriptorStore.handOver()
            let monitor = SavedMonitor(server: server, store: store)
            let resources =
                sockets.map { NamedDescriptor("qmp", $0) } + kept.map { NamedDescriptor("kept", $0) }
            return HandoverState(bytes: Array(try JSONEncoder().encode(monitor)), resources: resources)
        }
    }

    func pause() throws {
        wasRunning = guest.isRunning
        try guest.pause()
    }

    func save() throws -> HandoverState {
        var blobs = NamedBlobs()
        blobs["components"] = try SavedComponents.encode(guest.components)
        // The host's monotonic clock is one for both processes: the guest's time goes on as if nothing had been.
        if wasRunning { blobs["clock"] = bigEndian(guest.machine.clock.hostOffsetNanoseconds) }
        var parcel = BackendParcel()
        for (name, handover) in try backends.handOverState() { parcel.add(name, handover) }
        blobs["backends"] = parcel.blobs.bytes
        return HandoverState(bytes: blobs.bytes, resources: parcel.descriptors)
    }

    func resume() throws {
        if wasRunning { try guest.resume() }
        wasRunning = false
        guard isSuspended else { return }
        isSuspended = false
        supervisor.loop.sync { self.supervisor.server.resume() }
    }

    func release() {
        supervisor.loop.sync { self.supervisor.server.release() }
    }
}

/// An integer as eight bytes, most significant first, and back.
func bigEndian(_ value: Int64) -> [UInt8] {
    (0..<8).map { UInt8(truncatingIfNeeded: value >> (56 - 8 * Int64($0))) }
}
func integer(bigEndian bytes: [UInt8]) -> Int64? {
    bytes.count == 8 ? Int64(bitPattern: bytes.reduce(0) { $0 << 8 | UInt64($1) }) : nil
}

extension EventLoop {
    /// Runs `body` on the loop's thread and waits for it.
    func sync<Result>(_ body: @escaping () throws -> Result) throws -> Result {
        if isLoopThread { return try body() }
        // SAFETY: one thread waits while the other runs the closure; they never touch these at the same time.
        nonisolated(unsafe) let body = body
        nonisolated(unsafe) var result: Swift.Result<Result, any Error>?
        let done = HostSemaphore()
        perform {
            unsafe result = Swift.Result { try unsafe body() }
            done.signal()
        }
        done.wait()
        return try unsafe result!.get()
    }

    /// The same for what cannot fail.
    func sync<Result>(_ body: @escaping () -> Result) -> Result {
        let throwing: () throws -> Result = body
        do { return try sync(throwing) } catch { preconditionFailure("\(error)") }
    }
}
