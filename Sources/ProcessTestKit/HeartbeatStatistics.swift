/// What the guest prints on the command `p`; see Guests/heartbeat/README.md. A number that is not there is -1.
package struct HeartbeatStatistics {
    private let values: [Substring: Int]

    package init(_ line: String) {
        let pairs = line.split(separator: " ").compactMap { word -> (Substring, Int)? in
            let parts = word.split(separator: "=")
            guard parts.count == 2, let value = Int(parts[1]) else { return nil }
            return (parts[0], value)
        }
        values = Dictionary(pairs) { $1 }
    }

    package var rounds: Int { values["rounds"] ?? -1 }
    package var writes: Int { values["writes"] ?? -1 }
    package var bad: Int { values["bad"] ?? -1 }
    package var harts: Int { values["harts"] ?? -1 }
    /// The largest gap between two readings of the machine timer.
    package var pauseNanoseconds: Int { values["pause_ns"] ?? -1 }
    /// The same by the real-time clock, which goes on when the guest's own time is stopped.
    package var wallPauseNanoseconds: Int { values["wall_pause_ns"] ?? -1 }
}
