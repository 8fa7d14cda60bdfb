import LinuxCalls
import Synchronization

/// Input on its way to a console device: keeps what the device has not taken, and says when to stop reading.
///
/// The callback runs on the loop's thread with the lock of this object held; it may take the device's lock. So no method
/// but ``inputIsWanted()`` may be called with the device's lock held, and that one only posts.
final class ConsoleInput: Sendable {
    /// Bytes for a device that stands still, beyond which no more are read.
    private static let pendingBytesPausingInput = 4096

    private struct State {
        var pending: [UInt8]
        var input: (@Sendable ([UInt8]) -> Int)?
        var isQuiesced: Bool
    }

    private let loop: EventLoop
    private let state: Mutex<State>
    /// Called on the loop's thread: whether sources should be read.
    private let setReading: @Sendable (Bool) -> Void

    init(loop: EventLoop, pending: [UInt8], isQuiesced: Bool, setReading: @escaping @Sendable (Bool) -> Void) {
        self.loop = loop
        self.setReading = setReading
        state = Mutex(State(pending: pending, isQuiesced: isQuiesced))
    }

    func connect(_ input: @escaping @Sendable ([UInt8]) -> Int) { state.withLock { $0.input = input } }

    /// On the loop's thread: bytes arrived.
    func add(_ bytes: [UInt8]) {
        state.withLock { $0.pending += bytes }
        deliver()
    }

    /// On the loop's thread.
    private func deliver() {
        let isEmpty: Bool? = state.withLock { state in
            guard !state.isQuiesced, let input = state.input else {
                return state.pending.count < Self.pendingBytesPausingInput
            }
            while !state.pending.isEmpty {
                let taken = min(max(input(state.pending), 0), state.pending.count)
                if taken == 0 { break }
                state.pending.removeFirst(taken)
            }
            return state.pending.isEmpty
        }
        if let isEmpty { setReading(isEmpty) }
    }

    func inputIsWanted() { loop.perform { [weak self] in self?.deliver() } }

    /// In the loop's turn, or before its next barrier.
    func quiesce() { state.withLock { $0.isQuiesced = true } }

    func resume() {
        state.withLock { $0.isQuiesced = false }
        inputIsWanted()
    }

    /// What the device has not taken; only while quiesced.
    var pending: [UInt8] { state.withLock { $0.pending } }
}
