package import ComponentState
package import DeviceModel
import Synchronization

/// The platform-level interrupt controller: routes up to 95 device lines to two contexts (M, S) of each hart.
///
/// Device lines are levels. A source becomes pending when its line goes high, and stops when it goes low or the interrupt
/// is claimed; a line that is still high at completion makes the source pending again. Between claim and completion the
/// source is nobody's candidate.
///
/// Source: RISC-V Platform-Level Interrupt Controller Specification 1.0.0.
package final class PLIC: BusDevice, StatefulComponent {
    /// Sources including the non-existent source 0.
    package static let sourceCount = 96
    package static let byteCount: UInt64 = 0x60_0000
    /// Highest priority; priorities and thresholds have three bits.
    package static let priorityMax: UInt32 = 7

    private static let wordCount = sourceCount / 32
    private static let pendingBase: UInt64 = 0x1000
    private static let enableBase: UInt64 = 0x2000
    private static let enableStride: UInt64 = 0x80
    private static let contextBase: UInt64 = 0x20_0000
    private static let contextStride: UInt64 = 0x1000

    package let name = "plic"
    package let sectionName = "riscv_sifive_plic"
    package let instance: UInt32 = 0
    package let readableVersions: ClosedRange<UInt32> = 1...1

    private struct State {
        var priority = [UInt32](repeating: 0, count: PLIC.sourceCount)
        var threshold: [UInt32]
        var pending = [UInt32](repeating: 0, count: PLIC.wordCount)
        var claimed = [UInt32](repeating: 0, count: PLIC.wordCount)
        /// `wordCount` words for each context.
        var enable: [UInt32]

        init(contextCount: Int) {
            threshold = Array(repeating: 0, count: contextCount)
            enable = Array(repeating: 0, count: contextCount * PLIC.wordCount)
        }

        /// The source that the context should take next, or 0: the highest priority above the threshold, the lowest
        /// number among equals (section 4).
        func candidate(for context: Int) -> UInt32 {
            var best: UInt32 = 0
            var bestPriority = threshold[context]
            for word in 0..<PLIC.wordCount {
                var bits = pending[word] & ~claimed[word] & enable[context * PLIC.wordCount + word]
                while bits != 0 {
                    let source = word * 32 + bits.trailingZeroBitCount
                    if priority[source] > bestPriority {
                        best = UInt32(source)
                        bestPriority = priority[source]
                    }
                    bits &= bits &- 1
                }
            }
            return best
        }
    }

    private struct Guarded {
        var registers: State
        /// Levels of the device lines. Not saved: after a load every device sets its line anew.
        var lines = [UInt32](repeating: 0, count: PLIC.wordCount)
        var outputs: [Bool]
    }

    private let guarded: Mutex<Guarded>
    private let contextLines: [InterruptLine]

    /// - Parameter contextLines: MEIP and SEIP of hart 0, MEIP and SEIP of hart 1, ...
    package init(contextLines: [InterruptLine]) {
        self.contextLines = contextLines
        guarded = Mutex(
            Guarded(
                registers: State(contextCount: contextLines.count),
                outputs: Array(repeating: false, count: contextLines.count)))
    }

    /// The input for a source, 1 to 95.
    package func line(_ source: Int) -> InterruptLine {
        precondition(source > 0 && source < Self.sourceCount)
        let word = source / 32
        let bit = UInt32(1) << UInt32(source % 32)
        return InterruptLine { [weak self] level in
            guard let self else { return }
            self.guarded.withLock { guarded in
                if level {
                    guarded.lines[word] |= bit
                    guarded.registers.pending[word] |= bit
                } else {
                    guarded.lines[word] &= ~bit
                    guarded.registers.pending[word] &= ~bit
                }
                self.updateOutputs(&guarded, force: false)
            }
        }
    }

    private func updateOutputs(_ guarded: inout Guarded, force: Bool) {
        for (context, line) in contextLines.enumerated() {
            let level = guarded.registers.candidate(for: context) != 0
            if force || level != guarded.outputs[context] {
                guarded.outputs[context] = level
                line.set(level)
            }
        }
    }

    // MARK: Registers

    package func load(offset: UInt64, width: AccessWidth) -> UInt64 {
        guard width == .four, offset % 4 == 0 else { return 0 }
        return guarded.withLock { guarded in
            if offset < Self.pendingBase {
                let source = Int(offset / 4)
                return source < Self.sourceCount ? UInt64(guarded.registers.priority[source]) : 0
            }
            if offset < Self.enableBase {
                let word = Int((offset - Self.pendingBase) / 4)
                return word < Self.wordCount ? UInt64(guarded.registers.pending[word]) : 0
            }
            if offset < Self.contextBase {
                guard let index = enableIndex(at: offset) else { return 0 }
                return UInt64(guarded.registers.enable[index])
            }
            guard let (context, register) = contextRegister(at: offset) else { return 0 }
            switch register {
            case 0: return UInt64(guarded.registers.threshold[context])
            case 4:
                let source = guarded.registers.candidate(for: context)
                if source != 0 {
                    let bit = UInt32(1) << (source % 32)
                    guarded.registers.pending[Int(source / 32)] &= ~bit
                    guarded.registers.claimed[Int(source / 32)] |= bit
                }
                updateOutputs(&guarded, force: false)
                return UInt64(source)
            default: return 0
            }
        }
    }

    package func store(offset: UInt64, width: AccessWidth, value: UInt64) {
        guard width == .four, offset % 4 == 0 else { return }
        let value = UInt32(truncatingIfNeeded: value)
        guarded.withLock { guarded in
            if offset < Self.pendingBase {
                let source = Int(offset / 4)
                guard source > 0, source < Self.sourceCount else { return }
                guarded.registers.priority[source] = value & Self.priorityMax
            } else if offset < Self.enableBase {
                return  // Pending bits are read-only.
            } else if offset < Self.contextBase {
                guard let index = enableIndex(at: offset) else { return }
                // Bit 0 of word 0 is hardwired to zero: there is no source 0.
                guarded.registers.enable[index] = index % Self.wordCount == 0 ? value & ~1 : value
            } else {
                guard let (context, register) = contextRegister(at: offset) else { return }
                switch register {
                case 0: guarded.registers.threshold[context] = value & Self.priorityMax
                case 4:
                    // Section 7 lets a completion for a disabled source be ignored; QEMU's accepts any, and so here.
                    let word = Int(value / 32)
                    let bit = UInt32(1) << (value % 32)
                    guard value > 0, word < Self.wordCount else { return }
                    guarded.registers.claimed[word] &= ~bit
                    if guarded.lines[word] & bit != 0 { guarded.registers.pending[word] |= bit }
                default: return
                }
            }
            updateOutputs(&guarded, force: false)
        }
    }

    private func enableIndex(at offset: UInt64) -> Int? {
        let context = Int((offset - Self.enableBase) / Self.enableStride)
        let word = Int((offset - Self.enableBase) % Self.enableStride / 4)
        guard context < contextLines.count, word < Self.wordCount else { return nil }
        return context * Self.wordCount + word
    }

    private func contextRegister(at offset: UInt64) -> (context: Int, register: UInt64)? {
        let context = Int((offset - Self.contextBase) / Self.contextStride)
        guard context < contextLines.count else { return nil }
        return (context, (offset - Self.contextBase) % Self.contextStride)
    }

    // MARK: Life cycle

    /// Registers become zero. The lines stay as the devices hold them.
    package func reset() {
        guarded.withLock { guarded in
            guarded.registers = State(contextCount: contextLines.count)
            guarded.registers.pending = guarded.lines
            updateOutputs(&guarded, force: true)
        }
    }

    /// Sets the harts' lines anew, as after loading a state. Devices set theirs before.
    package func refresh() {
        guarded.withLock { updateOutputs(&$0, force: true) }
    }

    // MARK: State

    package var canGoAhead: Bool { true }

    package func sectionVersion(for layout: StateLayout) -> UInt32? { 1 }

    package func codeState(with coder: inout any StateCoder) throws(StateError) {
        var state = guarded.withLock { guarded in
            // A receiver that does not look at the lines again at completion (QEMU) must find what is due then.
            var registers = guarded.registers
            for word in 0..<Self.wordCount { registers.pending[word] |= guarded.lines[word] & registers.claimed[word] }
            return registers
        }
        try coder.uint32Array("source_priority", &state.priority)
        try coder.uint32Array("target_priority", &state.threshold)
        try coder.uint32Array("pending", &state.pending)
        try coder.uint32Array("claimed", &state.claimed)
        try coder.uint32Array("enable", &state.enable)
        guard coder.isDecoding else { return }
        for (field, values) in [("source_priority", state.priority), ("target_priority", state.threshold)] {
            if let bad = values.first(where: { $0 > Self.priorityMax }) {
                throw .invalid(component: coder.component, field: field, value: "\(bad)")
            }
        }
        for (field, words) in [("pending", state.pending), ("claimed", state.claimed)] where words[0] & 1 != 0 {
            throw .invalid(component: coder.component, field: field, value: "source 0")
        }
        guarded.withLock { $0.registers = state }
    }
}
