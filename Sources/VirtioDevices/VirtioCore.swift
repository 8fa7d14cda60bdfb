import DeviceModel
import GuestMemory
import LinuxCalls
import Synchronization

/// Registers and queues of one virtio device. Reached only under the lock of ``VirtioCore``.
package struct VirtioState: Sendable {
    var status: UInt8 = 0
    var interruptStatus: UInt8 = 0
    /// What the driver accepted and the device holds to.
    var features: UInt64 = 0
    var deviceFeaturesSelect: UInt32 = 0
    var driverFeaturesSelect: UInt32 = 0
    /// DriverFeatures as written to a modern transport, low word first; they take effect with FEATURES_OK.
    var driverFeatureWords: [UInt32] = [0, 0]
    var guestPageShift: UInt32 = 0
    var queueSelect: UInt16 = 0
    var queues: [Virtqueue]
    /// The driver broke the rules; nothing is served until it resets the device.
    var isBroken = false
    var configurationGeneration: UInt32 = 0

    /// Queues that the worker has to look at, by bit.
    var pendingQueues: UInt64 = 0
    /// Nothing may change but by registers: the machine is paused, or a state was loaded and nobody has said run.
    var isQuiesced = false
    /// Tells work begun before a reset, or before it was parked, from work begun after.
    var epoch: UInt64 = 0
    /// The worker is doing something that must not be left half done (a write to the disk).
    var mustFinish = false
    var isStopping = false

    /// Whether queues are served. Legacy drivers may begin before DRIVER_OK, and do.
    func isServing(isLegacy: Bool) -> Bool {
        !isBroken && !isQuiesced && (isLegacy || status & VirtioStatus.driverOK != 0)
    }
}

