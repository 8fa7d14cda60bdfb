import DeviceModel
import Testing

@testable import VirtioDevices

private let address: [UInt8] = [0x52, 0x54, 0, 0x12, 0x34, 0x56]
private let buffers = ramBase + 0x10_0000

private struct NetworkDriver {
    let network = TestNetwork()
    let device: VirtioNetwork
    let machine: TestMachine
    let receive: TestQueue
    let transmit: TestQueue
    let control: TestQueue

    init(features: UInt64? = nil) throws {
        device = VirtioNetwork(backend: network, macAddress: address)
        machine = try TestMachine(device)
        #expect(machine.negotiate(features ?? machine.offered))
        receive = TestQueue(machine, index: 0, size: 64, address: ramBase)
        transmit = TestQueue(machine, index: 1, size: 64, address: ramBase + 0x8000)
        control = TestQueue(machine, index: 2, size: 64, address: ramBase + 0x1_0000)
        machine.driverReady()
    }

    func command(_ bytes: [UInt8]) throws -> UInt8 {
        machine.put(buffers + 0x8000, bytes)
        control.add(
            readable: [(buffers + 0x8000, 2), (buffers + 0x8002, bytes.count - 2)], writable: [(buffers + 0x9000, 1)])
        _ = try #require(control.wait())
        return machine.bytes(buffers + 0x9000, 1)[0]
    }

    /// Whether a frame for `destination` gets through.
    func accepts(_ destination: [UInt8], vlan: UInt16? = nil) -> Bool {
        let before = receive.deviceUsedIndex
        let tag: [UInt8] = vlan.map { [0x81, 0, UInt8($0 >> 8), UInt8(truncatingIfNeeded: $0)] } ?? []
        #expect(network.deliver(destination + address + tag + [UInt8](repeating: 0, count: 48)))
        return receive.deviceUsedIndex != before
    }
}

private func frame(_ count: Int) -> [UInt8] {
    address + [2, 0, 0, 0, 0, 2, 8, 0] + (0..<count - 14).map { UInt8(truncatingIfNeeded: $0) }
}

@Suite("The network device") struct NetworkTests {
    @Test("a frame goes out without its header, however it is cut")
    func transmits() throws {
        let driver = try NetworkDriver()
        let bytes = frame(200)
        driver.machine.put(buffers, [UInt8](repeating: 0, count: 12) + bytes)
        driver.transmit.add(readable: [(buffers, 5), (buffers + 5, 20), (buffers + 25, 187)], writable: [])
        #expect(driver.transmit.wait()?.byteCount == 0)
        #expect(driver.network.sent == [bytes])
    }

    @Test("frames too short or too long are dropped")
    func badFrames() throws {
        let driver = try NetworkDriver()
        for count in [0, 11, 12, 25, 12 + VirtioNetwork.frameByteCountMaximum + 1] {
            driver.transmit.add(
                readable: count == 0 ? [] : [(buffers, count)], writable: count == 0 ? [(buffers, 1)] : [])
            #expect(driver.transmit.wait() != nil)
        }
        #expect(driver.network.sent.isEmpty)
    }

