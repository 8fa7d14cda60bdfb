package import ComponentState
package import GuestMemory
package import Machine
import MigrationEngine
import Synchronization

/// The `virt` machine as the supervisor and the engine see it.
package final class VirtGuest: SupervisedGuest {
    package let machine: VirtMachine

    package func guestAddress(of block: RAMBlock) -> UInt64 {
        machine.memory.regions.first { $0.block === block }?.address ?? 0
    }

    /// Events from before there was somebody to tell.
    private let sink: EventSink
    private let backends: GuestBackends?

    /// Passes the machine's events on; the machine wants its observer before there is a supervisor.
    package final class EventSink: Sendable {
        private struct State {
            var handler: (@Sendable (GuestEvent) -> Void)?
            var waiting: [GuestEvent] = []
        }
        private let state = Mutex(State())

        package init() {}

        package func observe(_ event: MachineEvent) {
            let guestEvent: GuestEvent
            switch event {
            case .powerOff(let exitCode): guestEvent = .poweredOff(code: exitCode)
            case .reset(let byGuest): guestEvent = byGuest ? .reset : .wasReset
            case .failed(let reason): guestEvent = .failed(reason)
            case .resumed: guestEvent = .resumed
            case .paused: return
            }
            let handler = state.withLock { state in
                if state.handler == nil { state.waiting.append(guestEvent) }
                return state.handler
            }
            handler?(guestEvent)
        }

        func connect(_ handler: @escaping @Sendable (GuestEvent) -> Void) {
            let waiting = state.withLock { state in
                state.handler = handler
                defer { state.waiting = [] }
                return state.waiting
            }
            for event in waiting { handler(event) }
        }
    }

    /// - Parameter events: What the machine was given as its observer.
    /// - Parameter backends: Whose images are to be locked while the guest runs; nil when it has none.
    package init(machine: VirtMachine, events: EventSink, backends: GuestBackends? = nil) {
        self.machine = machine
        self.backends = backends
        // The engine writes and reads whether the guest ran itself.
        components = machine.components.filter { $0.sectionName != machine.globalState.sectionName }
        sink = events
    }

    package var memory: GuestMemory { machine.memory }

    package var processors: [GuestProcessorInformation] {
        let threads = machine.processorThreadIdentifiers
        return machine.processors.map {
            GuestProcessorInformation(
                index: $0.index, threadIdentifier: threads[$0.index], retiredInstructions: $0.retiredInstructions)
        }
    }

    package func reset() throws { try machine.reset() }

    package func announceNetworks(_ names: [String]?) { machine.announceNetworks(names) }

    package func registerDump() -> String { machine.processors.map { $0.registerDump() }.joined(separator: "\r\n") }

    package func shutDown() { machine.shutDown() }

    package func setEventHandler(_ handler: @escaping @Sendable (GuestEvent) -> Void) { sink.connect(handler) }

    // MARK: MigratableGuest

    package var machineName: String { VirtMachine.machineName }
    package var ramBlocks: [RAMBlock] { machine.ramBlocks }
    package func restartDirtyTracking() throws { machine.restartDirtyTracking() }
    package func setThrottle(percent: Int) { machine.setThrottle(percent: percent) }
    package func pause() throws { try machine.pause() }
    package func resume() throws {
        try claimImages()
        try machine.resume()
    }
    package func claimImages() throws { try backends?.lockImages() }
    package func releaseImages() throws { try backends?.unlockImages() }
    package func obstacle(to layout: StateLayout) -> String? {
        machine.obstacle(to: layout) ?? queueSizes(for: layout).lazy.compactMap(\.obstacle).first
    }
    package func startHints(for layout: StateLayout) -> [String] { queueSizes(for: layout).compactMap(\.hint) }
    private func queueSizes(for layout: StateLayout) -> [QueueSizes] {
        layout == .qemu11_1 ? machine.queueSizes.map { QueueSizes(device: $0.device, largest: $0.largest) } : []
    }
    package var surplusBlocks: [String: Int] { VirtMachine.surplusBlocks }
    package var isRunning: Bool { machine.isRunning }
    package let components: [any StatefulComponent]
    package func finishLoading() throws { try machine.finishLoading() }
}
