package import Glibc
import GuestMemory
package import LinuxCalls
package import MigrationEngine
import MigrationStream
import Synchronization
import SystemPackage

/// How pages get into the pipe; tests play a kernel that refuses.
@safe package struct PageSplicer: Sendable {
    package let splice: @Sendable (UnsafeMutableBufferPointer<iovec>, OwnedDescriptor) throws(SystemCallError) -> Int

    package init(
        _ splice:
            @escaping @Sendable (UnsafeMutableBufferPointer<iovec>, OwnedDescriptor) throws(SystemCallError) -> Int
    ) {
        unsafe self.splice = splice
    }

    /// vmsplice(2).
    package static let kernel = unsafe PageSplicer { (pieces, pipe) throws(SystemCallError) in
        try unsafe PagePipe.splice(pieces, into: pipe)
    }
}

/// The value of the PING that the destination answers together with the descriptors of its RAM: "flip".
let setupPing: UInt32 = 0x666c_6970

/// The source of a page flip: page addresses on the unix socket, page contents in a pipe beside it.
///
/// Before the first page the destination has answered with the descriptors of its own RAM: whatever is given away
/// can be mapped back from there.
@safe package final class PageFlipSource: SourceRAMHooks {
    /// Contents that are named before they are put into the pipe: a few huge pages.
    private static let queuedPagesMax = 1024

    /// How a kernel or a sandbox says that it does not do this.
    private static let refusals: Set<Errno> = [.notPermitted, .noFunction, .invalidArgument, .permissionDenied]

    package let disposition: PageDisposition
    /// What is given away can be had back: in a postcopy the guest itself is gone when that begins.
    private let keepsWayBack: Bool
    private let isOn: Bool
    private let transport: DescriptorTransport
    private let splicer: PageSplicer
    private let blocks: [RAMBlock]
    private let notice: @Sendable (String) -> Void

    @unsafe private struct State {
        var pipe: OwnedDescriptor?
        /// vmsplice was refused: contents are copied into the pipe.
        var copies = false
        var queued: [iovec] = unsafe []
        var queuedPages = 0
        /// The destination's RAM, in the order of the blocks; empty when it cannot be had.
        var destinationRAM: [OwnedDescriptor] = []
        /// What was freed here, per block.
        var freed: [[Range<Int>]]
    }
    // SAFETY: only the migration's thread calls the hooks.
    nonisolated(unsafe) private var state: State
    private let sent = Atomic<UInt64>(0)

    /// - Parameters:
    ///   - configuration: With capability `unix-page-flipping` off nothing here has any effect.
    ///   - notice: Told once if contents have to be copied into the pipe.
    package init(
        transport: DescriptorTransport, guest: any MigratableGuest, configuration: MigrationConfiguration,
        splicer: PageSplicer = .kernel, notice: @escaping @Sendable (String) -> Void = { _ in }
    ) {
        self.transport = transport
        self.splicer = splicer
        self.notice = notice
        blocks = guest.ramBlocks
        isOn = configuration.has(.unixPageFlipping)
        // Pages of a running guest are needed again; only those of a stopped one can be given away.
        disposition = isOn && configuration.strategy != .precopy ? .givesAway : .copies
        keepsWayBack = disposition == .givesAway && configuration.strategy != .postcopy
        unsafe state = State(freed: Array(repeating: [], count: guest.ramBlocks.count))
        if isOn { transport.expectDescriptors(guest.ramBlocks.count) }
    }

    package var sideByteCount: UInt64 { sent.load(ordering: .relaxed) }

    // MARK: Setup

    package func beforeRAMIterate(_ output: StreamOutput, _ phase: RAMHookPhase) throws(MigrationError) {
        guard isOn, phase == .setup else { return }
        guard transport.isSocket else {
            throw MigrationError(
                .invalidConfiguration, in: .setup, "unix-page-flipping needs a unix socket, not \(transport.name)")
        }
        GatheredIO.ignorePipeSignal()
        let pipe: (readEnd: OwnedDescriptor, writeEnd: OwnedDescriptor, capacity: Int)
        do throws(SystemCallError) {
            pipe = try PagePipe.make()
            try pipe.writeEnd.setNonBlocking(true)
        } catch {
            throw MigrationError(.channelFailed, in: .setup, "no pipe for page contents", cause: error)
        }
        // The word, then by itself the byte that carries the descriptor: exactly what the load hook takes.
        output.writer.write(RAMFlags.hook.rawValue)
        try output.flush()
        do throws(TransportError) {
            try transport.send([1], descriptors: [pipe.readEnd])
        } catch {
            throw error.migrationError(in: .setup, "handing over the pipe")
        }
        output.sentAside(byteCount: 1)
        unsafe state.pipe = pipe.writeEnd
    }

    package func confirmSetup(_ exchange: (UInt32) throws(MigrationError) -> Void) throws(MigrationError) {
        guard isOn else { return }
        try exchange(setupPing)
        let files = transport.takeDescriptors()
        transport.expectDescriptors(0)
        if !keepsWayBack && (files.isEmpty || disposition == .givesAway) { return }
        guard files.count == blocks.count else {
            throw MigrationError(
                .capabilityMismatch, in: .setup,
                "the destination cannot flip pages: it gave \(files.count) descriptors for \(blocks.count) RAM blocks")
        }
        for (file, block) in zip(files, blocks) {
            do throws(SystemCallError) {
                let status = try file.status()
                guard status.type == .regular, status.byteCount >= block.byteCount else {
                    throw SystemCallError("fstat", .invalidArgument, subject: block.name)
                }
                // A destination that failed before and whose memory was taken back cannot be given it again.
                guard try !block.uses(file) else {
                    throw SystemCallError("fstat", .fileExists, subject: "\(block.name) is shared already")
                }
            } catch {
                throw MigrationError(
                    .ramMismatch, in: .setup, "the destination's memory for \(block.name) cannot be taken back",
                    cause: error)
            }
        }
        unsafe state.destinationRAM = files
    }

    package func afterRAMIterate(_ output: StreamOutput, _ phase: RAMHookPhase) throws(MigrationError) {
        try push(output)
    }

    // MARK: Pages

    package func savePage(_ output: StreamOutput, _ run: PageRun, name: (Range<Int>) -> Void) throws(MigrationError)
        -> SavePageAnswer
    {
        guard isOn, unsafe state.pipe != nil else { return .notSupported(pageCount: run.pages.count) }
        name(run.pages)
        unsafe state.queued.append(iovec(iov_base: run.block.base + run.offset, iov_len: run.byteCount))
        unsafe state.queuedPages += run.pages.count
        if unsafe state.queuedPages >= Self.queuedPagesMax || state.queued.count >= 256 { try push(output) }
        return .sent(pageCount: run.pages.count, byteCount: run.byteCount)
    }

    /// Sends the names, so that the destination empties the pipe, then the contents.
    private func push(_ output: StreamOutput) throws(MigrationError) {
        guard let pipe = unsafe state.pipe, unsafe !state.queued.isEmpty else { return }
        try output.flush()
        var queued = unsafe state.queued
        unsafe state.queued.removeAll(keepingCapacity: true)
        unsafe state.queuedPages = 0
        do throws(TransportError) {
            try unsafe queued.withUnsafeMutableBufferPointer { (pieces) throws(TransportError) in
                try unsafe push(pieces, into: pipe)
            }
        } catch {
            throw error.migrationError(in: output.phase, "putting pages into the pipe")
        }
    }

    private func push(_ pieces: UnsafeMutableBufferPointer<iovec>, into pipe: OwnedDescriptor) throws(TransportError) {
        var index = 0
        while index < pieces.count {
            let left = unsafe UnsafeMutableBufferPointer(rebasing: pieces[index...])
            do throws(SystemCallError) {
                let taken =
                    if unsafe state.copies {
                        try unsafe GatheredIO.write(left, to: pipe)
                    } else {
                        try unsafe splicer.splice(left, pipe)
                    }
                sent.wrappingAdd(UInt64(taken), ordering: .relaxed)
                unsafe DescriptorTransport.advance(pieces, &index, by: taken)
            } catch {
                if unsafe !state.copies, Self.refusals.contains(error.errno) {
                    // A kernel or a sandbox without vmsplice: the same bytes, by a copy.
                    unsafe state.copies = true
                    notice("vmsplice is refused (\(error.errno)): page contents are copied into the pipe")
                } else {
                    try transport.wait(after: error, pipe, Int16(POLLOUT))
                }
            }
        }
    }

    // MARK: Giving away and taking back

    package func destinationHas(_ runs: [PageRun]) throws(MigrationError) {
        guard disposition == .givesAway, unsafe !keepsWayBack || !state.destinationRAM.isEmpty else { return }
        var merged: [PageRun] = []
        for run in runs {
            if let last = merged.last, last.reference == run.reference, last.pages.upperBound == run.pages.lowerBound {
                merged[merged.count - 1].pages = last.pages.lowerBound..<run.pages.upperBound
            } else {
                merged.append(run)
            }
        }
        for run in merged {
            let range = run.offset..<(run.offset + run.byteCount)
            // Noted first: if freeing fails half way, the destination's copy is right all the same.
            unsafe state.freed[run.reference.index].append(range)
            do throws(SystemCallError) {
                try run.block.free(offset: range.lowerBound, byteCount: range.count)
            } catch {
                throw MigrationError(
                    .guestFailed, in: .switchover, "memory of \(run.block.name) cannot be freed", cause: error)
            }
        }
    }

    package func takeBack() throws(MigrationError) {
        for (index, block) in blocks.enumerated() {
            for range in unsafe Self.joined(state.freed[index]) {
                do throws(SystemCallError) {
                    try block.replace(range, with: unsafe state.destinationRAM[index])
                } catch {
                    throw MigrationError(
                        .guestFailed, in: .switchover, "memory of \(block.name) cannot be mapped back", cause: error)
                }
            }
            unsafe state.freed[index] = []
        }
    }

    package func end() {
        unsafe state.pipe = nil
        unsafe state.destinationRAM = []
    }

    private static func joined(_ ranges: [Range<Int>]) -> [Range<Int>] {
        var result: [Range<Int>] = []
        for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
            if let last = result.last, last.upperBound >= range.lowerBound {
                result[result.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
            } else {
                result.append(range)
            }
        }
        return result
    }
}
