import Glibc
import LinuxCalls
import Supervisor
import Synchronization

/// Ctrl-C or SIGTERM while a command waits for what it has begun. The first is an order to give that up, which the command
/// carries out; at the second the process ends at once. A signal that whoever started the command has it ignore stays ignored.
final class Interruption: Sendable {
    private let first = Atomic<CInt>(0)
    private let isNew = HostSemaphore()

    /// On the main thread, before any other thread.
    init() throws(SystemCallError) {
        let wanted = [SIGINT, SIGTERM].filter { !Self.isIgnored($0) }
        guard !wanted.isEmpty else { return }
        let signals = try SignalDescriptor(wanted)
        // Ends with the process.
        _ = try HostThread(name: "signals") { [self] in
            while (try? signals.descriptor.waitUntilReady(for: Int16(POLLIN), timeoutMilliseconds: -1)) != nil {
                guard let signal = signals.next() else { continue }
                guard first.exchange(signal, ordering: .relaxed) == 0 else { _exit(128 + signal) }
                isNew.signal()
            }
        }
    }

    /// What the command is to end with, once it was interrupted.
    var status: ExitStatus? {
        switch first.load(ordering: .relaxed) {
        case 0: nil
        case SIGINT: .interrupted
        default: .terminated
        }
    }

    /// Sleeps until the time is over; answers true at once, and a single time, when the first signal has come.
    func sleep(microseconds: Int64) -> Bool { isNew.wait(timeoutNanoseconds: microseconds * 1000) }

    private static func isIgnored(_ signal: CInt) -> Bool {
        var action = sigaction()
        guard unsafe sigaction(signal, nil, &action) == 0 else { return false }
        let ignore = unsafe unsafeBitCast(SIG_IGN, to: Int.self)
        return unsafe unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self) == ignore
    }
}
