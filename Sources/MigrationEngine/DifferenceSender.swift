import GuestMemory
import MigrationStream

/// Sends what has changed in a page since it was last sent (XBZRLE), when the last version is still remembered.
///
/// Only in passes after the first: before that the destination holds nothing to change. Belongs to one thread.
final class DifferenceSender {
    private let cache: XBZRLECache
    private(set) var progress = XBZRLEProgress()

    /// Nil when `xbzrle` is off.
    init?(_ configuration: MigrationConfiguration) {
        guard configuration.has(.xbzrle) else { return nil }
        cache = XBZRLECache(byteCount: Int(clamping: configuration.parameters.xbzrleCacheByteCount))
        progress.cacheByteCount = UInt64(cache.slotCount * guestPageSize)
    }

    enum Sent { case nothing, differences, whole }

    /// Sends the page that the guest may be writing to: what goes out is a copy.
    func send(
        _ reference: BlockReference, page: UnsafeRawPointer, offset: UInt64, round: UInt64,
        with encoder: inout RAMEncoder,
        to writer: StreamWriter
    ) -> Sent {
        progress.lookedAtPageCount += 1
        let (misses, overflows) = (cache.missCount, cache.overflowCount)
        defer {
            progress.missCount += UInt64(cache.missCount - misses)
            progress.overflowCount += UInt64(cache.overflowCount - overflows)
        }
        switch unsafe cache.encode(reference, offset: offset, page: page, round: Int(clamping: round)) {
        case .unchanged: return .nothing
        case .encoded(let bytes):
            unsafe encoder.writeXBZRLEPage(
                reference, offset: offset, encoded: RawSpan(_unsafeBytes: bytes), to: writer)
            progress.pageCount += 1
            progress.byteCount += UInt64(bytes.count)
            return .differences
        case .whole(let bytes):
            encoder.writePageHeader(reference, offset: offset, to: writer)
            unsafe writer.write(RawSpan(_unsafeBytes: bytes))
            return .whole
        }
    }

    func sentZeroes(_ reference: BlockReference, offset: UInt64) { cache.noteZeroPage(reference, offset: offset) }
}
