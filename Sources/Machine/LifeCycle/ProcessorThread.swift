import GuestTime
import LinuxCalls
import ProcessorModel
import Synchronization

/// The thread of one processor: runs it, sleeps while it waits for an interrupt, stops at the gate.
final class ProcessorThread: Sendable {
    private let processor: any Processor
    private let gate: ProcessorGate
    private let place = ProcessorGate.Place()
    private let clock: VirtualClock
    /// Called on the thread when the processor cannot go on; it does not run again.
    private let failed: @Sendable (String) -> Void
    /// Counts reasons to look again. A sleeper that has not seen the latest does not sleep.
    private let wakeUps = Atomic<UInt32>(0)
    private let isAsleep = Atomic<Bool>(false)
    private let alarm = WaitWord()
    private let thread = Mutex<HostThread?>(nil)
    /// The kernel's number of the thread; 0 until it has begun.
    private let identifier = Atomic<CInt>(0)

    init(
        processor: any Processor, gate: ProcessorGate, clock: VirtualClock, failed: @escaping @Sendable (String) -> Void
    ) {
        self.processor = processor
        self.gate = gate
        self.clock = clock
        self.failed = failed
        processor.setWakeUp { [weak self] in self?.wake() }
    }

    /// Starts the thread, which waits at the gate.
    func start() throws(SystemCallError) {
        let thread = try HostThread(name: "hart \(processor.index)", stackByteCount: 1 << 20) { [self] in run() }
        self.thread.withLock { $0 = thread }
    }

    /// The kernel's number of the thread, as `query-cpus-fast` tells it.
    var threadIdentifier: CInt { identifier.load(ordering: .relaxed) }

    func join() { thread.withLock { $0 }?.join() }

    /// Makes the processor come out of its run, and the thread out of its sleep.
    func kick() {
        processor.kick()
        wake()
    }

    /// Begins to hold the processor at the closed gate. One that sleeps is left asleep.
    func beginHolding() { if !gate.isAside(place) { processor.kick() } }

    /// Returns when the processor is held.
    func waitUntilHeld() { gate.waitUntilAside(place) }

    private func wake() {
        // A full barrier between what the caller has changed and the look at `isAsleep`; the sleeper does the reverse.
        wakeUps.wrappingAdd(1, ordering: .sequentiallyConsistent)
        if isAsleep.load(ordering: .sequentiallyConsistent) { alarm.add(1) }
    }

    private func run() {
        identifier.store(HostThread.currentIdentifier, ordering: .relaxed)
        while gate.enter(place) {
            let seen = wakeUps.load(ordering: .sequentiallyConsistent)
            switch processor.run() {
            case .kicked: continue
            case .waiting(let deadline):
                var timeout: Int64?
                if let deadline {
                    let wait = deadline.subtractingReportingOverflow(clock.nanoseconds)
                    if wait.overflow || wait.partialValue <= 0 { continue }
                    timeout = wait.partialValue
                }
                sleep(unlessWokenSince: seen, timeoutNanoseconds: timeout)
            case .failed(let reason):
                failed(reason)
                sleep(unlessWokenSince: wakeUps.load(ordering: .relaxed), timeoutNanoseconds: nil)
            }
        }
    }

    /// Sleeps, aside, until woken or until the time is over.
    private func sleep(unlessWokenSince seen: UInt32, timeoutNanoseconds: Int64?) {
        let value = alarm.load()
        isAsleep.store(true, ordering: .sequentiallyConsistent)
        if wakeUps.load(ordering: .sequentiallyConsistent) == seen, !processor.hasPendingInterrupt {
            gate.stepAside(place)
            alarm.wait(while: value, timeoutNanoseconds: timeoutNanoseconds)
        }
        isAsleep.store(false, ordering: .relaxed)
    }
}
