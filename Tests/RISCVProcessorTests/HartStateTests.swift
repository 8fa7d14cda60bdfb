import ComponentState
import MigrationStream
import Testing

@testable import RISCVProcessor

/// Fields in wire order, from an encoder or for a decoder, with the means to change one on the way.
private struct Recorder: StateCoder {
    var layout: StateLayout
    var isDecoding: Bool
    var version: UInt32
    var component = "cpu"
    /// Where the bytes are, shared by the nested coders.
    final class Bytes {
        var bytes: [UInt8] = []
        var position = 0
        /// Offset of each field's first byte.
        var offsets: [String: Int] = [:]
    }
    var store = Bytes()

    private mutating func scalar<T: FixedWidthInteger>(_ name: String, _ value: inout T) throws(StateError) {
        if store.offsets[name] == nil { store.offsets[name] = isDecoding ? store.position : store.bytes.count }
        let count = T.bitWidth / 8
        if isDecoding {
            guard store.position + count <= store.bytes.count else {
                throw .malformed(component: component, reason: "ends", offset: UInt64(store.position))
            }
            value = store.bytes[store.position..<store.position + count].reduce(0) {
                $0 << 8 | T(truncatingIfNeeded: $1)
            }
            store.position += count
        } else {
            for index in (0..<count).reversed() {
                store.bytes.append(UInt8(truncatingIfNeeded: value >> T(truncatingIfNeeded: index * 8)))
            }
        }
    }
    mutating func uint8(_ name: String, _ value: inout UInt8) throws(StateError) { try scalar(name, &value) }
    mutating func uint16(_ name: String, _ value: inout UInt16) throws(StateError) { try scalar(name, &value) }
    mutating func uint32(_ name: String, _ value: inout UInt32) throws(StateError) { try scalar(name, &value) }
    mutating func uint64(_ name: String, _ value: inout UInt64) throws(StateError) { try scalar(name, &value) }
    mutating func int32(_ name: String, _ value: inout Int32) throws(StateError) { try scalar(name, &value) }
    mutating func int64(_ name: String, _ value: inout Int64) throws(StateError) { try scalar(name, &value) }
    mutating func bool(_ name: String, _ value: inout Bool) throws(StateError) {
        var byte: UInt8 = value ? 1 : 0
        try scalar(name, &byte)
        value = byte != 0
    }
    private mutating func array<T: FixedWidthInteger>(_ name: String, _ values: inout [T]) throws(StateError) {
        for index in values.indices { try scalar(name, &values[index]) }
    }
    mutating func buffer(_ name: String, _ bytes: inout [UInt8]) throws(StateError) { try array(name, &bytes) }
    mutating func uint8Array(_ name: String, _ values: inout [UInt8]) throws(StateError) { try array(name, &values) }
    mutating func uint16Array(_ name: String, _ values: inout [UInt16]) throws(StateError) { try array(name, &values) }
    mutating func uint32Array(_ name: String, _ values: inout [UInt32]) throws(StateError) { try array(name, &values) }
    mutating func uint64Array(_ name: String, _ values: inout [UInt64]) throws(StateError) { try array(name, &values) }
    mutating func timer(_ name: String, _ expiry: inout Int64?) throws(StateError) {
        var value = expiry ?? -1
        try scalar(name, &value)
        expiry = value == -1 ? nil : value
    }
    mutating func unused(_ byteCount: Int) throws(StateError) {
        for _ in 0..<byteCount {
            var zero: UInt8 = 0
            try scalar("unused", &zero)
        }
    }
    mutating func structure(
        _ name: String, type: String, version: UInt32, _ body: (inout any StateCoder) throws(StateError) -> Void
    ) throws(StateError) {
        var inner: any StateCoder = self
        try body(&inner)
    }
    mutating func structures(
        _ name: String, type: String, version: UInt32, count: Int,
        _ body: (inout any StateCoder, _ index: Int) throws(StateError) -> Void
    ) throws(StateError) {
        for index in 0..<count {
            var inner: any StateCoder = self
            try body(&inner, index)
        }
    }
    mutating func subsections(_ list: [Subsection]) throws(StateError) {
        store.offsets["end of fields"] = isDecoding ? store.position : store.bytes.count
        for part in list {
            if isDecoding {
                let mark = [5, UInt8(part.name.utf8.count)] + [UInt8](part.name.utf8)
                guard store.position < store.bytes.count, store.bytes[store.position...].starts(with: mark) else {
                    continue
                }
                store.position += mark.count + 4
            } else {
                guard part.isNeeded else { continue }
                store.bytes += [5, UInt8(part.name.utf8.count)] + [UInt8](part.name.utf8)
                store.bytes += (0..<4).reversed().map { UInt8(truncatingIfNeeded: part.version >> (8 * $0)) }
            }
            var inner: any StateCoder = self
            try part.body(&inner)
        }
    }
}

