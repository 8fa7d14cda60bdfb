import ComponentState
import DeviceModel
import Foundation
import GuestMemory
import MigrationStream
import Testing

@testable import VirtioDevices

/// Sections of a stream that QEMU 7.2 wrote: machine `virt` with 128 MiB, devices as below, fresh or with Debian's drivers
/// at work, legacy and modern. A line is: which machine, section, version, body in hexadecimal with `*N` for N zeros.
enum CapturedSections {
    struct Section: Sendable, CustomTestStringConvertible {
        let machine: String
        let name: String
        let version: UInt32
        let body: [UInt8]
        var isLegacy: Bool { machine.hasSuffix("legacy") }
        var isFresh: Bool { machine.hasPrefix("fresh") }
        var testDescription: String { "\(machine) \(name)" }
    }

    static let all: [Section] = {
        let url = Bundle.module.url(forResource: "qemu-7.2-virtio", withExtension: "txt", subdirectory: "Corpus")!
        let text = try! String(contentsOf: url, encoding: .utf8)
        return text.split(separator: "\n").map { line in
            let parts = line.split(separator: " ")
            let body = parts[3...].flatMap { part -> [UInt8] in
                if part.hasPrefix("*") { return [UInt8](repeating: 0, count: Int(part.dropFirst())!) }
                let digits = Array(part.utf8)
                return stride(from: 0, to: digits.count, by: 2).map {
                    UInt8(String(decoding: digits[$0..<$0 + 2], as: UTF8.self), radix: 16)!
                }
            }
            return Section(machine: String(parts[0]), name: String(parts[1]), version: UInt32(parts[2])!, body: body)
        }
    }()

    /// The device that the section came from, as it was configured there.
    static func machine(for section: Section, sectorCount: Int = 0x4000) throws -> TestMachine {
        let device: any VirtioDevice =
            switch section.name.split(separator: "/")[1] {
            case "virtio-rng": VirtioEntropy()
            case "virtio-blk": VirtioBlock(backend: MemoryDisk(sectorCount: sectorCount))
            case "virtio-net": VirtioNetwork(backend: TestNetwork(), macAddress: [0x52, 0x54, 0, 0x12, 0x34, 0x56])
            default: VirtioConsole(backend: TestConsole())
            }
        let address = UInt64(section.name.dropFirst("virtio-mmio@".count).prefix(16), radix: 16)!
        return try TestMachine(device, isLegacy: section.isLegacy, byteCount: 128 << 20, slotAddress: address)
    }
}

/// A section was taken and bytes of it were left.
struct LeftOver: Error {}

func decode(_ body: [UInt8], into machine: TestMachine, layout: StateLayout = .qemu7_2) throws {
    let version = machine.transport.sectionVersion(for: layout)!
    let decoder = VMStateDecoder(
        from: StreamCursor(body + [0x7e]), component: machine.transport.sectionName, version: version, layout: layout)
    var coder: any StateCoder = decoder
    try machine.transport.codeState(with: &coder)
    try decoder.finish()
    guard decoder.cursor.remaining == 1 else { throw LeftOver() }
}

func encode(_ machine: TestMachine, layout: StateLayout = .qemu7_2) throws -> [UInt8] {
    let writer = StreamWriter()
    let version = machine.transport.sectionVersion(for: layout)!
    var coder: any StateCoder = VMStateEncoder(
        to: writer, component: machine.transport.sectionName, version: version, layout: layout)
    try machine.transport.codeState(with: &coder)
    return writer.bytes
}

/// Makes rings in RAM agree with a loaded state whose RAM was not loaded: nothing waits, nothing is under way.
func settleRings(_ machine: TestMachine) throws {
    for queue in machine.transport.core!.monitor.withLock({ $0.queues }) where queue.isReady {
        try machine.memory.store(queue.rings.available + 2, queue.lastAvailableIndex)
        try machine.memory.store(queue.rings.used + 2, queue.lastAvailableIndex)
    }
}

@Suite("State of virtio devices") struct StateTests {
    @Test("a section of QEMU 7.2 is taken and written again byte for byte", arguments: CapturedSections.all)
    func captured(section: CapturedSections.Section) throws {
        let machine = try CapturedSections.machine(for: section)
        #expect(machine.transport.sectionName == section.name)
        #expect(machine.transport.sectionVersion(for: .qemu7_2) == section.version)
        try decode(section.body, into: machine)
        try settleRings(machine)
        var written = try encode(machine)
        if section.isFresh {
            // QEMU fills its copy of the configuration when the driver first reads it; ours is always there.
            let count = Int(section.body[23])
            written.replaceSubrange(24..<24 + count, with: section.body[24..<24 + count])
        } else if section.name.hasSuffix("virtio-console") {
            #expect(section.body[24..<36].elementsEqual([0, 0, 0, 0, 31, 0, 0, 0, 0, 0, 0, 0]))
        }
        #expect(written.count == section.body.count)
        let difference = zip(written, section.body).enumerated().first { $0.element.0 != $0.element.1 }
        #expect(difference == nil, "first at byte \(difference?.offset ?? -1)")
    }

