import LinuxCalls
import Synchronization

/// A guest's processors come before all that is started and ended beside them while the guest changes process. Else each of these takes a
/// turn on a processor of the host that the guest uses, 4 ms at 250 Hz, and this is what a busy guest notices of an upgrade.
///
/// Only where the host has more processors than the guest, so that all else goes on, and where it is permitted; see decision 0009.
final class ProcessorPreference: Sendable {
    /// What ends it in time: a thread that waits for the order to count.
    private final class Limiter: Sendable {
        enum Order: UInt32 { case none, count, drop }
        let order = WaitWord(Order.none.rawValue)
        let process = Mutex<OwnedDescriptor?>(nil)
        /// By the kernel's number, once it is urgent.
        let thread = WaitWord()
    }

    private struct State: Sendable {
        var detours: [HostThread.Detour] = []
        var limiter: Limiter?
    }

    private let state = Mutex(State())
    private let creation = monotonicNanoseconds()

    /// How long the thread that ends it may take to start.
    private static let makingNanoseconds: Int64 = 20_000_000
    /// In the new process from when its processors have it until the guest runs, or the process ends.
    private static let longestNanoseconds: Int64 = 3_600 * 1_000_000_000
    /// In the old process from the beginning on, in the new one from when the guest runs in it. It is what an upgrade may take in all.
    private static let limitMilliseconds: CInt = 100
    /// The kernel keeps a twentieth of each second for those that are not preferred (its fair server), and where they have had none of a
    /// processor for a second they get all of that at once: a guest that is upgraded again and again would stand still for 50 ms.
    private static let restNanoseconds: Int64 = 200_000_000

    /// Whether the processors are preferred now.
    var isOn: Bool { state.withLock { !$0.detours.isEmpty } }

    /// Whether so many processors may be preferred in an upgrade: the host has more, and the guest has been in this process for long enough.
    func isSensible(forProcessors count: Int) -> Bool {
        count < HostThread.processorCount && monotonicNanoseconds() - creation >= Self.restNanoseconds
    }

    /// Makes what ends it in time, for ``begin(_:)``: later this could wait behind what it is to end. The caller keeps to where
    /// no processor is preferred: a thread that is made goes where the fewest of its like are, and that is where those run.
    func prepare() {
        end()
        let limiter = Limiter()
        let thread = try? HostThread(name: "preference", stackByteCount: 64 << 10) { [self] in
            let detour = HostThread.Detour(haste: .urgent)
            limiter.thread.store(UInt32(HostThread.currentIdentifier))
            limiter.order.sleep(while: Limiter.Order.none.rawValue, nanoseconds: Self.longestNanoseconds)
            if limiter.order.load() == Limiter.Order.count.rawValue {
                let process = limiter.process.withLock { $0 }
                Readiness.awaitAny(process.map { [$0] } ?? [], timeoutMilliseconds: Self.limitMilliseconds)
            }
            state.withLock { if $0.limiter === limiter { Self.end(&$0) } }
            detour.end()
        }
        guard thread != nil else { return }
        limiter.thread.sleep(while: 0, nanoseconds: Self.makingNanoseconds)
        state.withLock { $0.limiter = limiter }
    }

    /// These threads, by the kernel's numbers, have it from now on. They may be more urgent meanwhile, until they have it no more.
    func begin(_ threads: [CInt]) {
        state.withLock {
            guard let limiter = $0.limiter, limiter.thread.load() != 0, threads.count < HostThread.processorCount else {
                return Self.end(&$0)
            }
            HostThread.shareProcessors(withThread: CInt(limiter.thread.load()))
            $0.detours = threads.compactMap { HostThread.Detour(hastening: $0, .preferred) }
            if $0.detours.isEmpty { Self.end(&$0) }
        }
    }

    /// It ends by itself from now on, or with that process if that ends before, unless it is begun again or kept.
    func limit(to process: OwnedDescriptor? = nil) {
        guard let limiter = state.withLock({ $0.limiter }) else { return }
        limiter.process.withLock { $0 = process }
        limiter.order.store(Limiter.Order.count.rawValue)
    }

    /// It has no limit from now on.
    func keep() {
        state.withLock {
            $0.limiter?.order.store(Limiter.Order.drop.rawValue)
            $0.limiter = nil
        }
    }

    func end() { state.withLock { Self.end(&$0) } }

    private static func end(_ state: inout State) {
        for detour in state.detours { detour.end() }
        state.detours = []
        state.limiter?.order.store(Limiter.Order.drop.rawValue)
        state.limiter = nil
    }
}
