package import ComponentState
package import DeviceModel
import GuestMemory
import Synchronization

/// The block device (virtio 1.2, section 5.2), one queue.
///
/// Requests run on the device's worker thread, one after the other, in pieces. Between pieces the device can be paused: a
/// request that is not finished then is put back into the queue and done again from its beginning by whoever runs the
/// queue next. That is safe because nothing was promised to the driver, because every request gives the same
/// result when it is repeated, and because a pause waits for a write that the host is working on, so that it cannot
/// overtake a later one. Reads go through a buffer of our own, so that one that comes back late finds its result
/// unwanted instead of writing into a guest that has moved on; a flush is simply asked for again.
package final class VirtioBlock: VirtioDevice {
    package let identity: VirtioIdentity
    private let backend: any BlockBackend
    /// What GET_ID answers, 20 bytes.
    private let serial: [UInt8]
    private let work: Mutex<Work>
    private let buffer = WorkBuffer(byteCount: pieceByteCount)

    private struct Work {
        var features: UInt64 = 0
        /// The configuration space's `writeback`.
        var isWriteBack = true
        /// Requests that were taken by whoever ran the device before and not finished, in order.
        var leftOver: [UInt16] = []
        var inFlight: InFlight?
    }

    private struct InFlight {
        var head: UInt16
        var wasLeftOver: Bool
    }

    enum Feature {
        static let segmentMaximum: UInt64 = 1 << 2
        static let geometry: UInt64 = 1 << 4
        static let readOnly: UInt64 = 1 << 5
        static let blockSize: UInt64 = 1 << 6
        static let flush: UInt64 = 1 << 9
        static let topology: UInt64 = 1 << 10
        static let configureWriteCache: UInt64 = 1 << 11
        static let discard: UInt64 = 1 << 13
        static let writeZeroes: UInt64 = 1 << 14
        static let all =
            segmentMaximum | geometry | blockSize | flush | topology | configureWriteCache | discard | writeZeroes
        static let names: [UInt64: String] = [
            0: "BARRIER", 1: "SIZE_MAX", 2: "SEG_MAX", 4: "GEOMETRY", 5: "RO", 6: "BLK_SIZE", 7: "SCSI", 9: "FLUSH",
            10: "TOPOLOGY", 11: "CONFIG_WCE", 12: "MQ", 13: "DISCARD", 14: "WRITE_ZEROES", 16: "SECURE_ERASE",
            17: "ZONED",
        ]
    }

    private enum RequestType {
        static let read: UInt32 = 0, write: UInt32 = 1, flush: UInt32 = 4, identify: UInt32 = 8
        static let discard: UInt32 = 11, writeZeroes: UInt32 = 13
    }

    private enum Status {
        static let ok: UInt8 = 0, inputOutputError: UInt8 = 1, unsupported: UInt8 = 2
    }

    private static let queueSize: UInt16 = 256
    static let sectorByteCount: UInt64 = 512
    private static let headerByteCount = 16
    /// What one call of the backend moves at most: the grain at which a request can be interrupted.
    private static let pieceByteCount = 256 * 1024
    /// The same for giving space back, which is quicker per byte.
    private static let clearPieceByteCount: UInt64 = 64 << 20
    /// QEMU's limit for discard and write-zeroes.
    private static let clearSectorsMaximum: UInt32 = 0x3f_ffff
    private static let serialByteCount = 20

    /// - Parameter serial: Shown to the driver as the disk's serial number; at most 20 bytes of ASCII are used.
    package init(backend: any BlockBackend, serial: String = "") {
        precondition(backend.byteCount % Self.sectorByteCount == 0, "a disk is made of sectors")
        self.backend = backend
        let name = Array(serial.utf8.prefix(Self.serialByteCount))
        self.serial = name + [UInt8](repeating: 0, count: Self.serialByteCount - name.count)
        identity = VirtioIdentity(
            deviceID: 2, name: "virtio-blk", stateVersion: 2, queueSizes: [Self.queueSize],
            features: Feature.all | (backend.isReadOnly ? Feature.readOnly : 0), featureNames: Feature.names)
        work = Mutex(Work())
    }

    // MARK: Configuration

    /// `struct virtio_blk_config` (section 5.2.4) up to `write_zeroes_may_unmap`: 57 bytes, as QEMU without zones.
    package func configuration(_ state: borrowing VirtioState) -> [UInt8] {
        let sectors = backend.byteCount / Self.sectorByteCount
        let heads: UInt64 = 16, sectorsPerTrack: UInt64 = 63
        let cylinders = min(max(sectors / (heads * sectorsPerTrack), 2), 16383)
        var bytes = [UInt8]()
        func add<Word: FixedWidthInteger>(_ word: Word) {
            for index in 0..<Word.bitWidth / 8 { bytes.append(UInt8(truncatingIfNeeded: word >> (8 * index))) }
        }
        add(sectors)
        add(UInt32(0))  // size_max: no limit
        add(UInt32(Self.queueSize - 2))  // seg_max: what fits into the ring beside header and status
        add(UInt16(cylinders))
        add(UInt8(heads))
        add(UInt8(sectorsPerTrack))
        add(UInt32(Self.sectorByteCount))
        add(UInt8(0))  // physical_block_exp
        add(UInt8(0))  // alignment_offset
        add(UInt16(0))  // min_io_size
        add(UInt32(0))  // opt_io_size
        add(UInt8(work.withLock { $0.isWriteBack } ? 1 : 0))
        add(UInt8(0))
        add(UInt16(1))  // num_queues
        add(Self.clearSectorsMaximum)
        add(UInt32(1))  // max_discard_seg
        add(UInt32(1))  // discard_sector_alignment
        add(Self.clearSectorsMaximum)
        add(UInt32(1))  // max_write_zeroes_seg
        add(UInt8(1))  // write_zeroes_may_unmap
        return bytes
    }

    private static let writeBackOffset = 32

    package func storeConfiguration(_ state: inout VirtioState, offset: Int, _ bytes: [UInt8]) {
        guard offset <= Self.writeBackOffset, offset + bytes.count > Self.writeBackOffset else { return }
        let value = bytes[Self.writeBackOffset - offset]
        work.withLock { if $0.features & Feature.configureWriteCache != 0 { $0.isWriteBack = value & 1 != 0 } }
    }

    package func acceptFeatures(_ features: UInt64) { work.withLock { $0.features = features } }

    package func resetDevice(_ state: inout VirtioState) { work.withLock { $0 = Work() } }

    /// A driver that can neither flush nor choose expects each write to be safe when it is done.
    private var mustFlushWrites: Bool {
        work.withLock {
            $0.features & Feature.configureWriteCache != 0 ? !$0.isWriteBack : $0.features & Feature.flush == 0
        }
    }

    // MARK: Requests

    private struct Request {
        let chain: DescriptorChain
        let type: UInt32
        let sector: UInt64
        let epoch: UInt64
    }

    /// Why a request ended without a status: it was disowned (reset, pause), and the queue already says so.
    private struct Abandoned: Error {}

    package func service(queue: Int, of core: VirtioCore) {
        let buffer = unsafe buffer.bytes
        while let request = core.whileServing({ take(&$0, core) }) {
            do throws(Abandoned) {
                let (status, byteCount) = unsafe try perform(request, core, buffer)
                finish(request, core, status: status, dataByteCount: byteCount)
            } catch {}
        }
    }

    /// The next request: first those somebody else left, then the queue's.
    private func take(_ state: inout VirtioState, _ core: VirtioCore) -> Request? {
        let leftOver = work.withLock { $0.leftOver.isEmpty ? nil : $0.leftOver.removeFirst() }
        let chain: DescriptorChain
        if let leftOver {
            do throws(VirtqueueError) {
                chain = try state.queues[0].chain(at: leftOver, memory: core.memory, features: state.features)
            } catch {
                core.fail(&state, error)
                return nil
            }
        } else {
            guard let next = core.next(&state, queue: 0) else { return nil }
            chain = next
        }
        let header = chain.readBytes(core.memory, at: 0, count: Self.headerByteCount)
        guard header.count == Self.headerByteCount, chain.writableByteCount >= 1 else {
            core.fail(&state, VirtqueueError("block request without header or status"))
            return nil
        }
        work.withLock { $0.inFlight = InFlight(head: chain.head, wasLeftOver: leftOver != nil) }
        return Request(
            chain: chain, type: UInt32(truncatingIfNeeded: littleEndian(header[0..<4])),
            sector: littleEndian(header[8..<16]), epoch: state.epoch)
    }

    private func finish(_ request: Request, _ core: VirtioCore, status: UInt8, dataByteCount: Int) {
        core.monitor.withLock { state in
            guard state.epoch == request.epoch else { return }
            work.withLock { $0.inFlight = nil }
            request.chain.write(core.memory, at: request.chain.writableByteCount - 1, [status])
            core.finish(&state, queue: 0, head: request.chain.head, byteCount: dataByteCount + 1)
        }
    }

    package func park(_ state: inout VirtioState) {
        let inFlight = work.withLock { work in
            defer { work.inFlight = nil }
            if let inFlight = work.inFlight, inFlight.wasLeftOver { work.leftOver.insert(inFlight.head, at: 0) }
            return work.inFlight
        }
        if let inFlight, !inFlight.wasLeftOver { state.queues[0].unpop() }
    }

    /// - Returns: The status and how many bytes of data were written to the guest.
    private func perform(_ request: Request, _ core: VirtioCore, _ buffer: UnsafeMutableRawBufferPointer)
        throws(Abandoned) -> (status: UInt8, byteCount: Int)
    {
        let readable = request.chain.readableByteCount - Self.headerByteCount
        let writable = request.chain.writableByteCount - 1
        switch request.type {
        case RequestType.read:
            guard let offset = offset(sector: request.sector, byteCount: writable) else {
                return (Status.inputOutputError, 0)
            }
            return unsafe try read(request, core, offset: offset, byteCount: writable, buffer)
        case RequestType.write:
            guard !backend.isReadOnly, let offset = offset(sector: request.sector, byteCount: readable) else {
                return (Status.inputOutputError, 0)
            }
            return (unsafe try write(request, core, offset: offset, byteCount: readable, buffer), 0)
        case RequestType.flush:
            return (status { () throws(BackendError) in try backend.flush() }, 0)
        case RequestType.identify:
            let count = min(writable, serial.count)
            guard
                try step(
                    request, core,
                    { _ in request.chain.write(core.memory, at: 0, Array(serial.prefix(count))) == count })
            else { return (Status.inputOutputError, 0) }
            return (Status.ok, count)
        case RequestType.discard, RequestType.writeZeroes:
            return (try clear(request, core, readable: readable), 0)
        default:
            return (Status.unsupported, 0)
        }
    }

    /// Byte offset of a request that lies inside the disk and is made of whole sectors.
    private func offset(sector: UInt64, byteCount: Int) -> UInt64? {
        let (offset, overflow) = sector.multipliedReportingOverflow(by: Self.sectorByteCount)
        guard !overflow, UInt64(byteCount) % Self.sectorByteCount == 0, offset <= backend.byteCount,
            UInt64(byteCount) <= backend.byteCount - offset
        else { return nil }
        return offset
    }

    /// A look at guest memory in the middle of a request; throws if the request is not ours any more or has to wait.
    private func step<Result>(
        _ request: Request, _ core: VirtioCore, _ body: (inout VirtioState) -> Result
    ) throws(Abandoned) -> Result {
        try core.monitor.withLock { state throws(Abandoned) in
            guard state.epoch == request.epoch, !state.isQuiesced else { throw Abandoned() }
            return body(&state)
        }
    }

    /// Runs something that changes the disk: a pause waits for it.
    private func change(
        _ request: Request, _ core: VirtioCore, prepare: (inout VirtioState) -> Bool,
        _ body: () throws(BackendError) -> Void
    ) throws(Abandoned) -> UInt8 {
        let isPrepared = try step(request, core) { state in
            guard prepare(&state) else { return false }
            state.mustFinish = true
            return true
        }
        guard isPrepared else { return Status.inputOutputError }
        let status = status(body)
        core.monitor.withLock { $0.mustFinish = false }
        core.monitor.wake()
        return status
    }

    private func status(_ body: () throws(BackendError) -> Void) -> UInt8 {
        do throws(BackendError) {
            try body()
            return Status.ok
        } catch { return Status.inputOutputError }
    }

    private func read(
        _ request: Request, _ core: VirtioCore, offset: UInt64, byteCount: Int, _ buffer: UnsafeMutableRawBufferPointer
    ) throws(Abandoned) -> (status: UInt8, byteCount: Int) {
        var done = 0
        while done < byteCount {
            let piece = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<min(buffer.count, byteCount - done)])
            let at = offset + UInt64(done)
            guard status({ () throws(BackendError) in unsafe try backend.read(offset: at, into: piece) }) == Status.ok
            else { return (Status.inputOutputError, done) }
            let copied = try step(request, core) { _ in
                unsafe request.chain.write(core.memory, at: done, UnsafeRawBufferPointer(piece))
            }
            guard copied == piece.count else { return (Status.inputOutputError, done) }
            done += piece.count
        }
        return (Status.ok, done)
    }

    private func write(
        _ request: Request, _ core: VirtioCore, offset: UInt64, byteCount: Int, _ buffer: UnsafeMutableRawBufferPointer
    ) throws(Abandoned) -> UInt8 {
        var done = 0
        while done < byteCount {
            let piece = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<min(buffer.count, byteCount - done)])
            let at = offset + UInt64(done)
            let status = try change(
                request, core,
                prepare: { _ in
                    unsafe request.chain.read(core.memory, at: Self.headerByteCount + done, into: piece) == piece.count
                }
            ) { () throws(BackendError) in unsafe try backend.write(offset: at, UnsafeRawBufferPointer(piece)) }
            guard status == Status.ok else { return status }
            done += piece.count
        }
        return mustFlushWrites ? status { () throws(BackendError) in try backend.flush() } : Status.ok
    }

    /// Discard and write-zeroes: one range of 16 bytes, u64 sector, u32 sectors, u32 flags (bit 0: may unmap).
    private func clear(_ request: Request, _ core: VirtioCore, readable: Int) throws(Abandoned) -> UInt8 {
        guard !backend.isReadOnly else { return Status.inputOutputError }
        guard readable == 16 else { return Status.unsupported }
        let range = try step(request, core) { _ in
            request.chain.readBytes(core.memory, at: Self.headerByteCount, count: 16)
        }
        guard range.count == 16 else { return Status.inputOutputError }
        let isDiscard = request.type == RequestType.discard
        let sectors = UInt32(truncatingIfNeeded: littleEndian(range[8..<12]))
        let flags = UInt32(truncatingIfNeeded: littleEndian(range[12..<16]))
        guard flags & ~(isDiscard ? 0 : 1) == 0 else { return Status.unsupported }
        guard sectors <= Self.clearSectorsMaximum,
            let start = offset(sector: littleEndian(range[0..<8]), byteCount: Int(sectors) * Int(Self.sectorByteCount))
        else { return Status.inputOutputError }
        let end = start + UInt64(sectors) * Self.sectorByteCount
        var at = start
        while at < end {
            let count = min(Self.clearPieceByteCount, end - at)
            let status = try change(request, core, prepare: { _ in true }) { () throws(BackendError) in
                if isDiscard {
                    // Advice: a backend that cannot free space has done its best.
                    if backend.supportsDiscard { try backend.discard(offset: at, byteCount: count) }
                } else {
                    try backend.writeZeroes(offset: at, byteCount: count, mayUnmap: flags & 1 != 0)
                }
            }
            guard status == Status.ok else { return status }
            at += count
        }
        return mustFlushWrites ? status { () throws(BackendError) in try backend.flush() } : Status.ok
    }

    // MARK: State

    /// QEMU looks at the ring only when it is notified, and the driver has notified already: requests that wait in the
    /// ring are handed over as taken.
    package func prepareToSave(
        _ saved: inout VirtioSavedState, _ state: inout VirtioState, _ core: VirtioCore, layout: StateLayout
    ) {
        guard state.queues[0].isReady, !state.isBroken else { return }
        for head in work.withLock({ $0.leftOver }) {
            let chain = try? state.queues[0].chain(at: head, memory: core.memory, features: state.features)
            saved.takenRequests.append(chain ?? DescriptorChain(head: head))
        }
        guard layout != .native else { return }
        var queue = state.queues[0]  // a copy: the real one stays as it is, in case the guest stays here
        while let chain = try? queue.pop(core.memory, features: state.features, isAsking: false) {
            saved.takenRequests.append(chain)
        }
        saved.queues[0].lastAvailableIndex = queue.lastAvailableIndex
    }

    /// Requests that were taken and not finished: a byte 1 and the element for each, then a byte 0.
    package func codeDeviceState(with coder: inout any StateCoder, saved: VirtioSavedState) throws(StateError)
        -> @Sendable (inout VirtioState) -> Void
    {
        guard coder.isDecoding else {
            for chain in saved.takenRequests {
                var more: UInt8 = 1
                try coder.uint8("req.present", &more)
                try SavedElement.encode(chain, with: &coder)
            }
            var more: UInt8 = 0
            try coder.uint8("req.present", &more)
            return { _ in }
        }
        var leftOver: [UInt16] = []
        while true {
            var more: UInt8 = 0
            try coder.uint8("req.present", &more)
            if more == 0 { break }
            guard more == 1, leftOver.count < Int(virtqueueSizeMaximum) else {
                throw .invalid(
                    component: coder.component, field: "req.present",
                    value: "\(more) after \(leftOver.count) requests")
            }
            leftOver.append(try SavedElement.decode(with: &coder).head)
        }
        let isWriteBack = try judge(saved, component: coder.component)
        return { [leftOver] _ in
            self.work.withLock { work in
                work.leftOver = leftOver
                work.isWriteBack = isWriteBack
                work.inFlight = nil
            }
        }
    }

    /// Refuses a disk that is not the one the driver saw; answers whether its write cache is on.
    private func judge(_ incoming: VirtioSavedState, component: String) throws(StateError) -> Bool {
        let configuration = incoming.configuration
        // QEMU fills its copy when the driver first reads it.
        guard configuration.count > Self.writeBackOffset, configuration.contains(where: { $0 != 0 }) else {
            return true
        }
        let sectors = littleEndian(configuration[0..<8])
        guard sectors == backend.byteCount / Self.sectorByteCount else {
            throw .unsupported(
                component: component,
                reason: "the disk has \(sectors) sectors of 512 bytes, the image here has "
                    + "\(backend.byteCount / Self.sectorByteCount)")
        }
        if backend.isReadOnly, incoming.features & Feature.readOnly == 0, incoming.status & VirtioStatus.driverOK != 0 {
            throw .unsupported(component: component, reason: "the driver may write and the image here is read-only")
        }
        return configuration[Self.writeBackOffset] != 0
    }
}

/// A little-endian number from at most 8 bytes.
func littleEndian(_ bytes: ArraySlice<UInt8>) -> UInt64 { bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) } }
