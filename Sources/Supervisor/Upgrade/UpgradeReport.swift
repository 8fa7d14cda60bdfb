import GuestMemory
import MigrationChannels
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
    /// Processor time of both sides for the move, in nanoseconds.
    var processorNanoseconds: Int64

    private static func microseconds(_ nanoseconds: Int64) -> JSONValue {
        JSONValue(Double(max(nanoseconds, 0)) / 1000)
    }

    /// Times are microseconds; those of `pause` add up to its total.
    var json: JSONValue {
        let done = max(times.resumed, times.claimed)
        let stopped = strategy == nil ? times.paused : sent.stopped
        var result: JSONObject = [
            "status": "completed", "channel": .string(channel), "reason": .string(reason),
            "process": JSONValue(process),
            "total-us": Self.microseconds(done - times.begun), "pause-us": Self.microseconds(done - times.pauseBegun),
            "pause": [
                "stop-us": Self.microseconds(stopped - times.pauseBegun),
                "memory-us": Self.microseconds(times.paused - stopped),
                "save-us": Self.microseconds(times.saved - times.paused),
                "send-us": Self.microseconds(times.received - times.saved),
                "load-us": Self.microseconds(times.loaded - times.received),
                "claim-us": Self.microseconds(times.claimed - times.loaded),
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
                    ["stop-us", "memory-us", "save-us", "send-us", "load-us", "claim-us", "resume-us"].map {
                        .required($0, .number)
                    }
                )),
            .required("prepare-us", .number), .required("state-bytes", .integer), .required("ram-bytes", .integer),
            .required("copied-bytes", .integer), .required("cpu-us", .number),
        ])
}
