import DeviceModel
import Testing

@testable import VirtioDevices

private let data = ramBase + 0x10_0000
private let header = ramBase + 0x2_0000
private let status = ramBase + 0x3_0000

/// A driver of a block device: requests of header, data and status.
private struct BlockDriver {
    let disk: MemoryDisk
    let machine: TestMachine
    let queue: TestQueue

    init(_ disk: MemoryDisk = MemoryDisk(sectorCount: 4096), features: UInt64? = nil) throws {
        self.disk = disk
        machine = try TestMachine(VirtioBlock(backend: disk, serial: "serial-number-of-more-than-20"))
        #expect(machine.negotiate(features ?? machine.offered))
        queue = TestQueue(machine, index: 0, size: 64, address: ramBase)
        machine.driverReady()
    }

    func post(_ type: UInt32, sector: UInt64 = 0, readable: Int = 0, writable: Int = 0, at slot: UInt64 = 0) {
        machine.put(header + 16 * slot, words(type, 0) + words(sector))
        machine.put(status + slot, [0xee])
        queue.add(
            readable: [(header + 16 * slot, 16)] + (readable > 0 ? [(data, readable)] : []),
            writable: (writable > 0 ? [(data, writable)] : []) + [(status + slot, 1)])
    }

    /// Posts, waits, and answers status and length.
    func run(_ type: UInt32, sector: UInt64 = 0, readable: Int = 0, writable: Int = 0) throws -> (UInt8, Int) {
        post(type, sector: sector, readable: readable, writable: writable)
        let entry = try #require(queue.wait())
        return (machine.bytes(status, 1)[0], entry.byteCount)
    }

    var lastAvailable: UInt16 { machine.transport.core!.monitor.withLock { $0.queues[0].lastAvailableIndex } }
}

private func pattern(_ count: Int, _ seed: Int = 1) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: $0 * 7 + $0 >> 8 + seed) }
}

@Suite("The block device") struct BlockTests {
    @Test("the configuration is 57 bytes as QEMU shows them")
    func configuration() throws {
        let machine = try TestMachine(VirtioBlock(backend: MemoryDisk(sectorCount: 0x4000)))
        let bytes = (0..<64).map { UInt8(machine.transport.load(offset: 0x100 + $0, width: .one)) }
        #expect(bytes[0..<8].elementsEqual([0, 0x40, 0, 0, 0, 0, 0, 0]))
        #expect(bytes[12] == 254 && bytes[32] == 1 && bytes[34] == 1)
        #expect(bytes[36..<40].elementsEqual([0xff, 0xff, 0x3f, 0]))
        #expect(bytes[56] == 1 && bytes[57...].allSatisfy { $0 == 0 })
    }

    @Test("what is written is read back, across pieces")
    func readsAndWrites() throws {
        let driver = try BlockDriver()
        let bytes = pattern(700 * 1024)
        driver.machine.put(data, bytes)
        #expect(try driver.run(1, sector: 3, readable: bytes.count) == (0, 1))
        #expect(Array(driver.disk.bytes[3 * 512..<3 * 512 + bytes.count]) == bytes)
        driver.machine.put(data, [UInt8](repeating: 0, count: bytes.count))
        #expect(try driver.run(0, sector: 3, writable: bytes.count) == (0, bytes.count + 1))
        #expect(driver.machine.bytes(data, bytes.count) == bytes)
    }

    @Test("flush reaches the backend, and each write does if the driver cannot flush or has turned the cache off")
    func flush() throws {
        let driver = try BlockDriver()
        #expect(try driver.run(4) == (0, 1))
        #expect(driver.disk.calls.map(\.operation) == [.flush])
        #expect(try driver.run(1, readable: 512) == (0, 1))
        #expect(driver.disk.calls.map(\.operation) == [.flush, .write])
        driver.machine.transport.store(offset: 0x120, width: .one, value: 0)
        #expect(driver.machine.transport.load(offset: 0x120, width: .one) == 0)
        #expect(try driver.run(1, readable: 512) == (0, 1))
        #expect(driver.disk.calls.map(\.operation) == [.flush, .write, .write, .flush])
        let simple = try BlockDriver(features: version1)
        #expect(try simple.run(1, readable: 512) == (0, 1))
        #expect(simple.disk.calls.map(\.operation) == [.write, .flush])
    }

