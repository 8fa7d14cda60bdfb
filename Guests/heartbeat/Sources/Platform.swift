import Bare

/// Where the `virt` board has its devices, and what the guest needs of each.
enum Platform {
    static let finisher: UInt64 = 0x0010_0000
    static let wallClock: UInt64 = 0x0010_1000
    static let timerCompare: UInt64 = 0x0200_4000
    static let timer: UInt64 = 0x0200_bff8
    static let uart: UInt64 = 0x1000_0000
    static let ram: UInt64 = 0x8000_0000
    /// Of the timer.
    static let ticksPerSecond: UInt64 = 10_000_000
    static let nanosecondsPerTick: UInt64 = 100
    static let pageSize: UInt64 = 4096
    static let hartsMax = 8

    /// The machine timer, in its own ticks.
    static var now: UInt64 { bare_load64(timer) }

    /// The real-time clock in nanoseconds: it goes on when a monitor stops the machine timer.
    static var wallNanoseconds: UInt64 {
        readLatchedClock(low: { bare_load32(wallClock) }, high: { bare_load32(wallClock + 4) })
    }

    /// Sleeps until the machine timer reaches `deadline`, or a little less.
    static func sleep(hart: Int, until deadline: UInt64) {
        bare_store64(timerCompare &+ UInt64(hart) &* 8, deadline)
        bare_wait()
    }

    static func powerOff(status: UInt64) {
        bare_store32(finisher, status == 0 ? 0x5555 : UInt32(truncatingIfNeeded: status << 16) | 0x3333)
        while true { bare_wait() }
    }

    static func reset() {
        bare_hold_harts()
        bare_store32(finisher, 0x7777)
        while true { bare_wait() }
    }
}
