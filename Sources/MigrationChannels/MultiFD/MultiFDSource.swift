import ComponentState
import Glibc
import GuestMemory
import LinuxCalls
package import MigrationEngine
import MigrationStream
import Synchronization

/// The source of a multifd migration: pages go in packets of 512 KiB over channels of their own, each with a thread.
///
/// To QEMU 7.2: pages of zeroes stay on the main channel, and every section ends with a synchronisation. Later ones, and
/// our own: each channel looks for zeroes itself, and a synchronisation, announced by MULTIFD_FLUSH, ends each round.
package final class MultiFDSource: SourceRAMHooks {
    package let disposition = PageDisposition.copies
    /// What the migration is to use as its channel.
    package let transport: MultiFDTransport
    private let state: Gate<MultiFDEnd>
    private let isOld: Bool
    private let uuid: [UInt8]
    private let threads = Mutex<[HostThread]>([])

    /// What the threads do.
    struct Work: Sendable {
        /// One per channel; nil while it has nothing to do.
        var jobs: [Job?] = []
        var counts = DelayedPages()
        var byteCount: UInt64 = 0
        var packetNumber: UInt64 = 0
        var isEnding = false

        var isIdle: Bool { jobs.allSatisfy { $0 == nil } }
    }

    enum Job: Sendable {
        case pages(Batch)
        case synchronise
    }

    /// Pages of one block for one packet.
    struct Batch: Sendable {
        let block: RAMBlock
        /// To be looked at.
        var runs: [Range<Int>] = []
        /// Known to be zero.
        var zeroRuns: [Range<Int>] = []
        var pageCount = 0
    }

    // SAFETY: only the migration's thread calls the hooks.
    nonisolated(unsafe) private var batch: Batch?

    static let pagesPerPacket = MultiFD.pagesPerPacket(pageSize: guestPageSize)

    /// - Parameter channels: As many as the parameter `multifd-channels` says, connected after `main`.
    package init(
        main: any MigrationTransport, channels: [any MigrationTransport], configuration: MigrationConfiguration
    ) {
        let state = Gate(MultiFDEnd())
        self.state = state
        transport = MultiFDTransport(main: main, channels: channels, told: state)
        isOld = configuration.layout == .qemu7_2
        uuid = configuration.uuid ?? [UInt8](repeating: 0, count: 16)
        unsafe batch = nil
        state.update { $0.sending.jobs = Array(repeating: nil, count: channels.count) }
    }

    package var sideByteCount: UInt64 { state.read { $0.sending.byteCount } }
    package var delayedPages: DelayedPages { state.read { $0.sending.counts } }

    // MARK: The migration's thread

    package func beforeRAMIterate(_ output: StreamOutput, _ phase: RAMHookPhase) throws(MigrationError) {
        guard phase == .setup else { return }
        GatheredIO.ignorePipeSignal()
        for (index, channel) in transport.channels.enumerated() {
            channel.setStallLimit(milliseconds: state.read { $0.limitMilliseconds })
            do throws(SystemCallError) {
                let sender = MultiFDSender(
                    index: index, transport: transport, state: state, uuid: uuid, isOld: isOld)
                let thread = try HostThread(name: "multifd \(index)") { sender.run() }
                threads.withLock { $0.append(thread) }
            } catch {
                throw MigrationError(.channelFailed, in: .setup, "no thread for a multifd channel", cause: error)
            }
        }
    }

    package func savePage(_ output: StreamOutput, _ run: PageRun, name: (Range<Int>) -> Void) throws(MigrationError)
        -> SavePageAnswer
    {
        var pages = run.pages
        if isOld {
            // Zeroes are the main channel's.
            func isZero(_ page: Int) -> Bool {
                unsafe MigrationEngine.isZero(run.block.base + page * guestPageSize, byteCount: guestPageSize)
            }
            let first = pages.lowerBound
            let startsWithZero = isZero(first)
            var end = first + 1
            while end < pages.upperBound, isZero(end) == startsWithZero { end += 1 }
            if startsWithZero { return .notSupported(pageCount: end - first) }
            pages = first..<end
        }
        try add(pages, of: run.block, areZero: false, in: output.phase)
        return .delayed(pageCount: pages.count)
    }

    package func saveZeroPages(_ run: PageRun) throws(MigrationError) -> Bool {
        if isOld { return false }
        try add(run.pages, of: run.block, areZero: true, in: .precopy)
        return true
    }

    private func add(
        _ pages: Range<Int>, of block: RAMBlock, areZero: Bool, in phase: MigrationPhase
    ) throws(MigrationError) {
        var page = pages.lowerBound
        while page < pages.upperBound {
            if unsafe batch != nil && batch!.block !== block { try send(in: phase) }
            if unsafe batch == nil { unsafe batch = Batch(block: block) }
            let count = unsafe min(pages.upperBound - page, Self.pagesPerPacket - batch!.pageCount)
            if areZero {
                unsafe batch!.zeroRuns.append(page..<(page + count))
            } else {
                unsafe batch!.runs.append(page..<(page + count))
            }
            unsafe batch!.pageCount += count
            page += count
            if unsafe batch!.pageCount == Self.pagesPerPacket { try send(in: phase) }
        }
    }

    /// Gives what was gathered to a channel that has nothing to do.
    private func send(in phase: MigrationPhase) throws(MigrationError) {
        guard let full = unsafe batch else { return }
        unsafe batch = nil
        state.wait { $0.isOver || $0.sending.jobs.contains { $0 == nil } }
        try update(phase) { work in
            guard let index = work.jobs.firstIndex(where: { $0 == nil }) else { return }
            work.jobs[index] = .pages(full)
        }
    }

    private func update(_ phase: MigrationPhase, _ body: (inout Work) -> Void) throws(MigrationError) {
        let result = state.update { state -> Result<Void, TransportError> in
            do throws(TransportError) { try state.check() } catch { return .failure(error) }
            body(&state.sending)
            return .success(())
        }
        do throws(TransportError) { try result.get() } catch {
            throw error.migrationError(in: phase, "sending pages over multifd channels")
        }
    }

    /// Waits until everything went out, each channel's packet of synchronisation last.
    private func synchronise(_ output: StreamOutput) throws(MigrationError) {
        try send(in: output.phase)
        state.wait { $0.isOver || $0.sending.isIdle }
        try update(output.phase) { work in
            for index in work.jobs.indices { work.jobs[index] = .synchronise }
        }
        state.wait { $0.isOver || $0.sending.isIdle }
        try update(output.phase) { _ in }
        if !isOld { output.writer.write(RAMFlags.multifdFlush.rawValue) }
    }

    package func roundEnded(_ output: StreamOutput) throws(MigrationError) {
        if !isOld { try synchronise(output) }
    }

    package func afterRAMIterate(_ output: StreamOutput, _ phase: RAMHookPhase) throws(MigrationError) {
        // The end is one of a round too: nothing is pending behind it.
        if isOld || phase == .setup { try synchronise(output) }
    }

    package func end() {
        state.update { $0.sending.isEnding = true }
        for thread in threads.withLock({ $0 }) { thread.join() }
        threads.withLock { $0 = [] }
    }
}