    @Test("discard and write-zeroes take one range and its flags")
    func clearing() throws {
        let driver = try BlockDriver()
        driver.disk.fill(pattern(4096 * 512), at: 0)
        driver.machine.put(data, words(UInt64(8)) + words(UInt32(16), 0))
        #expect(try driver.run(11, readable: 16) == (0, 1))
        driver.machine.put(data, words(UInt64(100)) + words(UInt32(4), 1))
        #expect(try driver.run(13, readable: 16) == (0, 1))
        #expect(driver.disk.calls.map(\.offset) == [8 * 512, 100 * 512])
        #expect(driver.disk.calls.map(\.byteCount) == [16 * 512, 4 * 512])
        #expect(try driver.run(11, readable: 16) == (2, 1), "discard knows no flags")
        #expect(try driver.run(13, readable: 15) == (2, 1))
        driver.machine.put(data, words(UInt64(4095)) + words(UInt32(2), 0))
        #expect(try driver.run(13, readable: 16) == (1, 1), "beyond the end")
        driver.machine.put(data, words(UInt64.max) + words(UInt32.max, 0))
        #expect(try driver.run(11, readable: 16) == (1, 1))
    }

    @Test("the serial number is twenty bytes")
    func serialNumber() throws {
        let driver = try BlockDriver()
        #expect(try driver.run(8, writable: 20) == (0, 21))
        #expect(driver.machine.bytes(data, 20) == Array("serial-number-of-mor".utf8))
    }

    @Test("requests outside the disk, in part sectors, or of unknown kinds are refused and touch nothing")
    func refusals() throws {
        let driver = try BlockDriver()
        #expect(try driver.run(0, sector: 4096, writable: 512) == (1, 1))
        #expect(try driver.run(0, sector: .max, writable: 512) == (1, 1))
        #expect(try driver.run(0, sector: 1 << 55, writable: 512) == (1, 1))
        #expect(try driver.run(1, sector: 4095, readable: 1024) == (1, 1))
        #expect(try driver.run(1, sector: 0, readable: 100) == (1, 1))
        #expect(try driver.run(2, writable: 96) == (2, 1))
        #expect(try driver.run(0xffff_ffff) == (2, 1))
        #expect(driver.disk.calls.isEmpty)
    }

    @Test("a failing backend is an I/O error in the guest")
    func backendErrors() throws {
        let driver = try BlockDriver()
        driver.disk.fail([.read, .write, .flush, .writeZeroes])
        #expect(try driver.run(0, writable: 512) == (1, 1))
        #expect(try driver.run(1, readable: 512) == (1, 1))
        #expect(try driver.run(4) == (1, 1))
        driver.disk.fail([])
        #expect(try driver.run(0, writable: 512) == (0, 513))
    }

    @Test("a read-only disk says so and is not written")
    func readOnly() throws {
        let driver = try BlockDriver(MemoryDisk(sectorCount: 64, isReadOnly: true))
        #expect(driver.machine.offered & 1 << 5 != 0)
        #expect(try driver.run(1, readable: 512) == (1, 1))
        driver.machine.put(data, words(UInt64(0)) + words(UInt32(1), 0))
        #expect(try driver.run(13, readable: 16) == (1, 1))
        #expect(try driver.run(0, writable: 512) == (0, 513))
        #expect(driver.disk.calls.map(\.operation) == [.read])
    }

