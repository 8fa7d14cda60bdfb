import ComponentState
import DeviceModel
import PlatformDevices
import Testing

@Suite("16550A serial port") struct SerialPortTests {
    let scheduler = ManualScheduler()
    let console = ScriptedConsole()
    let line = LineProbe()
    let port: SerialPort

    init() {
        port = SerialPort(backend: console, scheduler: scheduler, interrupt: line.line)
        port.resume()
    }

    private func get(_ offset: UInt64) -> UInt64 { port.read(offset, .one) }
    private func put(_ offset: UInt64, _ value: UInt64) { port.write(offset, value, .one) }

    @Test("after reset nothing is received, the transmitter is empty, the other end is there")
    func resetState() {
        #expect(get(1) == 0 && get(2) == 0x01 && get(3) == 0 && get(4) == 0x08)
        #expect(get(5) == 0x60 && get(6) == 0xb0)
    }

    @Test("the divisor latch hides behind DLAB")
    func divisor() {
        put(3, 0x80)
        put(0, 0x34)
        put(1, 0x12)
        #expect(get(0) == 0x34 && get(1) == 0x12)
        put(3, 0x03)
        #expect(get(1) == 0)
        #expect(console.output.isEmpty)
    }

    @Test("a written byte leaves at once and the transmitter is empty again")
    func transmit() {
        for byte in "hello".utf8 { put(0, UInt64(byte)) }
        #expect(console.output == Array("hello".utf8))
        #expect(get(5) == 0x60)
    }

    @Test("enabling the transmit interrupt while empty raises it; reading IIR takes it back; writing brings it again")
    func transmitInterrupt() {
        put(1, 0x02)
        #expect(line.level)
        #expect(get(2) == 0x02)
        #expect(!line.level)
        #expect(get(2) == 0x01)
        put(0, 0x41)
        #expect(line.level)
        put(1, 0)
        #expect(!line.level)
        put(1, 0x02)
        #expect(line.level)
    }

    @Test("while the backend is full, bytes wait in the FIFO and THRE stays low; then they leave in order")
    func backendFull() {
        put(2, 0x01)
        put(1, 0x02)
        _ = get(2)
        console.setRoom(0)
        for byte in 0..<10 { put(0, UInt64(byte)) }
        #expect(get(5) == 0)
        #expect(!line.level)
        console.makeRoom(4)
        #expect(get(5) == 0)
        #expect(console.output == [0, 1, 2, 3])
        console.makeRoom(.max)
        #expect(console.output == Array(0..<10))
        #expect(get(5) == 0x60)
        #expect(line.level && get(2) & 0x0f == 0x02)
    }

