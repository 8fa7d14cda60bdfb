import DeviceModel
import Synchronization

/// A console backend that is there before what stands behind it: a successor builds its devices while the guest still
/// runs at its predecessor, and learns what the console's buffers and clients are only when the guest is paused.
final class LateConsole: ConsoleBackend {
    private struct State {
        var backend: (any ConsoleBackend)?
        var input: (@Sendable ([UInt8]) -> Int)?
        var writable: (@Sendable () -> Void)?
    }

    private let state = Mutex(State())

    /// Puts the real one behind it. Once, while the machine is paused.
    func adopt(_ backend: any ConsoleBackend) {
        let (input, writable) = state.withLock { state in
            precondition(state.backend == nil, "adopted twice")
            state.backend = backend
            return (state.input, state.writable)
        }
        if let input, let writable { backend.connect(input: input, writable: writable) }
    }

    private var backend: (any ConsoleBackend)? { state.withLock { $0.backend } }

    func write(_ bytes: [UInt8]) -> Int { backend?.write(bytes) ?? 0 }
    func inputIsWanted() { backend?.inputIsWanted() }
    func quiesce() { backend?.quiesce() }
    func resume() { backend?.resume() }

    func connect(input: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {
        let backend = state.withLock { state in
            state.input = input
            state.writable = writable
            return state.backend
        }
        backend?.connect(input: input, writable: writable)
    }
}

/// The same for a network card: frames under way are known only when the guest is paused.
@safe final class LateNetwork: NetworkBackend {
    private let real = Mutex<(any NetworkBackend)?>(nil)
    /// What the device installs with ``connect(receive:writable:)``: how to install it once there is something behind.
    private let connection = Mutex<(@Sendable (any NetworkBackend) -> Void)?>(nil)

    /// Puts the real one behind it. Once, while the machine is paused.
    func adopt(_ backend: any NetworkBackend) {
        real.withLock { real in
            precondition(real == nil, "adopted twice")
            real = backend
        }
        connection.withLock { $0 }?(backend)
    }

    private var backend: (any NetworkBackend)? { real.withLock { $0 } }

    func send(_ frame: UnsafeRawBufferPointer) -> Bool { unsafe backend?.send(frame) ?? false }
    func receiveIsWanted() { backend?.receiveIsWanted() }
    func quiesce() { backend?.quiesce() }
    func resume() { backend?.resume() }

    func connect(
        receive: @escaping @Sendable (UnsafeRawBufferPointer) -> Bool, writable: @escaping @Sendable () -> Void
    ) {
        let connect: @Sendable (any NetworkBackend) -> Void = {
            unsafe $0.connect(receive: receive, writable: writable)
        }
        connection.withLock { $0 = connect }
        if let backend { connect(backend) }
    }
}
