import GuestMemory
import MigrationChannels
import QMPProtocol

/// What a finished upgrade took, for people and scripts. Made by the successor, which knows both sides' times.
struct UpgradeReport {
    var times: HandoverTimes
    var channel: String
    var reason: String
    var process: Int32
    /// Bytes of device state that crossed.
    var stateByteCount: Int
    /// Bytes of RAM that changed owner, and how many of them were copied.
    var ramByteCount: Int
    var copiedByteCount: Int

    private static func microseconds(_ nanoseconds: Int64) -> JSONValue {
        JSONValue(Double(max(nanoseconds, 0)) / 1000)
    }

    /// Times are microseconds; those of `pause` add up to its total.
    var json: JSONValue {
        let done = max(times.resumed, times.claimed)
        return [
            "status": "completed", "channel": .string(channel), "reason": .string(reason),
            "process": JSONValue(process),
            "total-us": Self.microseconds(done - times.begun), "pause-us": Self.microseconds(done - times.pauseBegun),
            "pause": [
                "stop-us": Self.microseconds(times.paused - times.pauseBegun),
                "save-us": Self.microseconds(times.saved - times.paused),
                "send-us": Self.microseconds(times.received - times.saved),
                "load-us": Self.microseconds(times.loaded - times.received),
                "claim-us": Self.microseconds(times.claimed - times.loaded),
                "resume-us": Self.microseconds(done - times.claimed),
            ],
            "prepare-us": Self.microseconds(times.ready - times.begun), "state-bytes": JSONValue(stateByteCount),
            "ram-bytes": JSONValue(ramByteCount), "copied-bytes": JSONValue(copiedByteCount),
        ]
    }

    static let type = QMPType.object(
        "SidestepUpgrade",
        [
            .required("status", .string), .required("channel", .string), .required("reason", .string),
            .required("process", .integer), .required("total-us", .number), .required("pause-us", .number),
            .required(
                "pause",
                .object(
                    "SidestepPause",
                    ["stop-us", "save-us", "send-us", "load-us", "claim-us", "resume-us"].map { .required($0, .number) }
                )),
            .required("prepare-us", .number), .required("state-bytes", .integer), .required("ram-bytes", .integer),
            .required("copied-bytes", .integer),
        ])
}
