/// Numbers that steer a migration. Names and defaults are QEMU's; ``Key`` has them as QMP spells them.
package struct MigrationParameters: Hashable, Sendable {
    package enum Key: String, Hashable, Sendable, CaseIterable {
        case maxBandwidth = "max-bandwidth"
        case availableSwitchoverBandwidth = "avail-switchover-bandwidth"
        case maxPostcopyBandwidth = "max-postcopy-bandwidth"
        case downtimeLimit = "downtime-limit"
        case throttleTriggerThreshold = "throttle-trigger-threshold"
        case cpuThrottleInitial = "cpu-throttle-initial"
        case cpuThrottleIncrement = "cpu-throttle-increment"
        case maxCPUThrottle = "max-cpu-throttle"
        case multifdChannels = "multifd-channels"
        case xbzrleCacheSize = "xbzrle-cache-size"
        case roundLimit = "x-round-limit"
        case stallLimit = "x-stall-limit"
    }

    /// Bytes per second while the guest runs; 0 is no limit.
    package var maxBandwidthBytesPerSecond: UInt64 = 128 << 20
    /// Bytes per second to assume for the time the guest stands still; 0 is what was measured.
    package var availableSwitchoverBandwidthBytesPerSecond: UInt64 = 0
    /// Bytes per second of pages nobody asked for, after the guest runs at the destination; 0 is no limit.
    package var maxPostcopyBandwidthBytesPerSecond: UInt64 = 0
    /// How long the guest may stand still.
    package var downtimeLimitMilliseconds: UInt64 = 300
    /// Share of what was sent that the guest must have written anew before it is slowed down.
    package var throttleTriggerThresholdPercent: UInt64 = 50
    package var cpuThrottleInitialPercent: UInt64 = 20
    package var cpuThrottleIncrementPercent: UInt64 = 10
    package var maxCPUThrottlePercent: UInt64 = 99
    package var multifdChannels: UInt64 = 2
    /// Memory to remember pages in that were sent; a power of two.
    package var xbzrleCacheByteCount: UInt64 = 64 << 20
    /// Rounds after which the guest is stopped whatever is left; 0 goes on until it converges.
    package var roundLimit: UInt64 = 0
    /// How long the other end may do nothing at all before it is given up; 0 waits for ever.
    package var stallLimitMilliseconds: UInt64 = 0

    package init() {}

    package subscript(key: Key) -> UInt64 {
        get { self[keyPath: Self.path(of: key)] }
        set { self[keyPath: Self.path(of: key)] = newValue }
    }

    private static func path(of key: Key) -> WritableKeyPath<Self, UInt64> {
        switch key {
        case .maxBandwidth: \.maxBandwidthBytesPerSecond
        case .availableSwitchoverBandwidth: \.availableSwitchoverBandwidthBytesPerSecond
        case .maxPostcopyBandwidth: \.maxPostcopyBandwidthBytesPerSecond
        case .downtimeLimit: \.downtimeLimitMilliseconds
        case .throttleTriggerThreshold: \.throttleTriggerThresholdPercent
        case .cpuThrottleInitial: \.cpuThrottleInitialPercent
        case .cpuThrottleIncrement: \.cpuThrottleIncrementPercent
        case .maxCPUThrottle: \.maxCPUThrottlePercent
        case .multifdChannels: \.multifdChannels
        case .xbzrleCacheSize: \.xbzrleCacheByteCount
        case .roundLimit: \.roundLimit
        case .stallLimit: \.stallLimitMilliseconds
        }
    }

    /// Values a parameter may take.
    package static func range(of key: Key) -> ClosedRange<UInt64> {
        switch key {
        case .maxBandwidth, .availableSwitchoverBandwidth, .maxPostcopyBandwidth: 0...UInt64(Int64.max)
        case .downtimeLimit: 0...2_000_000
        case .throttleTriggerThreshold: 1...100
        case .cpuThrottleInitial, .cpuThrottleIncrement, .maxCPUThrottle: 1...99
        case .multifdChannels: 1...255
        case .xbzrleCacheSize: 4096...(1 << 40)
        case .roundLimit: 0...1_000_000
        case .stallLimit: 0...86_400_000
        }
    }

    /// Throws on the first value that is out of range.
    package func validate() throws(MigrationError) {
        for key in Key.allCases where !Self.range(of: key).contains(self[key]) {
            let range = Self.range(of: key)
            throw MigrationError(
                .invalidConfiguration, in: .setup,
                "\(key.rawValue) must be between \(range.lowerBound) and \(range.upperBound), not \(self[key])")
        }
        if xbzrleCacheByteCount.nonzeroBitCount != 1 {
            throw MigrationError(
                .invalidConfiguration, in: .setup,
                "xbzrle-cache-size expects a power of two no less than the target page size")
        }
        if maxCPUThrottlePercent < cpuThrottleInitialPercent {
            throw MigrationError(
                .invalidConfiguration, in: .setup,
                "max-cpu-throttle must not be below cpu-throttle-initial")
        }
    }
}