    @Test("a request without room for its status stops the device")
    func noStatus() throws {
        let driver = try BlockDriver()
        driver.queue.add(readable: [(header, 16)], writable: [])
        #expect(driver.machine.interrupts.wait())
        #expect(driver.machine[0x70] & 0x40 != 0)
    }

    @Test(
        "a flush or a read that the host is working on is put back by a pause and done again",
        arguments: [
            MemoryDisk.Operation.flush, .read,
        ])
    func parking(operation: MemoryDisk.Operation) throws {
        let driver = try BlockDriver()
        driver.disk.fill(pattern(512), at: 0)
        driver.disk.stick([operation])
        let isFlush = operation == .flush
        driver.post(isFlush ? 4 : 0, writable: isFlush ? 0 : 512)
        driver.disk.entered.wait()
        #expect(driver.lastAvailable == 1)
        driver.machine.transport.quiesce()  // returns although the host has not
        #expect(driver.lastAvailable == 0 && driver.queue.deviceUsedIndex == 0)
        #expect(driver.machine.bytes(status, 1) == [0xee])
        driver.disk.stick([])
        driver.disk.release.signal()
        driver.machine.transport.resume()
        #expect(driver.queue.wait()?.byteCount == (isFlush ? 1 : 513))
        #expect(driver.machine.bytes(status, 1) == [0])
        #expect(driver.disk.calls.map(\.operation) == [operation, operation])
        #expect(driver.queue.deviceUsedIndex == 1)
        if !isFlush { #expect(driver.machine.bytes(data, 512) == pattern(512)) }
    }

    @Test("a pause waits for a write that the host is working on")
    func pauseWaitsForWrites() throws {
        let driver = try BlockDriver()
        driver.disk.stick([.write])
        driver.machine.put(data, pattern(512))
        driver.post(1, readable: 512)
        driver.disk.entered.wait()
        let transport = driver.machine.transport
        let helper = try Helper { transport.quiesce() }
        #expect(driver.machine.transport.core!.monitor.withLock { $0.mustFinish })
        driver.disk.release.signal()
        helper.join()
        // Finished or put back: whichever, the disk has it and the indices agree.
        #expect(driver.disk.bytes.prefix(512).elementsEqual(pattern(512)))
        #expect(driver.lastAvailable == driver.queue.deviceUsedIndex)
        driver.disk.stick([])
        driver.machine.transport.resume()
        #expect(driver.queue.wait()?.byteCount == 1)
        #expect(driver.queue.deviceUsedIndex == 1)
    }

    @Test("a read that comes back after a reset writes nothing into the guest")
    func resetDuringRead() throws {
        let driver = try BlockDriver()
        driver.disk.fill(pattern(512), at: 0)
        driver.machine.put(data, [UInt8](repeating: 0x55, count: 512))
        driver.disk.stick([.read])
        driver.post(0, writable: 512)
        driver.disk.entered.wait()
        driver.machine.write(0x70, 0)
        driver.disk.stick([])
        driver.disk.release.signal()
        #expect(driver.machine.negotiate(driver.machine.offered))
        let queue = TestQueue(driver.machine, index: 0, size: 64, address: ramBase + 0x8000)
        driver.machine.driverReady()
        queue.add(readable: [(header, 16)], writable: [(data + 4096, 512), (status, 1)])
        #expect(queue.wait()?.byteCount == 513)
        #expect(driver.machine.bytes(data, 512) == [UInt8](repeating: 0x55, count: 512))
        #expect(driver.queue.deviceUsedIndex == 0)
    }

    @Test("requests notified while paused are found on resume")
    func notifiedWhilePaused() throws {
        let driver = try BlockDriver()
        driver.machine.transport.quiesce()
        for slot in 0..<UInt64(5) { driver.post(4, at: slot) }
        #expect(driver.queue.deviceUsedIndex == 0)
        driver.machine.transport.resume()
        for _ in 0..<5 { #expect(driver.queue.wait() != nil) }
    }
}