/// What transport, device and worker thread of one virtio device share.
package final class VirtioCore: Sendable {
    let device: any VirtioDevice
    let memory: GuestMemory
    let isLegacy: Bool
    /// Everything that is offered.
    let offeredFeatures: UInt64
    private let interrupt: InterruptLine
    let monitor: Monitor<VirtioState>
    private let hasWorker = Atomic<Bool>(false)
    /// Read without the lock between two requests, so that a busy worker lets a pause begin at once.
    let isPauseRequested = Atomic<Bool>(false)

    init(device: any VirtioDevice, memory: GuestMemory, interrupt: InterruptLine, isLegacy: Bool) {
        self.device = device
        self.memory = memory
        self.interrupt = interrupt
        self.isLegacy = isLegacy
        let identity = device.identity
        offeredFeatures =
            identity.features | VirtioFeature.core | (isLegacy ? identity.legacyFeatures : VirtioFeature.version1)
        monitor = Monitor(VirtioState(queues: identity.queueSizes.map { Virtqueue(defaultSize: $0) }))
    }

    // MARK: Under the lock

    /// Raises interrupt reasons and the line.
    func raise(_ state: inout VirtioState, _ reason: UInt8) {
        state.interruptStatus |= reason
        interrupt.set(true)
    }

    /// Puts the line where the interrupt status says.
    func updateLine(_ state: borrowing VirtioState) { interrupt.set(state.interruptStatus != 0) }

    /// Shows `count` filled entries to the driver and interrupts it if it wants that.
    func publish(_ state: inout VirtioState, queue: Int, count: Int = 1) {
        do throws(VirtqueueError) {
            try state.queues[queue].publish(memory, count: count)
            if state.queues[queue].wantsInterrupt(memory, features: state.features) {
                raise(&state, VirtioInterrupt.usedBuffer)
            }
        } catch { fail(&state, error) }
    }

    /// Gives a finished request back to the driver.
    func finish(_ state: inout VirtioState, queue: Int, head: UInt16, byteCount: Int) {
        do throws(VirtqueueError) { try state.queues[queue].fill(memory, head: head, byteCount: byteCount) } catch {
            return fail(&state, error)
        }
        publish(&state, queue: queue)
    }

    /// The next request of a queue. A driver's mistake stops the device and looks like an empty queue.
    func next(_ state: inout VirtioState, queue: Int) -> DescriptorChain? {
        guard state.isServing(isLegacy: isLegacy) else { return nil }
        do throws(VirtqueueError) { return try state.queues[queue].pop(memory, features: state.features) } catch {
            fail(&state, error)
            return nil
        }
    }

    /// The driver broke the rules: stop, and tell it (section 2.1.2).
    func fail(_ state: inout VirtioState, _ error: VirtqueueError) {
        guard !state.isBroken else { return }
        state.isBroken = true
        state.pendingQueues = 0
        state.epoch &+= 1
        if state.features & VirtioFeature.version1 != 0 {
            state.status |= VirtioStatus.needsReset
            configurationChanged(&state)
        }
    }

    /// Tells the driver to read the configuration again.
    func configurationChanged(_ state: inout VirtioState) {
        state.configurationGeneration &+= 1
        if state.status & VirtioStatus.driverOK != 0 { raise(&state, VirtioInterrupt.configurationChange) }
    }

    /// What a driver gets that writes 0 to the status: almost the state after power-on. Work under way is disowned.
    ///
    /// The page size of the legacy interface stays: drivers write it once, before their first reset.
    func reset(_ state: inout VirtioState) {
        var fresh = VirtioState(queues: state.queues)
        for index in fresh.queues.indices { fresh.queues[index].reset() }
        // A legacy driver tells its page size when it finds the slot, and resets the device after that.
        fresh.guestPageShift = state.guestPageShift
        fresh.configurationGeneration = state.configurationGeneration &+ 1
        fresh.epoch = state.epoch &+ 1
        fresh.guestPageShift = state.guestPageShift
        fresh.isQuiesced = state.isQuiesced
        fresh.mustFinish = state.mustFinish
        fresh.isStopping = state.isStopping
        state = fresh
        device.resetDevice(&state)
        updateLine(state)
    }

    /// Has the worker look at a queue.
    func requestService(_ state: inout VirtioState, queue: Int) {
        guard state.isServing(isLegacy: isLegacy), state.queues[queue].isReady else { return }
        state.pendingQueues |= 1 << UInt64(queue)
        monitor.wake()
    }

    func requestServiceOfAll(_ state: inout VirtioState) {
        for queue in state.queues.indices { requestService(&state, queue: queue) }
    }

    // MARK: Without the lock

    /// Runs `body` if the device is running; nil if it is paused or broken, and then the caller leaves off.
    func whileServing<Result>(_ body: (inout VirtioState) -> Result?) -> Result? {
        if isPauseRequested.load(ordering: .relaxed) { return nil }
        return monitor.withLock { state in state.isServing(isLegacy: isLegacy) ? body(&state) : nil }
    }

    /// Has the worker look at a queue, from a backend's thread.
    func requestService(queue: Int) { monitor.withLock { requestService(&$0, queue: queue) } }

    func startWorker() {
        guard !hasWorker.exchange(true, ordering: .acquiringAndReleasing) else { return }
        do throws(SystemCallError) { _ = try HostThread(name: device.identity.name) { self.work() } } catch {
            hasWorker.store(false, ordering: .releasing)  // no room for a thread now; tried again at the next start
        }
    }

    private func work() {
        while true {
            let queues: UInt64? = monitor.withLock(
                when: { $0.isStopping || ($0.pendingQueues != 0 && !$0.isQuiesced) },
                { state in
                    if state.isStopping { return nil }
                    defer { state.pendingQueues = 0 }
                    return state.pendingQueues
                })
            guard var queues else { return }
            while queues != 0 {
                let queue = queues.trailingZeroBitCount
                queues &= queues - 1
                device.service(queue: queue, of: self)
            }
        }
    }

    /// Ends the worker. What it is doing is disowned.
    func stop() {
        monitor.withLock {
            $0.isStopping = true
            $0.epoch &+= 1
        }
        monitor.wake()
    }

    func quiesce() {
        isPauseRequested.store(true, ordering: .relaxed)
        device.quiesceBackend()
        monitor.withLock { state in
            if !state.isQuiesced { device.drain(&state, self) }
            state.isQuiesced = true
        }
        monitor.withLock(when: { !$0.mustFinish }) { state in
            device.park(&state)
            state.epoch &+= 1
            // The next request shall come with a notification, whoever runs the queues then. Written here, while what
            // is written to guest memory still travels.
            for queue in state.queues where queue.isReady {
                try? queue.askForNotificationOfNew(memory, features: state.features)
            }
        }
    }

    func resume() {
        isPauseRequested.store(false, ordering: .relaxed)
        startWorker()
        monitor.withLock { state in
            state.isQuiesced = false
            updateLine(state)
            guard state.isServing(isLegacy: isLegacy) else { return }
            // A notification may have been on its way, and whoever ran the queues before may have had them switched off.
            for queue in state.queues.indices where state.queues[queue].isReady {
                do throws(VirtqueueError) {
                    try state.queues[queue].askForNotification(memory, features: state.features)
                } catch { return fail(&state, error) }
            }
            requestServiceOfAll(&state)
        }
        device.resumeBackend()
    }
}