@Suite("State of a hart") struct HartStateTests {
    private let versions: [(StateLayout, UInt32)] = [(.native, 10), (.qemu7_2, 5), (.qemu10_0, 10), (.qemu11_1, 12)]

    private func encode(_ hart: RISCVHart, _ layout: StateLayout) throws -> Recorder {
        let version = try #require(hart.sectionVersion(for: layout))
        let recorder = Recorder(layout: layout, isDecoding: false, version: version)
        var coder: any StateCoder = recorder
        try hart.codeState(with: &coder)
        return recorder
    }

    private func decode(_ recorder: Recorder, into hart: RISCVHart) throws {
        var again = recorder
        again.isDecoding = true
        let store = Recorder.Bytes()
        store.bytes = recorder.store.bytes
        again.store = store
        var coder: any StateCoder = again
        try hart.codeState(with: &coder)
        #expect(store.position == store.bytes.count)
    }

    /// A hart with something in every register.
    private func used() throws -> TestMachine {
        let machine = try TestMachine(nanoseconds: 5_000)
        let hart = machine.hart
        for number in 1..<32 { hart[register: number] = UInt64(number) &* 0x0101_0101_0101_0101 }
        for number in 0..<32 { hart.x[Word.float + number] = UInt64(number) &* 0x1111_0000_1111_0001 }
        hart.pc = 0xffff_ffff_8000_0002
        hart.x[Word.fs] = 2
        hart.x[Word.frm] = 3
        hart.x[Word.fflags] = 0x11
        hart.privilege = 1
        hart.status = 0xa_0000_0000 | Status.sie | Status.spp | Status.mpie | Status.sum | 3 << 11
        hart.medeleg = 0xb109
        hart.mideleg = 0x222
        hart.mie = 0x2aa
        hart.softwarePending = 0x202
        hart.mtvec = 0x8000_0400
        hart.stvec = 0xffff_ffff_8000_1001
        (hart.mepc, hart.sepc, hart.mcause, hart.scause, hart.mtval, hart.stval) = (0x10, 0x22, 9, 1 << 63 | 5, 7, 8)
        (hart.mscratch, hart.sscratch) = (0x1234, 0x5678)
        (hart.mcounteren, hart.scounteren, hart.mcountinhibit) = (7, 2, 0xffff_fff8)
        hart.menvcfg = EnvironmentConfiguration.stce | EnvironmentConfiguration.adue | 0xf0
        hart.senvcfg = 0xf0
        hart.satp = 10 << 60 | 33 << 44 | 0x80123
        hart.stimecmp = 0x12345
        hart.pmp.load(0, configuration: 0x18, address: 0x801fff)
        hart.pmp.load(1, configuration: 0x1f, address: .max)
        hart.pmp.update()
        hart.retired = 1_000_000
        hart.cycleOffset = 5
        hart.instretOffset = 9
        hart.setInterrupt(.machineSoftware, true)
        return machine
    }