    @Test("received bytes interrupt at the trigger level", arguments: [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14)])
    func triggerLevel(control: UInt64, level: Int) {
        put(2, control)
        put(1, 0x01)
        for count in 1...level {
            #expect(!line.level)
            #expect(console.type([UInt8(count)]) == 1)
        }
        #expect(line.level)
        #expect(get(2) == 0xc4)
        #expect(get(0) == 1)
        #expect(line.level == false)
    }

    @Test("fewer bytes than the trigger level interrupt after four character times")
    func receiveTimeout() {
        put(3, 0x80)
        put(0, 24)
        put(1, 0)
        put(3, 0x03)
        put(2, 0x81)
        put(1, 0x01)
        _ = console.type([0x61])
        #expect(get(5) & 1 == 1)
        #expect(!line.level)
        // 9600 baud, 10 bits: 1041.666 us a character.
        scheduler.advance(to: 4_166_663)
        #expect(!line.level)
        scheduler.advance(to: 4_166_664)
        #expect(line.level)
        #expect(get(2) == 0xcc)
        #expect(get(0) == 0x61)
        #expect(!line.level)
        #expect(get(5) & 1 == 0)
        #expect(scheduler.armed.isEmpty)
    }

    @Test("input that does not fit is left with the backend, which is asked again when there is room")
    func inputFlowControl() {
        put(2, 0x01)
        #expect(console.type(Array(0..<20)) == 16)
        #expect(console.type([99]) == 0)
        #expect(console.inputRequests == 0)
        #expect(get(0) == 0)
        #expect(console.inputRequests == 1)
        #expect(console.type([16, 17]) == 1)
        #expect((1...16).map { _ in get(0) } == Array(1...16))
        #expect(get(5) & 1 == 0)
    }

    @Test("without FIFOs there is room for one byte")
    func noFIFO() {
        put(1, 0x01)
        #expect(console.type([7, 8]) == 1)
        #expect(line.level && get(2) == 0x04)
        #expect(get(0) == 7)
        #expect(!line.level)
        #expect(console.inputRequests == 1)
    }

    @Test("loopback returns what is written and the modem outputs")
    func loopback() {
        put(4, 0x1a)
        #expect(get(6) & 0xf0 == 0x90)
        put(0, 0x55)
        #expect(console.output.isEmpty)
        #expect(get(5) & 1 == 1)
        #expect(get(0) == 0x55)
        #expect(console.type([1]) == 0)
        put(4, 0x08)
        #expect(get(6) & 0xf0 == 0xb0)
    }

    @Test("an overrun in loopback raises the line status interrupt above all others, and reading LSR clears it")
    func overrun() {
        put(1, 0x05)
        put(4, 0x10)
        put(0, 1)
        #expect(get(2) == 0x04)
        put(0, 2)
        #expect(get(2) == 0x06)
        #expect(get(5) & 0x02 == 0x02)
        #expect(get(5) & 0x02 == 0)
        #expect(get(2) == 0x04)
        #expect(get(0) == 2)
        #expect(!line.level)
    }

    @Test("a change of the modem inputs raises the modem status interrupt, and reading MSR clears it")
    func modemStatus() {
        put(4, 0x10)
        _ = get(6)
        put(1, 0x08)
        #expect(!line.level)
        put(4, 0x12)  // RTS comes back as CTS.
        #expect(line.level && get(2) == 0x00)
        #expect(get(6) == 0x11)
        #expect(!line.level && get(2) == 0x01)
        put(4, 0x16)  // OUT1 comes back as RI: its rise does not count,
        #expect(!line.level)
        put(4, 0x12)  // its fall does.
        #expect(get(6) == 0x14)
    }

    @Test("turning the FIFOs on or off empties them")
    func fifoSwitch() {
        put(2, 0x01)
        _ = console.type([1, 2, 3])
        put(2, 0x00)
        #expect(get(5) & 1 == 0)
        #expect(get(2) == 0x01)
        put(2, 0x01)
        #expect(get(5) & 1 == 0)
        #expect(get(2) == 0xc1)
    }

    @Test("input that comes before the guest runs, or while it is paused, stays with the backend")
    func quiesced() {
        let console = ScriptedConsole()
        let port = SerialPort(backend: console, scheduler: scheduler, interrupt: line.line)
        #expect(console.type([1]) == 0)
        port.resume()
        #expect(console.inputRequests == 1)
        port.quiesce()
        #expect(console.type([1]) == 0)
        port.resume()
        #expect(console.inputRequests == 2 && console.type([1]) == 1)
    }

    @Test("registers are bytes: wider accesses read as zero")
    func widths() {
        #expect(port.read(5, .four) == 0)
        port.write(0, 0x41, .four)
        #expect(console.output.isEmpty)
    }

    // MARK: State

    @Test("at rest the section is what QEMU writes")
    func wireAtRest() throws {
        #expect(try encode(port, .qemu7_2) == bytes("00 0c 00 00 01 00 08 60 b0 00 00"))
    }

    @Test("under Linux the section is what QEMU writes")
    func wireLinux() throws {
        put(3, 0x80)
        put(0, 24)
        put(1, 0)
        put(3, 0x13)
        put(4, 0x0b)
        put(1, 0x05)
        put(2, 0x81)
        let body = try encode(port, .qemu7_2)
        #expect(body == bytes("00 18 00 05 c1 13 0b 60 b0 00 81"))
    }

    @Test("waiting input, its timer and unsent output arrive at a copy")
    func subsections() throws {
        put(2, 0x81)
        put(1, 0x03)
        _ = get(2)
        console.setRoom(0)
        for byte in "out".utf8 { put(0, UInt64(byte)) }
        #expect(console.type(Array("in".utf8)) == 2)
        for layout in StateLayout.allCases {
            let body = try encode(port, layout)
            let otherScheduler = ManualScheduler()
            let otherConsole = ScriptedConsole()
            let otherLine = LineProbe()
            let copy = SerialPort(backend: otherConsole, scheduler: otherScheduler, interrupt: otherLine.line)
            try decode(body, into: copy, layout)
            #expect(try encode(copy, layout) == body)
            copy.resume()
            #expect(otherConsole.output == Array("out".utf8))
            #expect(otherLine.level)  // Sent, so the transmitter asks.
            otherScheduler.advance(to: 1 << 40)
            #expect(copy.read(2, .one) == 0xcc)
            #expect(copy.read(0, .one) == UInt64(UInt8(ascii: "i")))
            #expect(copy.read(0, .one) == UInt64(UInt8(ascii: "n")))
        }
    }

    @Test("a timeout that has come but was not seen arrives at a copy")
    func timeoutPending() throws {
        put(2, 0x81)
        put(1, 0x01)
        _ = console.type([1])
        scheduler.advance(to: 1 << 40)
        #expect(line.level)
        let body = try encode(port, .qemu10_0)
        let otherLine = LineProbe()
        let copy = SerialPort(backend: ScriptedConsole(), scheduler: ManualScheduler(), interrupt: otherLine.line)
        try decode(body, into: copy, .qemu10_0)
        copy.refresh()
        #expect(otherLine.level && copy.read(2, .one) == 0xcc)
    }

    @Test("a FIFO that could not be is refused, and nothing changes")
    func invalidFIFO() throws {
        put(2, 0x01)
        _ = console.type([1, 2])
        var body = try encode(port, .qemu7_2)
        let start = try #require(body.firstIndex(of: 0x05).map { $0 + 2 + 16 + 4 })
        body[start + 16 + 3] = 16  // head
        #expect(throws: StateError.self) { try decode(body, into: port, .qemu7_2) }
        #expect(get(0) == 1)
    }
}
