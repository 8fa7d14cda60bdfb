import GuestMemory
import Testing

@testable import RISCVProcessor

/// Flags of page-table entries.
private enum Flag {
    static let v: UInt64 = 1, r: UInt64 = 2, w: UInt64 = 4, x: UInt64 = 8, u: UInt64 = 16, g: UInt64 = 32
    static let a: UInt64 = 64, d: UInt64 = 128
    static let all = v | r | w | x | a | d
}

/// Page tables in a test machine's RAM, built as a kernel would.
private final class Tables {
    let machine: TestMachine
    let mode: UInt64
    var next = TestMachine.base + 0x10_0000
    let root: UInt64

    init(_ machine: TestMachine, mode: UInt64) {
        self.machine = machine
        self.mode = mode
        root = next
        next += 4096
    }

    var levels: Int { Int(mode) - 5 }

    /// Address of the entry for `address` at `level`, making tables on the way.
    func entry(_ address: UInt64, level: Int = 0) throws -> UInt64 {
        var table = root
        for current in stride(from: levels - 1, to: level, by: -1) {
            let place = table + (address >> UInt64(12 + 9 * current) & 511) * 8
            let value = try machine.memory.load(place, as: UInt64.self)
            if value & 1 != 0 {
                table = (value >> 10) << 12
            } else {
                try machine.memory.store(place, (next >> 12) << 10 | Flag.v)
                table = next
                next += 4096
            }
        }
        return table + (address >> UInt64(12 + 9 * level) & 511) * 8
    }

    func map(_ address: UInt64, to physical: UInt64, _ flags: UInt64, level: Int = 0) throws {
        try machine.memory.store(entry(address, level: level), (physical >> 12) << 10 | flags)
    }

    var satp: UInt64 { mode << 60 | root >> 12 }
}

@Suite("Address translation") struct PagingTests {
    private let handler = TestMachine.base + 0x1000
    private let data: UInt64 = 0x4000_2000
    private let page = TestMachine.base + 0x8_0000

    /// S-mode in a machine whose code is mapped where it lies.
    private func machine(mode: UInt64 = 8, adue: Bool = true) throws -> (TestMachine, Tables) {
        let machine = try TestMachine()
        let tables = Tables(machine, mode: mode)
        let hart = machine.hart
        hart.mtvec = handler
        try machine.write(RV.stop, at: handler)
        machine.openProtection()
        for offset in stride(from: 0, to: 0x4000, by: 4096) as StrideTo<UInt64> {
            try tables.map(TestMachine.base + offset, to: TestMachine.base + offset, Flag.all)
        }
        try tables.map(TestBus.finisher, to: TestBus.finisher, Flag.all)
        hart.menvcfg = adue ? EnvironmentConfiguration.adue : 0
        hart.satp = tables.satp
        hart.privilege = 1
        hart.updateRegime()
        hart[register: 6] = data
        return (machine, tables)
    }

    @Test("each mode walks all its levels", arguments: [8, 9, 10] as [UInt64])
    func modes(_ mode: UInt64) throws {
        let bits: UInt64 = mode == 8 ? 39 : mode == 9 ? 48 : 57
        let addresses: [UInt64] = [data, (1 << (bits - 1)) - 4096, UInt64.max << (bits - 1), UInt64.max - 4095]
        for address in addresses {
            let (machine, tables) = try machine(mode: mode)
            try tables.map(address, to: page, Flag.all)
            try machine.memory.store(page + 8, UInt64(0x1234))
            machine.hart[register: 6] = address
            try machine.run([RV.ld(10, 6, 8), RV.sd(10, 6, 16)])
            #expect(machine.hart.mcause == 0)
            #expect(machine.hart[register: 10] == 0x1234)
            #expect(try machine.memory.load(page + 16, as: UInt64.self) == 0x1234)
        }
    }

    @Test("an address that is not sign-extended faults", arguments: [8, 9, 10] as [UInt64])
    func canonical(_ mode: UInt64) throws {
        let bits: UInt64 = mode == 8 ? 39 : mode == 9 ? 48 : 57
        for address in [UInt64(1) << (bits - 1), UInt64(1) << 63, (UInt64.max << (bits - 1)) - 8] {
            let (machine, _) = try machine(mode: mode)
            machine.hart[register: 6] = address
            try machine.run([RV.ld(10, 6, 0)])
            #expect(machine.hart.mcause == 13 && machine.hart.mtval == address)
        }
    }