/// One channel at the source. Lives on its thread.
private final class MultiFDSender: Sendable {
    private let index: Int
    private let transport: MultiFDTransport
    private let state: Gate<MultiFDEnd>
    private let uuid: [UInt8]
    private let isOld: Bool

    init(index: Int, transport: MultiFDTransport, state: Gate<MultiFDEnd>, uuid: [UInt8], isOld: Bool) {
        self.index = index
        self.transport = transport
        self.state = state
        self.uuid = uuid
        self.isOld = isOld
    }

    func run() {
        let writer = StreamWriter(capacity: 2048)
        do throws(TransportError) {
            MultiFDHello(uuid: uuid, channel: UInt8(index)).encode(to: writer)
            try unsafe send(writer, [])
            while true {
                state.wait { $0.isOver || $0.sending.isEnding || $0.sending.jobs[index] != nil }
                let (job, isOver) = state.read { ($0.sending.jobs[index], $0.isOver) }
                guard let job, !isOver else { return }
                let sent: UInt64
                var counts = DelayedPages()
                switch job {
                case .pages(let batch): (sent, counts) = try send(batch, writer)
                case .synchronise:
                    // QEMU 10 leaves everything else in such a packet zero.
                    MultiFDPacket(
                        flags: .synchronise, number: isOld ? nextNumber() : 0,
                        allocatedPageCount: isOld ? UInt32(MultiFDSource.pagesPerPacket) : 0
                    ).encode(
                        to: writer, pageSize: UInt64(guestPageSize), pagesPerPacket: MultiFDSource.pagesPerPacket)
                    sent = UInt64(writer.count)
                    try unsafe send(writer, [])
                }
                state.update { state in
                    state.sending.jobs[index] = nil
                    state.sending.byteCount += sent
                    state.sending.counts.normal += counts.normal
                    state.sending.counts.zero += counts.zero
                }
            }
        } catch { transport.channelFailed(index, error) }
    }

    private func nextNumber() -> UInt64 {
        state.update { state in
            defer { state.sending.packetNumber += 1 }
            return state.sending.packetNumber
        }
    }

    private func send(
        _ batch: MultiFDSource.Batch, _ writer: StreamWriter
    ) throws(TransportError) -> (UInt64, DelayedPages) {
        var packet = MultiFDPacket(number: nextNumber(), block: batch.block.name)
        packet.pages.reserveCapacity(batch.pageCount)
        let base = unsafe batch.block.base
        var pieces: [iovec] = unsafe []
        for run in batch.runs {
            for page in run {
                let offset = page * guestPageSize
                if !isOld, unsafe MigrationEngine.isZero(base + offset, byteCount: guestPageSize) {
                    packet.zeroPages.append(UInt64(offset))
                    continue
                }
                packet.pages.append(UInt64(offset))
                if let last = unsafe pieces.last, unsafe last.iov_base + last.iov_len == base + offset {
                    unsafe pieces[pieces.count - 1].iov_len += guestPageSize
                } else {
                    unsafe pieces.append(iovec(iov_base: base + offset, iov_len: guestPageSize))
                }
            }
        }
        for run in batch.zeroRuns {
            for page in run { packet.zeroPages.append(UInt64(page * guestPageSize)) }
        }
        packet.encode(to: writer, pageSize: UInt64(guestPageSize), pagesPerPacket: MultiFDSource.pagesPerPacket)
        let byteCount = UInt64(writer.count + packet.pages.count * guestPageSize)
        unsafe try send(writer, pieces)
        return (byteCount, DelayedPages(normal: UInt64(packet.pages.count), zero: UInt64(packet.zeroPages.count)))
    }

    /// What the writer holds, and behind it memory.
    private func send(_ writer: StreamWriter, _ memory: [iovec]) throws(TransportError) {
        defer { writer.removeAll() }
        var pieces = unsafe [iovec()] + memory
        try unsafe writer.withBytes { (bytes) throws(TransportError) in
            unsafe pieces[0] = iovec(
                iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
            try unsafe pieces.withUnsafeMutableBufferPointer { (pieces) throws(TransportError) in
                try unsafe transport.channels[index].send(pieces)
            }
        }
    }
}
