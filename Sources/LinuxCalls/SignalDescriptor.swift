import CLinuxShims
import Glibc

/// Signals that arrive as input of an event loop instead of interrupting somebody. Source: signalfd(2).
package final class SignalDescriptor: Sendable {
    /// Readable while a signal is pending.
    package let descriptor: OwnedDescriptor

    /// Blocks the signals in this thread and all that it starts; call before any other thread exists.
    package init(_ signals: [CInt]) throws(SystemCallError) {
        descriptor = OwnedDescriptor(
            adopting: try retrying("signalfd") { unsafe shim_signalfd(signals, CInt(signals.count)) })
    }

    /// Whether one of these waits for this process, taken by nobody. Source: sigpending(2).
    package static func isPending(_ signals: [CInt]) -> Bool {
        var pending = sigset_t()
        unsafe sigemptyset(&pending)
        guard unsafe sigpending(&pending) == 0 else { return false }
        return signals.contains { unsafe sigismember(&pending, $0) == 1 }
    }

    /// Takes the next pending signal; nil when there is none.
    package func next() -> CInt? {
        let signal = shim_signalfd_next(descriptor.rawValue)
        return signal > 0 ? signal : nil
    }
}
