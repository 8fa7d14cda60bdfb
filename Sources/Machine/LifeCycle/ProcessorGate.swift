import LinuxCalls
import Synchronization

/// Holds processor threads back while the machine is paused, and tells when all of them are held.
final class ProcessorGate: Sendable {
    private let processorCount: UInt32
    /// Odd: closed. Every closing and opening counts it up, so that a thread slow to leave a closed gate does not pass
    /// for one held by the next.
    private let generation = WaitWord(1)
    /// Threads held by the present closing.
    private let held = WaitWord()
    private let ending = Atomic<Bool>(false)

    /// A gate that is closed.
    init(processorCount: Int) { self.processorCount = UInt32(processorCount) }

    var isClosed: Bool { generation.load() & 1 != 0 }

    /// Called by a processor's thread between two runs: comes back when the gate is open; false when the thread is to end.
    func pass() -> Bool {
        while true {
            if ending.load(ordering: .acquiring) { return false }
            let seen = generation.load()
            if seen & 1 == 0 { return true }
            held.add(1)
            while generation.load() == seen { generation.wait(while: seen) }
        }
    }

    /// Closes; processors still have to be kicked. No effect on a closed gate.
    func close() {
        if !isClosed { generation.add(1) }
    }

    /// Waits until every thread is held by the closed gate.
    func waitUntilAllHeld() {
        while true {
            let count = held.load()
            if count >= processorCount { return }
            held.wait(while: count)
        }
    }

    /// Lets all threads run. Only after ``waitUntilAllHeld()``.
    func open() {
        guard isClosed else { return }
        held.store(0)
        generation.add(1)
    }

    /// Sends all threads home, held or not.
    func end() {
        ending.store(true, ordering: .releasing)
        generation.add(2)
    }
}
