import ComponentState
import DeviceModel
import Glibc
import GuestTime
import LinuxCalls
import Machine
import ProcessorModel
import Synchronization
import Testing

@Suite("Life cycle of a machine") struct LifeCycleTests {
    private func machine(
        harts: Int = 1, configuration: MachineConfiguration? = nil, console: RecordingConsole = RecordingConsole(),
        log: EventLog = EventLog(), script: @escaping @Sendable (ScriptedProcessor) -> ProcessorExit
    ) throws -> VirtMachine {
        try VirtMachine(
            configuration: configuration ?? smallConfiguration(harts: harts),
            backends: MachineBackends(serial: console),
            processors: ScriptedProcessor.factory(script), observer: { log.add($0) })
    }

    private func inside(_ machine: VirtMachine) -> Bool {
        machine.processors.contains { ($0 as! ScriptedProcessor).isInside.load(ordering: .sequentiallyConsistent) }
    }

    @Test("nothing runs before start, and time stands still")
    func created() throws {
        let machine = try machine { _ in .kicked }
        #expect(machine.state == .created)
        #expect(machine.processors[0].retiredInstructions == 0)
        #expect(machine.clock.nanoseconds == 0 && !machine.clock.isRunning)
        machine.shutDown()
    }

    @Test("after pause no processor is inside, the console is quiet and time stands still", arguments: [1, 4])
    func pauses(harts: Int) throws {
        let console = RecordingConsole()
        let machine = try machine(harts: harts, console: console) { _ in
            sched_yield()
            return .kicked
        }
        defer { machine.shutDown() }
        try machine.start()
        for _ in 0..<200 {
            let before = machine.processors.map(\.retiredInstructions)
            waitUntil("every processor runs") {
                zip(before, machine.processors).allSatisfy { $0 < $1.retiredInstructions }
            }
            try machine.pause()
            let counts = machine.processors.map(\.retiredInstructions)
            let time = machine.clock.nanoseconds
            #expect(!inside(machine) && console.isQuiet && machine.state == .paused)
            sched_yield()
            #expect(machine.processors.map(\.retiredInstructions) == counts && machine.clock.nanoseconds == time)
            try machine.resume()
            #expect(!console.isQuiet && machine.isRunning)
        }
    }

    @Test("a processor that waits for an expected resume runs then where it might before", arguments: [1, 4])
    func expected(harts: Int) throws {
        let machine = try machine(harts: harts) { _ in
            sched_yield()
            return .kicked
        }
        defer { machine.shutDown() }
        try machine.start()
        waitUntil("every thread has a number") { machine.processorThreadIdentifiers.allSatisfy { $0 != 0 } }
        let before = machine.processorThreadIdentifiers.map(allowedProcessors)
        #expect(!before.contains(""))
        let isAlone = HostThread.processorCount == 1
        for round in 0..<40 {
            // Also where nobody waits: a processor that comes by ends what was arranged for it.
            if round % 4 != 0 { try machine.pause() }
            machine.expectResume(on: HostThread.currentProcessor)
            if round % 4 != 0, !isAlone {
                let kept = machine.processorThreadIdentifiers.map(allowedProcessors)
                #expect(kept != before, "they keep to that processor")
            }
            try machine.resume()
            _ = machine.timeOfFirstInstruction()
            waitUntil("all run where they might, and as ordinary threads") {
                machine.processorThreadIdentifiers.map(allowedProcessors) == before
                    && machine.processorThreadIdentifiers.allSatisfy { sched_getscheduler($0) & 0xffff == SCHED_OTHER }
            }
        }
    }

    @Test("processors that are busy from the beginning leave the processor to whoever opened the gate")
    func busyAfterExpected() throws {
        let isOver = Atomic<Bool>(false)
        let machine = try machine(harts: 2) { _ in
            while !isOver.load(ordering: .relaxed) {}
            return .kicked
        }
        defer {
            isOver.store(true, ordering: .relaxed)
            machine.shutDown()
        }
        waitUntil("every thread has a number") { machine.processorThreadIdentifiers.allSatisfy { $0 != 0 } }
        try HostThread.keeping(to: HostThread.currentProcessor) {
            machine.expectResume(on: HostThread.currentProcessor)
            try machine.start()
            _ = machine.timeOfFirstInstruction()
        }
        waitUntil("all are ordinary threads") {
            machine.processorThreadIdentifiers.allSatisfy { sched_getscheduler($0) & 0xffff == SCHED_OTHER }
        }
    }

