package import ComponentState
import DeviceModel
package import GuestMemory
package import GuestTime
package import LinuxCalls
import PlatformDevices
package import ProcessorModel
import RISCVProcessor
import Synchronization
import VirtioDevices

/// QEMU's riscv64 `virt` board: processors, RAM, platform devices and eight virtio slots, and its life cycle.
///
/// All methods may be called from any thread but those of the processors, devices and backends; those that change the
/// life cycle wait for each other.
package final class VirtMachine: Sendable {
    /// As in the stream's CONFIGURATION record.
    package static let machineName = "virt"

    package let configuration: MachineConfiguration
    package let memory: GuestMemory
    /// In the order of the block list on the wire.
    package let ramBlocks: [RAMBlock]
    package let clock: VirtualClock
    package let processors: [any Processor]
    /// Every component in wire order.
    package let components: [any StatefulComponent]
    /// What the state says, and is to say, about whether the guest ran.
    package let globalState: GlobalStateSection

    private let inputs: [LateLine]
    let timers: TimerThread
    let gate: ProcessorGate
    let threads: [ProcessorThread]
    let devices: [any BusDevice]
    let aclint: ACLINT
    let plic: PLIC
    let serial: SerialPort
    let rtc: GoldfishRTC
    let slots: VirtioSlots
    let loader: BootLoader

    /// What processors ask for while they run, until somebody who may stop them sees to it.
    enum Request: Sendable, Equatable {
        case finisher(TestFinisher.Request)
        case processorFailed(String)
    }

    let requests: RequestQueue
    let lifeCycle = Mutex(LifeCycle())
    let held = Atomic<Int64>(0)
    /// When all processors last stood still so that the guest could be paused: ``VirtualClock/hostNanoseconds()``.
    package var heldNanoseconds: Int64 { held.load(ordering: .relaxed) }
    let events: EventQueue
    private let controlThread = Mutex<HostThread?>(nil)

    /// Builds the machine with all its threads, which wait. Nothing is loaded: see ``loadImages()``.
    /// - Parameters:
    ///   - backends: One for each configured device that needs one.
    ///   - adopting: Memory that another process made, by block name; sizes and seals judged by the caller.
    ///   - processors: Nil makes the software harts.
    ///   - observer: Told of events, in order. It may call back into the life cycle, and must not wait for another thread that does.
    package init(
        configuration: MachineConfiguration, backends: MachineBackends, adopting: [String: OwnedDescriptor] = [:],
        processors factory: ProcessorFactory? = nil, observer: @escaping @Sendable (MachineEvent) -> Void = { _ in }
    ) throws(MachineError) {
        try configuration.validate()
        let isa = try ProcessorFactory.riscvConfiguration(isa: configuration.isa)
        let processorFactory: ProcessorFactory
        if let factory {
            processorFactory = factory
        } else {
            processorFactory = try .interpreter(isa: configuration.isa)
        }
        let memory: VirtMemory
        do { memory = try VirtMemory(configuration: configuration, adopting: adopting) } catch { throw .system(error) }
        let clock = VirtualClock()
        let timers = TimerThread(clock: clock)
        let requests = RequestQueue()
        self.configuration = configuration
        self.clock = clock
        self.timers = timers
        self.requests = requests
        self.memory = memory.memory
        events = EventQueue(observer: observer)
        ramBlocks = memory.blocks

        // The devices, with the processors' inputs still open.
        let hartCount = configuration.hartCount
        let inputs: [[LateLine]] = (0..<hartCount).map { _ in (0..<4).map { _ in LateLine() } }
        self.inputs = inputs.flatMap { $0 }
        let kinds: [ProcessorInterrupt] = [.machineSoftware, .machineTimer, .machineExternal, .supervisorExternal]
        aclint = ACLINT(
            scheduler: timers, softwareLines: inputs.map { $0[0].line }, timerLines: inputs.map { $0[1].line })
        plic = PLIC(contextLines: inputs.flatMap { [$0[2].line, $0[3].line] })
        serial = SerialPort(
            backend: backends.serial, scheduler: timers, interrupt: plic.line(VirtMemoryMap.serialInterrupt))
        rtc = GoldfishRTC(scheduler: timers, interrupt: plic.line(VirtMemoryMap.rtcInterrupt))
        let finisher = TestFinisher { request in requests.add(.finisher(request)) }
        let firmwareConfiguration = FirmwareConfiguration(
            memory: memory.memory, processorCount: hartCount, ramByteCount: configuration.memoryByteCount)
        let pci = PCIHost()
        let flash = memory.flash.enumerated().map { CFIFlash(block: $1, instance: UInt32($0)) }
        let slots = try VirtioSlots(
            configuration: configuration, backends: backends, memory: memory.memory, plic: plic)

        var windows: [Bus.Window] = [
            .init(address: VirtMemoryMap.testFinisher, byteCount: TestFinisher.byteCount, device: finisher),
            .init(address: VirtMemoryMap.rtc, byteCount: GoldfishRTC.byteCount, device: rtc),
            .init(address: VirtMemoryMap.aclint, byteCount: ACLINT.byteCount, device: aclint),
            .init(address: VirtMemoryMap.plic, byteCount: PLIC.byteCount, device: plic),
            .init(address: VirtMemoryMap.serial, byteCount: SerialPort.byteCount, device: serial),
            .init(
                address: VirtMemoryMap.firmwareConfiguration, byteCount: FirmwareConfiguration.byteCount,
                device: firmwareConfiguration),
            .init(address: VirtMemoryMap.pciConfiguration, byteCount: PCIHost.byteCount, device: pci),
        ]
        for (bank, device) in flash.enumerated() {
            let byteCount = UInt64(VirtMemoryMap.flashByteCount)
            windows.append(
                .init(address: VirtMemoryMap.flash + UInt64(bank) * byteCount, byteCount: byteCount, device: device))
        }
        self.slots = slots
        windows += slots.windows
        // The interrupt controllers last: they pass on what the devices before them set.
        devices =
            [finisher, rtc, serial, firmwareConfiguration, pci] + flash + slots.transports + [plic, aclint]

        // The processors, and the threads that run them.
        let made: [MachineProcessor]
        do {
            made = try processorFactory.make(hartCount, memory.memory, BusPort(Bus(windows)), clock)
        } catch let error as SystemCallError {
            throw .system(error)
        } catch { throw .configuration("\(error)") }
        precondition(made.count == hartCount, "the factory made another number of processors")
        processors = made.map(\.processor)
        for (hart, processor) in processors.enumerated() {
            for (input, kind) in zip(inputs[hart], kinds) {
                input.connect(InterruptLine { level in processor.setInterrupt(kind, level) })
            }
        }
        let gate = ProcessorGate()
        self.gate = gate
        threads = processors.map { processor in
            ProcessorThread(processor: processor, gate: gate, clock: clock) { reason in
                requests.add(.processorFailed("hart \(processor.index): \(reason)"))
            }
        }

        let globalState = GlobalStateSection()
        self.globalState = globalState
        var components: [any StatefulComponent] = [TimerSection(clock: clock)]
        components += made.flatMap(\.components)
        components += [aclint, plic, firmwareConfiguration, pci] as [any StatefulComponent]
        components += pci.companions
        components += [serial, rtc] as [any StatefulComponent]
        components += flash as [any StatefulComponent]
        components += slots.components
        components.append(globalState)
        components += [SlirpSection(), ACPIBuildSection()] as [any StatefulComponent]
        self.components = components
        loader = BootLoader(
            configuration: configuration, isa: isa, virtioSlots: slots.used, memory: memory.memory, mrom: memory.mrom)

        resetComponents()
        do {
            try timers.start()
            for thread in threads { try thread.start() }
            let control = try HostThread(name: "machine") { [weak self, requests] in
                while requests.wait() {
                    guard let self else { return }
                    self.serveRequests()
                }
            }
            controlThread.withLock { $0 = control }
        } catch { throw .system(error) }
    }

    /// Sends the threads home without waiting for them: this may be one of them.
    deinit {
        gate.end()
        for thread in threads { thread.kick() }
        timers.end()
        requests.end()
        for input in inputs { input.disconnect() }
    }

    /// True when the configuration names nothing to start from: the machine waits for a state from elsewhere.
    package var isEmpty: Bool { BootLoader.isEmpty(configuration) }

    /// The components of a processor like the guest's, which never runs and is nobody's.
    package func makeSpareProcessor() throws(MachineError) -> [any StatefulComponent] {
        let factory = try ProcessorFactory.interpreter(isa: configuration.isa)
        do { return try factory.make(1, memory, BusPort(Bus([])), VirtualClock()).flatMap(\.components) } catch {
            throw .configuration("\(error)")
        }
    }

    /// Tells the network, and the guest's network drivers, where the guest is now; once for each card.
    /// - Parameter identifiers: Which cards; nil is all of them.
    package func announceNetworks(_ identifiers: [String]? = nil) { slots.announceNetworks(identifiers) }

    /// The kernel's number of each processor's thread, by index.
    package var processorThreadIdentifiers: [CInt] { threads.map(\.threadIdentifier) }

    /// Power-on state of everything but RAM. Only with the processors held and the clock stopped.
    func resetComponents() {
        clock.set(nanoseconds: 0)
        for processor in processors { processor.reset() }
        for device in devices { device.reset() }
    }
}
