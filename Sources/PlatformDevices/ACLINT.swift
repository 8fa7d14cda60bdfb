package import ComponentState
package import DeviceModel
import GuestTime
import Synchronization

/// The core-local interruptor: software interrupts (MSWI) and the machine timer (MTIMER) of every hart, laid out as the
/// older CLINT so that one 64 KiB window holds both.
///
/// Source: RISC-V Advanced Core Local Interruptor Specification, chapters 2 and 3.
package final class ACLINT: BusDevice, StatefulComponent {
    /// Bytes of the whole window.
    package static let byteCount: UInt64 = 0x10000
    private static let timerBase: UInt64 = 0x4000
    private static let timeOffset: UInt64 = 0xbff8

    package let name = "aclint"
    package let sectionName = "riscv_mtimer"
    package let instance: UInt32 = 0
    package let readableVersions: ClosedRange<UInt32> = 1...3

    private struct State {
        /// Bit 0 of each hart's MSIP register.
        var softwarePending: [Bool]
        /// MTIMECMP of each hart, in ticks.
        var compare: [UInt64]
    }

    private let state: Mutex<State>
    private let clock: VirtualClock
    private let softwareLines: [InterruptLine]
    private let timerLines: [InterruptLine]
    private let timers = Mutex<[any DeviceTimer]>([])

    /// - Parameters:
    ///   - scheduler: Its clock is the one the counter runs on.
    ///   - softwareLines: MSIP of each hart.
    ///   - timerLines: MTIP of each hart.
    package init(scheduler: any TimerScheduler, softwareLines: [InterruptLine], timerLines: [InterruptLine]) {
        precondition(softwareLines.count == timerLines.count && softwareLines.count <= 4095)
        let hartCount = timerLines.count
        clock = scheduler.clock
        self.softwareLines = softwareLines
        self.timerLines = timerLines
        state = Mutex(
            State(
                softwarePending: Array(repeating: false, count: hartCount),
                compare: Array(repeating: 0, count: hartCount)))
        timers.withLock { timers in
            timers = (0..<hartCount).map { hart in scheduler.makeTimer { [weak self] in self?.updateTimer(of: hart) } }
        }
    }

    private var hartCount: Int { timerLines.count }

    // MARK: Registers

    package func load(offset: UInt64, width: AccessWidth) -> UInt64 {
        if offset < Self.timerBase {
            guard width == .four, offset % 4 == 0, offset / 4 < UInt64(hartCount) else { return 0 }
            return state.withLock { $0.softwarePending[Int(offset / 4)] ? 1 : 0 }
        }
        guard width == .four || width == .eight, offset % UInt64(width.rawValue) == 0 else { return 0 }
        let register: UInt64
        if offset & ~7 == Self.timeOffset {
            register = clock.ticks
        } else {
            let hart = (offset - Self.timerBase) / 8
            guard hart < UInt64(hartCount) else { return 0 }
            register = state.withLock { $0.compare[Int(hart)] }
        }
        if width == .eight { return register }
        return offset & 4 == 0 ? register & 0xffff_ffff : register >> 32
    }

    package func store(offset: UInt64, width: AccessWidth, value: UInt64) {
        if offset < Self.timerBase {
            guard width == .four, offset % 4 == 0, offset / 4 < UInt64(hartCount) else { return }
            let hart = Int(offset / 4)
            state.withLock { state in
                state.softwarePending[hart] = value & 1 != 0
                softwareLines[hart].set(value & 1 != 0)
            }
            return
        }
        guard width == .four || width == .eight, offset % UInt64(width.rawValue) == 0 else { return }
        func merged(_ old: UInt64) -> UInt64 {
            if width == .eight { return value }
            let half = value & 0xffff_ffff
            return offset & 4 == 0 ? old & ~0xffff_ffff | half : old & 0xffff_ffff | half << 32
        }
        if offset & ~7 == Self.timeOffset {
            clock.set(ticks: merged(clock.ticks))
            for hart in 0..<hartCount { updateTimer(of: hart) }
            return
        }
        let hart = (offset - Self.timerBase) / 8
        guard hart < UInt64(hartCount) else { return }
        state.withLock { $0.compare[Int(hart)] = merged($0.compare[Int(hart)]) }
        updateTimer(of: Int(hart))
    }

    /// MTIP is a level: MTIMECMP <= MTIME. Sets it, and arms the timer for the moment it rises.
    private func updateTimer(of hart: Int) {
        let timer = timers.withLock { $0[hart] }
        state.withLock { state in
            let isPending = state.compare[hart] <= clock.ticks
            timerLines[hart].set(isPending)
            timer.set(deadlineNanoseconds: isPending ? nil : clock.deadlineNanoseconds(forTick: state.compare[hart]))
        }
    }

    // MARK: Life cycle

    /// The counter, MTIMECMP and MSIP become zero; so MTIP is high until software sets a time.
    package func reset() {
        clock.set(ticks: 0)
        state.withLock { state in
            for hart in 0..<hartCount {
                state.softwarePending[hart] = false
                state.compare[hart] = 0
                softwareLines[hart].set(false)
            }
        }
        refresh()
    }

    /// Sets the timer lines and arms the timers anew from the registers, as after loading a state.
    package func refresh() {
        for hart in 0..<hartCount { updateTimer(of: hart) }
    }

    /// Takes over MSIP, which travels in the harts' `mip` and not in this component's section.
    package func adoptSoftwarePending(_ pending: [Bool]) {
        precondition(pending.count == hartCount)
        state.withLock { $0.softwarePending = pending }
    }

    // MARK: State

    package func sectionVersion(for layout: StateLayout) -> UInt32? { layout == .qemu11_1 ? 3 : 1 }

    package func codeState(with coder: inout any StateCoder) throws(StateError) {
        var compare = state.withLock { $0.compare }
        var tickOffset = clock.tickOffsetTicks
        if coder.version >= 3 {
            try coder.uint64("time_delta", &tickOffset)
            try coder.uint64Array("timecmp", &compare)
            for hart in 0..<hartCount {
                // An expiry of its own, which follows from timecmp: written for the reader, not believed.
                var expiry = clock.ticks >= compare[hart] ? nil : clock.deadlineNanoseconds(forTick: compare[hart])
                try coder.timer("timers", &expiry)
            }
        } else {
            guard coder.version == 1 else {
                throw .version(component: coder.component, found: coder.version, supported: 1...3)
            }
            try coder.uint64Array("timecmp", &compare)
            if coder.layout == .native || coder.isDecoding {
                try coder.subsections([
                    Subsection("riscv_mtimer/time_delta", isNeeded: tickOffset != 0) { coder throws(StateError) in
                        try coder.uint64("time_delta", &tickOffset)
                    }
                ])
            } else if tickOffset != 0 {
                throw .unsupported(
                    component: coder.component,
                    reason: "the guest has set the time counter, which the \(coder.layout.rawValue) layout cannot carry"
                )
            }
        }
        if coder.isDecoding {
            clock.tickOffsetTicks = tickOffset
            state.withLock { $0.compare = compare }
        }
    }
}
