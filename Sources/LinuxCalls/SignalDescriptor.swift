import CLinuxShims
import Glibc
import Synchronization

/// Signals that arrive as input of an event loop instead of interrupting somebody. Source: signalfd(2).
package final class SignalDescriptor: Sendable {
    /// Readable while a signal is pending.
    package let descriptor: OwnedDescriptor

    /// Blocks the signals in this thread and all that it starts; call before any other thread exists.
    package init(_ signals: [CInt]) throws(SystemCallError) {
        descriptor = OwnedDescriptor(
            adopting: try retrying("signalfd") { unsafe shim_signalfd(signals, CInt(signals.count)) })
    }

    private static let isClosed = Atomic<Bool>(false)

    /// Lets signals wait in the process from now on: ``next()`` finds none. Who is taking one meanwhile has it.
    package static func stopTaking() { isClosed.store(true, ordering: .sequentiallyConsistent) }

    /// Sends each of these signals that waits for this process, or comes to it before it has ended, on to another, as `signal`: for the
    /// last that this process does, on a thread that goes on to its end. After ``stopTaking()``.
    package static func passOn(_ signals: [CInt], to process: OwnedDescriptor, as signal: CInt) {
        unsafe _ = shim_pass_on_signals(signals, CInt(signals.count), process.rawValue, signal)
    }

    /// Takes the next pending signal; nil when there is none.
    package func next() -> CInt? {
        if Self.isClosed.load(ordering: .sequentiallyConsistent) { return nil }
        let signal = shim_signalfd_next(descriptor.rawValue)
        return signal > 0 ? signal : nil
    }
}
