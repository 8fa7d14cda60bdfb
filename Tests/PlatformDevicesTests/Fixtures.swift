import ComponentState
import DeviceModel
import GuestTime
import MigrationStream
import PlatformDevices
import Synchronization
import Testing

/// Virtual time by hand: timers fire when it is moved, on the caller's thread.
final class ManualScheduler: TimerScheduler {
    let clock = VirtualClock()
    private struct Entry {
        var deadline: Int64?
        let action: @Sendable () -> Void
    }
    private let entries = Mutex<[Entry]>([])

    private final class Timer: DeviceTimer {
        let index: Int
        let owner: ManualScheduler
        init(index: Int, owner: ManualScheduler) {
            self.index = index
            self.owner = owner
        }
        func set(deadlineNanoseconds: Int64?) {
            owner.entries.withLock { $0[index].deadline = deadlineNanoseconds }
        }
    }

    func makeTimer(_ action: @escaping @Sendable () -> Void) -> any DeviceTimer {
        entries.withLock { entries in
            entries.append(Entry(deadline: nil, action: action))
            return Timer(index: entries.count - 1, owner: self)
        }
    }

    /// Deadlines of the timers that are armed.
    var armed: [Int64] { entries.withLock { $0.compactMap(\.deadline) } }

    func advance(to nanoseconds: Int64) {
        clock.set(nanoseconds: nanoseconds)
        while true {
            let action = entries.withLock { entries -> (@Sendable () -> Void)? in
                guard let due = entries.firstIndex(where: { ($0.deadline ?? .max) <= nanoseconds }) else { return nil }
                entries[due].deadline = nil
                return entries[due].action
            }
            guard let action else { return }
            action()
        }
    }
}

/// Remembers the level of a line.
final class LineProbe: Sendable {
    private let state = Atomic<Bool>(false)
    var level: Bool { state.load(ordering: .relaxed) }
    var line: InterruptLine { InterruptLine { [self] in state.store($0, ordering: .relaxed) } }
}

/// A console that takes a given number of bytes and then is full.
final class ScriptedConsole: ConsoleBackend {
    private struct State {
        var output: [UInt8] = []
        var room = Int.max
        var input: (@Sendable ([UInt8]) -> Int)?
        var writable: (@Sendable () -> Void)?
        var inputRequests = 0
    }
    private let state = Mutex(State())

    var output: [UInt8] { state.withLock { $0.output } }
    var inputRequests: Int { state.withLock { $0.inputRequests } }

    func setRoom(_ room: Int) { state.withLock { $0.room = room } }

    /// Makes room and says so.
    func makeRoom(_ room: Int) {
        setRoom(room)
        state.withLock { $0.writable }?()
    }

    /// Offers input; answers how many bytes were taken.
    func type(_ bytes: [UInt8]) -> Int { state.withLock { $0.input }?(bytes) ?? 0 }

    func write(_ bytes: [UInt8]) -> Int {
        state.withLock { state in
            let taken = min(state.room, bytes.count)
            state.output += bytes[..<taken]
            if state.room != .max { state.room -= taken }
            return taken
        }
    }
    func connect(input: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {
        state.withLock {
            $0.input = input
            $0.writable = writable
        }
    }
    func inputIsWanted() { state.withLock { $0.inputRequests += 1 } }
    func quiesce() {}
    func resume() {}
}

/// The body of a component's section, as it is on the wire.
func encode(_ component: any StatefulComponent, _ layout: StateLayout) throws -> [UInt8] {
    let writer = StreamWriter()
    let version = try #require(component.sectionVersion(for: layout))
    var coder: any StateCoder = VMStateEncoder(
        to: writer, component: component.sectionName, version: version, layout: layout, describing: false)
    try component.codeState(with: &coder)
    return writer.withBytes { bytes in [UInt8](bytes) }
}

func decode(
    _ body: [UInt8], into component: any StatefulComponent, _ layout: StateLayout, version: UInt32? = nil
) throws {
    let version = try version ?? #require(component.sectionVersion(for: layout))
    let footer: [UInt8] = [0x7e, 0, 0, 0, 0]  // Where subsections end only what comes next tells.
    let decoder = VMStateDecoder(
        from: StreamCursor(body + footer, isFinal: true), component: component.sectionName, version: version,
        layout: layout)
    var coder: any StateCoder = decoder
    try component.codeState(with: &coder)
    try decoder.finish()
    #expect(decoder.cursor.remaining == footer.count)
}

/// Bytes from text such as `00 0c 7e`.
func bytes(_ text: String) -> [UInt8] {
    text.split(whereSeparator: \.isWhitespace).map { UInt8($0, radix: 16)! }
}

extension BusDevice {
    func read(_ offset: UInt64, _ width: AccessWidth = .four) -> UInt64 { load(offset: offset, width: width) }
    func write(_ offset: UInt64, _ value: UInt64, _ width: AccessWidth = .four) {
        store(offset: offset, width: width, value: value)
    }
}
