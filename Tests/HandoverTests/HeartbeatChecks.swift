import ProcessTestKit
import Testing

/// Numbers of the heartbeat's ticks in a console's output, in order.
func ticks(in text: String) -> [Int] {
    text.split(whereSeparator: \.isNewline).compactMap { line in
        let words = line.split(separator: " ")
        return words.count == 3 && words[0] == "tick" ? Int(words[1]) : nil
    }
}

extension RunningProgram {
    /// The heartbeat guest ticks on, and every byte of its memory was right so far. Then it is ended: no tick is missing, and
    /// none came twice.
    @discardableResult
    func endWhole(_ location: SourceLocation = #_sourceLocation) throws -> HeartbeatStatistics {
        output.skipToEnd()
        try wait(for: "tick ", seconds: 60)
        try type("p")
        let statistics = try HeartbeatStatistics(wait(for: "stats ", seconds: 30))
        #expect(statistics.bad == 0 && !output.text.contains("BAD"), sourceLocation: location)
        try type("q")
        #expect(try waitForEnd(seconds: 30) == .exited(status: 0), sourceLocation: location)
        let seen = ticks(in: output.text)
        #expect(seen == Array(0..<seen.count), "ticks out of order", sourceLocation: location)
        return statistics
    }
}
