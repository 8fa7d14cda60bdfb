import FoundationEssentials
import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import QMPProtocol
import Synchronization

/// The running guest as the hand-over's driver sees it. All calls come from the driver's thread.
final class UpgradeSource: HandoverSubject {
    private let supervisor: Supervisor
    private let guest: VirtGuest
    private let backends: GuestBackends
    private let keeper: ProcessKeeper?
    private let preference: ProcessorPreference
    private let successor: ProcessFiles
    private let request: UpgradeRequest
    private let room: UpgradeRoom
    private let outOfMemoryPriority: Int?
    private var plan: UpgradePlan?
    private var stateVersion = 1
    private var memory: UpgradeMemorySource?
    private var rehearsal: UpgradeRehearsal?
    private var ahead = ComponentsAhead()
    private var wasRunning = false
    private var isSuspended = false
    private let processorTimeAtStart = HostThread.currentProcessorNanoseconds
    private var processorTimeBeforePause: Int64 = 0
    private var timeBeforePause: Int64 = 0
    private var threads: [CInt] = []
    /// The process's other threads while the guest is to stand still: to do so, each that runs has to get a processor of the host.
    private var urgency: [HostThread.Detour] = []

    /// - Parameter outOfMemoryPriority: What this process was before the hand-over, and the successor is to be after it.
    init(
        _ supervisor: Supervisor, _ equipment: UpgradeEquipment, _ request: UpgradeRequest, room: UpgradeRoom,
        outOfMemoryPriority: Int?, successor: ProcessFiles
    ) {
        self.successor = successor
        self.room = room
        self.outOfMemoryPriority = outOfMemoryPriority
        self.supervisor = supervisor
        guest = equipment.guest
        backends = equipment.backends
        keeper = equipment.keeper
        preference = equipment.preference
        self.request = request
    }

    var pauseLimitMilliseconds: Int? {
        request.limitMilliseconds
            ?? UpgradePlan.limitMilliseconds(
                plan?.strategy, ramByteCount: guest.ramBlocks.reduce(0) { $0 + $1.byteCount })
    }

    func meet(_ peer: HandoverPeer) throws {
        stateVersion = try UpgradeStateVersion.common(with: peer.stateVersions, of: peer.program)
        plan = try UpgradePlan(
            request, blocks: guest.ramBlocks, peerChannels: peer.channels, splices: UpgradePlan.kernelSplices)
        // Memory takes its time; and it is the guest that is to wait for whoever sends it.
        if plan?.channel != .memfd { preference.end() }
    }

    /// Nil also of a guest that stood still before.
    var pauseBegan: Int64? { memory.flatMap { $0.pauseBegan > 0 ? $0.pauseBegan : nil } }

    func describe() throws -> HandoverDescription {
        guard let plan else { throw Refusal("nothing was agreed on") }
        if plan.channel == .memfd { try guest.makeMemoryWhole() }
        let (runState, history) = supervisor.loop.sync { (self.supervisor.runState, self.supervisor.history) }
        let description = UpgradeDescription(
            stateVersion: stateVersion, program: "\(Product.name) \(Product.version)",
            configuration: supervisor.configuration.json,
            runDirectory: supervisor.directory.path, consoleDescription: backends.consoleDescription,
            runState: runState,
            channel: plan.channel.rawValue, reason: plan.reason, strategy: plan.strategy?.rawValue,
            outOfMemoryPriority: outOfMemoryPriority,
            history: stateVersion >= UpgradeStateVersion.withHistory ? history : nil, isPreferred: preference.isOn)
        var parcel = BackendParcel()
        for (name, handover) in try backends.handOverDisks() { parcel.add(name, handover) }
        var resources = [NamedDescriptor("run-directory", supervisor.directory.lock)]
        if let keeper { resources.append(NamedDescriptor("keeper", keeper.file)) }
        resources += parcel.descriptors
        if plan.strategy != nil {
            // Nobody but these two processes ever has an end of it.
            let (near, far) = try StreamSocket.pair()
            memory = try UpgradeMemorySource(
                guest, plan: plan, socket: near, limitMilliseconds: pauseLimitMilliseconds ?? 0
            ) { [supervisor, room] in
                guard !supervisor.isToEnd else { throw Refusal("the guest is to end") }
                return try room.allowance()
            }
            resources.append(NamedDescriptor("memory", far))
        }
        var blobs = NamedBlobs()
        blobs["description"] = description.bytes
        blobs["disks"] = parcel.blobs.bytes
        return HandoverDescription(
            configuration: blobs.bytes,
            blocks: guest.ramBlocks.map {
                .init(
                    name: $0.name, byteCount: $0.byteCount, file: plan.channel == .memfd ? $0.file : nil,
                    isNamed: $0.isNamed)
            },
            resources: resources)
    }

