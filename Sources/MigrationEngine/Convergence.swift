/// Decides after each round whether to go on, slow the guest down, or stop it. Pure: numbers in, decision out.
package struct Convergence: Sendable {
    package enum Decision: Hashable, Sendable {
        /// One more round, with the processors slowed down by so many percent.
        case iterate(throttlePercent: Int)
        /// What is left fits the downtime limit, or the round limit is reached.
        case switchOver
    }

    /// May be changed between rounds.
    package var parameters: MigrationParameters
    private let slowsDown: Bool
    private var roundsOverThreshold = 0
    package private(set) var throttlePercent = 0
    package private(set) var rounds = 0
    /// Bytes per second of the last round that was long enough to tell.
    package private(set) var bandwidthBytesPerSecond: Double = 0
    /// How long the guest would stand still if it were stopped now.
    package private(set) var expectedDowntimeMilliseconds: UInt64

    package init(parameters: MigrationParameters, autoConverge: Bool) {
        self.parameters = parameters
        slowsDown = autoConverge
        expectedDowntimeMilliseconds = parameters.downtimeLimitMilliseconds
    }

    /// - Parameters:
    ///   - sentByteCount: Bytes sent in the round, records included.
    ///   - nanoseconds: How long the round took.
    ///   - dirtyByteCount: Bytes of the pages written since they were last sent.
    ///   - newlyDirtyByteCount: Those of them that were written during this round.
    package mutating func roundEnded(
        sentByteCount: UInt64, nanoseconds: UInt64, dirtyByteCount: UInt64, newlyDirtyByteCount: UInt64
    ) -> Decision {
        rounds += 1
        if nanoseconds > 0, sentByteCount > 0 {
            bandwidthBytesPerSecond = Double(sentByteCount) * 1e9 / Double(nanoseconds)
        }
        var bandwidth = bandwidthBytesPerSecond
        if parameters.availableSwitchoverBandwidthBytesPerSecond > 0 {
            bandwidth = Double(parameters.availableSwitchoverBandwidthBytesPerSecond)
        }
        if bandwidth > 0 {
            expectedDowntimeMilliseconds = UInt64(min(Double(dirtyByteCount) * 1e3 / bandwidth, 1e15))
        }
        if dirtyByteCount == 0 { return .switchOver }
        if bandwidth > 0, Double(dirtyByteCount) * 1e3 <= bandwidth * Double(parameters.downtimeLimitMilliseconds) {
            return .switchOver
        }
        if parameters.roundLimit > 0, rounds >= Int(parameters.roundLimit) { return .switchOver }
        if slowsDown { considerThrottle(sentByteCount: sentByteCount, newlyDirtyByteCount: newlyDirtyByteCount) }
        return .iterate(throttlePercent: throttlePercent)
    }

    /// Two rounds in which the guest wrote more than the threshold's share of what was sent raise the throttle a step.
    private mutating func considerThrottle(sentByteCount: UInt64, newlyDirtyByteCount: UInt64) {
        let share = Double(sentByteCount) * Double(parameters.throttleTriggerThresholdPercent) / 100
        guard Double(newlyDirtyByteCount) > share else { return }
        roundsOverThreshold += 1
        guard roundsOverThreshold >= 2 else { return }
        roundsOverThreshold = 0
        let step = throttlePercent == 0 ? parameters.cpuThrottleInitialPercent : parameters.cpuThrottleIncrementPercent
        throttlePercent = min(throttlePercent + Int(step), Int(parameters.maxCPUThrottlePercent))
    }
}

/// Spreads bytes over time: so many per window of 100 ms. Pure: told the time, answers how long to wait.
package struct BandwidthLimit: Sendable {
    private static let windowNanoseconds: UInt64 = 100_000_000
    private var bytesPerSecond: UInt64
    private var windowStart: UInt64
    private var sentInWindow: UInt64 = 0

    /// - Parameter bytesPerSecond: 0 is no limit.
    package init(bytesPerSecond: UInt64, nowNanoseconds: UInt64) {
        self.bytesPerSecond = bytesPerSecond
        windowStart = nowNanoseconds
    }

    /// Bytes that one window has, at least one; 0 is no limit.
    package var windowByteCount: UInt64 {
        bytesPerSecond == 0 ? 0 : max(1, bytesPerSecond / (1_000_000_000 / Self.windowNanoseconds))
    }

    /// Accounts bytes just sent and answers the nanoseconds to wait before the next, 0 for none.
    package mutating func sent(byteCount: UInt64, nowNanoseconds: UInt64) -> UInt64 {
        guard bytesPerSecond > 0 else { return 0 }
        let quota = max(1, Double(bytesPerSecond) * Double(Self.windowNanoseconds) / 1e9)
        sentInWindow &+= byteCount
        let elapsed = nowNanoseconds &- windowStart
        // The windows that what was sent takes up; time already gone counts.
        let due = Double(sentInWindow) / quota * Double(Self.windowNanoseconds)
        if due <= Double(elapsed) {
            if elapsed >= Self.windowNanoseconds {
                windowStart = nowNanoseconds
                sentInWindow = 0
            }
            return 0
        }
        guard Double(sentInWindow) >= quota else { return 0 }
        let wait = UInt64(min(due - Double(elapsed), 10e9))
        return wait
    }
}
