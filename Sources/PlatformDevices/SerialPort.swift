package import ComponentState
package import DeviceModel
import GuestTime
import Synchronization

/// A 16550A serial port: eight byte registers, 16-byte FIFOs in both directions.
///
/// The transmitter is as fast as what stands behind it: a byte leaves at once unless the backend is full, and then it
/// waits in the transmit FIFO. Received bytes raise the interrupt at the FIFO's trigger level, or after four character
/// times without one.
///
/// Source: National Semiconductor PC16550D datasheet, section 8.
package final class SerialPort: BusDevice, StatefulComponent {
    package static let byteCount: UInt64 = 8
    /// Input clock in Hz; the baud rate is this / 16 / divisor.
    package static let clockFrequency: UInt32 = 3_686_400

    package let name = "serial"
    package let sectionName = "serial"
    package let instance: UInt32 = 0
    package let readableVersions: ClosedRange<UInt32> = 3...3

    private typealias Registers = SerialRegisters
    private typealias LineStatus = SerialRegisters.LineStatus
    private typealias InterruptEnable = SerialRegisters.InterruptEnable
    private typealias InterruptIdentification = SerialRegisters.InterruptIdentification
    private typealias FIFOControl = SerialRegisters.FIFOControl
    private static let divisorLatch: UInt8 = 0x80

    private struct Guarded {
        var registers = Registers()
        /// Input is left with the backend: before the first ``resume()``, and between ``quiesce()`` and the next.
        var isQuiesced = true
        /// Somebody is handing bytes to the backend, outside the lock.
        var isTransmitting = false
        /// The backend was full; ``writable`` continues.
        var isBackendFull = false
        /// The backend holds input back until there is room.
        var isInputHeldBack = false
    }

    private let guarded = Mutex(Guarded())
    private let backend: any ConsoleBackend
    private let interrupt: InterruptLine
    private let clock: VirtualClock
    private let timeoutTimer = Mutex<(any DeviceTimer)?>(nil)

    package init(backend: any ConsoleBackend, scheduler: any TimerScheduler, interrupt: InterruptLine) {
        self.backend = backend
        self.interrupt = interrupt
        clock = scheduler.clock
        timeoutTimer.withLock { $0 = scheduler.makeTimer { [weak self] in self?.receiveTimedOut() } }
        backend.connect(
            input: { [weak self] bytes in self?.receive(bytes) ?? bytes.count },
            writable: { [weak self] in self?.transmitterMayContinue() })
    }

    // MARK: Registers

    package func load(offset: UInt64, width: AccessWidth) -> UInt64 {
        guard width == .one else { return 0 }
        var wantsInput = false
        let value = guarded.withLock { guarded -> UInt8 in
            let isDivisor = guarded.registers.lineControl & Self.divisorLatch != 0
            switch offset {
            case 0:
                if isDivisor { return UInt8(truncatingIfNeeded: guarded.registers.divisor) }
                return readReceived(&guarded, wantsInput: &wantsInput)
            case 1:
                if isDivisor { return UInt8(guarded.registers.divisor >> 8) }
                return guarded.registers.interruptEnable
            case 2:
                let value = guarded.registers.interruptIdentification
                if value & InterruptIdentification.mask == InterruptIdentification.holdingEmpty {
                    guarded.registers.isHoldingEmptyPending = false
                    updateInterrupt(&guarded.registers)
                }
                return value
            case 3: return guarded.registers.lineControl
            case 4: return guarded.registers.modemControl
            case 5:
                let value = guarded.registers.lineStatus
                if value & LineStatus.errors != 0 {
                    guarded.registers.lineStatus &= ~LineStatus.errors
                    updateInterrupt(&guarded.registers)
                }
                return value
            case 6:
                let value = guarded.registers.modemInputs | guarded.registers.modemStatus & 0x0f
                if value & 0x0f != 0 {
                    guarded.registers.modemStatus &= 0xf0
                    updateInterrupt(&guarded.registers)
                }
                return value
            case 7: return guarded.registers.scratch
            default: return 0
            }
        }
        if wantsInput { backend.inputIsWanted() }
        return UInt64(value)
    }

    package func store(offset: UInt64, width: AccessWidth, value: UInt64) {
        guard width == .one else { return }
        let value = UInt8(truncatingIfNeeded: value)
        var wantsInput = false
        guarded.withLock { guarded in
            let isDivisor = guarded.registers.lineControl & Self.divisorLatch != 0
            switch offset {
            case 0:
                if isDivisor {
                    guarded.registers.divisor = guarded.registers.divisor & 0xff00 | UInt16(value)
                } else {
                    transmit(value, &guarded)
                }
            case 1:
                if isDivisor {
                    guarded.registers.divisor = guarded.registers.divisor & 0x00ff | UInt16(value) << 8
                } else {
                    let changed = (guarded.registers.interruptEnable ^ value) & 0x0f
                    guarded.registers.interruptEnable = value & 0x0f
                    // Enabling the interrupt while the transmitter is empty raises it at once.
                    if changed & InterruptEnable.holdingEmpty != 0 {
                        guarded.registers.isHoldingEmptyPending =
                            value & InterruptEnable.holdingEmpty != 0
                            && guarded.registers.lineStatus & LineStatus.holdingEmpty != 0
                    }
                    if changed != 0 { updateInterrupt(&guarded.registers) }
                }
            case 2: wantsInput = writeFIFOControl(value, &guarded)
            case 3: guarded.registers.lineControl = value
            case 4:
                let before = guarded.registers.modemInputs
                guarded.registers.modemControl = value & 0x1f
                guarded.registers.noteModemChange(from: before)
                updateInterrupt(&guarded.registers)
            case 7: guarded.registers.scratch = value
            default: return  // LSR and MSR are read-only.
            }
        }
        if wantsInput { backend.inputIsWanted() }
        drainTransmitter()
    }

    private func readReceived(_ guarded: inout Guarded, wantsInput: inout Bool) -> UInt8 {
        let value: UInt8
        if guarded.registers.usesFIFOs {
            value = guarded.registers.receiveFIFO.pop() ?? 0
            if guarded.registers.receiveFIFO.isEmpty {
                guarded.registers.lineStatus &= ~LineStatus.dataReady
                setTimeout(nil, &guarded.registers)
            } else {
                setTimeout(clock.nanoseconds &+ 4 * guarded.registers.characterNanoseconds, &guarded.registers)
            }
            guarded.registers.isTimeoutPending = false
        } else {
            value = guarded.registers.receiveBuffer
            guarded.registers.lineStatus &= ~LineStatus.dataReady
        }
        updateInterrupt(&guarded.registers)
        if !guarded.registers.isLoopback, guarded.isInputHeldBack {
            guarded.isInputHeldBack = false
            wantsInput = true
        }
        return value
    }

    /// Answers whether there is new room for input.
    private func writeFIFOControl(_ written: UInt8, _ guarded: inout Guarded) -> Bool {
        var value = written
        // Turning the FIFOs on or off empties both.
        if (value ^ guarded.registers.fifoControl) & FIFOControl.enable != 0 {
            value |= FIFOControl.clearReceiver | FIFOControl.clearTransmitter
        }
        if value & FIFOControl.clearReceiver != 0 {
            guarded.registers.lineStatus &= ~LineStatus.dataReady
            guarded.registers.isTimeoutPending = false
            guarded.registers.receiveFIFO.removeAll()
            setTimeout(nil, &guarded.registers)
        }
        if value & FIFOControl.clearTransmitter != 0 {
            guarded.registers.transmitFIFO.removeAll()
            guarded.registers.lineStatus |= LineStatus.holdingEmpty
            guarded.registers.isHoldingEmptyPending = true
        }
        setFIFOControl(value & FIFOControl.kept, &guarded.registers)
        updateInterrupt(&guarded.registers)
        defer { guarded.isInputHeldBack = false }
        return guarded.isInputHeldBack
    }

    private func setFIFOControl(_ value: UInt8, _ registers: inout Registers) {
        registers.fifoControl = value
        if value & FIFOControl.enable != 0 {
            registers.interruptIdentification |= InterruptIdentification.fifosEnabled
        } else {
            registers.interruptIdentification &= ~InterruptIdentification.fifosEnabled
        }
    }

    // MARK: Interrupts

    /// Finds the interrupt of the highest priority (table 5 of the datasheet) and sets the line.
    private func updateInterrupt(_ registers: inout Registers) {
        let enabled = registers.interruptEnable
        let identification: UInt8
        if enabled & InterruptEnable.lineStatus != 0, registers.lineStatus & LineStatus.errors != 0 {
            identification = InterruptIdentification.lineStatus
        } else if enabled & InterruptEnable.receivedData != 0, registers.isTimeoutPending {
            identification = InterruptIdentification.receiveTimeout
        } else if enabled & InterruptEnable.receivedData != 0, registers.lineStatus & LineStatus.dataReady != 0,
            !registers.usesFIFOs || registers.receiveFIFO.count >= registers.triggerLevel
        {
            identification = InterruptIdentification.receivedData
        } else if enabled & InterruptEnable.holdingEmpty != 0, registers.isHoldingEmptyPending {
            identification = InterruptIdentification.holdingEmpty
        } else if enabled & InterruptEnable.modemStatus != 0, registers.modemStatus & 0x0f != 0 {
            identification = InterruptIdentification.modemStatus
        } else {
            identification = InterruptIdentification.none
        }
        registers.interruptIdentification = registers.interruptIdentification & 0xf0 | identification
        interrupt.set(identification != InterruptIdentification.none)
    }

    private func setTimeout(_ deadline: Int64?, _ registers: inout Registers) {
        guard registers.timeoutDeadline != nil || deadline != nil else { return }
        registers.timeoutDeadline = deadline
        timeoutTimer.withLock { $0 }?.set(deadlineNanoseconds: deadline)
    }

    private func receiveTimedOut() {
        guarded.withLock { guarded in
            guard let deadline = guarded.registers.timeoutDeadline, deadline <= clock.nanoseconds else { return }
            guarded.registers.timeoutDeadline = nil
            guard !guarded.registers.receiveFIFO.isEmpty else { return }
            guarded.registers.isTimeoutPending = true
            updateInterrupt(&guarded.registers)
        }
    }

    // MARK: Receiving

    /// Takes input from the backend; answers how many bytes.
    private func receive(_ bytes: [UInt8]) -> Int {
        guarded.withLock { guarded in
            var taken = 0
            if !guarded.registers.isLoopback, !guarded.isQuiesced {
                let room =
                    guarded.registers.usesFIFOs
                    ? Registers.fifoCapacity - guarded.registers.receiveFIFO.count
                    : guarded.registers.lineStatus & LineStatus.dataReady == 0 ? 1 : 0
                taken = min(room, bytes.count)
                for byte in bytes[..<taken] { arrive(byte, &guarded.registers) }
                if taken > 0 { updateInterrupt(&guarded.registers) }
            }
            if taken < bytes.count { guarded.isInputHeldBack = true }
            return taken
        }
    }

    private func arrive(_ byte: UInt8, _ registers: inout Registers) {
        if registers.usesFIFOs {
            if registers.receiveFIFO.isFull {
                registers.lineStatus |= LineStatus.overrun
            } else {
                registers.receiveFIFO.push(byte)
            }
            registers.lineStatus |= LineStatus.dataReady
            setTimeout(clock.nanoseconds &+ 4 * registers.characterNanoseconds, &registers)
        } else {
            if registers.lineStatus & LineStatus.dataReady != 0 { registers.lineStatus |= LineStatus.overrun }
            registers.receiveBuffer = byte
            registers.lineStatus |= LineStatus.dataReady
        }
    }

    // MARK: Transmitting

    private func transmit(_ byte: UInt8, _ guarded: inout Guarded) {
        guarded.registers.isHoldingEmptyPending = false
        if guarded.registers.isLoopback {
            arrive(byte, &guarded.registers)
            guarded.registers.isHoldingEmptyPending = true
            updateInterrupt(&guarded.registers)
            return
        }
        let room = guarded.registers.usesFIFOs ? Registers.fifoCapacity : 1
        // A guest that writes without looking loses the oldest byte, as in the chip.
        if guarded.registers.transmitFIFO.count >= room { _ = guarded.registers.transmitFIFO.pop() }
        guarded.registers.transmitFIFO.push(byte)
        guarded.registers.lineStatus &= ~(LineStatus.holdingEmpty | LineStatus.transmitterEmpty)
        updateInterrupt(&guarded.registers)
    }

    /// Hands waiting bytes to the backend, without the lock held; one thread at a time.
    private func drainTransmitter() {
        while true {
            let chunk: [UInt8]? = guarded.withLock { guarded in
                guard !guarded.isTransmitting, !guarded.isBackendFull else { return nil }
                var bytes: [UInt8] = []
                if let retry = guarded.registers.retry { bytes.append(retry) }
                guarded.registers.retry = nil
                while let byte = guarded.registers.transmitFIFO.pop() { bytes.append(byte) }
                guard !bytes.isEmpty else { return nil }
                guarded.isTransmitting = true
                guarded.isBackendFull = true  // Taken back below; `writable` may come in between.
                return bytes
            }
            guard let chunk else { return }
            let taken = min(max(backend.write(chunk), 0), chunk.count)
            guarded.withLock { guarded in
                guarded.isTransmitting = false
                if taken < chunk.count {
                    putBack(chunk[taken...], &guarded.registers)
                } else {
                    guarded.isBackendFull = false
                }
                if guarded.registers.retry == nil, guarded.registers.transmitFIFO.isEmpty {
                    guarded.registers.lineStatus |= LineStatus.holdingEmpty | LineStatus.transmitterEmpty
                    guarded.registers.isHoldingEmptyPending = true
                    updateInterrupt(&guarded.registers)
                }
            }
        }
    }

    /// Puts bytes that were not taken before those that were written since.
    private func putBack(_ bytes: ArraySlice<UInt8>, _ registers: inout Registers) {
        var waiting = Array(bytes)
        while let byte = registers.transmitFIFO.pop() { waiting.append(byte) }
        registers.retry = waiting.removeFirst()
        for byte in waiting.suffix(Registers.fifoCapacity) { registers.transmitFIFO.push(byte) }
    }

    private func transmitterMayContinue() {
        guarded.withLock { $0.isBackendFull = false }
        drainTransmitter()
    }

    // MARK: Life cycle

    package func reset() {
        let wantsInput = guarded.withLock { guarded in
            let wantsInput = guarded.isInputHeldBack
            setTimeout(nil, &guarded.registers)
            // What the guest has sent is on the line; it is not taken back.
            let fifo = guarded.registers.transmitFIFO
            let retry = guarded.registers.retry
            guarded.registers = Registers()
            guarded.registers.transmitFIFO = fifo
            guarded.registers.retry = retry
            guarded.isInputHeldBack = false
            updateInterrupt(&guarded.registers)
            return wantsInput
        }
        if wantsInput { backend.inputIsWanted() }
    }

    package func quiesce() {
        backend.quiesce()
        guarded.withLock { $0.isQuiesced = true }
    }

    package func resume() {
        refresh()
        backend.resume()
        transmitterMayContinue()
        let wantsInput = guarded.withLock { guarded in
            defer { guarded.isInputHeldBack = false }
            guarded.isQuiesced = false
            return guarded.isInputHeldBack
        }
        if wantsInput { backend.inputIsWanted() }
    }

    /// Sets the line and arms the timer anew from the registers, as after loading a state.
    package func refresh() {
        guarded.withLock { guarded in
            updateInterrupt(&guarded.registers)
            timeoutTimer.withLock { $0 }?.set(deadlineNanoseconds: guarded.registers.timeoutDeadline)
        }
    }

    // MARK: State

    package var canGoAhead: Bool { true }

    package func sectionVersion(for layout: StateLayout) -> UInt32? { 3 }

    package func codeState(with coder: inout any StateCoder) throws(StateError) {
        var registers = guarded.withLock { $0.registers }
        let isDecoding = coder.isDecoding
        if isDecoding {
            // Subsections are absent when they have nothing to tell.
            registers.receiveFIFO.removeAll()
            registers.transmitFIFO.removeAll()
            registers.retry = nil
            registers.timeoutDeadline = nil
            registers.isTimeoutPending = false
        }
        var sawHoldingEmptyPending = false
        var isHoldingEmptyPending: Int32 = registers.isHoldingEmptyPending ? 1 : 0
        var isTimeoutPending: Int32 = registers.isTimeoutPending ? 1 : 0
        var retryCount: UInt32 = registers.retry == nil ? 0 : 1
        var holding: UInt8 = 0
        var shift = registers.retry ?? 0
        var pollMilliseconds: Int32 = -1
        var pollExpiry: Int64?
        let isHoldingEmptyShown =
            registers.interruptIdentification & InterruptIdentification.mask == InterruptIdentification.holdingEmpty
        let needsHoldingEmptyPending =
            registers.interruptEnable & InterruptEnable.holdingEmpty != 0
            && registers.isHoldingEmptyPending != isHoldingEmptyShown

        try coder.structure("serial", type: "serial", version: 3) { coder throws(StateError) in
            try coder.uint16("divider", &registers.divisor)
            try coder.uint8("rbr", &registers.receiveBuffer)
            try coder.uint8("ier", &registers.interruptEnable)
            try coder.uint8("iir", &registers.interruptIdentification)
            try coder.uint8("lcr", &registers.lineControl)
            try coder.uint8("mcr", &registers.modemControl)
            try coder.uint8("lsr", &registers.lineStatus)
            try coder.uint8("msr", &registers.modemStatus)
            try coder.uint8("scr", &registers.scratch)
            try coder.uint8("fcr_vmstate", &registers.fifoControl)
            try coder.subsections([
                Subsection("serial/thr_ipending", isNeeded: needsHoldingEmptyPending) { coder throws(StateError) in
                    try coder.int32("thr_ipending", &isHoldingEmptyPending)
                    sawHoldingEmptyPending = true
                },
                Subsection("serial/tsr", isNeeded: registers.retry != nil) { coder throws(StateError) in
                    try coder.uint32("tsr_retry", &retryCount)
                    try coder.uint8("thr", &holding)
                    try coder.uint8("tsr", &shift)
                },
                Subsection("serial/recv_fifo", isNeeded: !registers.receiveFIFO.isEmpty) { coder throws(StateError) in
                    try registers.receiveFIFO.codeState("recv_fifo", with: &coder)
                },
                Subsection("serial/xmit_fifo", isNeeded: !registers.transmitFIFO.isEmpty) { coder throws(StateError) in
                    try registers.transmitFIFO.codeState("xmit_fifo", with: &coder)
                },
                Subsection("serial/fifo_timeout_timer", isNeeded: registers.timeoutDeadline != nil) {
                    coder throws(StateError) in
                    try coder.timer("fifo_timeout_timer", &registers.timeoutDeadline)
                },
                Subsection("serial/timeout_ipending", isNeeded: registers.isTimeoutPending) {
                    coder throws(StateError) in
                    try coder.int32("timeout_ipending", &isTimeoutPending)
                },
                // How often a host's serial line is asked for its modem inputs; ours never change.
                Subsection("serial/poll", isNeeded: false) { coder throws(StateError) in
                    try coder.int32("poll_msl", &pollMilliseconds)
                    try coder.timer("modem_status_poll", &pollExpiry)
                },
            ])
        }
        guard isDecoding else { return }
        registers.isTimeoutPending = isTimeoutPending != 0
        registers.retry = retryCount > 0 ? shift : nil
        // Without the subsection, what IIR shows is what is pending.
        registers.isHoldingEmptyPending =
            sawHoldingEmptyPending
            ? isHoldingEmptyPending != 0
            : registers.interruptIdentification & InterruptIdentification.mask == InterruptIdentification.holdingEmpty
        registers.interruptEnable &= 0x0f
        registers.modemControl &= 0x1f
        setFIFOControl(registers.fifoControl & FIFOControl.kept, &registers)
        if registers.usesFIFOs {
            if registers.receiveFIFO.isEmpty {
                registers.lineStatus &= ~LineStatus.dataReady
            } else {
                registers.lineStatus |= LineStatus.dataReady
            }
        }
        let decoded = registers
        guarded.withLock { guarded in
            guarded.registers = decoded
            guarded.isBackendFull = false
            guarded.isInputHeldBack = true  // Whoever held input back for the old registers is asked again.
        }
    }
}
