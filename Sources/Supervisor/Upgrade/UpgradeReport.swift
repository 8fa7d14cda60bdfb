import GuestMemory
import MigrationChannels
import MigrationEngine
import QMPProtocol

/// What a finished upgrade took, for people and scripts. Made by the successor, which knows both sides' times.
struct UpgradeReport {
    var times: HandoverTimes
    var channel: String
    /// When RAM was sent: how.
    var strategy: String?
    var reason: String
    var process: Int32
    /// Bytes of device state that crossed.
    var stateByteCount: Int
    /// Bytes of RAM that changed owner.
    var ramByteCount: Int
    var sent: SentMemory
    /// When all processors stood still, CLOCK_MONOTONIC in nanoseconds; nil from predecessors that do not say.
    var held: Int64?
    /// Processor time of both sides for the move, in nanoseconds.
    var processorNanoseconds: Int64

    private static func microseconds(_ nanoseconds: Int64) -> JSONValue {
        JSONValue(Double(max(nanoseconds, 0)) / 1000)
    }

    /// When the guest stood still, with its devices; from the beginning, if it did before.
    private var stopped: Int64 { strategy == nil ? times.paused : max(sent.stopped, times.pauseBegun) }

    /// When its processors did. All of it is their part where nothing else is known, as of a guest that stood still before.
    private var kicked: Int64 {
        guard let held, held >= times.pauseBegun, held <= stopped else { return stopped }
        return held
    }

    /// When the guest ran on, or was its new owner's if it stood still.
    private var done: Int64 { max(times.resumed, times.claimed) }

    /// For `query-migrate` of the successor.
    var migration: MigrationReport {
        var report = MigrationReport(
            side: .destination, progress: MigrationProgress(), startNanoseconds: times.begun,
            channel: "upgrade", strategy: self.strategy == UpgradeStrategy.precopy.rawValue ? .precopy : .stopAndCopy)
        report.knownWay = (kind: channel, reason: reason)
        func span(_ start: Int64, _ end: Int64) -> UInt64 { UInt64(max(end - start, 0)) }
        report.progress.status = .completed
        report.progress.outcome = .guestMoved
        report.progress.timing.setupNanoseconds = span(times.begun, times.ready)
        report.progress.timing.totalNanoseconds = span(times.begun, done)
        report.progress.timing.downtimeNanoseconds = span(times.pauseBegun, done)
        report.progress.timing.pauseNanoseconds = span(times.pauseBegun, stopped)
        report.progress.timing.finalPagesNanoseconds = span(stopped, times.paused)
        report.progress.timing.saveNanoseconds = span(times.paused, times.saved)
        report.progress.timing.sendNanoseconds = span(times.saved, times.received)
        report.progress.timing.loadNanoseconds = span(times.received, times.loaded)
        report.progress.timing.resumeNanoseconds = span(times.loaded, done)
        return report
    }

    /// Times are microseconds; those of `pause` add up to its total.
    var json: JSONValue {
        var result: JSONObject = [
            "status": "completed", "channel": .string(channel), "reason": .string(reason),
            "process": JSONValue(process),
            "total-us": Self.microseconds(done - times.begun), "pause-us": Self.microseconds(done - times.pauseBegun),
            "pause": [
                "kick-us": Self.microseconds(kicked - times.pauseBegun),
                "quiesce-us": Self.microseconds(stopped - kicked),
                "memory-us": Self.microseconds(times.paused - stopped),
                "save-us": Self.microseconds(times.saved - times.paused),
                "send-us": Self.microseconds(times.received - times.saved),
                "load-us": Self.microseconds(times.loaded - times.received),
                "swap-us": Self.microseconds(times.claimed - times.loaded),
                "resume-us": Self.microseconds(done - times.claimed),
            ],
            "prepare-us": Self.microseconds(times.ready - times.begun), "state-bytes": JSONValue(stateByteCount),
            "ram-bytes": JSONValue(ramByteCount), "copied-bytes": JSONValue(sent.copiedByteCount),
            "cpu-us": Self.microseconds(processorNanoseconds),
        ]
        result["strategy"] = strategy.map { .string($0) }
        return .object(result)
    }

    static let type = QMPType.object(
        "SidestepUpgrade",
        [
            .required("status", .string), .required("channel", .string), .optional("strategy", .string),
            .required("reason", .string),
            .required("process", .integer), .required("total-us", .number), .required("pause-us", .number),
            .required(
                "pause",
                .object(
                    "SidestepPause",
                    [
                        "kick-us", "quiesce-us", "memory-us", "save-us", "send-us", "load-us", "swap-us", "resume-us",
                    ].map { .required($0, .number) }
                )),
            .required("prepare-us", .number), .required("state-bytes", .integer), .required("ram-bytes", .integer),
            .required("copied-bytes", .integer), .required("cpu-us", .number),
        ])
}
