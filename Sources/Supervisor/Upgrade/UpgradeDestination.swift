import ComponentState
import FoundationEssentials
import Glibc
import GuestMemory
import GuestTime
import LinuxCalls
import Machine
import MigrationChannels
import MigrationEngine
import QMPProtocol

/// The process that takes a guest over, as the hand-over's driver sees it.
final class UpgradeDestination: HandoverReceiver {
    private let loop: EventLoop
    private let quit: @Sendable () -> Void
    /// Set by ``prepare(_:)``.
    private(set) var supervisor: Supervisor?
    private(set) var backends: GuestBackends?
    private var guest: VirtGuest?
    private var keeper: ProcessKeeper?
    private var description: UpgradeDescription?
    private var clockOffset: Int64?
    private var stateByteCount = 0
    private var memory: UpgradeMemoryDestination?
    private var sentMemory = SentMemory()
    private var reader: SavedComponents.Reader?
    private var waitingParts: [[UInt8]] = []
    private var hasBackends = false
    private var held: Int64?
    private var processorNanoseconds: Int64 = 0
    /// Where the page tables are still to be filled.
    private var unpopulated: [(mapping: OwnedMapping, file: OwnedDescriptor, start: Int)] = []
    private let program: String
    private let predecessor: OwnedDescriptor?

    /// How long page tables are filled before the guest moves. What is left is filled behind the running guest.
    private static let populatingNanoseconds: Int64 = 20_000_000
    /// Of that, how long others may have the processor. Where they want it all the time, most of the limit would be theirs.
    private static let yieldedNanosecondsMax: Int64 = 2_000_000

    /// - Parameters:
    ///   - predecessor: The process that hands the guest over.
    ///   - quit: Somebody asked at the console for the guest's end.
    init(loop: EventLoop, program: String, predecessor: OwnedDescriptor?, quit: @escaping @Sendable () -> Void) {
        self.loop = loop
        self.program = program
        self.predecessor = predecessor
        self.quit = quit
    }

    func prepare(_ handover: HandoverDescription) throws {
        let blobs = try NamedBlobs(handover.configuration)
        guard let bytes = blobs["description"], let diskBytes = blobs["disks"] else {
            throw Refusal("the description did not come along")
        }
        let description = try UpgradeDescription.decode(bytes)
        self.description = description
        var configuration = RunConfiguration()
        try configuration.apply(description.configuration)
        try configuration.validate()

        var resources = handover.resources
        func take(_ name: String) -> OwnedDescriptor? {
            guard let index = resources.firstIndex(where: { $0.name == name }) else { return nil }
            return resources.remove(at: index).descriptor
        }
        guard let lock = take("run-directory"), let name = configuration.name else {
            throw Refusal("the run directory's lock did not come along")
        }
        let directory = try RunDirectory.adopt(name: name, path: description.runDirectory, lock: lock)
        if let file = take("keeper") { keeper = try ProcessKeeper(adopting: file) }
        let plan = try UpgradePlan(description)
        let memorySocket = take("memory")
        guard (memorySocket != nil) == (plan.strategy != nil) else {
            throw Refusal("how memory comes and what came do not agree")
        }
        let backends = try GuestBackends(
            adopting: try BackendParcel(diskBytes, resources).unpack(), configuration: configuration,
            consoleDescription: description.consoleDescription, loop: loop, quit: quit)
        self.backends = backends

        var files: [String: OwnedDescriptor] = [:]
        for block in handover.blocks {
            guard (block.file != nil) == (plan.strategy == nil) else {
                throw Refusal("RAM block \(block.name) did not come along")
            }
            files[block.name] = block.file
        }
        let events = VirtGuest.EventSink()
        var machineConfiguration = configuration.machineConfiguration
        if plan.needsMemoryFiles { machineConfiguration.memoryBackend = .memfd }
        let machine = try VirtMachine(
            configuration: machineConfiguration, backends: backends.machineBackends, adopting: files
        ) { events.observe($0) }
        let names = handover.blocks.map(\.name).sorted()
        guard machine.ramBlocks.map(\.name).sorted() == names else {
            throw Refusal("other RAM blocks came than this machine has: \(names.joined(separator: ", "))")
        }
        let deadline = monotonicNanoseconds() + Self.populatingNanoseconds
        for block in machine.ramBlocks {
            guard block.byteCount == handover.blocks.first(where: { $0.name == block.name })?.byteCount else {
                throw Refusal("RAM block \(block.name) has another size here")
            }
            if plan.strategy == nil, let file = block.file,
                let rest = PageTables.populate(
                    block.mapping, of: file, until: deadline, yieldedNanosecondsMax: Self.yieldedNanosecondsMax)
            {
                unpopulated.append((block.mapping, file, rest))
            }
        }
        machine.awaitThreads()
        let guest = VirtGuest(machine: machine, events: events, backends: backends)
        self.guest = guest
        if let memorySocket { memory = try UpgradeMemoryDestination(guest, plan: plan, socket: memorySocket) }
        let supervisor = try Supervisor(
            loop: loop, guest: guest, configuration: configuration, directory: directory,
            consoleDescription: description.consoleDescription, runState: .inmigrate)
        let equipment = UpgradeEquipment(guest: guest, backends: backends, keeper: keeper, program: program)
        // This process keeps away from the guest's processors until the source lets it go where it will.
        if description.isPreferred == true { equipment.preference.prepare() }
        supervisor.upgradeEquipment = equipment
        supervisor.history = description.history ?? GuestHistory(startedBy: nil)
        supervisor.history.moves += 1
        self.supervisor = supervisor
    }

