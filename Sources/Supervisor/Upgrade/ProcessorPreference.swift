import LinuxCalls
import Synchronization

/// A guest's processors come before all that is started and ended beside them while the guest changes process. Else each of these takes a
/// turn on a processor of the host that the guest uses, 4 ms at 250 Hz, and this is what a busy guest notices of an upgrade.
///
/// Only where the host has more processors than the guest, so that all else goes on, and where it is permitted; see decision 0009.
final class ProcessorPreference: Sendable {
    private struct State: Sendable {
        var detours: [HostThread.Detour] = []
        /// Changes when what was limited so far is so no more.
        var turn = 0
    }

    private let state = Mutex(State())
    private let creation = monotonicNanoseconds()

    /// In the old process from the beginning on, in the new one from when the guest runs in it. It is what an upgrade may take in all.
    private static let limitMilliseconds: CInt = 100
    /// The kernel keeps a twentieth of each second for those that are not preferred (its fair server), and where they have had none of a
    /// processor for a second they get all of that at once: a guest that is upgraded again and again would stand still for 50 ms.
    private static let restNanoseconds: Int64 = 200_000_000

    /// Whether the processors are preferred now.
    var isOn: Bool { state.withLock { !$0.detours.isEmpty } }

    /// Whether the guest has been in this process for long enough to be preferred in an upgrade.
    var isRested: Bool { monotonicNanoseconds() - creation >= Self.restNanoseconds }

    /// These threads, by the kernel's numbers, have it from now on. They may be more urgent meanwhile, until they have it no more.
    func begin(_ threads: [CInt]) {
        end()
        guard threads.count < HostThread.processorCount else { return }
        state.withLock { $0.detours = threads.compactMap { HostThread.Detour(hastening: $0, .preferred) } }
    }

    /// It ends by itself, with that process if it has not done so before, unless it is begun again or kept.
    func limit(to process: OwnedDescriptor? = nil) {
        let turn = state.withLock { $0.detours.isEmpty ? nil : $0.turn }
        guard let turn else { return }
        do {
            _ = try HostThread(name: "preference", stackByteCount: 64 << 10) { [self] in
                // Processors that are preferred must not keep it from ending that.
                let detour = HostThread.Detour(haste: .urgent)
                Readiness.awaitAny(process.map { [$0] } ?? [], timeoutMilliseconds: Self.limitMilliseconds)
                state.withLock { if $0.turn == turn { Self.end(&$0) } }
                detour.end()
            }
        } catch { end() }
    }

    /// It has no limit from now on.
    func keep() { state.withLock { $0.turn += 1 } }

    func end() { state.withLock { Self.end(&$0) } }

    private static func end(_ state: inout State) {
        for detour in state.detours { detour.end() }
        state.detours = []
        state.turn += 1
    }
}