    @Test("a section cut short is incomplete, never taken", arguments: CapturedSections.all.filter { !$0.isFresh })
    func cut(section: CapturedSections.Section) throws {
        let machine = try CapturedSections.machine(for: section)
        let before = try encode(machine)
        for count in stride(from: 0, to: section.body.count, by: max(1, section.body.count / 200)) {
            // Without its last subsections a section is still whole; nothing else may be.
            do {
                try decode(Array(section.body.prefix(count)), into: machine)
                break
            } catch StateError.unknownSubsection {
                break  // a name cut short; found when the component has already taken what is before it
            } catch {}
            #expect(try encode(machine) == before)
        }
    }

    @Test("another Sidestep gets the same state in its own, short form", arguments: CapturedSections.all)
    func native(section: CapturedSections.Section) throws {
        let first = try CapturedSections.machine(for: section)
        try decode(section.body, into: first)
        try settleRings(first)
        let short = try encode(first, layout: .native)
        #expect(short.count < 6000)
        let second = try CapturedSections.machine(for: section)
        try decode(short, into: second, layout: .native)
        try settleRings(second)
        let (one, two) = (try encode(first), try encode(second))
        #expect(one == two)
    }

    @Test("a state of the other kind of transport is refused by name", arguments: CapturedSections.all)
    func wrongTransport(section: CapturedSections.Section) throws {
        let other = CapturedSections.Section(
            machine: section.isLegacy ? "modern" : "legacy", name: section.name, version: section.version,
            body: section.body)
        let machine = try CapturedSections.machine(for: other)
        let error = #expect(throws: StateError.self) { try decode(section.body, into: machine) }
        #expect("\(error!)".contains("transport"))
    }

    private func section(_ device: String, _ machine: String = "up-modern") -> CapturedSections.Section {
        CapturedSections.all.first { $0.machine == machine && $0.name.hasSuffix(device) }!
    }

    @Test("features that are not offered are refused by name")
    func features() throws {
        let section = section("virtio-net")
        var body = section.body
        body[19] |= 0x01  // CSUM, in the low half of the features
        let machine = try CapturedSections.machine(for: section)
        let marker = Array("virtio/64bit_features".utf8)
        let at = body.indices.first { body[$0...].starts(with: marker) }! + marker.count + 4
        body[at + 7] |= 0x01
        let error = #expect(throws: StateError.self) { try decode(body, into: machine) }
        #expect("\(error!)".contains("CSUM"))
    }

    @Test("a disk of another size is refused by name")
    func diskSize() throws {
        let section = section("virtio-blk")
        let machine = try CapturedSections.machine(for: section, sectorCount: 0x4001)
        let error = #expect(throws: StateError.self) { try decode(section.body, into: machine) }
        #expect("\(error!)".contains("16384 sectors"))
    }

    @Test(
        "values no device reaches are refused",
        arguments: [
            (11, 32 as UInt8, "guest_page_shift"), (14, 0x04, "queue_sel"), (27, 3, "queues"), (31, 3, "vring.num"),
            (35, 3, "vring.align"),
        ])
    func impossible(offset: Int, value: UInt8, name: String) throws {
        let section = section("virtio-rng")
        var body = section.body
        body[offset] = value
        let machine = try CapturedSections.machine(for: section)
        let before = try encode(machine)
        let error = #expect(throws: StateError.self) { try decode(body, into: machine) }
        #expect("\(error!)".contains(name), "\(error!)")
        #expect(try encode(machine) == before, "nothing may have taken effect")
    }

    @Test("seeded damage to a section is refused or taken, and never traps", arguments: 0..<24)
    func damage(seed: Int) throws {
        var random = SplitMix(seed: UInt64(seed))
        let sections = CapturedSections.all.filter { !$0.isFresh }
        for _ in 0..<40 {
            let section = sections[Int(random.next() % UInt64(sections.count))]
            var body = section.body
            for _ in 0..<(1 + random.next() % 4) {
                // Most of a section is zeros of queues that do not exist; damage what counts.
                let place = Int(random.next() % UInt64(min(body.count, 1400)))
                body[place] = UInt8(truncatingIfNeeded: random.next())
            }
            let machine = try CapturedSections.machine(for: section)
            if (try? decode(body, into: machine)) == nil { continue }
            machine.transport.resume()
            machine.write(0x50, UInt32(random.next() % 4))
            machine.transport.quiesce()
            _ = try encode(machine)
        }
    }