    func adopt(_ control: HandoverState) throws {
        guard let supervisor else { throw Refusal("nothing was prepared") }
        var monitor = control.bytes
        var ahead = ComponentsAhead()
        if let description, description.stateVersion >= UpgradeStateVersion.withAhead {
            let blobs = try NamedBlobs(control.bytes)
            guard let blob = blobs["monitor"], let sections = blobs["ahead"] else {
                throw Refusal("the monitor's clients did not come along")
            }
            monitor = blob
            stateByteCount += sections.count
            var reader = ByteReader(sections, of: "the state that came ahead")
            ahead = try ComponentsAhead(from: &reader)
            try reader.finish()
        }
        let saved = try JSONDecoder().decode(SavedMonitor.self, from: Data(monitor))
        let qmp = control.resources.filter { $0.name == "qmp" }.map(\.descriptor)
        let kept = control.resources.filter { $0.name == "kept" }.map(\.descriptor)
        try loop.sync {
            supervisor.awaitArrival()
            try supervisor.server.adopt(saved.server, descriptors: qmp)
            supervisor.descriptorStore = try DescriptorStore(adopting: saved.store, descriptors: kept)
        }
        guard let guest else { return }
        try rehearseLoading(guest.components)
        reader = SavedComponents.Reader(guest.components)
        reader?.take(ahead)
        if description?.isPreferred == true {
            supervisor.upgradeEquipment?.preference.begin(guest.machine.processorThreadIdentifiers)
        }
    }

    /// Gives components the state that they have now as they will take the guest's: what that touches for the first time it touches now,
    /// and not while the guest stands still.
    private func rehearseLoading(_ components: [any StatefulComponent]) throws {
        var rehearsed = SavedComponents.Reader(components)
        try rehearsed.decode(try SavedComponents.encode(components))
        try guest?.finishLoading()
    }

    var timeOfFirstInstruction: Int64? { clockOffset == nil ? nil : guest?.machine.timeOfFirstInstruction() }

    var isBrief: Bool { memory == nil }

    func expect(on processor: CInt?) {
        guard let guest else { return }
        if let processor, description?.runState == .running { guest.machine.expectResume(on: processor) }
        // Once more what is sure to be part of the pause, for the caches of the processor that will do it.
        try? backends?.rehearseHandover()
        try? rehearseLoading(guest.components.filter { !$0.canGoAhead })
    }

