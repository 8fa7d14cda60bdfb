import Glibc
import GuestMemory
import LinuxCalls
package import MigrationEngine
package import MigrationStream
import Synchronization

/// The source of a `mapped-ram` file: every page has its place, so a page that is written again replaces what was there,
/// and the file is never longer than RAM. Pages of zeroes are not written; a bitmap says which are there.
///
/// With `multifd` several threads write at once; the file is the same.
package final class MappedRAMSource: SourceRAMHooks {
    package let disposition = PageDisposition.copies
    private let file: any SeekableTransport
    private let blocks: [RAMBlock]
    private let workers: FileWorkers
    private struct State {
        var headers: [MappedRAMHeader] = []
        var bitmaps: [MappedRAMBitmap]
        var counts = DelayedPages()
        var byteCount: UInt64 = 0
    }
    // SAFETY: only the migration's thread calls the hooks.
    nonisolated(unsafe) private var state: State

    /// - Throws: when the channel is no file.
    package init(
        transport: any MigrationTransport, guest: any MigratableGuest, configuration: MigrationConfiguration
    ) throws(MigrationError) {
        guard let file = transport.seekable else {
            throw MigrationError(
                .invalidConfiguration, in: .setup, "mapped-ram needs a file, not \(transport.name)")
        }
        self.file = file
        blocks = guest.ramBlocks
        workers = FileWorkers(
            count: configuration.has(.multifd) ? Int(configuration.parameters.multifdChannels) : 0, name: "mapped-ram")
        unsafe state = State(bitmaps: guest.ramBlocks.map { MappedRAMBitmap(pageCount: $0.pageCount) })
    }

    package var sideByteCount: UInt64 { unsafe state.byteCount }
    package var delayedPages: DelayedPages { unsafe state.counts }

    // MARK: The list

    package func writeBlockList(_ output: StreamOutput, _ encoder: RAMEncoder) throws(MigrationError) -> Bool {
        output.writer.write(blocks.reduce(0) { $0 + UInt64($1.byteCount) } | RAMFlags.memorySize.rawValue)
        for (index, block) in blocks.enumerated() {
            try output.flush()
            do throws(TransportError) {
                let start = try file.position()
                let entryByteCount = UInt64(1 + block.name.utf8.count + 8)
                let header = MappedRAMHeader(headerAt: start + entryByteCount, byteCount: UInt64(block.byteCount))
                encoder.writeBlockEntry(BlockReference(index), mapped: header, to: output.writer)
                unsafe state.headers.append(header)
            } catch { throw failure(error, block) }
            try output.flush()
            do throws(TransportError) {
                try file.seek(to: unsafe state.headers[index].end(byteCount: UInt64(block.byteCount)))
            } catch { throw failure(error, block) }
        }
        return true
    }

    private func failure(_ error: TransportError, _ block: RAMBlock) -> MigrationError {
        error.migrationError(in: .precopy, "writing pages of \(block.name) to \(file.name)")
    }

    package func beforeRAMIterate(_ output: StreamOutput, _ phase: RAMHookPhase) throws(MigrationError) {
        if phase == .setup { try workers.start() }
    }

    // MARK: Pages

    package func saveZeroPages(_ run: PageRun) throws(MigrationError) -> Bool {
        for page in run.pages { unsafe state.bitmaps[run.reference.index][page] = false }
        unsafe state.counts.zero += UInt64(run.pages.count)
        return true
    }

    package func savePage(_ output: StreamOutput, _ run: PageRun, name: (Range<Int>) -> Void) throws(MigrationError)
        -> SavePageAnswer
    {
        let index = run.reference.index
        var page = run.pages.lowerBound
        while page < run.pages.upperBound {
            let start = page
            while page < run.pages.upperBound, !isZero(page, of: run.block) {
                unsafe state.bitmaps[index][page] = true
                page += 1
            }
            if page > start { try write(start..<page, of: run.block, index) }
            let zero = page
            while page < run.pages.upperBound, page == zero || isZero(page, of: run.block) {
                // The first one ended the run before, or the run is over.
                unsafe state.bitmaps[index][page] = false
                page += 1
            }
            unsafe state.counts.zero += UInt64(page - zero)
        }
        return .delayed(pageCount: run.pages.count)
    }

    private func isZero(_ page: Int, of block: RAMBlock) -> Bool {
        unsafe MigrationEngine.isZero(block.base + page * guestPageSize, byteCount: guestPageSize)
    }

    private func write(_ pages: Range<Int>, of block: RAMBlock, _ index: Int) throws(MigrationError) {
        let byteCount = pages.count * guestPageSize
        let offset = unsafe state.headers[index].pagesOffset + UInt64(pages.lowerBound * guestPageSize)
        let file = file
        do throws(TransportError) {
            try workers.perform { () throws(TransportError) in
                try unsafe file.sendAll(
                    UnsafeRawBufferPointer(start: block.base + pages.lowerBound * guestPageSize, count: byteCount),
                    at: offset)
            }
        } catch { throw failure(error, block) }
        unsafe state.counts.normal += UInt64(pages.count)
        unsafe state.byteCount += UInt64(byteCount)
    }

    /// What is written next may be pages that are still being written.
    package func roundEnded(_ output: StreamOutput) throws(MigrationError) { try settle() }

    private func settle() throws(MigrationError) {
        do throws(TransportError) { try workers.settle() } catch {
            throw error.migrationError(in: .precopy, "writing pages to \(file.name)")
        }
    }

    package func afterRAMIterate(_ output: StreamOutput, _ phase: RAMHookPhase) throws(MigrationError) {
        guard phase == .finish else { return }
        try settle()
        for (index, block) in blocks.enumerated() {
            let writer = StreamWriter(capacity: unsafe state.bitmaps[index].words.count * 8)
            unsafe state.bitmaps[index].encode(to: writer)
            do throws(TransportError) {
                try unsafe writer.withBytes { (bytes) throws(TransportError) in
                    try unsafe file.sendAll(bytes, at: state.headers[index].bitmapOffset)
                }
            } catch { throw failure(error, block) }
        }
    }

    package func end() { workers.end() }
}