    func suspend() throws -> HandoverState {
        isSuspended = true
        // It is complete, and may run where this process may. What is not permitted now was not permitted before.
        for thread in (try? successor.threads()) ?? [] { HostThread.shareProcessors(withThread: thread) }
        rehearsal = try? UpgradeRehearsal(guest, backends: backends)
        let supervisor = supervisor
        let (monitor, resources) = try supervisor.loop.sync {
            supervisor.server.suspend()
            let (server, sockets) = supervisor.server.handOver()
            let (store, kept) = supervisor.descriptorStore.handOver()
            let monitor = Array(try JSONEncoder().encode(SavedMonitor(server: server, store: store)))
            return (monitor, sockets.map { NamedDescriptor("qmp", $0) } + kept.map { NamedDescriptor("kept", $0) })
        }
        guard stateVersion >= UpgradeStateVersion.withAhead else {
            return HandoverState(bytes: monitor, resources: resources)
        }
        // Components may look at memory as they are loaded: not before it is there.
        if memory == nil { ahead = try ComponentsAhead(of: guest.components) }
        var blobs = NamedBlobs()
        blobs["monitor"] = monitor
        blobs["ahead"] = ahead.bytes
        return HandoverState(bytes: blobs.bytes, resources: resources)
    }

    var isBrief: Bool { memory == nil }

    func rehearse() {
        try? rehearsal?.run()
        let isUrgent = isBrief && HostThread.Haste.urgent.whereOthersHaveRoom == .urgent
        threads = isUrgent ? (try? ProcessFiles.own.threads()) ?? [] : []
    }

    func expectPause() {
        // Not later: a thread whose turn is over is put behind others at its next system call, and before the processors are told to
        // stop these others are the guest's, for milliseconds.
        processorTimeBeforePause = HostThread.currentProcessorNanoseconds - processorTimeAtStart
        timeBeforePause = monotonicNanoseconds()
        preference.keep()
        urgency = threads.compactMap { HostThread.Detour(hastening: $0, .urgent) }
    }

    private func endUrgency() {
        for detour in urgency { detour.end() }
        urgency = []
    }

    /// No system call from the beginning until the processors are told to stop: see ``expectPause()``.
    func pause() throws {
        wasRunning = guest.isRunning
        guard let memory else { return try guest.pause() }
        try memory.send()
    }

    func save(sendPart: (HandoverPart) throws(HandoverError) -> Void) throws -> HandoverState {
        var blobs = NamedBlobs()
        var state = HandoverState(bytes: [])
        var parcel = BackendParcel()
        for (name, handover) in try backends.handOverState() { parcel.add(name, handover) }
        // First, for the successor to take them while the components are still being saved.
        if stateVersion >= UpgradeStateVersion.withAhead {
            try sendPart(.withDescriptors(HandoverState(bytes: parcel.blobs.bytes, resources: parcel.descriptors)))
        } else {
            blobs["backends"] = parcel.blobs.bytes
            state.resources = parcel.descriptors
        }
        blobs["components"] = try SavedComponents.encode(
            guest.components, partByteCount: stateVersion >= UpgradeStateVersion.withParts ? 2 << 10 : .max,
            ahead: &ahead
        ) { try sendPart(.plain($0)) }
        if stateVersion >= UpgradeStateVersion.withAhead { blobs["standing"] = ahead.standingBytes }
        // The host's monotonic clock is one for both processes: the guest's time goes on as if nothing had been.
        if wasRunning { blobs.set("clock", guest.machine.clock.hostOffsetNanoseconds) }
        blobs["memory"] = sentMemory().bytes
        blobs.set("held", guest.machine.heldNanoseconds)
        state.bytes = blobs.bytes
        return state
    }

    private func sentMemory() -> SentMemory {
        var sent = SentMemory()
        if let memory {
            sent.stopped = memory.pauseEnded
            sent.copiedByteCount = Int(memory.progress.ram.normalPages) * guestPageSize
            sent.processorNanoseconds = HostThread.currentProcessorNanoseconds - processorTimeAtStart
        } else {
            // Since then this thread has not slept; the call would take longer than all of this.
            sent.processorNanoseconds = processorTimeBeforePause + monotonicNanoseconds() - timeBeforePause
        }
        return sent
    }

    func resume() throws {
        endUrgency()
        try memory?.giveUp()
        if wasRunning { try guest.resume() }
        wasRunning = false
        guard isSuspended else { return }
        isSuspended = false
        supervisor.loop.sync { self.supervisor.server.resume() }
    }

    func release() {
        endUrgency()
        memory?.release()
        supervisor.loop.sync { self.supervisor.server.release() }
        let deadline = monotonicNanoseconds() + 1_000_000_000
        for block in guest.ramBlocks { PageTables.clear(block.mapping, until: deadline) }
    }
}