    func load(part: HandoverPart) throws {
        guard reader != nil else { throw Refusal("nothing was prepared") }
        switch part {
        case .plain(let bytes):
            stateByteCount += bytes.count
            // Components may look at memory: they wait until all of it is here.
            if memory == nil { try reader?.decode(part: bytes) } else { waitingParts.append(bytes) }
        case .withDescriptors(let state):
            stateByteCount += state.bytes.count
            try adoptBackends(state)
        }
    }

    private func adoptBackends(_ parcel: HandoverState) throws {
        try backends?.adoptState(try BackendParcel(parcel.bytes, parcel.resources).unpack())
        hasBackends = true
    }

    func load(_ state: HandoverState) throws {
        guard let guest else { throw Refusal("nothing was prepared") }
        stateByteCount += state.bytes.count
        let blobs = try NamedBlobs(state.bytes)
        if let bytes = blobs["backends"] { try adoptBackends(HandoverState(bytes: bytes, resources: state.resources)) }
        guard let components = blobs["components"], hasBackends else {
            throw Refusal("the guest's state did not come along")
        }
        clockOffset = try blobs.integer("clock")
        if let bytes = blobs["memory"] { sentMemory = try SentMemory(bytes) }
        held = try blobs.integer("held")
        try memory?.finish()
        for part in waitingParts { try reader?.decode(part: part) }
        if let standing = blobs["standing"] {
            var list = ByteReader(standing, of: "the list of what stands")
            try reader?.stand(try ComponentsAhead.standing(from: &list))
            try list.finish()
        }
        try reader?.decode(components)
        if let clockOffset { guest.machine.clock.set(nanoseconds: VirtualClock.hostNanoseconds() &- clockOffset) }
        try guest.finishLoading()
    }

    func run(_ times: HandoverTimes) throws {
        guard let guest else { throw Refusal("nothing was prepared") }
        if let clockOffset {
            guest.machine.clock.set(nanoseconds: VirtualClock.hostNanoseconds() &- clockOffset)
            try loop.gathering { try guest.resume() }
        }
        // Before the predecessor hears that it may end: with its main process gone a service manager ends the service.
        ServiceManager.tell(isReady: true)
        if let priority = description?.outOfMemoryPriority { OutOfMemoryPriority.set(priority) }
        processorNanoseconds = SentMemory.processProcessorNanoseconds()
    }

    /// What can wait until the guest runs: the world learns who runs it, and the monitor's clients are served again.
    func settle(_ times: HandoverTimes) throws {
        guard let supervisor, let guest, let description else { return }
        supervisor.upgradeEquipment?.preference.limit(to: predecessor)
        keeper?.becomeRunner()
        try? supervisor.directory.writeProcessIdentifier()
        let report = UpgradeReport(
            times: times, channel: description.channel, strategy: description.strategy, reason: description.reason,
            process: getpid(),
            stateByteCount: stateByteCount, ramByteCount: guest.ramBlocks.reduce(0) { $0 + $1.byteCount },
            sent: sentMemory, held: held, processorNanoseconds: processorNanoseconds + sentMemory.processorNanoseconds)
        BackgroundPopulation.start(
            unpopulated, avoiding: ProcessFiles.own.processors(ofThreads: guest.machine.processorThreadIdentifiers))
        let runState: RunState = clockOffset != nil ? .running : description.runState
        loop.sync {
            supervisor.arrive(as: runState) {
                supervisor.migration.report = report.migration
                supervisor.server.resume()
                supervisor.server.answerInherited("x-sidestep-upgrade", .success(report.json))
                supervisor.server.refuseInherited(
                    QMPError("the guest changed process while this command waited its turn; it was not begun"))
                supervisor.announce(.migration, ["status": "completed"])
            }
        }
    }
}
