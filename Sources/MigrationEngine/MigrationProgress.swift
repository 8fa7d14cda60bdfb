/// What is known of a migration while it runs and afterwards. A value; ask again for a newer one.
package struct MigrationProgress: Sendable {
    package var status = MigrationStatus.none
    package var ram = RAMProgress()
    package var timing = MigrationTiming()
    package var throttlePercent = 0
    package var expectedDowntimeMilliseconds: UInt64?
    package var error: MigrationError?
    package var outcome: MigrationOutcome?
    /// Source, in a postcopy: the destination has taken the guest; what is here is older.
    package var hasLeft = false
    /// Things worth saying once, as that vmsplice was refused.
    package var notices: [String] = []

    package init() {}
}

/// Counts of pages sent as differences, as `query-migrate` has them in `xbzrle-cache`.
package struct XBZRLEProgress: Hashable, Sendable {
    package var cacheByteCount: UInt64 = 0
    /// Bytes of differences, and the pages they were of.
    package var byteCount: UInt64 = 0
    package var pageCount: UInt64 = 0
    /// Pages that were to be sent as differences.
    package var lookedAtPageCount: UInt64 = 0
    package var missCount: UInt64 = 0
    package var overflowCount: UInt64 = 0

    package init() {}
}

/// Counts of pages and bytes, as `query-migrate` has them.
package struct RAMProgress: Hashable, Sendable {
    /// Bytes of all blocks that travel.
    package var totalByteCount: UInt64 = 0
    /// Bytes sent, page records, contents and what crossed beside the stream.
    package var transferredByteCount: UInt64 = 0
    /// Bytes of the pages not sent since they were last written.
    package var remainingByteCount: UInt64 = 0
    /// Pages of zeroes, sent as such.
    package var zeroPages: UInt64 = 0
    package var normalPages: UInt64 = 0
    package var dirtySyncCount: UInt64 = 0
    package var dirtyPagesPerSecond: UInt64 = 0
    package var bytesPerSecond: UInt64 = 0
    package var postcopyRequests: UInt64 = 0
    package var precopyByteCount: UInt64 = 0
    package var downtimeByteCount: UInt64 = 0
    package var postcopyByteCount: UInt64 = 0
    package var multifdByteCount: UInt64 = 0
    /// Nil when `xbzrle` is off.
    package var xbzrle: XBZRLEProgress?

    package init() {}
}

/// When each phase began and how long it took, in nanoseconds; nil until it was reached.
package struct MigrationTiming: Hashable, Sendable {
    /// Host's monotonic clock.
    package var startNanoseconds: UInt64?
    package var setupNanoseconds: UInt64?
    /// One entry per round, the last one while the guest was stopped not among them.
    package var roundNanoseconds: [UInt64] = []
    /// Told to stop until stopped.
    package var pauseNanoseconds: UInt64?
    /// Remaining pages.
    package var finalPagesNanoseconds: UInt64?
    /// Component state into bytes.
    package var saveNanoseconds: UInt64?
    /// Those bytes into the channel.
    package var sendNanoseconds: UInt64?
    /// Destination: component state out of bytes.
    package var loadNanoseconds: UInt64?
    /// Destination: last component until the guest runs. Source: everything sent until the destination's word.
    package var resumeNanoseconds: UInt64?
    /// Source: guest told to stop until the destination's word, or until it runs on here.
    package var downtimeNanoseconds: UInt64?
    package var totalNanoseconds: UInt64?

    package init() {}
}
