import Glibc
package import GuestMemory
import LinuxCalls
package import MigrationEngine
package import MigrationStream
import Synchronization

/// The destination of a multifd migration: a thread for each channel puts pages where they belong. Where the stream says
/// so, all wait for each other: every page before that point is in its place before any behind it.
package final class MultiFDDestination: DestinationRAMHooks {
    /// What the migration is to use as its channel.
    package let transport: MultiFDTransport
    private let state: Gate<MultiFDEnd>
    private let uuid: [UInt8]?
    private let tooMany: @Sendable () -> Bool
    private let threads = Mutex<[HostThread]>([])
    // SAFETY: only the migration's thread calls the hooks that touch these.
    nonisolated(unsafe) private var memory: MultiFDMemory?
    nonisolated(unsafe) private var isPerSection: Bool?

    /// What the threads do.
    struct Work: Sendable {
        /// Per channel: packets of synchronisation that came.
        var synchronised: [Int] = []
        /// Channels whose end came, between two packets.
        var ended: Set<Int> = []
        /// Channels in the middle of a packet.
        var busy: Set<Int> = []
        /// Channels by the number in their first packet.
        var numbers: Set<UInt8> = []
        /// Points of the stream that were passed.
        var released = 0
        /// Everything is here; no page may come any more.
        var isSealed = false
        var isEnding = false
        var byteCount: UInt64 = 0
        var counts = DelayedPages()
        var complaint: MigrationError?
    }

    /// - Parameters:
    ///   - channels: As many as the parameter `multifd-channels` says, nothing of them read yet.
    ///   - tooMany: Asked once all channels of the source are known to be connected: whether there are more.
    package init(
        main: any MigrationTransport, channels: [any MigrationTransport], configuration: MigrationConfiguration,
        tooMany: @escaping @Sendable () -> Bool = { false }
    ) {
        let state = Gate(MultiFDEnd())
        self.state = state
        transport = MultiFDTransport(main: main, channels: channels, told: state)
        uuid = configuration.uuid
        self.tooMany = tooMany
        unsafe memory = nil
        unsafe isPerSection = nil
        state.update { $0.receiving.synchronised = Array(repeating: 0, count: channels.count) }
    }

    package func prepare(_ blocks: [RAMBlock], holdsData: [PageSet]) {
        let memory = MultiFDMemory(blocks, holdsData: holdsData)
        unsafe self.memory = memory
        for index in transport.channels.indices {
            let receiver = MultiFDReceiver(
                index: index, transport: transport, state: state, uuid: uuid, memory: memory)
            do throws(SystemCallError) {
                let thread = try HostThread(name: "multifd \(index)") { receiver.run() }
                threads.withLock { $0.append(thread) }
            } catch { transport.channelFailed(index, .failed(error)) }
        }
    }

    package func holdsData(_ reference: BlockReference, page: Int) -> Bool {
        unsafe memory?.holdsData(reference.index, page: page) == true
    }

    // MARK: Points of the stream

    package func synchronise(_ point: RAMSynchronisation, in phase: MigrationPhase) throws(MigrationError) -> Bool {
        let isFirst = unsafe isPerSection == nil
        switch point {
        case .flush:
            if isFirst { unsafe isPerSection = false }
            try waitForAll(phase)
        case .endOfSection(let kind):
            // A source that says nothing in START synchronises at the end of each section.
            if isFirst { unsafe isPerSection = true }
            if unsafe isPerSection == true { try waitForAll(phase, releasing: kind != .end) }
            if kind == .end { try seal(phase) }
        }
        if isFirst, tooMany() {
            throw MigrationError(
                .capabilityMismatch, in: phase,
                "the source has more than the \(transport.channels.count) multifd-channels here; set the parameter alike "
                    + "at both ends")
        }
        return true
    }

    private func waitForAll(_ phase: MigrationPhase, releasing: Bool = true) throws(MigrationError) {
        let wanted = state.read { $0.receiving.released } + 1
        try wait(phase, "waiting for the multifd channels") { state in
            zip(state.receiving.synchronised.indices, state.receiving.synchronised).allSatisfy { index, count in
                count >= wanted || state.receiving.ended.contains(index)
            }
        }
        // One that ended before it came here has lost pages.
        guard state.read({ $0.receiving.synchronised.allSatisfy { $0 >= wanted } }) else {
            throw MigrationError(
                .channelClosed, in: phase, "the source closed a multifd channel before everything had come over it")
        }
        if releasing { state.update { $0.receiving.released = wanted } }
    }

    /// No page may come behind the end of RAM: the guest is about to run.
    private func seal(_ phase: MigrationPhase) throws(MigrationError) {
        try wait(phase, "waiting for the last multifd packets") { $0.receiving.busy.isEmpty }
        state.update { $0.receiving.isSealed = true }
    }

    private func wait(
        _ phase: MigrationPhase, _ doing: String, until condition: (MultiFDEnd) -> Bool
    ) throws(MigrationError) {
        var before = state.read { $0.receiving.byteCount }
        while true {
            let limit = state.read { $0.limitMilliseconds }
            let isDone = state.wait(timeoutNanoseconds: limit == 0 ? nil : limit * 1_000_000) {
                $0.isOver || condition($0)
            }
            let (complaint, failure, isInterrupted, byteCount) = state.read {
                ($0.receiving.complaint, $0.failure, $0.isInterrupted, $0.receiving.byteCount)
            }
            if let complaint { throw complaint }
            if let failure { throw failure.migrationError(in: phase, doing) }
            if isInterrupted { throw TransportError.interrupted.migrationError(in: phase, doing) }
            if isDone { return }
            guard byteCount != before else { throw TransportError.stalled.migrationError(in: phase, doing) }
            before = byteCount
        }
    }

    package func end() {
        state.update { $0.receiving.isEnding = true }
        for channel in transport.channels { channel.close() }
        for thread in threads.withLock({ $0 }) { thread.join() }
        threads.withLock { $0 = [] }
    }
}

