import ComponentState
import GuestTime

/// Section `timer`: the virtual clock, from which every guest time derives.
final class TimerSection: StatefulComponent {
    let sectionName = "timer"
    let instance: UInt32 = 0
    let readableVersions: ClosedRange<UInt32> = 2...2
    private let clock: VirtualClock

    init(clock: VirtualClock) { self.clock = clock }

    func sectionVersion(for layout: StateLayout) -> UInt32? { 2 }

    func codeState(with coder: inout any StateCoder) throws(StateError) {
        var nanoseconds = clock.nanoseconds
        // QEMU's count of host cycles since the start; nothing of the guest's depends on it.
        var cycles = nanoseconds
        try coder.int64("cpu_ticks_offset", &cycles)
        try coder.unused(8)
        try coder.int64("cpu_clock_offset", &nanoseconds)
        guard coder.isDecoding else { return }
        guard nanoseconds >= 0, nanoseconds < Int64.max / 2 else {
            throw .invalid(component: coder.component, field: "cpu_clock_offset", value: "\(nanoseconds)")
        }
        clock.set(nanoseconds: nanoseconds)
    }
}
