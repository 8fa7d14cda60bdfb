package import ComponentState
package import DeviceModel
import GuestTime
import Glibc
import Synchronization

/// The real-time clock with an alarm: nanoseconds since the epoch, by default the host's own.
///
/// Source: `docs/GOLDFISH-VIRTUAL-HARDWARE.TXT` of the Android emulator, section "Goldfish real-time clock".
package final class GoldfishRTC: BusDevice, StatefulComponent {
    package static let byteCount: UInt64 = 0x24

    private enum Register {
        static let timeLow: UInt64 = 0x00
        static let timeHigh: UInt64 = 0x04
        static let alarmLow: UInt64 = 0x08
        static let alarmHigh: UInt64 = 0x0c
        static let interruptEnabled: UInt64 = 0x10
        static let clearAlarm: UInt64 = 0x14
        static let alarmStatus: UInt64 = 0x18
        static let clearInterrupt: UInt64 = 0x1c
    }

    package let name = "rtc"
    package let sectionName = "goldfish_rtc"
    package let instance: UInt32 = 0
    package let readableVersions: ClosedRange<UInt32> = 3...3

    private struct State {
        var alarm: UInt64 = 0
        var isAlarmRunning = false
        var isInterruptPending = false
        var isInterruptEnabled = false
    }

    private let state = Mutex(State())
    /// Guest's time minus the host's wall clock, modulo 2^64. Changed with the lock held; the time is read without it: processors that
    /// all read it would be woken one by one to hold it.
    private let offset = Atomic<UInt64>(0)
    /// Upper half of the time as latched by the last read of the lower half.
    private let latchedHigh = Atomic<UInt32>(0)
    private let interrupt: InterruptLine
    private let scheduler: any TimerScheduler
    private let hostTime: @Sendable () -> UInt64
    private let timer = Mutex<(any DeviceTimer)?>(nil)

    /// - Parameters:
    ///   - hostTime: Wall clock of the host in nanoseconds since the epoch; tests put their own here.
    package init(
        scheduler: any TimerScheduler, interrupt: InterruptLine,
        hostTime: @escaping @Sendable () -> UInt64 = GoldfishRTC.systemTime
    ) {
        self.scheduler = scheduler
        self.interrupt = interrupt
        self.hostTime = hostTime
        timer.withLock { $0 = scheduler.makeTimer { [weak self] in self?.refresh() } }
    }

    /// CLOCK_REALTIME in nanoseconds.
    package static let systemTime: @Sendable () -> UInt64 = {
        var now = timespec()
        unsafe clock_gettime(CLOCK_REALTIME, &now)
        return UInt64(bitPattern: Int64(now.tv_sec)) &* 1_000_000_000 &+ UInt64(bitPattern: Int64(now.tv_nsec))
    }

    private var time: UInt64 { hostTime() &+ offset.load(ordering: .relaxed) }

    // MARK: Registers

    package func load(offset: UInt64, width: AccessWidth) -> UInt64 {
        guard width == .four else { return 0 }
        switch offset {
        case Register.timeLow:
            let now = time
            latchedHigh.store(UInt32(now >> 32), ordering: .relaxed)
            return now & 0xffff_ffff
        case Register.timeHigh: return UInt64(latchedHigh.load(ordering: .relaxed))
        case Register.alarmLow: return state.withLock { $0.alarm } & 0xffff_ffff
        case Register.alarmHigh: return state.withLock { $0.alarm } >> 32
        case Register.alarmStatus: return state.withLock { $0.isAlarmRunning } ? 1 : 0
        default: return 0
        }
    }

    package func store(offset: UInt64, width: AccessWidth, value: UInt64) {
        guard width == .four else { return }
        let value = value & 0xffff_ffff
        state.withLock { state in
            switch offset {
            case Register.timeLow:
                let now = time
                setTime(now & ~0xffff_ffff | value, asOf: now)
            case Register.timeHigh:
                let now = time
                setTime(now & 0xffff_ffff | value << 32, asOf: now)
            case Register.alarmLow:
                // The upper half was written before; this write arms.
                state.alarm = state.alarm & ~0xffff_ffff | value
                state.isAlarmRunning = true
            case Register.alarmHigh: state.alarm = state.alarm & 0xffff_ffff | value << 32
            case Register.interruptEnabled: state.isInterruptEnabled = value & 1 != 0
            case Register.clearAlarm: state.isAlarmRunning = false
            case Register.clearInterrupt: state.isInterruptPending = false
            default: return
            }
            update(&state)
        }
    }

    private func setTime(_ time: UInt64, asOf now: UInt64) {
        offset.wrappingAdd(time &- now, ordering: .relaxed)
    }

    /// Lets a due alarm ring, arms the timer for one that is not due, sets the line.
    private func update(_ state: inout State) {
        var deadline: Int64?
        if state.isAlarmRunning {
            let now = time
            if state.alarm <= now {
                state.isAlarmRunning = false
                state.isInterruptPending = true
            } else {
                let wait = Int64(clamping: state.alarm - now)
                let sum = scheduler.clock.nanoseconds.addingReportingOverflow(wait)
                deadline = sum.overflow ? nil : sum.partialValue
            }
        }
        timer.withLock { $0 }?.set(deadlineNanoseconds: deadline)
        interrupt.set(state.isInterruptPending && state.isInterruptEnabled)
    }

    /// Sets the line and arms the timer anew: the alarm's time has come, a state was loaded, or the guest stood still
    /// while the wall clock went on.
    package func refresh() {
        state.withLock { update(&$0) }
    }

    // MARK: Life cycle

    package func reset() {
        state.withLock { state in
            state = State()
            offset.store(0, ordering: .relaxed)
            latchedHigh.store(0, ordering: .relaxed)
            update(&state)
        }
    }

    package func resume() { refresh() }

    // MARK: State

    package var canGoAhead: Bool { true }

    package func sectionVersion(for layout: StateLayout) -> UInt32? { 3 }

    package func codeState(with coder: inout any StateCoder) throws(StateError) {
        var state = state.withLock { $0 }
        var (offset, latchedHigh) = (offset.load(ordering: .relaxed), latchedHigh.load(ordering: .relaxed))
        var offsetOfVirtualTime: UInt64 = 0  // What versions before 3 used; zero since.
        var isAlarmRunning: UInt32 = state.isAlarmRunning ? 1 : 0
        var isInterruptPending: UInt32 = state.isInterruptPending ? 1 : 0
        var isInterruptEnabled: UInt32 = state.isInterruptEnabled ? 1 : 0
        try coder.uint64("tick_offset_vmstate", &offsetOfVirtualTime)
        try coder.uint64("alarm_next", &state.alarm)
        try coder.uint32("alarm_running", &isAlarmRunning)
        try coder.uint32("irq_pending", &isInterruptPending)
        try coder.uint32("irq_enabled", &isInterruptEnabled)
        try coder.uint32("time_high", &latchedHigh)
        try coder.uint64("tick_offset", &offset)
        guard coder.isDecoding else { return }
        for (field, value) in [
            ("alarm_running", isAlarmRunning), ("irq_pending", isInterruptPending), ("irq_enabled", isInterruptEnabled),
        ] where value > 1 {
            throw .invalid(component: coder.component, field: field, value: "\(value)")
        }
        state.isAlarmRunning = isAlarmRunning == 1
        state.isInterruptPending = isInterruptPending == 1
        state.isInterruptEnabled = isInterruptEnabled == 1
        self.state.withLock { $0 = state }
        self.offset.store(offset, ordering: .relaxed)
        self.latchedHigh.store(latchedHigh, ordering: .relaxed)
    }
}