    @Test("what was written is read back in every layout")
    func roundTrip() throws {
        for (layout, version) in versions {
            let machine = try used()
            let hart = machine.hart
            #expect(hart.sectionVersion(for: layout) == version)
            let image = try encode(hart, layout)
            let other = try TestMachine(nanoseconds: 5_000)
            let copy = other.hart
            try decode(image, into: copy)
            for number in 0..<32 {
                #expect(copy[register: number] == hart[register: number])
                #expect(copy.x[Word.float + number] == hart.x[Word.float + number])
            }
            #expect(copy.pc == hart.pc && copy.privilege == hart.privilege)
            #expect(copy.statusValue == hart.statusValue && copy.x[Word.frm] == 3)
            #expect(copy.medeleg == hart.medeleg && copy.mideleg == hart.mideleg && copy.mie == hart.mie)
            #expect(copy.mtvec == hart.mtvec && copy.stvec == hart.stvec)
            #expect(copy.mepc == hart.mepc && copy.sepc == hart.sepc && copy.mtval == hart.mtval)
            #expect(copy.mcause == hart.mcause && copy.scause == hart.scause && copy.stval == hart.stval)
            #expect(copy.mscratch == hart.mscratch && copy.sscratch == hart.sscratch)
            #expect(copy.mcounteren == 7 && copy.scounteren == 2 && copy.mcountinhibit == hart.mcountinhibit)
            #expect(copy.menvcfg == hart.menvcfg && copy.senvcfg == hart.senvcfg)
            #expect(copy.satp == hart.satp && copy.stimecmp == hart.stimecmp)
            #expect(copy.pmp.configuration(0) == 0x18 && copy.pmp.address(0) == 0x801fff)
            #expect(copy.pmp.configuration(1) == 0x1f && copy.pmp.configuration(2) == 0)
            #expect(copy.interruptLevel(.machineSoftware))
            #expect(copy.retired &+ copy.cycleOffset == 1_000_005)
            #expect(copy.retired &+ copy.instretOffset == 1_000_009)
            #expect(copy.softwarePending & 2 != 0)
            if layout == .native {
                #expect(copy.x[Word.fflags] == 0x11 && copy.retired == 1_000_000)
                #expect(copy.softwarePending == 0x202 && !copy.interruptLevel(.supervisorExternal))
            }
        }
    }

    @Test("fields and subsections take the bytes that QEMU's do")
    func sizes() throws {
        let machine = try used()
        for (layout, byteCount) in [(.qemu7_2, 2524), (.qemu10_0, 2481), (.qemu11_1, 1679)] as [(StateLayout, Int)] {
            #expect(try encode(machine.hart, layout).store.offsets["end of fields"] == byteCount)
        }
        let old = try encode(machine.hart, .qemu7_2)
        #expect(old.store.offsets["env.pc"] == 640 && old.store.offsets["env.satp"] == 796)
        #expect(old.store.offsets["env.stimecmp"] == 2516)
        let new = try encode(machine.hart, .qemu11_1)
        #expect(new.store.offsets["env.priv"] == 705 && new.store.offsets["env.stimecmp"] == 1671)
    }

    @Test("a timer that the destination will not arm again is sent as pending")
    func unarmedTimers() throws {
        let machine = try used()
        let hart = machine.hart
        hart.setInterrupt(.machineSoftware, false)
        func pending(_ layout: StateLayout) throws -> UInt64 {
            let image = try encode(hart, layout)
            let offset = try #require(image.store.offsets["env.mip"])
            return image.store.bytes[offset..<offset + 8].reduce(0) { $0 << 8 | UInt64($1) }
        }
        #expect(try pending(.qemu7_2) == 0x222)
        #expect(try pending(.qemu10_0) == 0x222)
        #expect(try pending(.qemu11_1) == 0x202)
        hart.menvcfg = 0
        #expect(try pending(.qemu7_2) == 0x282)
        #expect(try pending(.qemu10_0) == 0x282)
        #expect(try pending(.native) == 0x202)
    }

