import DeviceModel
import LinuxCalls
import Synchronization

/// A disk in memory that can be made to fail, and to wait in the middle of an operation.
final class MemoryDisk: BlockBackend {
    enum Operation: Hashable { case read, write, flush, discard, writeZeroes }

    struct Call: Hashable {
        var operation: Operation
        var offset: UInt64
        var byteCount: UInt64
    }

    let byteCount: UInt64
    let isReadOnly: Bool
    let supportsDiscard = true
    private let state: Mutex<(bytes: [UInt8], calls: [Call], failing: Set<Operation>, stuck: Set<Operation>)>
    /// Signalled when an operation has begun to wait; one `release` lets one go on.
    let entered = HostSemaphore()
    let release = HostSemaphore()

    init(sectorCount: Int, isReadOnly: Bool = false) {
        byteCount = UInt64(sectorCount) * 512
        self.isReadOnly = isReadOnly
        state = Mutex(([UInt8](repeating: 0, count: sectorCount * 512), [], [], []))
    }

    var bytes: [UInt8] { state.withLock { $0.bytes } }
    var calls: [Call] { state.withLock { $0.calls } }
    func fill(_ bytes: [UInt8], at offset: Int) {
        state.withLock { $0.bytes.replaceSubrange(offset..<offset + bytes.count, with: bytes) }
    }
    func fail(_ operations: Set<Operation>) { state.withLock { $0.failing = operations } }
    func stick(_ operations: Set<Operation>) { state.withLock { $0.stuck = operations } }

    private func begin(_ operation: Operation, _ offset: UInt64, _ byteCount: UInt64) throws(BackendError) {
        let (fails, waits) = state.withLock { state in
            state.calls.append(Call(operation: operation, offset: offset, byteCount: byteCount))
            return (state.failing.contains(operation), state.stuck.contains(operation))
        }
        if waits {
            entered.signal()
            release.wait()
        }
        if fails { throw BackendError(errorNumber: 5, "told to fail") }
    }

    func read(offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(BackendError) {
        try begin(.read, offset, UInt64(buffer.count))
        state.withLock { buffer.copyBytes(from: $0.bytes[Int(offset)..<Int(offset) + buffer.count]) }
    }

    func write(offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(BackendError) {
        try begin(.write, offset, UInt64(bytes.count))
        fill(Array(bytes), at: Int(offset))
    }

    func flush() throws(BackendError) { try begin(.flush, 0, 0) }

    func discard(offset: UInt64, byteCount: UInt64) throws(BackendError) {
        try begin(.discard, offset, byteCount)
        fill([UInt8](repeating: 0, count: Int(byteCount)), at: Int(offset))
    }

    func writeZeroes(offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BackendError) {
        try begin(.writeZeroes, offset, byteCount)
        fill([UInt8](repeating: 0, count: Int(byteCount)), at: Int(offset))
    }
}

/// A network that keeps what is sent and can be full.
final class TestNetwork: NetworkBackend {
    private struct State {
        var sent: [[UInt8]] = []
        var room = Int.max
        var receive: (@Sendable (UnsafeRawBufferPointer) -> Bool)?
        var writable: (@Sendable () -> Void)?
        var isQuiesced = false
    }

    private let state = Mutex(State())
    let wanted = HostSemaphore()
    let refused = HostSemaphore()

    var sent: [[UInt8]] { state.withLock { $0.sent } }

    func send(_ frame: UnsafeRawBufferPointer) -> Bool {
        let bytes = Array(frame)
        let isTaken = state.withLock { state in
            guard state.room > 0 else { return false }
            state.room -= 1
            state.sent.append(bytes)
            return true
        }
        if !isTaken { refused.signal() }
        return isTaken
    }

    func connect(
        receive: @escaping @Sendable (UnsafeRawBufferPointer) -> Bool, writable: @escaping @Sendable () -> Void
    ) {
        state.withLock {
            $0.receive = receive
            $0.writable = writable
        }
    }

    func receiveIsWanted() { wanted.signal() }
    func quiesce() { state.withLock { $0.isQuiesced = true } }
    func resume() { state.withLock { $0.isQuiesced = false } }

    /// A frame arrives.
    func deliver(_ frame: [UInt8]) -> Bool {
        let receive = state.withLock { $0.receive }
        return frame.withUnsafeBytes { receive?($0) ?? false }
    }

    func setRoom(_ room: Int) {
        let writable = state.withLock { state in
            state.room = room
            return state.writable
        }
        if room > 0 { writable?() }
    }
}

/// A terminal that keeps what is written and can be full.
final class TestConsole: ConsoleBackend {
    private struct State {
        var output: [UInt8] = []
        var room = Int.max
        var input: (@Sendable ([UInt8]) -> Int)?
        var writable: (@Sendable () -> Void)?
    }

    private let state = Mutex(State())
    let wanted = HostSemaphore()
    let refused = HostSemaphore()

    var output: [UInt8] { state.withLock { $0.output } }

    func write(_ bytes: [UInt8]) -> Int {
        let taken = state.withLock { state in
            let taken = min(state.room, bytes.count)
            state.room -= taken
            state.output += bytes[..<taken]
            return taken
        }
        if taken < bytes.count { refused.signal() }
        return taken
    }

    func connect(input: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {
        state.withLock {
            $0.input = input
            $0.writable = writable
        }
    }

    func inputIsWanted() { wanted.signal() }
    func quiesce() {}
    func resume() {}

    /// Somebody types; answers how much the device took.
    func type(_ bytes: [UInt8]) -> Int { state.withLock { $0.input }?(bytes) ?? 0 }

    func setRoom(_ room: Int) {
        let writable = state.withLock { state in
            state.room = room
            return state.writable
        }
        if room > 0 { writable?() }
    }
}
