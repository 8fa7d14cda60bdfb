import Glibc
package import GuestMemory
import LinuxCalls
package import MigrationEngine
package import MigrationStream
import Synchronization

/// The destination of a `mapped-ram` file: takes each block's pages from their places when its entry was read.
package final class MappedRAMDestination: DestinationRAMHooks {
    /// Pages of one read: 4 MiB.
    private static let runPagesMax = 1024
    private let workers: FileWorkers

    /// - Parameter configuration: With `multifd`, so many threads read at once.
    package init(configuration: MigrationConfiguration) {
        workers = FileWorkers(
            count: configuration.has(.multifd) ? Int(configuration.parameters.multifdChannels) : 0, name: "mapped-ram")
    }

    /// Whether the file that `transport` is announces `mapped-ram`, as far as one can see; its position stays.
    package static func isAnnounced(in transport: any MigrationTransport) -> Bool {
        guard let file = transport.seekable, let start = try? file.position() else { return false }
        let buffer = StreamBuffer(capacity: 4096, at: start)
        let count = try? unsafe buffer.fill(minimum: 4096) { (space) throws(TransportError) in
            var piece = unsafe iovec(iov_base: space.baseAddress, iov_len: 4096)
            return try unsafe withUnsafeMutablePointer(to: &piece) { (pointer) throws(TransportError) in
                try unsafe file.receive(UnsafeMutableBufferPointer(start: pointer, count: 1), at: start)
            }
        }
        guard count != nil else { return false }
        var reader = StreamReader(configurationIsOptional: true)
        var cursor = buffer.cursor(isFinal: true)
        while let record = try? reader.next(&cursor) {
            switch record {
            case .header: continue
            case .configuration(let configuration):
                return configuration.capabilities?.contains(MigrationCapability.mappedRAM.rawValue) == true
            default: return false
            }
        }
        return false
    }

    package func loadMapped(
        _ entry: RAMBlockEntry, into block: RAMBlock, holdsData: PageSet, from input: StreamInput
    ) throws(MigrationError) -> DelayedPages {
        guard let file = input.transport.seekable, let header = entry.mapped else {
            throw MigrationError(
                .capabilityMismatch, in: input.phase, "mapped-ram needs a file, not \(input.transport.name)")
        }
        let pageCount = Int(entry.byteCount) / guestPageSize
        func failure(_ error: TransportError, _ what: String) -> MigrationError {
            if case .closed = error {
                return MigrationError(
                    .channelClosed, in: input.phase,
                    "\(file.name) ends within the \(what) of RAM block \(entry.name); it was cut off or never finished")
            }
            return error.migrationError(in: input.phase, "reading the \(what) of RAM block \(entry.name)")
        }
        let bitmap: MappedRAMBitmap
        do throws(TransportError) {
            bitmap = try readBitmap(header, pageCount, entry.name, file, input.phase)
        } catch { throw failure(error, "bitmap") }
        var counts = DelayedPages()
        var page = 0
        do throws(TransportError) {
            try workers.startIfNeeded()
            while page < pageCount {
                let isPresent = bitmap[page]
                let start = page
                let limit = min(pageCount, start + Self.runPagesMax)
                while page < limit, bitmap[page] == isPresent { page += 1 }
                let run = start..<page
                if isPresent {
                    let offset = header.pagesOffset + UInt64(start * guestPageSize)
                    try workers.perform { () throws(TransportError) in
                        try unsafe file.receiveAll(
                            run.count * guestPageSize, into: block.base + run.lowerBound * guestPageSize, at: offset)
                    }
                    counts.normal += UInt64(run.count)
                } else {
                    Self.wipe(run, of: block, holdsData)
                    counts.zero += UInt64(run.count)
                }
            }
            try workers.settle()
        } catch { throw failure(error, "pages") }
        input.receivedAside(byteCount: counts.normal * UInt64(guestPageSize))
        try input.reposition(to: header.end(byteCount: entry.byteCount))
        return counts
    }

    private func readBitmap(
        _ header: MappedRAMHeader, _ pageCount: Int, _ name: String, _ file: any SeekableTransport,
        _ phase: MigrationPhase
    ) throws(TransportError) -> MappedRAMBitmap {
        let byteCount = Int(
            MappedRAMHeader.bitmapByteCount(
                byteCount: UInt64(pageCount * guestPageSize), pageSize: UInt64(guestPageSize)))
        let buffer = StreamBuffer(capacity: byteCount, at: header.bitmapOffset)
        _ = try unsafe buffer.fill(minimum: byteCount) { (space) throws(TransportError) in
            try unsafe file.receiveAll(byteCount, into: space.baseAddress!, at: header.bitmapOffset)
            return byteCount
        }
        var cursor = buffer.cursor(isFinal: true)
        do throws(StreamError) { return try MappedRAMBitmap.decode(from: &cursor, pageCount: pageCount) } catch {
            throw .failed(
                MigrationError(
                    .streamMalformed, in: phase, "the bitmap of RAM block \(name) is malformed", cause: error))
        }
    }

    /// Pages that are not in the file are zero. One that nobody ever wrote need not be touched, which would fill it.
    private static func wipe(_ run: Range<Int>, of block: RAMBlock, _ holdsData: PageSet) {
        var page = run.lowerBound
        while let held = holdsData.run(from: page, limit: run.upperBound - page), held.lowerBound < run.upperBound {
            let pages = held.clamped(to: run)
            let (offset, byteCount) = (pages.lowerBound * guestPageSize, pages.count * guestPageSize)
            if (try? block.free(offset: offset, byteCount: byteCount)) == nil {
                unsafe memset(block.base + offset, 0, byteCount)
            }
            page = pages.upperBound
            if page >= run.upperBound { break }
        }
    }

    package func end() { workers.end() }
}
