import Glibc
import LinuxCalls
import Testing

@Suite("Signals that mean another process") struct SignalTests {
    /// Starts somebody who ends by the signal and by nothing else.
    private static func sleeper() throws -> ChildProcess { try ChildProcess(path: "/bin/sleep", arguments: ["100"]) }

    @Test("one that waits, and that nobody has taken, goes to the other process, and not to us")
    func waiting() async {
        await #expect(processExitsWith: .success) {
            let signals = try SignalDescriptor([SIGTERM, SIGHUP])
            let other = try SignalTests.sleeper()
            raise(SIGHUP)  // to this thread: a test has others, which do not block it
            SignalDescriptor.stopTaking()
            #expect(signals.next() == nil)
            SignalDescriptor.passOn([SIGTERM, SIGHUP], to: other.processDescriptor, as: SIGTERM)
            #expect(other.wait(timeoutMilliseconds: 30_000) == .signaled(signal: SIGTERM))
        }
    }

    @Test("one that comes later goes there too; without one nothing does")
    func coming() async {
        await #expect(processExitsWith: .success) {
            let signals = try SignalDescriptor([SIGTERM])
            let other = try SignalTests.sleeper()
            SignalDescriptor.stopTaking()
            SignalDescriptor.passOn([SIGTERM], to: other.processDescriptor, as: SIGTERM)
            #expect(other.wait(timeoutMilliseconds: 100) == nil)
            kill(getpid(), SIGTERM)
            #expect(other.wait(timeoutMilliseconds: 30_000) == .signaled(signal: SIGTERM))
            withExtendedLifetime(signals) {}
        }
    }
}
