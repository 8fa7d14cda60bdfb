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
    /// Of the threads that keep to the opener's processor of the host until they came through.
    private let detours = Mutex<[HostThread.Detour]>([])
    private let hasDetours = Atomic<Bool>(false)

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
                if hasDetours.load(ordering: .acquiring) { endDetour() }
                return true
            }
            stepAside(place)
            openings.wait(while: seen)
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
        endDetours()
        let time = firstEntry.load(ordering: .sequentiallyConsistent)
        return time == 0 ? nil : time
    }

    /// The gate will open. Until they come through, the threads, by the kernel's numbers, keep to that processor of the host, the
    /// opener's, and come before the opener: no other processor has to wake up for them.
    func expectOpening(on processor: CInt, of threads: [CInt]) {
        detours.withLock { detours in
            hasDetours.store(true, ordering: .releasing)
            for thread in threads where thread != 0 {
                detours.append(HostThread.Detour(of: thread, to: processor, haste: .mostUrgent))
            }
        }
    }

    /// The calling thread is through, and does not keep the processor from the opener: a guest may run for long.
    private func endDetour() {
        let thread = HostThread.currentIdentifier
        let own = detours.withLock { detours in
            detours.firstIndex { $0.thread == thread }.map { detours.remove(at: $0) }
        }
        own?.end()
    }

    /// Those that did not come through sleep on without.
    private func endDetours() {
        let left = detours.withLock { detours in
            defer { detours = [] }
            hasDetours.store(false, ordering: .relaxed)
            return detours
        }
        for detour in left { detour.end() }
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
