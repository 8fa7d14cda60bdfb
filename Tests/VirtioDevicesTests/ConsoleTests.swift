import DeviceModel
import Testing

@testable import VirtioDevices

private let buffers = ramBase + 0x20_0000

struct ConsoleDriver {
    let console = TestConsole()
    let machine: TestMachine
    let queues: [TestQueue]

    init(isMultiport: Bool = true) throws {
        machine = try TestMachine(VirtioConsole(backend: console))
        #expect(machine.negotiate(version1 | eventIndex | indirect | (isMultiport ? 2 : 0)))
        var queues: [TestQueue] = []
        for index in 0..<UInt32(4) {
            queues.append(TestQueue(machine, index: index, size: 16, address: ramBase + 0x8000 * UInt64(index)))
        }
        self.queues = queues
        machine.driverReady()
    }

    /// Sends a control message: port 0.
    func control(_ event: UInt16, _ value: UInt16) throws {
        machine.put(buffers + 0x1000, words(UInt32(0)) + words(event, value))
        queues[3].add(readable: [(buffers + 0x1000, 8)], writable: [])
        _ = try #require(queues[3].wait())
    }

    func offerControlBuffers(_ count: UInt64) {
        for number in 0..<count { queues[2].add(readable: [], writable: [(buffers + 0x2000 + 16 * number, 16)]) }
    }

    func open() throws {
        offerControlBuffers(4)
        try control(0, 1)
        try control(3, 1)
        try control(6, 1)
    }
}

@Suite("The console device") struct ConsoleTests {
    @Test("the driver is told of one open console port")
    func handshake() throws {
        let driver = try ConsoleDriver()
        #expect(driver.machine.transport.load(offset: 0x104, width: .four) == 31)
        try driver.open()
        let messages = (0..<3).map { number -> [UInt8] in
            #expect(driver.queues[2].wait()?.byteCount == 8)
            return driver.machine.bytes(buffers + 0x2000 + 16 * UInt64(number), 8)
        }
        #expect(messages == [[0, 0, 0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 4, 0, 1, 0], [0, 0, 0, 0, 6, 0, 1, 0]])
    }

    @Test("control messages wait for buffers")
    func controlWithoutBuffers() throws {
        let driver = try ConsoleDriver()
        try driver.control(0, 1)
        driver.offerControlBuffers(1)
        #expect(driver.queues[2].wait()?.byteCount == 8)
    }

    @Test("output arrives whole and in order, whatever room there is")
    func output() throws {
        let driver = try ConsoleDriver()
        let bytes = (0..<40_000).map { UInt8(truncatingIfNeeded: $0 ^ $0 >> 8) }
        driver.machine.put(buffers + 0x1_0000, bytes)
        driver.console.setRoom(10)
        driver.queues[1].add(readable: [(buffers + 0x1_0000, 30_000)], writable: [])
        driver.queues[1].add(readable: [(buffers + 0x1_0000 + 30_000, 10_000)], writable: [])
        for _ in 0..<5 {
            driver.console.refused.wait()
            driver.console.setRoom(3_333)
        }
        driver.console.refused.wait()
        driver.console.setRoom(.max)
        for _ in 0..<2 { #expect(driver.queues[1].wait()?.byteCount == 0) }
        #expect(driver.console.output == bytes)
    }

    @Test("input waits until the driver has opened the port and given buffers")
    func input() throws {
        let driver = try ConsoleDriver()
        #expect(driver.console.type([1]) == 0)
        try driver.open()
        #expect(driver.console.type([1]) == 0)
        driver.queues[0].add(readable: [], writable: [(buffers, 3)])
        #expect(driver.console.wanted.wait(timeoutNanoseconds: 20_000_000_000))
        #expect(driver.console.type([1, 2, 3, 4, 5]) == 3)
        #expect(driver.queues[0].wait()?.byteCount == 3)
        #expect(driver.machine.bytes(buffers, 3) == [1, 2, 3])
        try driver.control(6, 0)
        driver.queues[0].add(readable: [], writable: [(buffers, 3)])
        #expect(driver.console.type([4, 5]) == 0)
    }

    @Test("a driver without ports gets input at once")
    func singlePort() throws {
        let driver = try ConsoleDriver(isMultiport: false)
        driver.queues[0].add(readable: [], writable: [(buffers, 3)])
        #expect(driver.console.type([7]) == 1)
    }

    @Test("an emergency write goes out before anything is negotiated")
    func emergencyWrite() throws {
        let console = TestConsole()
        let machine = try TestMachine(VirtioConsole(backend: console))
        machine.write(0x108, 0x41)
        #expect(console.output == [0x41])
    }
}