    private func allowedProcessors(_ thread: CInt) -> String {
        guard let file = fopen("/proc/self/task/\(thread)/status", "r") else { return "" }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 4096)
        while fgets(&line, CInt(line.count), file) != nil {
            let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            if text.hasPrefix("Cpus_allowed:") { return text }
        }
        return ""
    }

    @Test("pausing twice, resuming twice: the second time nothing happens")
    func idempotent() throws {
        let log = EventLog()
        let machine = try machine(log: log) { _ in .kicked }
        defer { machine.shutDown() }
        try machine.start()
        try machine.resume()
        try machine.pause()
        try machine.pause()
        #expect(log.all == [.resumed, .paused])
    }

    @Test("many threads pause and resume at once, and the machine comes to rest where the last one left it")
    func contended() throws {
        let machine = try machine(harts: 2) { _ in .waiting(untilNanoseconds: nil) }
        defer { machine.shutDown() }
        try machine.start()
        let running = Atomic<Int>(4)
        for _ in 0..<4 {
            var thread = pthread_t()
            let body = Unmanaged.passRetained(
                Box {
                    for _ in 0..<100 {
                        try? machine.pause()
                        try? machine.resume()
                    }
                    running.wrappingSubtract(1, ordering: .sequentiallyConsistent)
                })
            pthread_create(
                &thread, nil,
                { argument in
                    Unmanaged<Box>.fromOpaque(argument!).takeRetainedValue().body()
                    return nil
                }, body.toOpaque())
            pthread_detach(thread)
        }
        waitUntil("all threads are done") { running.load(ordering: .sequentiallyConsistent) == 0 }
        try machine.pause()
        #expect(!inside(machine))
    }

    private final class Box: Sendable {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }

    @Test("a waiting processor wakes for an interrupt")
    func wakes() throws {
        let console = RecordingConsole()
        let machine = try machine(console: console) { processor in
            // Received data, priority 1, enabled for the machine context.
            _ = processor.bus.store(address: 0x0c00_0028, width: 4, value: 1)
            _ = processor.bus.store(address: 0x0c00_2000, width: 4, value: 1 << 10)
            _ = processor.bus.store(address: 0x1000_0001, width: 1, value: 1)
            if processor.interruptLevel(.machineExternal) {
                let byte = processor.bus.load(address: 0x1000_0000, width: 1) ?? 0
                _ = processor.bus.store(address: 0x1000_0000, width: 1, value: byte)
                let source = processor.bus.load(address: 0x0c20_0004, width: 4) ?? 0
                _ = processor.bus.store(address: 0x0c20_0004, width: 4, value: source)
            }
            return .waiting(untilNanoseconds: nil)
        }
        defer { machine.shutDown() }
        try machine.start()
        for (count, key) in ["a", "b", "c"].enumerated() {
            waitUntil("the key is taken") { console.type(key) == 1 }
            waitUntil("the key is echoed") { console.text.count == count + 1 }
        }
        #expect(console.text == "abc")
    }

    @Test("lines, wake-ups and memory watches work as well the hundred thousandth time", arguments: [true, false])
    func manyTimes(isRunning: Bool) throws {
        let firmware = try ScratchFile([0x6f, 0, 0, 0])  // A jump to itself.
        var configuration = smallConfiguration()
        configuration.firmwarePath = firmware.path
        let machine = try VirtMachine(
            configuration: configuration, backends: MachineBackends(serial: RecordingConsole()))
        defer { machine.shutDown() }
        try machine.loadImages()
        if isRunning { try machine.start() }
        for _ in 0..<100_000 {
            machine.processors[0].setInterrupt(.supervisorExternal, true)
            machine.processors[0].setInterrupt(.supervisorExternal, false)
            try machine.memory.write(0x8010_0000, [1])
        }
        try machine.pause()
    }

    @Test("a waiting processor wakes at the time it named")
    func wakesInTime() throws {
        let clock = Mutex<VirtualClock?>(nil)
        let machine = try machine { _ in
            let now = clock.withLock { $0 }?.nanoseconds ?? 0
            return .waiting(untilNanoseconds: now + 1_000_000)
        }
        defer { machine.shutDown() }
        let virtual = machine.clock
        clock.withLock { $0 = virtual }
        try machine.start()
        waitUntil("it woke ten times") { machine.processors[0].retiredInstructions > 10 }
    }

    @Test("the machine timer fires by the guest's clock, and not while it is paused")
    func machineTimer() throws {
        let machine = try machine { processor in
            if processor.retiredInstructions == 1 {
                _ = processor.bus.store(address: 0x0200_4000, width: 8, value: 200_000)  // 20 ms
            }
            return .kicked
        }
        defer { machine.shutDown() }
        try machine.start()
        waitUntil("the compare value is written") { !machine.processors[0].interruptLevel(.machineTimer) }
        try machine.pause()
        let time = machine.clock.nanoseconds
        if time < 20_000_000 {
            usleep(30_000)
            #expect(!machine.processors[0].interruptLevel(.machineTimer))
        }
        try machine.resume()
        waitUntil("the timer fired") { machine.processors[0].interruptLevel(.machineTimer) }
        #expect(machine.clock.nanoseconds >= 20_000_000)
    }

    @Test("power-off by the guest ends it, with its code", arguments: [(0x5555, 0), (0x7_3333, 7)])
    func powerOff(value: Int, code: Int) throws {
        let log = EventLog()
        let machine = try machine(harts: 2, log: log) { processor in
            if processor.index == 1 { _ = processor.bus.store(address: 0x10_0000, width: 4, value: UInt64(value)) }
            return .waiting(untilNanoseconds: nil)
        }
        try machine.start()
        log.wait(for: .powerOff(exitCode: Int32(code)))
        #expect(machine.state == .shutdown && machine.end == .powerOff(exitCode: Int32(code)))
        #expect(!inside(machine))
        #expect(throws: MachineError.self) { try machine.resume() }
        #expect(throws: MachineError.self) { try machine.pause() }
        machine.shutDown()
    }

    @Test("a power-off that the guest asked for just before a pause is not lost")
    func powerOffDuringPause() throws {
        for _ in 0..<50 {
            let log = EventLog()
            let asked = Atomic<Bool>(false)
            let machine = try machine(log: log) { processor in
                _ = processor.bus.store(address: 0x10_0000, width: 4, value: 0x5555)
                asked.store(true, ordering: .sequentiallyConsistent)
                return .waiting(untilNanoseconds: nil)
            }
            try machine.start()
            while !asked.load(ordering: .sequentiallyConsistent) { sched_yield() }
            #expect(throws: MachineError.self) { try machine.pause() }
            log.wait(for: .powerOff(exitCode: 0))
            machine.shutDown()
        }
    }

    @Test("a processor that fails ends the guest, and says why")
    func fails() throws {
        let log = EventLog()
        let machine = try machine(harts: 2, log: log) { processor in
            processor.index == 1 ? .failed("no way on") : .kicked
        }
        try machine.start()
        log.wait(for: .failed("hart 1: no way on"))
        #expect(machine.state == .shutdown && !inside(machine))
        machine.shutDown()
    }

    @Test("a reset by the guest puts processors and devices back and loads the images again")
    func guestReset() throws {
        let firmware = try ScratchFile([1, 2, 3, 4])
        var configuration = smallConfiguration()
        configuration.firmwarePath = firmware.path
        let log = EventLog()
        let console = RecordingConsole()
        let machine = try machine(configuration: configuration, console: console, log: log) { processor in
            if (processor.resetCount) == 1 {
                _ = processor.bus.store(address: 0x1000_0007, width: 1, value: 0x5a)
                _ = processor.bus.store(address: 0x10_0000, width: 4, value: 0x7777)
                return .waiting(untilNanoseconds: nil)
            }
            let scratch = processor.bus.load(address: 0x1000_0007, width: 1)
            _ = processor.bus.store(address: 0x10_0000, width: 4, value: scratch == 0 ? 0x5555 : 0x1_3333)
            return .waiting(untilNanoseconds: nil)
        }
        try machine.loadImages()
        try machine.memory.write(0x8000_0000, [9, 9, 9, 9])
        try machine.start()
        log.wait(for: .powerOff(exitCode: 0))
        #expect(log.all == [.resumed, .reset(byGuest: true), .powerOff(exitCode: 0)])
        #expect(try machine.memory.bytes(at: 0x8000_0000, count: 4) == [1, 2, 3, 4])
        machine.shutDown()
    }

    @Test("an owner whose thread comes late is told of its guest's start before the guest's end")
    func toldInOrder() throws {
        for _ in 0..<200 {
            let log = EventLog()
            let machine = try machine(log: log) { processor in
                _ = processor.bus.store(address: 0x10_0000, width: 4, value: 0x5555)
                return .waiting(untilNanoseconds: nil)
            }
            try machine.start()
            #expect(log.all.first == .resumed)
            log.wait(for: .powerOff(exitCode: 0))
            #expect(log.all == [.resumed, .powerOff(exitCode: 0)])
            machine.shutDown()
        }
    }

    @Test("an observer may stop and continue the guest that it is told of")
    func observerCallsBack() throws {
        let log = EventLog()
        let owned = Mutex<VirtMachine?>(nil)
        let machine = try VirtMachine(
            configuration: smallConfiguration(), backends: MachineBackends(serial: RecordingConsole()),
            processors: ScriptedProcessor.factory { _ in .kicked },
            observer: { event in
                log.add(event)
                guard log.all.count < 5, let machine = owned.withLock({ $0 }) else { return }
                if event == .resumed { try? machine.pause() } else { try? machine.resume() }
            })
        owned.withLock { $0 = machine }
        defer {
            owned.withLock { $0 = nil }
            machine.shutDown()
        }
        try machine.start()
        #expect(log.all == [.resumed, .paused, .resumed, .paused, .resumed] && machine.isRunning)
    }

    @Test("a guest that asks for a reset and has nothing to start from ends with a message")
    func resetWithoutImages() throws {
        let log = EventLog()
        let machine = try machine(log: log) { processor in
            _ = processor.bus.store(address: 0x10_0000, width: 4, value: 0x7777)
            return .waiting(untilNanoseconds: nil)
        }
        try machine.start()
        waitUntil("it ended") { machine.state == .shutdown }
        guard case .failed(let text)? = machine.end else {
            Issue.record("ended by \(String(describing: machine.end))")
            return
        }
        #expect(text.contains("nothing to start it from"))
        machine.shutDown()
    }

    @Test("reset of a paused machine leaves it paused, at time zero")
    func resetPaused() throws {
        let firmware = try ScratchFile([1, 2, 3, 4])
        var configuration = smallConfiguration()
        configuration.firmwarePath = firmware.path
        let machine = try machine(configuration: configuration) { _ in .kicked }
        defer { machine.shutDown() }
        try machine.loadImages()
        try machine.start()
        waitUntil("time passes") { machine.clock.nanoseconds > 0 }
        try machine.pause()
        try machine.reset()
        #expect(machine.state == .paused && machine.clock.nanoseconds == 0)
        #expect((machine.processors[0] as! ScriptedProcessor).resetCount == 2)
    }

    @Test("a machine that nobody holds any more goes away, threads and all")
    func released() throws {
        weak var weakMachine: VirtMachine?
        weak var weakProcessor: ScriptedProcessor?
        do {
            let machine = try machine(harts: 2) { _ in .waiting(untilNanoseconds: nil) }
            try machine.start()
            try machine.pause()
            weakMachine = machine
            weakProcessor = machine.processors[0] as? ScriptedProcessor
        }
        waitUntil("the machine is gone") { weakMachine == nil }
        waitUntil("its processors are gone") { weakProcessor == nil }
    }

    @Test(
        "what a machine cannot be is refused with a reason",
        arguments: [
            (\MachineConfiguration.hartCount, 0, "harts"), (\MachineConfiguration.hartCount, 9, "harts"),
        ])
    func badConfiguration(field: WritableKeyPath<MachineConfiguration, Int> & Sendable, value: Int, word: String) throws
    {
        var configuration = smallConfiguration()
        configuration[keyPath: field] = value
        #expect {
            try machine(configuration: configuration) { _ in .kicked }
        } throws: { "\($0)".contains(word) }
    }

    @Test("a device without its backend, or with too many beside it, is refused")
    func badDevices() throws {
        var configuration = smallConfiguration()
        configuration.devices = [.init(kind: .block, identifier: "disk0")]
        #expect { try machine(configuration: configuration) { _ in .kicked } } throws: {
            "\($0)" == "block device disk0 has no image behind it"
        }
        configuration.devices = (0..<9).map { .init(kind: .entropy, identifier: "\($0)") }
        #expect(throws: MachineError.self) { try machine(configuration: configuration) { _ in .kicked } }
        configuration.devices = [.init(kind: .entropy, identifier: "a"), .init(kind: .entropy, identifier: "a")]
        #expect(throws: MachineError.self) { try machine(configuration: configuration) { _ in .kicked } }
    }
}
