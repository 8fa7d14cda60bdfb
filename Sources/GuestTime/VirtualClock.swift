import Glibc
import Synchronization

/// The guest's virtual time in nanoseconds: the host's monotonic clock while the guest runs, standing still while it is
/// paused, continued from a saved value after a move.
///
/// Devices and processors read it from many threads without a lock; only the life cycle pauses and resumes it.
package final class VirtualClock: Sendable {
    private let running = Atomic<Bool>(false)
    private let frozenNanoseconds: Atomic<Int64>
    private let hostOffset = Atomic<Int64>(0)
    private let tickOffset = Atomic<UInt64>(0)

    /// A clock that stands still at `nanoseconds`.
    package init(nanoseconds: Int64 = 0) { frozenNanoseconds = Atomic(nanoseconds) }

    /// Nanoseconds of the host's CLOCK_MONOTONIC, which all processes of the host share.
    package static func hostNanoseconds() -> Int64 {
        var now = timespec()
        unsafe clock_gettime(CLOCK_MONOTONIC, &now)
        return Int64(now.tv_sec) &* 1_000_000_000 &+ Int64(now.tv_nsec)
    }

    /// Virtual nanoseconds now.
    package var nanoseconds: Int64 {
        if running.load(ordering: .acquiring) {
            return Self.hostNanoseconds() &- hostOffset.load(ordering: .relaxed)
        }
        return frozenNanoseconds.load(ordering: .relaxed)
    }

    package var isRunning: Bool { running.load(ordering: .acquiring) }

    /// Virtual minus host time while running, for code that reads the host clock itself: virtual = host - offset.
    package var hostOffsetNanoseconds: Int64 { hostOffset.load(ordering: .relaxed) }

    /// Lets time run on from where it stood.
    package func resume() {
        guard !running.load(ordering: .relaxed) else { return }
        hostOffset.store(Self.hostNanoseconds() &- frozenNanoseconds.load(ordering: .relaxed), ordering: .relaxed)
        running.store(true, ordering: .releasing)
    }

    /// Stops time and answers where.
    @discardableResult package func pause() -> Int64 {
        if running.load(ordering: .relaxed) {
            frozenNanoseconds.store(Self.hostNanoseconds() &- hostOffset.load(ordering: .relaxed), ordering: .relaxed)
            running.store(false, ordering: .releasing)
        }
        return frozenNanoseconds.load(ordering: .relaxed)
    }

    /// Sets the time of a paused clock, as after loading a saved state.
    package func set(nanoseconds: Int64) {
        precondition(!running.load(ordering: .relaxed), "only a paused clock can be set")
        frozenNanoseconds.store(nanoseconds, ordering: .relaxed)
    }

    // MARK: The machine's time counter

    /// Virtual nanoseconds per tick of the time counter that guests read (`mtime`, the `time` CSR): 10 MHz.
    package static let nanosecondsPerTick: Int64 = 100

    /// The time counter: ``nanoseconds`` in ticks, plus what a guest's write to the counter put between the two.
    package var ticks: UInt64 { Self.wholeTicks(nanoseconds) &+ tickOffset.load(ordering: .relaxed) }

    /// Ticks the counter is ahead of virtual time, modulo 2^64; 0 unless a guest has set the counter.
    package var tickOffsetTicks: UInt64 {
        get { tickOffset.load(ordering: .relaxed) }
        set { tickOffset.store(newValue, ordering: .relaxed) }
    }

    /// Sets the counter: from now on it counts from `ticks`.
    package func set(ticks: UInt64) { tickOffsetTicks = ticks &- Self.wholeTicks(nanoseconds) }

    /// The virtual time in nanoseconds at which the counter reaches `tick`: now if it is there already, nil if that is
    /// further away than the clock counts (some centuries; all ones means "never" to guests).
    package func deadlineNanoseconds(forTick tick: UInt64) -> Int64? {
        let now = nanoseconds
        let offset = tickOffset.load(ordering: .relaxed)
        guard tick > Self.wholeTicks(now) &+ offset else { return now }
        let ticksOfVirtualTime = tick &- offset
        guard ticksOfVirtualTime <= UInt64(Int64.max / Self.nanosecondsPerTick) else { return nil }
        return Int64(ticksOfVirtualTime) * Self.nanosecondsPerTick
    }

    private static func wholeTicks(_ nanoseconds: Int64) -> UInt64 {
        UInt64(bitPattern: nanoseconds / nanosecondsPerTick)
    }
}
