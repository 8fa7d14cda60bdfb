import ComponentState
import DeviceModel
import Glibc
import GuestMemory
import GuestTime
import Machine
import ProcessorModel
import Synchronization
import Testing

/// A processor that runs a script: each call of the script is one stretch of guest execution.
final class ScriptedProcessor: Processor {
    let index: Int
    let bus: any ProcessorBus
    private let script: @Sendable (ScriptedProcessor) -> ProcessorExit
    private let kicked = Atomic<Bool>(false)
    private let lines = Atomic<UInt64>(0)
    private let steps = Atomic<UInt64>(0)
    private let resets = Atomic<Int>(0)
    private let wakeUp = Mutex<WakeUp?>(nil)
    /// See `GuestMemory.CodeWatch`.
    private struct WakeUp {
        let call: @Sendable () -> Void
    }
    /// True while the script runs.
    let isInside = Atomic<Bool>(false)

    init(index: Int, bus: any ProcessorBus, script: @escaping @Sendable (ScriptedProcessor) -> ProcessorExit) {
        self.index = index
        self.bus = bus
        self.script = script
    }

    static func factory(_ script: @escaping @Sendable (ScriptedProcessor) -> ProcessorExit) -> ProcessorFactory {
        ProcessorFactory { count, _, bus, _ in
            (0..<count).map { index in
                let processor = ScriptedProcessor(index: index, bus: bus, script: script)
                return MachineProcessor(processor: processor, components: [processor])
            }
        }
    }

    func run() -> ProcessorExit {
        while true {
            if kicked.exchange(false, ordering: .sequentiallyConsistent) { return .kicked }
            isInside.store(true, ordering: .sequentiallyConsistent)
            steps.wrappingAdd(1, ordering: .relaxed)
            let exit = script(self)
            isInside.store(false, ordering: .sequentiallyConsistent)
            if exit != .kicked { return exit }
        }
    }

    func kick() {
        kicked.store(true, ordering: .sequentiallyConsistent)
        wakeUp.withLock { $0 }?.call()
    }

    func setInterrupt(_ interrupt: ProcessorInterrupt, _ level: Bool) {
        let bit = UInt64(1) << UInt64(interrupt.rawValue)
        if level {
            lines.bitwiseOr(bit, ordering: .sequentiallyConsistent)
            wakeUp.withLock { $0 }?.call()
        } else {
            lines.bitwiseAnd(~bit, ordering: .sequentiallyConsistent)
        }
    }

    func interruptLevel(_ interrupt: ProcessorInterrupt) -> Bool {
        lines.load(ordering: .sequentiallyConsistent) >> UInt64(interrupt.rawValue) & 1 != 0
    }

    var hasPendingInterrupt: Bool {
        // The machine timer is pending from reset on; scripts do not enable it.
        lines.load(ordering: .sequentiallyConsistent) & ~(1 << 7) != 0
    }
    func setWakeUp(_ wake: @escaping @Sendable () -> Void) { wakeUp.withLock { $0 = WakeUp(call: wake) } }
    func restartDirtyTracking() {}
    func setThrottle(percent: Int) {}
    func reset() { resets.wrappingAdd(1, ordering: .relaxed) }
    func registerDump() -> String { "" }
    var retiredInstructions: UInt64 { steps.load(ordering: .relaxed) }
    var resetCount: Int { resets.load(ordering: .relaxed) }

    var sectionName: String { "cpu" }
    var instance: UInt32 { UInt32(index) }
    func sectionVersion(for layout: StateLayout) -> UInt32? { 1 }
    var readableVersions: ClosedRange<UInt32> { 1...1 }
    func codeState(with coder: inout any StateCoder) throws(StateError) {}
}

/// Keeps what the guest says, and lets the test type.
final class RecordingConsole: ConsoleBackend {
    private struct State {
        var output: [UInt8] = []
        var input: (@Sendable ([UInt8]) -> Int)?
        var isQuiet = false
    }
    private let state = Mutex(State())

    var text: String { String(decoding: state.withLock { $0.output }, as: UTF8.self) }
    var isQuiet: Bool { state.withLock { $0.isQuiet } }
    func type(_ text: String) -> Int { state.withLock { $0.input }?(Array(text.utf8)) ?? 0 }

    func write(_ bytes: [UInt8]) -> Int {
        state.withLock { $0.output += bytes }
        return bytes.count
    }
    func connect(input: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {
        state.withLock { $0.input = input }
    }
    func inputIsWanted() {}
    func quiesce() { state.withLock { $0.isQuiet = true } }
    func resume() { state.withLock { $0.isQuiet = false } }
}

/// Collects a machine's events and lets a test wait for one.
final class EventLog: Sendable {
    private let events = Mutex<[MachineEvent]>([])

    var all: [MachineEvent] { events.withLock { $0 } }
    func add(_ event: MachineEvent) { events.withLock { $0.append(event) } }

    /// Waits until the event has come; fails after a minute.
    func wait(for event: MachineEvent) {
        for _ in 0..<60_000 {
            if all.contains(event) { return }
            usleep(1000)
        }
        Issue.record("\(event) did not come, only \(all)")
    }
}

func waitUntil(_ what: String, _ condition: () -> Bool) {
    for _ in 0..<60_000 {
        if condition() { return }
        usleep(1000)
    }
    Issue.record("never: \(what)")
}

/// A small machine that boots nothing.
func smallConfiguration(harts: Int = 1) -> MachineConfiguration {
    var configuration = MachineConfiguration()
    configuration.memoryByteCount = 16 << 20
    configuration.memoryBackend = .anonymous
    configuration.hartCount = harts
    return configuration
}

/// A file that goes away with the test.
final class ScratchFile {
    let path: String

    init(_ bytes: [UInt8]) throws {
        path = "/tmp/sidestep-\(getpid())-\(UInt64.random(in: 0 ... .max))"
        let file = try #require(fopen(path, "w"))
        #expect(fwrite(bytes, 1, bytes.count, file) == bytes.count)
        fclose(file)
    }

    deinit { unlink(path) }
}
