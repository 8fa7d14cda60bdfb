/// What a 16550A's registers hold and what follows from them, without line, clock or backend.
///
/// Source: National Semiconductor PC16550D datasheet, section 8.
struct SerialRegisters {
    /// LSR.
    enum LineStatus {
        static let dataReady: UInt8 = 0x01
        static let overrun: UInt8 = 0x02
        static let errors: UInt8 = 0x1e
        static let holdingEmpty: UInt8 = 0x20
        static let transmitterEmpty: UInt8 = 0x40
    }

    /// IER.
    enum InterruptEnable {
        static let receivedData: UInt8 = 0x01
        static let holdingEmpty: UInt8 = 0x02
        static let lineStatus: UInt8 = 0x04
        static let modemStatus: UInt8 = 0x08
    }

    /// IIR.
    enum InterruptIdentification {
        static let modemStatus: UInt8 = 0x00
        static let none: UInt8 = 0x01
        static let holdingEmpty: UInt8 = 0x02
        static let receivedData: UInt8 = 0x04
        static let lineStatus: UInt8 = 0x06
        static let receiveTimeout: UInt8 = 0x0c
        static let mask: UInt8 = 0x0f
        static let fifosEnabled: UInt8 = 0xc0
    }

    /// FCR.
    enum FIFOControl {
        static let enable: UInt8 = 0x01
        static let clearReceiver: UInt8 = 0x02
        static let clearTransmitter: UInt8 = 0x04
        static let kept: UInt8 = 0xc9
    }

    static let fifoCapacity = 16
    private static let loopback: UInt8 = 0x10
    /// Modem inputs of a line with somebody at the other end: DCD, DSR, CTS.
    private static let connectedInputs: UInt8 = 0xb0

    var divisor: UInt16 = 12
    var receiveBuffer: UInt8 = 0
    var interruptEnable: UInt8 = 0
    var interruptIdentification = InterruptIdentification.none
    var lineControl: UInt8 = 0
    var modemControl: UInt8 = 0x08
    var lineStatus = LineStatus.holdingEmpty | LineStatus.transmitterEmpty
    var modemStatus = SerialRegisters.connectedInputs
    var scratch: UInt8 = 0
    var fifoControl: UInt8 = 0
    /// "Transmitter empty" asks for an interrupt: set when it becomes empty, cleared by reading it off or writing.
    var isHoldingEmptyPending = false
    var isTimeoutPending = false
    var receiveFIFO = ByteFIFO(capacity: SerialRegisters.fifoCapacity)
    /// Bytes the guest has written and the backend has not taken. Without FIFOs it holds one.
    var transmitFIFO = ByteFIFO(capacity: SerialRegisters.fifoCapacity)
    /// A byte that was tried and not taken; it goes before the FIFO's.
    var retry: UInt8?
    /// Virtual time in nanoseconds at which waiting input raises the timeout interrupt.
    var timeoutDeadline: Int64?

    var usesFIFOs: Bool { fifoControl & FIFOControl.enable != 0 }
    var isLoopback: Bool { modemControl & Self.loopback != 0 }

    /// The four modem inputs where MSR shows them. In loopback the outputs come back: CTS is RTS, DSR is DTR, RI is
    /// OUT1, DCD is OUT2.
    var modemInputs: UInt8 {
        guard isLoopback else { return modemStatus & 0xf0 }
        return (modemControl & 0x0c) << 4 | (modemControl & 0x02) << 3 | (modemControl & 0x01) << 5
    }

    /// Sets the "has changed" bits of MSR; for RI only its falling edge counts.
    mutating func noteModemChange(from before: UInt8) {
        let changed = before ^ modemInputs
        modemStatus |= (changed >> 4) & 0x0b | (changed & before & 0x40) >> 4
    }

    /// Bytes in the receive FIFO that raise the interrupt.
    var triggerLevel: Int { [1, 4, 8, 14][Int(fifoControl >> 6)] }

    /// Nanoseconds one character takes on the line.
    var characterNanoseconds: Int64 {
        let dataBits = Int64(lineControl & 3) + 5
        let bits = 1 + dataBits + (lineControl & 0x08 != 0 ? 1 : 0) + (lineControl & 0x04 != 0 ? 2 : 1)
        return bits * 16 * Int64(max(divisor, 1)) * 1_000_000_000 / Int64(SerialPort.clockFrequency)
    }
}