    @Test("a state that no hart could be in is refused and changes nothing")
    func refusals() throws {
        let cases: [(String, [UInt8], Bool)] = [
            ("env.gpr", [0, 0, 0, 0, 0, 0, 0, 1], true), ("env.pc", [0, 0, 0, 0, 0, 0, 0, 1], true),
            ("env.priv", [0, 0, 0, 0, 0, 0, 0, 2], true), ("env.mhartid", [0, 0, 0, 0, 0, 0, 0, 1], true),
            ("env.frm", [0, 0, 0, 0, 0, 0, 0, 8], true), ("env.mstatus", [0, 0, 0, 0, 0, 0, 0x10, 0], true),
            ("env.satp", [0x30, 0, 0, 0, 0, 0, 0, 0], true), ("env.misa_mxl", [0, 0, 0, 1], true),
            ("env.mstatus", [0, 0, 0, 0, 0, 0, 0x02, 0], false), ("env.virt", [0, 0, 0, 0, 0, 0, 0, 1], false),
        ]
        for (field, bytes, isInvalid) in cases {
            let image = try encode(used().hart, .qemu7_2)
            let offset = try #require(image.store.offsets[field])
            image.store.bytes.replaceSubrange(offset..<offset + bytes.count, with: bytes)
            let machine = try TestMachine()
            do {
                try decode(image, into: machine.hart)
                Issue.record("\(field) was accepted")
            } catch let error as StateError {
                switch error {
                case .invalid(_, let name, _): #expect(isInvalid && name.hasPrefix(field))
                case .unsupported: #expect(!isInvalid)
                default: Issue.record("\(error)")
                }
            }
            #expect(machine.hart.pc == TestMachine.base && machine.hart.privilege == 3)
        }
    }

    @Test("a guest that needs what the configuration omits is refused")
    func lacking() throws {
        for isa in ["rv64imac", "rv64imafdc_sv39", "rv64imafdc"] {
            let image = try encode(used().hart, .qemu10_0)
            let machine = try TestMachine(isa: isa)
            #expect(throws: StateError.self) { try decode(image, into: machine.hart) }
        }
    }

    @Test("a state cut anywhere throws and changes nothing")
    func cut() throws {
        let image = try encode(used().hart, .qemu11_1)
        let end = try #require(image.store.offsets["end of fields"])
        let whole = image.store.bytes
        for length in stride(from: 0, to: end, by: 37) {
            let machine = try TestMachine()
            image.store.bytes = Array(whole.prefix(length))
            #expect(throws: StateError.self) { try decode(image, into: machine.hart) }
            #expect(machine.hart.pc == TestMachine.base)
        }
    }

    @Test("after a load nothing of the old address space, code or time is left")
    func cachesAreDropped() throws {
        let machine = try TestMachine()
        let hart = machine.hart
        hart[register: 6] = TestMachine.base + 0x8000
        try machine.memory.store(TestMachine.base + 0x8000, UInt64(1))
        try machine.run([RV.ld(10, 6, 0), RV.sd(10, 6, 8)])
        let image = try encode(hart, .native)
        // RAM arrives from elsewhere, behind the hart's back.
        machine.ram.base.storeBytes(of: RV.ld(11, 6, 0), as: UInt32.self)
        machine.ram.dirty.clearAll()
        try decode(image, into: hart)
        hart.pc = TestMachine.base
        machine.runHart(0)
        #expect(hart[register: 11] == 1)
        #expect(machine.ram.dirty.isMarked(page: 8))
    }

    @Test("a waiting hart is halted on the wire and waits again where it arrives")
    func halted() throws {
        let machine = try TestMachine()
        try machine.write([RV.wfi] + RV.stop)
        #expect(machine.hart.run() == .waiting(untilNanoseconds: nil))
        let common = try #require(machine.hart.components.first)
        let image = try encode(machine.hart, .native)
        let recorder = Recorder(layout: .native, isDecoding: false, version: 1)
        var coder: any StateCoder = recorder
        try common.codeState(with: &coder)
        #expect(recorder.store.bytes == [0, 0, 0, 1, 0, 0, 0, 0])

        let other = try TestMachine()
        try other.write([RV.wfi] + RV.stop)
        var reader = recorder
        reader.isDecoding = true
        var decoder: any StateCoder = reader
        try #require(other.hart.components.first).codeState(with: &decoder)
        try decode(image, into: other.hart)
        #expect(other.hart.run() == .waiting(untilNanoseconds: nil))
        other.hart.mie = 1 << 7
        other.hart.setInterrupt(.machineTimer, true)
        #expect(other.hart.run() == .kicked)
        #expect(other.bus.finished.load(ordering: .relaxed) == 1)
    }
}