    @Test("a full network makes frames wait in order; none is lost or sent twice")
    func fullNetwork() throws {
        let driver = try NetworkDriver()
        driver.network.setRoom(1)
        for count in [60, 61, 62] {
            driver.machine.put(buffers + UInt64(count) * 1024, [UInt8](repeating: 0, count: 12) + frame(count))
            driver.transmit.add(readable: [(buffers + UInt64(count) * 1024, 12 + count)], writable: [], notify: false)
        }
        driver.transmit.notify()
        driver.network.refused.wait()
        driver.machine.transport.quiesce()
        #expect(driver.machine.transport.core!.monitor.withLock { $0.queues[1].lastAvailableIndex } == 1)
        driver.machine.transport.resume()
        driver.network.refused.wait()
        driver.network.setRoom(10)
        for _ in 0..<3 { #expect(driver.transmit.wait() != nil) }
        #expect(driver.network.sent == [frame(60), frame(61), frame(62)])
    }

    @Test("a frame is spread over as many buffers as it needs")
    func mergesBuffers() throws {
        let driver = try NetworkDriver()
        for number in 0..<UInt64(4) { driver.receive.add(readable: [], writable: [(buffers + number * 4096, 100)]) }
        let bytes = frame(250)
        #expect(driver.network.deliver(bytes))
        var got: [UInt8] = []
        for number in 0..<UInt64(3) {
            let entry = try #require(driver.receive.take())
            got += driver.machine.bytes(buffers + number * 4096, entry.byteCount)
        }
        #expect(Array(got[..<12]) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0] && Array(got[12...]) == bytes)
        #expect(driver.receive.take() == nil)
        #expect(!driver.network.deliver(bytes), "one buffer left is too few")
        #expect(driver.machine.transport.core!.monitor.withLock { $0.queues[0].lastAvailableIndex } == 3)
        for number in 4..<UInt64(6) { driver.receive.add(readable: [], writable: [(buffers + number * 4096, 100)]) }
        #expect(driver.network.wanted.wait(timeoutNanoseconds: 20_000_000_000))
        #expect(driver.network.deliver(bytes))
        #expect(driver.receive.take() != nil)
    }

    @Test("without mergeable buffers a frame that does not fit is dropped and the buffer kept")
    func singleBuffer() throws {
        let driver = try NetworkDriver(features: version1)
        driver.receive.add(readable: [], writable: [(buffers, 100)])
        #expect(driver.network.deliver(frame(200)))
        #expect(driver.receive.take() == nil)
        #expect(driver.network.deliver(frame(80)))
        #expect(driver.receive.take()?.byteCount == 92)
    }

    @Test("before the driver is ready, and while paused, frames are left with the backend")
    func notReady() throws {
        let network = TestNetwork()
        let machine = try TestMachine(VirtioNetwork(backend: network, macAddress: address))
        #expect(!network.deliver(frame(60)))
        #expect(machine.negotiate(machine.offered))
        let receive = TestQueue(machine, index: 0, size: 64, address: ramBase)
        receive.add(readable: [], writable: [(buffers, 2000)])
        machine.driverReady()
        machine.transport.quiesce()
        #expect(!network.deliver(frame(60)))
        machine.transport.resume()
        #expect(network.deliver(frame(60)))
        #expect(receive.take() != nil)
    }

    @Test("the driver's receive filter is kept to")
    func filters() throws {
        let driver = try NetworkDriver()
        for number in 0..<UInt64(40) { driver.receive.add(readable: [], writable: [(buffers + 4096 * number, 2048)]) }
        let stranger: [UInt8] = [2, 0, 0, 0, 0, 9]
        let group: [UInt8] = [0x33, 0x33, 0, 0, 0, 1]
        let everybody = [UInt8](repeating: 0xff, count: 6)
        #expect(driver.accepts(stranger) && driver.accepts(group))
        #expect(try driver.command([0, 0, 0]) == 0)
        #expect(
            !driver.accepts(stranger) && !driver.accepts(group) && driver.accepts(address) && driver.accepts(everybody))
        #expect(try driver.command([1, 0] + words(UInt32(1)) + stranger + words(UInt32(1)) + group) == 0)
        #expect(driver.accepts(stranger) && driver.accepts(group))
        #expect(try driver.command([1, 0] + words(UInt32(0), 0)) == 0)
        #expect(!driver.accepts(group))
        #expect(try driver.command([0, 1, 1]) == 0)
        #expect(driver.accepts(group))
        #expect(try driver.command([0, 5, 1]) == 0)
        #expect(!driver.accepts(everybody))
        #expect(!driver.accepts(address, vlan: 7))
        #expect(try driver.command([2, 0, 7, 0]) == 0)
        #expect(driver.accepts(address, vlan: 7) && !driver.accepts(address, vlan: 8))
        #expect(try driver.command([1, 1] + stranger) == 0)
        #expect(driver.accepts(stranger) && !driver.accepts(address))
    }

    @Test("commands that make no sense are answered with an error")
    func badCommands() throws {
        let driver = try NetworkDriver()
        for bytes: [UInt8] in [
            [0, 0, 0, 0], [0, 9, 1], [1, 0, 1], [1, 0] + words(UInt32.max) + address, [1, 1, 1, 2], [2, 0, 0xff, 0xff],
            [3, 0, 0], [4, 0, 1, 0], [5, 0] + words(UInt64(1)), [9, 9, 9],
        ] { #expect(try driver.command(bytes) == 1) }
        #expect(try driver.command([5, 0] + words(UInt64(0))) == 0)
    }

    @Test("an announcement is asked for through the status and acknowledged by command")
    func announces() throws {
        let driver = try NetworkDriver()
        driver.device.announce(on: driver.machine.transport)
        // RFC 903: "request reverse" about the card itself.
        #expect(
            driver.network.sent == [
                [UInt8](repeating: 0xff, count: 6) + address + [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3] + address
                    + [0, 0, 0, 0] + address + [UInt8](repeating: 0, count: 4 + 18)
            ])
        #expect(driver.machine[0x60] & 2 != 0)
        #expect(driver.machine.transport.load(offset: 0x106, width: .two) == 3)
        driver.machine.write(0x64, 2)
        #expect(try driver.command([3, 0, 0]) == 0)
        #expect(driver.machine.transport.load(offset: 0x106, width: .two) == 1)
    }

    @Test("the network is told of a driver that cannot announce itself, and the driver is left alone")
    func announcesAlone() throws {
        let driver = try NetworkDriver(features: VirtioFeature.version1)
        driver.device.announce(on: driver.machine.transport)
        #expect(driver.network.sent.count == 1)
        #expect(driver.machine[0x60] & 2 == 0)
    }
}