    @Test("large pages translate at every level and must be aligned", arguments: [8, 9, 10] as [UInt64])
    func large(_ mode: UInt64) throws {
        for level in 1..<Int(mode - 5) {
            let size = UInt64(1) << UInt64(12 + 9 * level)
            let offset = page & (size - 1)
            let base = page & ~(size - 1)
            let (machine, tables) = try machine(mode: mode)
            let address = size * 5
            try tables.map(address, to: base, Flag.all, level: level)
            try machine.memory.store(page + 8, UInt64(77))
            machine.hart[register: 6] = address + offset
            try machine.run([RV.ld(10, 6, 8)])
            #expect(machine.hart[register: 10] == 77)

            let (other, otherTables) = try self.machine(mode: mode)
            try otherTables.map(address, to: base | 4096, Flag.all, level: level)
            other.hart[register: 6] = address
            try other.run([RV.ld(10, 6, 8)])
            #expect(other.hart.mcause == 13)
        }
    }

    @Test("an access that the flags do not allow faults with its kind of page fault")
    func permissions() throws {
        let load: UInt32 = RV.ld(10, 6, 0)
        let store: UInt32 = RV.sd(0, 6, 0)
        let atomic: UInt32 = RV.amo(0, true, 10, 0, 6)
        let reserve: UInt32 = RV.lrd(10, 6)
        let cases: [(UInt64, UInt32, UInt64)] = [
            (Flag.all & ~Flag.v, load, 13), (Flag.all & ~Flag.v, store, 15), (Flag.v | Flag.r | Flag.a, store, 15),
            (Flag.v | Flag.x | Flag.a, load, 13), (Flag.v | Flag.w | Flag.a | Flag.d, load, 13),
            (Flag.all | Flag.u, load, 13), (Flag.all | Flag.u, store, 15), (Flag.all | 1 << 63, load, 13),
            (Flag.all | 1 << 61, load, 13), (Flag.all | 1 << 54, load, 13), (Flag.v | Flag.r | Flag.a, atomic, 15),
            (Flag.all & ~Flag.v, atomic, 15), (Flag.all & ~Flag.v, reserve, 13), (Flag.v | Flag.r | Flag.a, load, 0),
            (Flag.v, load, 13),
        ]
        for (flags, word, cause) in cases {
            let (machine, tables) = try machine()
            try tables.map(data, to: page, flags)
            try machine.run([word])
            #expect(machine.hart.mcause == cause)
            if cause != 0 { #expect(machine.hart.mtval == data && machine.hart.mepc == TestMachine.base) }
        }
    }

    @Test("fetching needs X, and a fault names the address of the missing half")
    func fetching() throws {
        let (machine, tables) = try machine()
        try tables.map(data, to: page, Flag.v | Flag.r | Flag.w | Flag.a | Flag.d)
        try machine.run([RV.jalr(1, 6, 4)])
        #expect(machine.hart.mcause == 12 && machine.hart.mepc == data + 4 && machine.hart.mtval == data + 4)

        let (other, otherTables) = try self.machine()
        try otherTables.map(data, to: page, Flag.all)
        try other.write(halfwords: [0x0001, UInt16(RV.addi(10, 0, 1) & 0xffff)], at: page + 0xffc)
        try other.run([RV.addi(5, 0, 1), RV.addi(6, 6, 0x7fe), RV.jalr(1, 6, 0x7fe)])
        #expect(other.hart.mcause == 12 && other.hart.mepc == data + 0xffe && other.hart.mtval == data + 0x1000)
    }

    @Test("an instruction across two pages runs, from whatever page its second half comes, again and again")
    func straddling() throws {
        let (machine, tables) = try machine()
        let second = page + 0x3000
        let third = page + 0x5000
        try tables.map(data, to: page, Flag.all)
        try tables.map(data + 4096, to: second, Flag.all)
        try machine.write(halfwords: [UInt16(RV.addi(10, 10, 1) & 0xffff)], at: page + 0xffe)
        try machine.write(halfwords: [UInt16(RV.addi(10, 10, 1) >> 16), 0x8082], at: second)  // ret
        try machine.write(halfwords: [UInt16(RV.addi(10, 10, 16) >> 16), 0x8082], at: third)
        let entry = try tables.entry(data + 4096)
        try tables.map(data + 0x10_0000, to: entry & ~0xfff, Flag.all)
        let hart = machine.hart
        hart[register: 7] = data + 0xffe
        hart[register: 8] = data + 0x10_0000 + (entry & 0xfff)
        hart[register: 9] = (third >> 12) << 10 | Flag.all
        hart[register: 11] = data + 4096
        try machine.run([
            RV.jalr(1, 7, 0), RV.jalr(1, 7, 0), RV.sd(9, 8, 0), RV.sfenceVMA(11), RV.jalr(1, 7, 0), RV.jalr(1, 7, 0),
        ])
        #expect(hart.mcause == 0)
        #expect(hart[register: 10] == 34)
        #expect(hart.retired == 6 + 8 + 1)
    }

    @Test("U pages: user reaches nothing else; SUM lets S load and store, never fetch")
    func userPages() throws {
        for sum in [false, true] {
            let (machine, tables) = try machine()
            try tables.map(data, to: page, Flag.all | Flag.u)
            if sum { machine.hart.status |= Status.sum }
            machine.hart.updateRegime()
            try machine.write(RV.stop, at: page)
            try machine.run([RV.ld(10, 6, 0), RV.sd(10, 6, 8), RV.jalr(1, 6, 0)])
            #expect(machine.hart.mcause == (sum ? 12 : 13))
        }
        let (machine, tables) = try machine()
        try tables.map(data, to: page, Flag.all | Flag.u)
        try machine.write([RV.ld(10, 5, 0)], at: page)
        machine.hart[register: 5] = TestMachine.base
        machine.hart.pc = data
        machine.hart.privilege = 0
        machine.hart.updateRegime()
        try machine.run()
        #expect(machine.hart.mcause == 13 && machine.hart.mtval == TestMachine.base)
    }

    @Test("setting and clearing SUM takes effect at once, without a fence")
    func toggling() throws {
        let (machine, tables) = try machine()
        try tables.map(data, to: page, Flag.all | Flag.u)
        machine.hart[register: 5] = Status.sum
        try machine.run([
            RV.csrrs(0, CSR.sstatus, 5), RV.ld(10, 6, 0), RV.ld(10, 6, 0), RV.csrrc(0, CSR.sstatus, 5),
            RV.addi(11, 0, 1),
            RV.ld(10, 6, 0),
        ])
        #expect(machine.hart.mcause == 13)
        #expect(machine.hart[register: 11] == 1)
        #expect(machine.hart.mepc == TestMachine.base + 20)
    }

    @Test("MXR makes executable pages readable; MPRV gives machine mode another mode's eyes")
    func otherEyes() throws {
        let (machine, tables) = try machine()
        try tables.map(data, to: page, Flag.v | Flag.x | Flag.a)
        try machine.memory.store(page, UInt64(99))
        let hart = machine.hart
        hart[register: 5] = Status.mxr
        try machine.run([RV.csrrs(0, CSR.sstatus, 5), RV.ld(10, 6, 0), RV.csrrc(0, CSR.sstatus, 5), RV.ld(11, 6, 0)])
        #expect(hart[register: 10] == 99 && hart.mcause == 13 && hart[register: 11] == 0)

        let (other, otherTables) = try self.machine()
        try otherTables.map(data, to: page, Flag.all)
        try other.memory.store(page, UInt64(98))
        other.hart.privilege = 3
        other.hart.updateRegime()
        other.hart[register: 5] = Status.mprv | 1 << 11
        other.hart[register: 7] = 1 << 12
        try other.run([
            RV.csrrs(0, CSR.mstatus, 5), RV.ld(10, 6, 0), RV.csrrs(0, CSR.mstatus, 7), RV.ld(11, 6, 0),
        ])
        #expect(other.hart[register: 10] == 98)
        #expect(other.hart.mcause == 5)  // MPP = M: the address is physical, and nothing is there
    }

    @Test("A and D are set by the hardware when ADUE says so, and fault otherwise")
    func accessedAndDirty() throws {
        let (machine, tables) = try machine()
        try tables.map(data, to: page, Flag.all & ~(Flag.a | Flag.d))
        let entry = try tables.entry(data)
        try machine.run([RV.ld(10, 6, 0)])
        #expect(try machine.memory.load(entry, as: UInt64.self) & (Flag.a | Flag.d) == Flag.a)
        machine.hart.pc = TestMachine.base + 0x200
        try machine.write([RV.sd(10, 6, 0)] + RV.stop, at: TestMachine.base + 0x200)
        machine.runHart(0)
        #expect(try machine.memory.load(entry, as: UInt64.self) & (Flag.a | Flag.d) == Flag.a | Flag.d)
        #expect(machine.hart.mcause == 0)

        for (flags, word, cause) in [
            (Flag.all & ~Flag.a, RV.ld(10, 6, 0), 13), (Flag.all & ~Flag.d, RV.ld(10, 6, 0), 0),
            (Flag.all & ~Flag.d, RV.sd(10, 6, 0), 15),
        ] as [(UInt64, UInt32, UInt64)] {
            let (machine, tables) = try self.machine(adue: false)
            try tables.map(data, to: page, flags)
            try machine.run([word])
            #expect(machine.hart.mcause == cause)
            #expect(try machine.memory.load(tables.entry(data), as: UInt64.self) == (page >> 12) << 10 | flags)
        }
    }

    @Test("a store walks anew and sets D even after a load brought the page in")
    func dirtyAfterLoad() throws {
        let (machine, tables) = try machine()
        try tables.map(data, to: page, Flag.all & ~Flag.d)
        try machine.run([RV.ld(10, 6, 0), RV.sd(10, 6, 0)])
        #expect(try machine.memory.load(tables.entry(data), as: UInt64.self) & Flag.d != 0)
        #expect(machine.ram.dirty.isMarked(page: Int((try tables.entry(data) - TestMachine.base) / 4096)))
    }

    @Test(
        "sfence.vma makes a changed entry seen: all, one address, and one address within a large page",
        arguments: [0, 1, 2])
    func fences(_ form: Int) throws {
        let (machine, tables) = try machine()
        let hart = machine.hart
        let level = form == 2 ? 1 : 0
        let old = form == 2 ? TestMachine.base : page
        let new = form == 2 ? TestMachine.base + 0x20_0000 : page + 0x1000
        let address: UInt64 = 0x4020_0000
        try tables.map(address, to: old, Flag.all, level: level)
        try machine.memory.store(old + 0x3000 * UInt64(level), UInt64(1))
        try machine.memory.store(new + 0x3000 * UInt64(level), UInt64(2))
        let entry = try tables.entry(address, level: level)
        try tables.map(0x5000_0000, to: entry & ~0xfff, Flag.all)
        hart[register: 6] = address + 0x3000 * UInt64(level)
        hart[register: 7] = form == 2 ? address + 0x5000 : address
        hart[register: 8] = 0x5000_0000 + (entry & 0xfff)
        hart[register: 9] = (new >> 12) << 10 | Flag.all
        try machine.run([
            RV.ld(10, 6, 0), RV.sd(9, 8, 0), RV.sfenceVMA(form == 0 ? 0 : 7), RV.ld(11, 6, 0),
        ])
        #expect(hart.mcause == 0)
        #expect(hart[register: 10] == 1 && hart[register: 11] == 2)
    }

    @Test(
        "a write of satp changes the address space from the next instruction on; a mode that is not there changes nothing"
    )
    func switching() throws {
        let (machine, tables) = try machine()
        let hart = machine.hart
        try tables.map(data, to: page, Flag.all)
        try machine.memory.store(page, UInt64(1))
        // The second address space is a copy of the root with another data page behind 1 GiB slot 1.
        let copy = tables.next
        tables.next += 4096
        try machine.memory.write(copy, machine.memory.bytes(at: tables.root, count: 4096))
        try machine.memory.store(copy + 8, ((TestMachine.base & ~0x3fff_ffff) >> 12) << 10 | Flag.all)
        try machine.memory.store(TestMachine.base + 0x2000, UInt64(2))
        hart[register: 5] = 8 << 60 | 7 << 44 | copy >> 12
        hart[register: 7] = 3 << 60
        hart[register: 8] = 0x4000_2000
        try machine.run([
            RV.ld(10, 8, 0), RV.csrw(CSR.satp, 7), RV.csrr(12, CSR.satp), RV.csrw(CSR.satp, 5), RV.ld(11, 8, 0),
        ])
        #expect(hart.mcause == 0)
        #expect(hart[register: 12] == tables.satp)
        #expect(hart[register: 10] == 1 && hart[register: 11] == 2)
    }

    @Test("misaligned accesses work within a page, across pages, and fault in whichever page is missing")
    func misaligned() throws {
        let (machine, tables) = try machine()
        let hart = machine.hart
        try tables.map(data, to: page, Flag.all)
        try tables.map(data + 4096, to: page + 0x4000, Flag.all)
        for offset in [1, 3, 5, 0xff9, 0xffc, 0xfff] as [UInt64] {
            hart[register: 6] = data + offset
            hart[register: 5] = 0x0807_0605_0403_0201 &+ offset
            hart.pc = TestMachine.base
            try machine.run([RV.sd(5, 6, 0), RV.ld(10, 6, 0), RV.lw(11, 6, 0)])
            #expect(hart.mcause == 0)
            #expect(hart[register: 10] == hart[register: 5])
            #expect(hart[register: 11] == hart[register: 5].word)
        }
        #expect(try machine.memory.load(page + 0x4000, as: UInt8.self) != 0)
        try machine.memory.store(tables.entry(data + 4096), UInt64(0))
        hart.flushTranslations()
        // What is told is the address of the part that failed.
        for (word, cause) in [(RV.ld(10, 6, 0), 13), (RV.sd(10, 6, 0), 15)] as [(UInt32, UInt64)] {
            hart.pc = TestMachine.base
            hart.privilege = 1
            hart.updateRegime()
            hart[register: 6] = data + 0xffc
            try machine.memory.store(page + 0xffc, UInt32(0x5555_5555))
            try machine.run([word])
            #expect(hart.mcause == cause)
            #expect(hart.mtval == data + 0x1000)
            #expect(try machine.memory.load(page + 0xffc, as: UInt32.self) == 0x5555_5555)
        }
    }

    @Test("an atomic or a reservation at a misaligned address traps")
    func misalignedAtomics() throws {
        for (word, cause) in [(RV.lrd(10, 6), 4), (RV.scd(10, 5, 6), 6), (RV.amo(1, true, 10, 5, 6), 6)]
            as [(UInt32, UInt64)]
        {
            let (machine, tables) = try machine()
            try tables.map(data, to: page, Flag.all)
            machine.hart[register: 6] = data + 4
            try machine.run([word])
            #expect(machine.hart.mcause == cause && machine.hart.mtval == data + 4)
        }
    }
}

@Suite("Physical memory protection") struct ProtectionTests {
    private let handler = TestMachine.base + 0x1000

