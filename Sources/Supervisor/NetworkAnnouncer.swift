import LinuxCalls
import QMPProtocol

/// How often, and how far apart, the network is told where the guest is; QEMU's names and units.
struct AnnounceParameters: Hashable, Sendable {
    var initialMilliseconds: Int64 = 50
    var maxMilliseconds: Int64 = 550
    var rounds: Int64 = 5
    var stepMilliseconds: Int64 = 100
    /// Names of network cards; nil is all of them.
    var interfaces: [String]?

    /// The pause behind the n-th announcement, counted from 0: it grows by a step, up to the most.
    func delayMilliseconds(after round: Int64) -> Int64 {
        let (growth, overflow) = round.multipliedReportingOverflow(by: stepMilliseconds)
        let (delay, overflows) = initialMilliseconds.addingReportingOverflow(growth)
        return overflow || overflows || delay < 0 || delay > maxMilliseconds ? max(0, maxMilliseconds) : delay
    }
}

/// Tells the network where the guest is, several times, as QEMU does after a migration and by `announce-self`: a switch
/// that missed one frame shall not go on sending to where the guest was. Lives on the monitor's thread.
///
/// SAFETY: every member is touched on the monitor's thread only.
final class NetworkAnnouncer: @unchecked Sendable {
    // SAFETY: mutable members are touched only on the loop's thread; entry points check it.

    /// Most announcements that are under way at once, by name.
    static let countMax = 64

    private let loop: EventLoop
    private let guest: any SupervisedGuest
    /// Which run of a name is the present one.
    private var runs: [String: Int] = [:]
    private var nextRun = 0

    init(loop: EventLoop, guest: any SupervisedGuest) {
        self.loop = loop
        self.guest = guest
    }

    /// Begins now. What goes on under the same name ends; no rounds at all end it without a new one.
    func announce(_ parameters: AnnounceParameters, as name: String = "") throws(QMPError) {
        precondition(loop.isLoopThread)
        runs[name] = nil
        guard parameters.rounds > 0 else { return }
        guard runs.count < Self.countMax else { throw QMPError("Too many announcements are under way") }
        nextRun += 1
        runs[name] = nextRun
        round(0, parameters, name, run: nextRun)
    }

    private func round(_ number: Int64, _ parameters: AnnounceParameters, _ name: String, run: Int) {
        guard runs[name] == run else { return }
        guest.announceNetworks(parameters.interfaces)
        guard number + 1 < parameters.rounds else {
            runs[name] = nil
            return
        }
        loop.perform(afterMilliseconds: parameters.delayMilliseconds(after: number)) { [weak self] in
            self?.round(number + 1, parameters, name, run: run)
        }
    }
}
