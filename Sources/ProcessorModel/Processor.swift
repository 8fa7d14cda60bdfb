package import ComponentState

/// Interrupt inputs of a hart that come from outside it; bit numbers are those of `mip`.
package enum ProcessorInterrupt: UInt8, Sendable {
    case machineSoftware = 3
    case machineTimer = 7
    case supervisorExternal = 9
    case machineExternal = 11
}

/// Why ``Processor/run()`` came back.
package enum ProcessorExit: Hashable, Sendable {
    /// ``Processor/kick()`` was called.
    case kicked
    /// The guest waits for an interrupt; sleep until an interrupt input changes, a kick, or the virtual time given
    /// (nanoseconds), whichever is first.
    case waiting(untilNanoseconds: Int64?)
    /// The processor cannot go on; the guest is broken, or we are.
    case failed(String)
}

/// What a processor reaches beyond RAM. Called on the processor's thread.
package protocol ProcessorBus: AnyObject, Sendable {
    /// `width` is 1, 2, 4 or 8. Nil: nothing there, an access fault in the guest.
    func load(address: UInt64, width: Int) -> UInt64?
    /// False: nothing there.
    func store(address: UInt64, width: Int, value: UInt64) -> Bool
}

/// One virtual processor. `run` is only ever called by its own thread; what is marked so may be called by any.
package protocol Processor: StatefulComponent {
    var index: Int { get }
    /// Runs the guest until there is a reason to come back.
    func run() -> ProcessorExit
    /// Makes ``run()`` come back soon, with ``ProcessorExit/kicked``. Any thread. Stays pending until seen.
    func kick()
    /// Sets the level of an interrupt input. Any thread. Returns after the level is visible to the processor.
    func setInterrupt(_ interrupt: ProcessorInterrupt, _ level: Bool)
    /// Level of an interrupt input as last set, or, after a state was loaded, as it was saved. Called with the processor stopped.
    func interruptLevel(_ interrupt: ProcessorInterrupt) -> Bool
    /// Called by the machine's wake-up: some enabled interrupt is pending. Any thread.
    var hasPendingInterrupt: Bool { get }
    /// Called by ``setInterrupt(_:_:)`` and ``kick()`` so that a thread asleep after ``ProcessorExit/waiting`` wakes.
    func setWakeUp(_ wake: @escaping @Sendable () -> Void)
    /// From now on every page written is marked anew in the dirty bitmaps, even if it was writable without a mark.
    /// Called with the processor stopped, or by any thread with `wait`: returns when the processor has dropped its fast write paths.
    func restartDirtyTracking()
    /// Fraction of time, in percent, that the processor should not run (auto-converge); 0 is full speed. Any thread.
    func setThrottle(percent: Int)
    /// Power-on state. Called with the processor stopped.
    func reset()
    /// Registers as text, for `info registers`. Called with the processor stopped.
    func registerDump() -> String
    /// Instructions retired since power-on. Any thread; exact when stopped.
    var retiredInstructions: UInt64 { get }
}