    private func machine(_ entries: [(UInt8, UInt64)], privilege: UInt64 = 1) throws -> TestMachine {
        let machine = try TestMachine()
        let hart = machine.hart
        hart.mtvec = handler
        try machine.write(RV.stop, at: handler)
        for (index, entry) in entries.enumerated() {
            hart.pmp.load(index, configuration: entry.0, address: entry.1)
        }
        hart.pmp.update()
        hart.privilege = privilege
        hart.updateRegime()
        hart[register: 6] = TestMachine.base + 0x8000
        return machine
    }

    /// NAPOT address for a range.
    private func range(_ address: UInt64, _ size: UInt64) -> UInt64 { (address | (size / 2 - 1)) >> 2 }

    @Test("without an entry for it, S and U reach nothing and M everything")
    func noEntry() throws {
        for privilege in [0, 1] as [UInt64] {
            let machine = try machine([], privilege: privilege)
            try machine.run([RV.nop])
            #expect(machine.hart.mcause == 1)
        }
        let machine = try machine([], privilege: 3)
        try machine.run([RV.ld(10, 6, 0)])
        #expect(machine.hart.mcause == 0)
    }

    @Test("the lowest entry that matches decides; NAPOT, NA4 and TOR; parts of a page")
    func matching() throws {
        let all = (UInt8(0x1f), UInt64.max)
        let data = TestMachine.base + 0x8000
        let cases: [([(UInt8, UInt64)], Int, UInt32, UInt64)] = [
            ([(0x18, range(data, 4096)), all], 0, RV.ld(10, 6, 0), 5),
            ([(0x18, range(data, 4096)), all], 0, RV.sd(10, 6, 0), 7),
            ([(0x19, range(data, 4096)), all], 0, RV.ld(10, 6, 0), 0),
            ([(0x19, range(data, 4096)), all], 0, RV.sd(10, 6, 0), 7),
            ([(0x18, range(data, 64)), all], 64, RV.ld(10, 6, 0), 0),
            ([(0x18, range(data, 64)), all], 56, RV.ld(10, 6, 0), 5),
            ([(0x10, data >> 2), all], 0, RV.lw(10, 6, 0), 5),
            ([(0x10, data >> 2), all], 4, RV.lw(10, 6, 0), 0),
            ([(0x11, data >> 2), all], 0, RV.ld(10, 6, 0), 5),  // only half covered
            ([(0x00, data >> 2), (0x08, (data + 32) >> 2), all], 24, RV.ld(10, 6, 0), 5),
            ([(0x00, data >> 2), (0x08, (data + 32) >> 2), all], 32, RV.ld(10, 6, 0), 0),
            ([(0x00, data >> 2), (0x08, (data + 32) >> 2), all], -8, RV.ld(10, 6, 0), 0),
        ]
        for (entries, offset, word, cause) in cases {
            let machine = try machine(entries)
            machine.hart[register: 6] = data &+ UInt64(bitPattern: Int64(offset))
            try machine.run([word, word])
            #expect(machine.hart.mcause == cause)
        }
    }

