import Glibc

/// A thread of the engine's own; the ends of a migration else run on threads of their callers.
// SAFETY: the handle is written in init only; `join` is called once, by the owner.
final class EngineThread: @unchecked Sendable {
    private final class Start {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }

    private var thread = pthread_t()

    /// - Throws: ``MigrationError/Code/guestFailed`` when the host has no thread for it.
    init(in phase: MigrationPhase, _ body: @escaping @Sendable () -> Void) throws(MigrationError) {
        let start = unsafe Unmanaged.passRetained(Start(body))
        let status = unsafe pthread_create(
            &thread, nil,
            { argument in
                unsafe Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue().body()
                return nil
            }, start.toOpaque())
        guard status == 0 else {
            unsafe start.release()
            throw MigrationError(.guestFailed, in: phase, "no thread to load the state on (error \(status))")
        }
    }

    /// Waits for its end; once.
    func join() { pthread_join(thread, nil) }
}
