import Glibc
import LinuxCalls
import Synchronization

/// Holds processor threads back while the machine is paused, and tells when all of them are held.
///
/// A thread is *aside* while it touches nothing of the guest: asleep in `wfi`, or waiting here. Whoever closes the gate
/// waits only for threads that are not; a sleeping processor is not woken for a pause. Each side writes its own word
/// before it reads the other's, so either the thread sees the closed gate or the closer sees that it is not aside.
final class ProcessorGate: Sendable {
    private let closed = Atomic<Bool>(true)
    private let ending = Atomic<Bool>(false)
    /// Changes with every opening; threads wait on it.
    private let openings = WaitWord()
    /// When the first thread came through after the latest opening, CLOCK_MONOTONIC in nanoseconds; 0 before one has.
    private let firstEntry = Atomic<Int64>(0)
    /// Changes when that is known.
    private let entries = WaitWord()
    /// Changes when a thread steps aside and the gate is closed.
    private let arrivals = WaitWord()
    /// The processor of the host that whoever opens it runs on.
    private let openingProcessor = Atomic<CInt>(-1)
    private let expectation = Mutex(Expectation())

    private struct Expectation: Sendable {
        /// Returns when the gate is about to open; nil once a thread has it, and when it is open.
        var signal: (@Sendable () -> Void)?
        /// Of that thread, and before it of all that may have become that; to be ended from the last one on.
        var detours: [HostThread.Detour] = []
    }

    /// How long a thread stays awake for the gate to open. It takes a tenth of that; who needs longer, needs the processor more.
    private static let awakeNanoseconds: Int64 = 300_000
    /// How long a thread that leaves its run is looked for before whoever waits sleeps.
    private static let lookingNanoseconds: Int64 = 200_000

    var isClosed: Bool { closed.load(ordering: .sequentiallyConsistent) }

    /// One thread's place: whether it is aside.
    final class Place: Sendable {
        fileprivate let isAside = Atomic<Bool>(false)
    }

    /// The thread touches nothing of the guest from now on, until ``enter(_:)``.
    func stepAside(_ place: Place) {
        place.isAside.store(true, ordering: .sequentiallyConsistent)
        if isClosed { arrivals.add(1) }
    }

    /// Comes back when the thread may touch the guest; false when the thread is to end.
    func enter(_ place: Place) -> Bool {
        var hasWaited = false
        while true {
            place.isAside.store(false, ordering: .sequentiallyConsistent)
            let seen = openings.load()
            if ending.load(ordering: .sequentiallyConsistent) {
                stepAside(place)
                return false
            }
            if !isClosed {
                if hasWaited, firstEntry.load(ordering: .relaxed) == 0,
                    firstEntry.compareExchange(
                        expected: 0, desired: monotonicNanoseconds(), ordering: .sequentiallyConsistent
                    ).exchanged
                {
                    entries.add(1)
                }
                return true
            }
            stepAside(place)
            if !awaitOpening(while: seen) { openings.wait(while: seen) }
            hasWaited = true
        }
    }

    /// When a thread first came through after the latest opening. Waits for it, but not long; nil when nobody came, because all
    /// sleep.
    func timeOfFirstEntry() -> Int64? {
        let seen = entries.load()
        if firstEntry.load(ordering: .sequentiallyConsistent) == 0 {
            entries.wait(while: seen, timeoutNanoseconds: 1_000_000)
        }
        endExpectation()
        let time = firstEntry.load(ordering: .sequentiallyConsistent)
        return time == 0 ? nil : time
    }

    /// The gate will open right after `signal` returns: one thread calls it, and stays awake from then on. A processor of the host that
    /// sleeps takes tens of microseconds to wake up, and who opens the gate has no time to wake one.
    /// - Parameter preferred: The threads here, by the kernel's numbers, if they are preferred: else that one would wait for others that are.
    func expectOpening(preferred: [CInt], after signal: @escaping @Sendable () -> Void) {
        openingProcessor.store(HostThread.currentProcessor, ordering: .relaxed)
        expectation.withLock {
            $0.detours = preferred.compactMap { HostThread.Detour(hastening: $0, .urgent) }
            $0.signal = signal
        }
        openings.wakeOne()
    }

    /// True when the gate was opened while the thread was awake for it; false when it is to sleep.
    private func awaitOpening(while seen: UInt32) -> Bool {
        guard expectation.withLock({ $0.signal != nil }) else { return false }
        // Where the opener runs it would only be woken when that sleeps.
        let haste = HostThread.Haste.mostUrgent.whereOthersHaveRoom
        let detour = HostThread.Detour(around: [openingProcessor.load(ordering: .relaxed)], haste: haste)
        let signal = expectation.withLock { expectation in
            let signal = expectation.signal.take()
            if signal != nil { expectation.detours.append(detour) }
            return signal
        }
        guard let signal else {
            detour.end()
            return false
        }
        signal()
        if openings.stayAwake(while: seen, nanoseconds: Self.awakeNanoseconds) { return true }
        endExpectation()
        return false
    }

    /// The opener does this, when the guest runs: it need not wait for that.
    private func endExpectation() {
        let detours = expectation.withLock { expectation in
            defer { expectation = Expectation() }
            return expectation.detours
        }
        for detour in detours.reversed() { detour.end() }
    }

    func close() { closed.store(true, ordering: .sequentiallyConsistent) }

    func open() {
        firstEntry.store(0, ordering: .relaxed)
        closed.store(false, ordering: .sequentiallyConsistent)
        openings.add(1)
    }

    /// Sends all threads home as they come by.
    func end() {
        ending.store(true, ordering: .sequentiallyConsistent)
        openings.add(1)
    }

    func isAside(_ place: Place) -> Bool { place.isAside.load(ordering: .sequentiallyConsistent) }

    /// Waits until the thread is aside, with the gate closed. A processor needs some tens of microseconds to leave its
    /// run, so it is looked for a while before sleeping.
    func waitUntilAside(_ place: Place) {
        if isAside(place) { return }
        let end = monotonicNanoseconds() + Self.lookingNanoseconds
        repeat {
            sched_yield()
            if isAside(place) { return }
        } while monotonicNanoseconds() < end
        while true {
            let seen = arrivals.load()
            if isAside(place) { return }
            arrivals.wait(while: seen)
        }
    }
}
