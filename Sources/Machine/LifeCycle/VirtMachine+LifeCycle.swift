import GuestTime
import LinuxCalls
import PlatformDevices
import ProcessorModel
import Synchronization

/// Where the machine is, and whether it has images to start from. Guarded by the machine's life-cycle lock, which is
/// held for the whole of each change.
struct LifeCycle {
    var state = MachineState.created
    /// The power-off or failure that ended the guest.
    var end: MachineEvent?
}

extension VirtMachine {
    package var state: MachineState { lifeCycle.withLock { $0.state } }

    package var isRunning: Bool { state == .running }

    /// How the guest ended, once it has.
    package var end: MachineEvent? { lifeCycle.withLock { $0.end } }

    /// Puts firmware, kernel, initrd and device tree into RAM, so that the guest starts from them. Before ``start()``,
    /// and not when a state from elsewhere is to be loaded.
    package func loadImages() throws(MachineError) {
        try lifeCycle.withLock { life throws(MachineError) in
            guard life.state == .created else { throw .configuration("the guest has been started") }
            guard !isEmpty else { throw .configuration("there is neither a kernel nor a firmware to start") }
            try loader.load()
        }
    }

    /// Lets the guest run for the first time.
    package func start() throws(MachineError) { try resume() }

    /// Waits until the processors' threads, which a busy host lets begin late, are there and wait.
    package func awaitThreads() { for thread in threads { thread.waitUntilHeld() } }

    /// When the first processor ran after ``resume()``, CLOCK_MONOTONIC in nanoseconds; nil when none has within a millisecond.
    package func timeOfFirstInstruction() -> Int64? { gate.timeOfFirstEntry() }

    /// ``resume()`` will follow, and the processors are to begin on that processor of the host, the caller's.
    /// ``timeOfFirstInstruction()`` is to be asked for after it.
    package func expectResume(on processor: CInt) { gate.expectOpening(on: processor, of: processorThreadIdentifiers) }

    /// Lets the guest run on from where it stands. No effect on a running guest.
    package func resume() throws(MachineError) {
        defer { events.tell() }
        try lifeCycle.withLock { life throws(MachineError) in
            switch life.state {
            case .running: return
            case .shutdown: throw .shutDown
            case .created, .paused:
                life.state = .running
                events.add(.resumed)
                release()
            }
        }
    }

    /// Stops everything: when it returns, no processor, timer, device or backend touches the guest, and its clock stands
    /// still. No effect on a paused guest.
    ///
    /// What the guest asked for just before is done first: a reset leaves the reset guest paused.
    /// - Throws: ``MachineError/shutDown`` when the guest has ended, or had just asked to.
    package func pause() throws(MachineError) {
        let isShutDown = lifeCycle.withLock { life in
            if life.state == .running {
                hold()
                life.state = .paused
                serve(requests.takeAll(), &life)
                if life.state == .paused { events.add(.paused) }
            }
            return life.state == .shutdown
        }
        events.tell()
        if isShutDown { throw .shutDown }
    }

    /// Starts the guest anew, from the images as they are now. A paused guest stays paused.
    package func reset() throws(MachineError) {
        defer { events.tell() }
        try lifeCycle.withLock { life throws(MachineError) in
            let wasRunning = life.state == .running
            switch life.state {
            case .shutdown: throw .shutDown
            case .running: hold()
            case .created, .paused: break
            }
            _ = requests.takeAll()
            do throws(MachineError) { try restart() } catch {
                if wasRunning { release() }
                throw error
            }
            events.add(.reset(byGuest: false))
            if wasRunning { release() }
        }
    }

    /// Ends the guest for good and gives back its threads. Idempotent.
    package func shutDown() {
        lifeCycle.withLock { life in
            if life.state == .running { hold() }
            life.state = .shutdown
        }
        gate.end()
        for thread in threads { thread.kick() }
        for thread in threads { thread.join() }
        timers.end()
        timers.join()
        requests.end()
    }

    /// Derives what a loaded state does not carry: interrupt lines from the devices, timers from their registers and the
    /// clock. Call it when every component is loaded and before ``resume()``.
    package func finishLoading() throws(MachineError) {
        try lifeCycle.withLock { life throws(MachineError) in
            switch life.state {
            case .running: throw .configuration("a running guest takes no state")
            case .shutdown: throw .shutDown
            case .created, .paused:
                refreshComponents()
                life.state = .paused
            }
        }
    }

    // MARK: Dirty tracking and throttling

    /// From the moment it returns, each page written is marked anew. Guest running or not.
    package func restartDirtyTracking() { for processor in processors { processor.restartDirtyTracking() } }

    /// Percent of the time that processors are kept from running; 0 is full speed.
    package func setThrottle(percent: Int) {
        let percent = min(max(percent, 0), 99)
        for processor in processors { processor.setThrottle(percent: percent) }
    }

    // MARK: What the changes are made of

    /// Stops processors, timers, devices and the clock, in this order.
    private func hold() {
        gate.close()
        for thread in threads { thread.beginHolding() }
        for thread in threads { thread.waitUntilHeld() }
        held.store(VirtualClock.hostNanoseconds(), ordering: .relaxed)
        timers.pause()
        for device in devices { device.quiesce() }
        clock.pause()
        // A timer that came due after the timers' thread stopped: by the time that the clock shows its interrupt is there.
        aclint.refresh()
    }

    private func release() {
        clock.resume()
        for device in devices { device.resume() }
        // Before the timers' thread is woken, which takes as long as all the rest.
        gate.open()
        timers.resume()
    }

    private func restart() throws(MachineError) {
        guard !isEmpty else {
            throw .configuration("the guest asked for a reset, and this machine was given nothing to start it from")
        }
        resetComponents()
        wakeProcessors()
        try loader.load()
    }

    private func refreshComponents() {
        serial.refresh()
        rtc.refresh()
        plic.refresh()
        // MSIP has no section of its own: it came with the processors.
        aclint.adoptSoftwarePending(processors.map { $0.interruptLevel(.machineSoftware) })
        aclint.refresh()
        wakeProcessors()
    }

    /// A processor that is asleep, and held so, has to look at its new state when it may.
    private func wakeProcessors() { for thread in threads { thread.kick() } }

    /// What guests asked for while they ran. On the control thread.
    func serveRequests() {
        lifeCycle.withLock { life in
            guard life.state == .running else {
                // Whoever paused the guest has seen to its requests; what comes later comes from nobody.
                _ = requests.takeAll()
                return
            }
            let waiting = requests.takeAll()
            guard !waiting.isEmpty else { return }
            hold()
            life.state = .paused
            serve(waiting, &life)
            if life.state == .paused {
                life.state = .running
                release()
            }
        }
        events.tell()
    }

    /// Sees to requests with everything stopped; the first that ends the guest is the last.
    private func serve(_ requests: [Request], _ life: inout LifeCycle) {
        for request in requests {
            let event: MachineEvent
            switch request {
            case .finisher(.powerOff): event = .powerOff(exitCode: 0)
            case .finisher(.fail(let code)): event = .powerOff(exitCode: Int32(code))
            case .processorFailed(let reason): event = .failed(reason)
            case .finisher(.reset):
                do {
                    try restart()
                    events.add(.reset(byGuest: true))
                    continue
                } catch { event = .failed(error.description) }
            }
            life.state = .shutdown
            life.end = event
            events.add(event)
            break
        }
    }
}