/// RAM as the threads of all channels see it.
@safe final class MultiFDMemory: Sendable {
    let blocks: [RAMBlock]
    let byteCounts: [String: UInt64]
    let indices: [String: Int]
    private let before: [PageSet]
    // SAFETY: a byte per page, allocated once, freed in deinit. Within one stretch between two synchronisations a page comes
    // over one channel; a source that breaks this gets one byte or the other.
    nonisolated(unsafe) private let marks: [UnsafeMutablePointer<UInt8>]

    init(_ blocks: [RAMBlock], holdsData: [PageSet]) {
        self.blocks = blocks
        before = holdsData
        byteCounts = Dictionary(
            blocks.map { ($0.name, UInt64($0.byteCount)) }, uniquingKeysWith: { first, _ in first })
        indices = Dictionary(
            blocks.enumerated().map { ($0.element.name, $0.offset) }, uniquingKeysWith: { first, _ in first })
        unsafe marks = blocks.map { block in
            let bytes = UnsafeMutablePointer<UInt8>.allocate(capacity: block.pageCount)
            unsafe bytes.initialize(repeating: 0, count: block.pageCount)
            return unsafe bytes
        }
    }

    deinit { unsafe marks.forEach { unsafe $0.deallocate() } }

    func holdsData(_ index: Int, page: Int) -> Bool { unsafe marks[index][page] != 0 }
    func mark(_ index: Int, page: Int) { unsafe marks[index][page] = 1 }

    /// Makes a page zero; one that nobody ever wrote is not touched, which would fill it.
    func wipe(_ index: Int, page: Int) {
        guard before[index].contains(page) || holdsData(index, page: page) else { return }
        let address = unsafe blocks[index].base + page * guestPageSize
        if unsafe !isZero(address, byteCount: guestPageSize) { unsafe memset(address, 0, guestPageSize) }
    }
}
