import GuestMemory
import MigrationEngine
import QMPProtocol

/// `query-migrate`: what is known of a migration, in QEMU's fields and units, and our own behind `x-`.
struct MigrationReport: Sendable {
    enum Side: Hashable, Sendable { case source, destination }

    var side: Side
    var progress: MigrationProgress
    var startNanoseconds: Int64
    var isAutoConverging = false
    var socketAddress: JSONValue?
    var channel: String
    var strategy: MigrationStrategy
    var capabilities: Set<MigrationCapability> = []
    /// Mode `cpr-transfer`: RAM's descriptors went first.
    var handsOverMemory = false
    /// `x-ignore-shared`, and there is memory that has a name.
    var sharesMemory = false
    /// How RAM crossed, and why in this way, where the capabilities do not tell.
    var knownWay: (kind: String, reason: String)?

    func json(nowNanoseconds: Int64) -> JSONValue {
        var result = JSONObject()
        let status = progress.status
        if status != .none { result["status"] = .string(status.rawValue) }
        if let socketAddress, side == .destination { result["socket-address"] = [socketAddress] }
        switch status {
        case .none, .cancelled: break
        case .failed:
            result["error-desc"] = .string(progress.error.map(\.description) ?? "migration failed")
            result["x-outcome"] = progress.outcome.map { .string($0.rawValue) }
        default:
            if side == .source || status == .completed { addTimes(to: &result, nowNanoseconds) }
            let isInPostcopy = [.postcopyActive, .postcopyPaused, .postcopyRecover].contains(status)
            if side == .source ? status != .setup : isInPostcopy { result["ram"] = .object(ram) }
            if isInPostcopy, let error = progress.error { result["error-desc"] = .string(error.description) }
            if side == .source, let xbzrle = progress.ram.xbzrle { result["xbzrle-cache"] = .object(Self.json(xbzrle)) }
            if isAutoConverging { result["cpu-throttle-percentage"] = JSONValue(progress.throttlePercent) }
            result["x-channel"] = .string(channel)
            result["x-strategy"] = .string(strategy.rawValue)
            result["x-channel-kind"] = .string(way.kind)
            result["x-channel-reason"] = .string(way.reason)
            if side == .source, status == .completed { result["x-extra-memory"] = JSONValue(extraByteCount) }
            if !progress.notices.isEmpty { result["x-notices"] = .array(progress.notices.map { .string($0) }) }
            if status == .completed { result["x-phases"] = .object(phases) }
        }
        return .object(result)
    }

    private func addTimes(to result: inout JSONObject, _ now: Int64) {
        func milliseconds(_ nanoseconds: UInt64) -> JSONValue { JSONValue(nanoseconds / 1_000_000) }
        let timing = progress.timing
        result["total-time"] = milliseconds(timing.totalNanoseconds ?? UInt64(clamping: now - startNanoseconds))
        result["setup-time"] = timing.setupNanoseconds.map(milliseconds) ?? 0
        if progress.status == .completed || progress.hasLeft {
            result["downtime"] = timing.downtimeNanoseconds.map(milliseconds)
        } else {
            result["expected-downtime"] = progress.expectedDowntimeMilliseconds.map { JSONValue($0) }
        }
    }

    /// How RAM crosses, and why in this way.
    private var way: (kind: String, reason: String) {
        if let knownWay { return knownWay }
        let scheme = channel.prefix { $0 != ":" }
        switch scheme {
        case "file": return ("file", "a file keeps the guest; nobody runs it")
        case "exec": return ("command", "what the command makes of it is its own affair")
        default: break
        }
        if handsOverMemory { return ("descriptors", "mode is cpr-transfer: RAM is in memory files, which both have") }
        if sharesMemory { return ("shared", "x-ignore-shared is on: RAM is a file that both ends have as theirs") }
        if capabilities.contains(.unixPageFlipping) {
            return strategy == .stopAndCopy
                ? ("page-flip", "unix-page-flipping is on, and the guest stops first: its pages are given away")
                : ("page-flip", "unix-page-flipping is on, and the guest runs on: its pages are copied once")
        }
        if capabilities.contains(.multifd) {
            return ("multifd", "multifd is on: pages go over several channels beside the stream")
        }
        return scheme == "unix"
            ? ("socket", "unix-page-flipping is off") : ("socket", "pages are flipped over unix sockets only")
    }

    /// Bytes of RAM that existed twice, at most: in both processes, or on their way between them.
    private var extraByteCount: UInt64 {
        switch way.kind {
        case "file", "command", "descriptors", "shared": 0
        case "page-flip" where strategy == .stopAndCopy: min(Self.givenAwayByteCountMax, progress.ram.totalByteCount)
        default: min(progress.ram.normalPages &* UInt64(guestPageSize), progress.ram.totalByteCount)
        }
    }

    /// What is on its way at most when pages are given away; the engine keeps to it.
    private static let givenAwayByteCountMax: UInt64 = 32 << 20

    private var ram: JSONObject {
        let ram = progress.ram
        let pageSize = UInt64(guestPageSize)
        return [
            "transferred": JSONValue(ram.transferredByteCount), "remaining": JSONValue(ram.remainingByteCount),
            "total": JSONValue(ram.totalByteCount), "duplicate": JSONValue(ram.zeroPages),
            "normal": JSONValue(ram.normalPages), "normal-bytes": JSONValue(ram.normalPages &* pageSize),
            "dirty-pages-rate": JSONValue(ram.dirtyPagesPerSecond),
            "mbps": .number(Double(ram.bytesPerSecond) * 8 / 1_000_000),
            "dirty-sync-count": JSONValue(ram.dirtySyncCount), "postcopy-requests": JSONValue(ram.postcopyRequests),
            "page-size": JSONValue(pageSize), "multifd-bytes": JSONValue(ram.multifdByteCount),
            "pages-per-second": JSONValue(ram.bytesPerSecond / pageSize),
            "precopy-bytes": JSONValue(ram.precopyByteCount), "downtime-bytes": JSONValue(ram.downtimeByteCount),
            "postcopy-bytes": JSONValue(ram.postcopyByteCount), "dirty-sync-missed-zero-copy": 0,
        ]
    }

    private static func json(_ xbzrle: XBZRLEProgress) -> JSONObject {
        func ratio(_ part: UInt64, _ whole: UInt64) -> JSONValue {
            .number(whole == 0 ? 0 : Double(part) / Double(whole))
        }
        return [
            "cache-size": JSONValue(xbzrle.cacheByteCount), "bytes": JSONValue(xbzrle.byteCount),
            "pages": JSONValue(xbzrle.pageCount), "cache-miss": JSONValue(xbzrle.missCount),
            "cache-miss-rate": ratio(xbzrle.missCount, xbzrle.lookedAtPageCount),
            "encoding-rate": ratio(xbzrle.pageCount * UInt64(guestPageSize), xbzrle.byteCount),
            "overflow": JSONValue(xbzrle.overflowCount),
        ]
    }

    /// The pause in its parts, in microseconds.
    private var phases: JSONObject {
        let timing = progress.timing
        var result = JSONObject()
        for (name, value) in [
            ("pause", timing.pauseNanoseconds), ("final-pages", timing.finalPagesNanoseconds),
            ("save", timing.saveNanoseconds), ("send", timing.sendNanoseconds), ("load", timing.loadNanoseconds),
            ("resume", timing.resumeNanoseconds), ("downtime", timing.downtimeNanoseconds),
        ] {
            result[name] = value.map { JSONValue($0 / 1000) }
        }
        return result
    }
}