    @Test("a device goes on where another left off, with a request that was under way")
    func continues() throws {
        let disk = MemoryDisk(sectorCount: 64)
        let source = try TestMachine(VirtioBlock(backend: disk))
        #expect(source.negotiate(source.offered))
        let queue = TestQueue(source, index: 0, size: 64, address: ramBase)
        source.driverReady()
        source.put(ramBase + 0x2_0000, words(UInt32(4), 0) + words(UInt64(0)))
        disk.stick([.flush])
        queue.add(readable: [(ramBase + 0x2_0000, 16)], writable: [(ramBase + 0x3_0000, 1)])
        queue.add(readable: [(ramBase + 0x2_0000, 16)], writable: [(ramBase + 0x3_0001, 1)])
        disk.entered.wait()
        source.transport.quiesce()
        for layout in [StateLayout.native, .qemu7_2] {
            let state = try encode(source, layout: layout)
            let there = MemoryDisk(sectorCount: 64)
            let destination = try TestMachine(VirtioBlock(backend: there), sharing: source)
            try decode(state, into: destination, layout: layout)
            #expect(there.calls.isEmpty, "nothing may happen before resume")
            destination.transport.resume()
            let queue = TestQueue(continuing: queue, on: destination)
            for _ in 0..<2 { #expect(queue.wait()?.byteCount == 1) }
            #expect(there.calls.map(\.operation) == [.flush, .flush])
            #expect(queue.deviceUsedIndex == 2)
            destination.transport.quiesce()
            try source.memory.store(queue.used + 2, UInt16(0))
        }
        disk.stick([])
        disk.release.signal()
        source.transport.resume()
        for _ in 0..<2 { #expect(queue.wait()?.byteCount == 1) }
    }

    @Test(
        "console output that is half done goes on behind the last byte sent", arguments: [StateLayout.native, .qemu7_2])
    func halfWritten(layout: StateLayout) throws {
        let source = try ConsoleDriver()
        let bytes = (0..<1000).map { UInt8(truncatingIfNeeded: $0 ^ $0 >> 8) }
        source.machine.put(ramBase + 0x10_0000, bytes)
        source.console.setRoom(333)
        source.queues[1].add(readable: [(ramBase + 0x10_0000, 200), (ramBase + 0x10_0000 + 200, 800)], writable: [])
        source.console.refused.wait()
        source.machine.transport.quiesce()
        let state = try encode(source.machine, layout: layout)
        let console = TestConsole()
        let destination = try TestMachine(VirtioConsole(backend: console), sharing: source.machine)
        try decode(state, into: destination, layout: layout)
        #expect(console.output.isEmpty)
        destination.transport.resume()
        let queue = TestQueue(continuing: source.queues[1], on: destination)
        #expect(queue.wait() != nil)
        #expect(source.console.output + console.output == bytes)
        #expect(queue.deviceUsedIndex == 1)
    }

    @Test("an interrupt that was pending is raised again at the destination")
    func pendingInterrupt() throws {
        let source = try TestMachine(VirtioEntropy())
        #expect(source.negotiate(source.offered))
        let queue = TestQueue(source, index: 0, size: 8, address: ramBase)
        source.driverReady()
        queue.add(readable: [], writable: [(ramBase + 0x1_0000, 16)])
        #expect(source.interrupts.wait())
        source.transport.quiesce()
        let destination = try TestMachine(VirtioEntropy(), sharing: source)
        try decode(try encode(source, layout: .native), into: destination, layout: .native)
        #expect(!destination.interrupts.level)
        destination.transport.resume()
        #expect(destination.interrupts.level && destination[0x60] == 1)
    }

    @Test("a pause leaves the driver asked to notify of what it adds next")
    func asksBeforePause() throws {
        let source = try TestMachine(VirtioEntropy())
        #expect(source.negotiate(source.offered))
        let queue = TestQueue(source, index: 0, size: 8, address: ramBase)
        source.driverReady()
        queue.add(readable: [], writable: [(ramBase + 0x1_0000, 16)])
        source.transport.quiesce()
        #expect(try source.memory.load(queue.used + 4 + 8 * 8, as: UInt16.self) == 1)
    }
}

/// A small seeded generator.
struct SplitMix: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var value = state
        value = (value ^ value >> 30) &* 0xbf58_476d_1ce4_e5b9
        value = (value ^ value >> 27) &* 0x94d0_49bb_1331_11eb
        return value ^ value >> 31
    }
}