    @Test("code in a page that is partly closed runs where it is open and faults where it is not")
    func partlyClosedCode() throws {
        let machine = try machine([(0x18, range(TestMachine.base + 0x40, 64)), (0x1f, .max)])
        try machine.write(
            [RV.addi(10, 10, 1), RV.jal(0, 8), RV.nop, RV.addi(10, 10, 1)] + [UInt32](repeating: RV.nop, count: 20))
        try machine.run()
        #expect(machine.hart.mcause == 1 && machine.hart.mepc == TestMachine.base + 0x40)
        #expect(machine.hart[register: 10] == 2)
    }

    @Test("a locked entry binds machine mode and cannot be changed")
    func locked() throws {
        let machine = try machine([], privilege: 3)
        let hart = machine.hart
        hart[register: 5] = 0x98
        hart[register: 7] = range(TestMachine.base + 0x8000, 4096)
        hart[register: 8] = .max
        try machine.run([
            RV.csrw(CSR.pmpaddr0, 7), RV.csrw(CSR.pmpcfg0, 5), RV.csrw(CSR.pmpcfg0, 8), RV.csrw(CSR.pmpaddr0, 8),
            RV.csrr(10, CSR.pmpcfg0), RV.csrr(11, CSR.pmpaddr0), RV.ld(12, 6, 0),
        ])
        #expect(hart[register: 10] & 0xff == 0x98)
        #expect(hart[register: 11] == hart[register: 7])
        #expect(hart.mcause == 5)
    }

    @Test("a change of protection takes effect at once")
    func changing() throws {
        let machine = try machine([(0x1f, .max)], privilege: 3)
        let hart = machine.hart
        hart.status |= Status.mprv | 1 << 11
        hart.updateRegime()
        hart[register: 5] = 0
        try machine.run([RV.ld(10, 6, 0), RV.csrw(CSR.pmpcfg0, 5), RV.ld(10, 6, 0)])
        #expect(hart.mcause == 5 && hart.mepc == TestMachine.base + 8)
    }

    @Test("page tables are read with supervisor's permissions: an access fault where they are closed")
    func tables() throws {
        let root = TestMachine.base + 0x10_0000
        let machine = try machine([(0x18, range(root, 4096)), (0x1f, .max)])
        machine.hart.satp = 8 << 60 | root >> 12
        try machine.run([RV.nop])
        #expect(machine.hart.mcause == 1 && machine.hart.mtval == TestMachine.base)
    }
}
