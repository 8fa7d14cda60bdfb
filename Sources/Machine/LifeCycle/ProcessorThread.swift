import Glibc
import GuestTime
import LinuxCalls
import ProcessorModel
import Synchronization

/// The thread of one processor: runs it, sleeps while it waits for an interrupt, stops at the gate.
final class ProcessorThread: Sendable {
    private let processor: any Processor
    private let gate: ProcessorGate
    private let clock: VirtualClock
    /// Called on the thread when the processor cannot go on; it is then held at the gate.
    private let failed: @Sendable (String) -> Void
    /// Counts reasons to look again. A sleeper that has not seen the latest does not sleep.
    private let wakeUps = Atomic<UInt32>(0)
    private let isAsleep = Atomic<Bool>(false)
    private let alarm = WaitWord()
    private let thread = Mutex<HostThread?>(nil)

    init(
        processor: any Processor, gate: ProcessorGate, clock: VirtualClock, failed: @escaping @Sendable (String) -> Void
    ) {
        self.processor = processor
        self.gate = gate
        self.clock = clock
        self.failed = failed
        processor.setWakeUp { [weak self] in self?.wake() }
    }

    func start() throws(SystemCallError) {
        let thread = try HostThread(name: "hart \(processor.index)", stackByteCount: 1 << 20) { [self] in run() }
        self.thread.withLock { $0 = thread }
    }

    func join() { thread.withLock { $0 }?.join() }

    /// Makes the thread come to the gate.
    func kick() {
        processor.kick()
        wake()
    }

    private func wake() {
        // A full barrier between what the caller has changed and the look at `isAsleep`; the sleeper does the reverse.
        wakeUps.wrappingAdd(1, ordering: .sequentiallyConsistent)
        if isAsleep.load(ordering: .sequentiallyConsistent) { alarm.add(1) }
    }

    private func run() {
        while gate.pass() {
            let seen = wakeUps.load(ordering: .sequentiallyConsistent)
            switch processor.run() {
            case .kicked: continue
            case .waiting(let deadline): sleep(until: deadline, unlessWokenSince: seen)
            case .failed(let reason):
                failed(reason)
                waitForGateToClose()
            }
        }
    }

    private func sleep(until deadline: Int64?, unlessWokenSince seen: UInt32) {
        var timeout: Int64?
        if let deadline {
            let wait = deadline.subtractingReportingOverflow(clock.nanoseconds)
            guard !wait.overflow else { return }
            if wait.partialValue <= 0 { return }
            timeout = wait.partialValue
        }
        let value = alarm.load()
        isAsleep.store(true, ordering: .sequentiallyConsistent)
        if wakeUps.load(ordering: .sequentiallyConsistent) == seen, !processor.hasPendingInterrupt, !gate.isClosed {
            alarm.wait(while: value, timeoutNanoseconds: timeout)
        }
        isAsleep.store(false, ordering: .relaxed)
    }

    /// A failed processor does not run again, but must be held when the machine pauses.
    private func waitForGateToClose() {
        while !gate.isClosed {
            let value = alarm.load()
            isAsleep.store(true, ordering: .sequentiallyConsistent)
            if !gate.isClosed { alarm.wait(while: value) }
            isAsleep.store(false, ordering: .relaxed)
        }
    }
}
