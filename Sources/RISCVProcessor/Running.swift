package import ProcessorModel
import Glibc
import Synchronization

/// The thread's side of a hart, and what other threads ask of it.
extension RISCVHart {
    package func run() -> ProcessorExit {
        runner.store(UInt(pthread_self()), ordering: .relaxed)
        isInside.store(true, ordering: .sequentiallyConsistent)
        defer {
            publicRetired.store(retired, ordering: .relaxed)
            isInside.store(false, ordering: .sequentiallyConsistent)
            runner.store(0, ordering: .relaxed)
        }
        budget = 0
        while true {
            if requests.load(ordering: .sequentiallyConsistent) != 0, serveRequests() { return .kicked }
            if budget <= 0 {
                updateTimer()
                publicRetired.store(retired, ordering: .relaxed)
                budget = Self.quantum
                if throttlePercent.load(ordering: .relaxed) > 0 { rest() }
            }
            if isWaiting {
                updateTimer()
                if pendingValue & mie == 0 { return wait() }
                isWaiting = false
            }
            let interrupt = deliverableInterrupt
            if interrupt != 0 { trap(Cause.interrupt | UInt64(interrupt.trailingZeroBitCount), 0) }
            if mustDropCode { dropCode() }
            budgetAtEntry = budget
            x[Word.retiredInBlock] = 0
            let start = jump(to: x[Word.pc], quantum: 0, from: leaveOperation)
            let left = execute(start, budget)
            retired &+= UInt64(bitPattern: Int64(budget &- left)) &+ x[Word.retiredInBlock]
            // Going round costs too: a hart that only traps must come to an end of its quantum.
            budget = left &- Int(truncatingIfNeeded: x[Word.retiredInBlock]) &- 1
            if wantsToWait {
                wantsToWait = false
                isWaiting = true
            }
        }
    }

    private func wait() -> ProcessorExit {
        publicEnabled.store(mie, ordering: .relaxed)
        publicPending.store(softwarePending, ordering: .relaxed)
        let deadline = timerDeadlineNanoseconds
        publicTimer.store(deadline.map { UInt64($0) } ?? .max, ordering: .sequentiallyConsistent)
        return .waiting(untilNanoseconds: deadline)
    }

    /// True when there was a kick.
    private func serveRequests() -> Bool {
        if requests.load(ordering: .sequentiallyConsistent) & Request.dropStoreEntries != 0 {
            dropStoreEntries()
            requests.bitwiseAnd(~Request.dropStoreEntries, ordering: .sequentiallyConsistent)
        }
        guard requests.load(ordering: .relaxed) & Request.kick != 0 else { return false }
        requests.bitwiseAnd(~Request.kick, ordering: .sequentiallyConsistent)
        return true
    }

    /// While this hart's thread waits for another hart, others may wait for this one.
    func serveWhileWaiting() {
        if requests.load(ordering: .sequentiallyConsistent) & Request.dropStoreEntries != 0 {
            dropStoreEntries()
            requests.bitwiseAnd(~Request.dropStoreEntries, ordering: .sequentiallyConsistent)
        }
        sched_yield()
    }

    /// Returns when this hart has no fast write path that it had before the call, or will drop them before its next instruction.
    /// Any thread; calls `whileWaiting` over and over until then.
    ///
    /// The hart sets ``isInside`` and then looks at the requests; here it is the other way round, and all of it
    /// sequentially consistent: one of the two sees the other.
    func demandStoreEntriesDropped(whileWaiting: () -> Void) {
        if runner.load(ordering: .relaxed) == UInt(pthread_self()) {
            dropStoreEntries()
            return
        }
        requests.bitwiseOr(Request.dropStoreEntries, ordering: .sequentiallyConsistent)
        while requests.load(ordering: .sequentiallyConsistent) & Request.dropStoreEntries != 0,
            isInside.load(ordering: .sequentiallyConsistent)
        { whileWaiting() }
    }

    /// `pause`: this hart waits for another, which may need the processor we run on.
    func pause() {
        if map.harts.count > 1 { sched_yield() }
    }

    /// Sleeps as much as the throttle asks, in proportion to the time since the last rest.
    private func rest() {
        let percent = Int64(min(throttlePercent.load(ordering: .relaxed), 99))
        let now = clock.nanoseconds
        let ran = now &- throttleStart
        guard throttleStart != 0, ran >= 0, ran < 1_000_000_000 else {
            throttleStart = now
            return
        }
        guard ran >= 1_000_000 else { return }
        var left = ran * percent / (100 - percent)
        while left > 0, requests.load(ordering: .sequentiallyConsistent) & Request.kick == 0 {
            let piece = min(left, 500_000)
            var duration = timespec(tv_sec: 0, tv_nsec: Int(piece))
            nanosleep(&duration, nil)
            left -= piece
            serveWhileWaiting()
        }
        throttleStart = clock.nanoseconds
    }

    // MARK: From any thread

    package func kick() {
        requests.bitwiseOr(Request.kick, ordering: .sequentiallyConsistent)
        wakeUp.withLock { $0 }?.call()
    }

    package func setInterrupt(_ interrupt: ProcessorInterrupt, _ level: Bool) {
        let bit = UInt64(1) << UInt64(interrupt.rawValue)
        if level {
            let old = lines.bitwiseOr(bit, ordering: .sequentiallyConsistent).oldValue
            if old & bit == 0 { wakeUp.withLock { $0 }?.call() }
        } else {
            lines.bitwiseAnd(~bit, ordering: .sequentiallyConsistent)
        }
    }

    package var hasPendingInterrupt: Bool {
        let enabled = publicEnabled.load(ordering: .relaxed)
        let pending = lines.load(ordering: .sequentiallyConsistent) | publicPending.load(ordering: .relaxed)
        if pending & enabled != 0 { return true }
        let timer = publicTimer.load(ordering: .relaxed)
        return timer <= UInt64(Int64.max) && clock.nanoseconds >= Int64(timer)
    }

    package func setWakeUp(_ wake: @escaping @Sendable () -> Void) {
        wakeUp.withLock { $0 = WakeUp(call: wake) }
    }

    package func restartDirtyTracking() {
        var rounds = 0
        demandStoreEntriesDropped {
            rounds += 1
            if rounds < 100 {
                sched_yield()
            } else {
                var duration = timespec(tv_sec: 0, tv_nsec: 20_000)
                nanosleep(&duration, nil)
            }
        }
    }

    package func setThrottle(percent: Int) {
        throttlePercent.store(max(0, min(percent, 99)), ordering: .relaxed)
    }
}
