import ProcessorModel
import Testing

@testable import RISCVProcessor

@Suite("Traps, interrupts and control registers") struct TrapTests {
    private let handler = TestMachine.base + 0x1000

    /// A machine whose trap handlers of both modes end the run.
    private func machine(isa: String? = nil) throws -> TestMachine {
        let machine = try TestMachine(isa: isa)
        machine.hart.mtvec = handler
        machine.hart.stvec = handler + 0x100
        machine.openProtection()
        try machine.write(RV.stop, at: handler)
        try machine.write(RV.stop, at: handler + 0x100)
        return machine
    }

    @Test(
        "an absent register is an illegal instruction, with mtvec in force at once",
        arguments: [0x3c0, 0x3a4, 0x30c, 0x34a, 0x34b, 0xda0, 0x7a8, 0x5a8, 0x3b0 + 16, 0x015, 0x600, 0x3a1, 0xc03])
    func absent(_ register: Int) throws {
        let machine = try machine()
        machine.hart.mtvec = 0
        machine.hart[register: 5] = handler
        try machine.run([RV.csrw(CSR.mtvec, 5), RV.csrr(10, register)])
        #expect(machine.hart.mcause == 2)
        #expect(machine.hart.mepc == TestMachine.base + 4)
        #expect(machine.hart.mtval == UInt64(RV.csrr(10, register)))
    }

    @Test(
        "registers of extensions that the configuration omits are absent",
        arguments: [CSR.stimecmp, CSR.time, CSR.cycle, CSR.instret, CSR.fcsr])
    func omittedRegisters(_ register: Int) throws {
        let machine = try machine(isa: "rv64ima")
        try machine.run([RV.csrr(10, register)])
        #expect(machine.hart.mcause == 2)
    }

    @Test("writing a read-only register is illegal, reading it with csrrs x0 is not")
    func readOnly() throws {
        let machine = try machine()
        try machine.run([RV.csrr(10, CSR.mhartid), RV.csrrs(10, CSR.mhartid, 5)])
        #expect(machine.hart.mcause == 2 && machine.hart.mepc == TestMachine.base + 4)
    }

    @Test("a lower privilege cannot reach a higher one's registers")
    func privilege() throws {
        let machine = try machine()
        machine.hart.privilege = 1
        machine.hart.updateRegime()
        try machine.run([RV.csrr(10, CSR.sstatus), RV.csrr(10, CSR.mstatus)])
        #expect(machine.hart.mcause == 2 && machine.hart.mepc == TestMachine.base + 4)
        #expect(machine.hart.status >> 11 & 3 == 1)
    }

    @Test("ecall names the mode it came from and goes where medeleg says", arguments: [0, 1, 3] as [UInt64])
    func call(_ privilege: UInt64) throws {
        for delegates in [false, true] {
            let machine = try machine()
            machine.hart.medeleg = delegates ? 0xb3ff : 0
            machine.hart.privilege = privilege
            machine.hart.updateRegime()
            try machine.run([RV.nop, RV.ecall])
            if delegates && privilege < 3 {
                #expect(machine.hart.scause == 8 + privilege && machine.hart.sepc == TestMachine.base + 4)
                #expect(machine.hart.privilege == 1)
                #expect(machine.hart.status >> 8 & 1 == privilege)
            } else {
                #expect(machine.hart.mcause == 8 + privilege && machine.hart.mepc == TestMachine.base + 4)
                #expect(machine.hart.status >> 11 & 3 == privilege)
            }
        }
    }

    @Test("mret and sret restore mode and interrupt enable")
    func returns() throws {
        let machine = try machine()
        let hart = machine.hart
        hart.mepc = TestMachine.base + 0x200
        hart.status |= Status.mpie | 1 << 11 | Status.mprv
        try machine.write([RV.csrr(10, CSR.sstatus)] + RV.stop, at: TestMachine.base + 0x200)
        try machine.run([RV.mret])
        #expect(hart.privilege == 1)
        #expect(hart.status & Status.mie != 0 && hart.status & Status.mpie != 0)
        #expect(hart.status & (Status.mpp | Status.mprv) == 0)

        hart.sepc = TestMachine.base + 0x300
        hart.status = hart.status & ~(Status.spp | Status.sie) | Status.spie
        hart.pc = TestMachine.base + 0x400
        try machine.write([RV.sret], at: TestMachine.base + 0x400)
        try machine.write(RV.stop, at: TestMachine.base + 0x300)
        machine.runHart(0)
        #expect(hart.privilege == 0 && hart.status & Status.sie != 0)
    }

    @Test("TSR, TVM and TW make sret, satp, sfence.vma and wfi illegal in S-mode")
    func trapping() throws {
        let words = [RV.sret, RV.csrr(10, CSR.satp), RV.csrw(CSR.satp, 0), RV.sfenceVMA(), RV.wfi]
        for (word, bit) in zip(words, [Status.tsr, Status.tvm, Status.tvm, Status.tvm, Status.tw]) {
            let machine = try machine()
            machine.hart.status |= bit
            machine.hart.privilege = 1
            machine.hart.updateRegime()
            try machine.run([word])
            #expect(machine.hart.mcause == 2 && machine.hart.mtval == UInt64(word))
        }
    }

    @Test("ebreak gives its own address, an illegal instruction its bits, compressed ones too")
    func values() throws {
        let machine = try machine()
        try machine.run([RV.nop, RV.ebreak])
        #expect(machine.hart.mcause == 3 && machine.hart.mtval == TestMachine.base + 4)
        machine.hart.pc = TestMachine.base + 0x800
        try machine.write(halfwords: [0x0001, 0x8000], at: TestMachine.base + 0x800)
        machine.runHart(0)
        #expect(machine.hart.mcause == 2 && machine.hart.mtval == 0x8000)
        #expect(machine.hart.mepc == TestMachine.base + 0x802)
    }

    @Test("instructions before a fault count as retired, the faulting one does not")
    func countedUpToFault() throws {
        let machine = try machine()
        try machine.write([RV.csrr(10, CSR.minstret)] + RV.stop, at: handler)
        try machine.run([RV.nop, RV.nop, RV.nop, RV.ld(1, 0, 0)])
        #expect(machine.hart.mcause == 5)
        #expect(machine.hart[register: 10] == 3)
    }

    @Test("mcycle and minstret can be set and stopped, and count from there")
    func counters() throws {
        let machine = try machine()
        machine.hart[register: 5] = 1000
        machine.hart[register: 6] = 5
        try machine.run([
            RV.csrw(CSR.minstret, 5), RV.csrr(10, CSR.minstret), RV.nop, RV.csrr(11, CSR.minstret),
            RV.csrw(CSR.mcountinhibit, 6), RV.nop, RV.csrr(12, CSR.minstret), RV.nop, RV.csrr(13, CSR.minstret),
            RV.csrw(CSR.mcountinhibit, 0), RV.csrr(14, CSR.minstret), RV.nop, RV.csrr(15, CSR.minstret),
        ])
        let hart = machine.hart
        #expect(hart[register: 10] == 1000)
        #expect(hart[register: 11] == 1002)
        #expect(hart[register: 12] == hart[register: 13])
        #expect(hart[register: 15] == hart[register: 14] + 2)
    }

    @Test("user mode reads a counter only where mcounteren and scounteren let it")
    func counterEnables() throws {
        for (machineBits, supervisorBits, isLegal) in [(7, 7, true), (7, 0, false), (0, 7, false)]
            as [(UInt64, UInt64, Bool)]
        {
            let machine = try machine()
            machine.hart.mcounteren = machineBits
            machine.hart.scounteren = supervisorBits
            machine.hart.privilege = 0
            machine.hart.updateRegime()
            try machine.run([RV.csrr(10, CSR.time), RV.csrr(10, CSR.instret)])
            #expect((machine.hart.mcause == 2) == !isLegal)
        }
    }

    @Test("time is the virtual clock in units of 100 ns")
    func time() throws {
        let machine = try TestMachine(nanoseconds: 123_456_789)
        try machine.run([RV.csrr(10, CSR.time)])
        #expect(machine.hart[register: 10] == 1_234_567)
    }

    // MARK: Interrupts

    @Test(
        "an input from outside interrupts, in order of priority",
        arguments: [
            ([.machineExternal, .machineSoftware, .machineTimer], 11), ([.machineSoftware, .machineTimer], 3),
            ([.machineTimer, .supervisorExternal], 7), ([.supervisorExternal], 9),
        ] as [([ProcessorInterrupt], UInt64)])
    func inputs(_ inputs: [ProcessorInterrupt], _ expected: UInt64) throws {
        let machine = try machine()
        for input in inputs { machine.hart.setInterrupt(input, true) }
        machine.hart[register: 5] = .max
        try machine.run([RV.csrw(CSR.mie, 5), RV.csrrsi(0, CSR.mstatus, 8), RV.jal(0, 0)])
        #expect(machine.hart.mcause == 1 << 63 | expected)
        #expect(machine.hart.mepc == TestMachine.base + 8)
    }

    @Test("vectored mode adds four times the cause for interrupts only")
    func vectored() throws {
        let machine = try machine()
        machine.hart.mtvec = handler | 1
        try machine.write([RV.addi(10, 0, 1)] + RV.stop, at: handler)
        try machine.write([RV.addi(10, 0, 2)] + RV.stop, at: handler + 4 * 7)
        machine.hart.setInterrupt(.machineTimer, true)
        machine.hart[register: 5] = 1 << 7
        try machine.run([RV.csrw(CSR.mie, 5), RV.csrrsi(0, CSR.mstatus, 8), RV.jal(0, 0)])
        #expect(machine.hart[register: 10] == 2)
        machine.hart.pc = TestMachine.base + 0x40
        try machine.write([RV.ecall], at: TestMachine.base + 0x40)
        machine.runHart(0)
        #expect(machine.hart[register: 10] == 1)
    }

    @Test("a delegated interrupt waits in machine mode and is taken in the mode below")
    func delegated() throws {
        let machine = try machine()
        let hart = machine.hart
        hart.setInterrupt(.supervisorExternal, true)
        hart.mideleg = 0x222
        hart.mie = 0x222
        hart.status |= Status.mie | Status.sie
        try machine.run([RV.nop, RV.nop])
        #expect(hart.scause == 0)
        hart.mepc = TestMachine.base + 0x200
        hart.status &= ~Status.mpp
        hart.pc = TestMachine.base + 0x100
        try machine.write([RV.mret], at: TestMachine.base + 0x100)
        try machine.write([RV.jal(0, 0)], at: TestMachine.base + 0x200)
        machine.runHart(0)
        #expect(hart.scause == 1 << 63 | 9 && hart.sepc == TestMachine.base + 0x200)
    }

    @Test("software sets SSIP through sip and STIP only through mip; SEIP of software is not the input's")
    func softwarePending() throws {
        let machine = try machine()
        let hart = machine.hart
        hart.mideleg = 0x222
        hart.setInterrupt(.supervisorExternal, true)
        hart[register: 5] = 0x222
        hart[register: 6] = 0x200
        try machine.run([
            RV.csrrs(0, CSR.sip, 5), RV.csrr(10, CSR.mip), RV.csrrs(0, CSR.mip, 5), RV.csrr(11, CSR.mip),
            RV.csrrc(12, CSR.mip, 6), RV.csrr(13, CSR.mip),
        ])
        #expect(hart[register: 10] == 0x202)
        #expect(hart[register: 11] == 0x222)
        hart.setInterrupt(.supervisorExternal, false)
        #expect(hart.pendingValue == 0x022)
    }

    @Test("stimecmp drives STIP while menvcfg.STCE is set, and only then is there for S-mode")
    func compare() throws {
        let machine = try TestMachine(nanoseconds: 1_000_000)
        machine.openProtection()
        let hart = machine.hart
        hart.mtvec = handler
        try machine.write(RV.stop, at: handler)
        hart[register: 5] = 1 << 63
        hart[register: 6] = 10_000
        hart[register: 7] = 10_001
        try machine.run([
            RV.csrw(CSR.menvcfg, 5), RV.csrw(CSR.stimecmp, 6), RV.csrr(10, CSR.mip), RV.csrw(CSR.stimecmp, 7),
            RV.csrr(11, CSR.mip),
        ])
        #expect(hart[register: 10] == 0x20 && hart[register: 11] == 0)
        hart.menvcfg = 0
        hart.mcounteren = 7
        hart.privilege = 1
        hart.updateRegime()
        hart.pc = TestMachine.base + 0x100
        try machine.write([RV.csrr(10, CSR.stimecmp)], at: TestMachine.base + 0x100)
        machine.runHart(0)
        #expect(hart.mcause == 2)
    }

    @Test("wfi waits until the deadline of stimecmp and goes on behind itself")
    func waits() throws {
        let machine = try TestMachine(nanoseconds: 500)
        let hart = machine.hart
        hart.menvcfg = EnvironmentConfiguration.stce
        hart.stimecmp = 77
        hart.mie = 0x20
        try machine.write([RV.wfi, RV.addi(10, 0, 1)] + RV.stop)
        #expect(hart.run() == .waiting(untilNanoseconds: 7700))
        #expect(!hart.hasPendingInterrupt)
        #expect(hart.run() == .waiting(untilNanoseconds: 7700))
        machine.clock.set(nanoseconds: 7700)
        #expect(hart.hasPendingInterrupt)
        #expect(hart.run() == .kicked)
        #expect(hart[register: 10] == 1)
        #expect(hart.retiredInstructions == 3)
    }

    @Test("wfi with something pending and enabled goes on, even if the interrupt is not taken")
    func doesNotWait() throws {
        let machine = try machine()
        machine.hart.mie = 1 << 7
        machine.hart.setInterrupt(.machineTimer, true)
        let waits = try machine.run([RV.wfi, RV.addi(10, 0, 1)])
        #expect(waits == 0 && machine.hart[register: 10] == 1)
    }

    @Test("an input that rises wakes, a kick too, and a kick stays pending until seen")
    func wakes() throws {
        let machine = try machine()
        let wakes = Counter()
        machine.hart.setWakeUp { wakes.add() }
        machine.hart.setInterrupt(.machineTimer, true)
        machine.hart.setInterrupt(.machineTimer, true)
        #expect(wakes.value == 1)
        machine.hart.kick()
        #expect(wakes.value == 2)
        try machine.write([RV.jal(0, 0)])
        #expect(machine.hart.run() == .kicked)
        #expect(machine.hart.retiredInstructions == 0)
    }

    @Test("a store to a device that raises an input is interrupted right behind itself")
    func deviceRaises() throws {
        let machine = try machine()
        let hart = machine.hart
        hart.mie = 1 << 11
        hart.status |= Status.mie
        machine.bus.onStore.withLock { action in
            action = { [weak hart] _ in hart?.setInterrupt(.machineExternal, true) }
        }
        hart[register: 6] = TestBus.registers
        try machine.run([RV.addi(5, 0, 1), RV.sb(5, 6, 3), RV.addi(10, 0, 1)])
        #expect(hart.mcause == Cause.interrupt | 11)
        #expect(hart.mepc == TestMachine.base + 8 && hart[register: 10] == 0)
        #expect(machine.bus.stores.withLock { $0 } == [.init(address: TestBus.registers + 3, width: 1, value: 1)])
    }

    @Test("a device register is loaded with the width asked for; where nothing is, an access fault")
    func devices() throws {
        let machine = try machine()
        machine.hart[register: 6] = TestBus.registers
        machine.hart[register: 7] = 0x3000_0000
        try machine.run([RV.lbu(10, 6, 5), RV.lw(11, 6, 0), RV.ld(12, 6, 8), RV.ld(13, 7, 8)])
        #expect(machine.hart[register: 10] == 5)
        #expect(machine.hart[register: 11] == 0x0302_0100)
        #expect(machine.hart[register: 12] == 0x0f0e_0d0c_0b0a_0908)
        #expect(machine.hart.mcause == 5 && machine.hart.mtval == 0x3000_0008)
        machine.hart.pc = TestMachine.base + 0x200
        try machine.write([RV.sd(0, 7, 16)], at: TestMachine.base + 0x200)
        machine.runHart(0)
        #expect(machine.hart.mcause == 7 && machine.hart.mtval == 0x3000_0010)
        machine.hart.pc = 0x3000_0000
        machine.runHart(0)
        #expect(machine.hart.mcause == 1 && machine.hart.mtval == 0x3000_0000 && machine.hart.mepc == 0x3000_0000)
    }

    @Test("without C, a jump to an odd halfword traps at the jump", arguments: [0, 1, 2])
    func misalignedJump(_ form: Int) throws {
        let machine = try machine(isa: "rv64ima")
        machine.hart[register: 6] = TestMachine.base + 0x102
        let word = [RV.jal(1, 6), RV.jalr(1, 6, 0), RV.beq(0, 0, 6)][form]
        machine.hart[register: 1] = 99
        try machine.run([RV.nop, word])
        #expect(machine.hart.mcause == 0 && machine.hart.mepc == TestMachine.base + 4)
        #expect(machine.hart[register: 1] == 99)
    }

    @Test("FS off makes every floating-point instruction illegal; any use makes it dirty")
    func floatState() throws {
        let uses: [UInt32] = [
            RV.i(0x07, 3, 1, 6, 0), RV.s(3, 1, 6, 0, opcode: 0x27), RV.r(0x53, 0, 0x01, 1, 2, 3), RV.csrr(10, CSR.fcsr),
            RV.r(0x43, 0, 0x11, 1, 2, 3),
        ]
        for word in uses {
            let machine = try machine()
            machine.hart[register: 6] = TestMachine.base + 0x800
            try machine.run([word])
            #expect(machine.hart.mcause == 2)
        }
        let machine = try machine()
        let hart = machine.hart
        hart[register: 6] = TestMachine.base + 0x800
        hart.x[Word.fs] = 1
        try machine.run([RV.s(3, 1, 6, 0, opcode: 0x27), RV.csrr(10, CSR.mstatus), uses[0], RV.csrr(11, CSR.mstatus)])
        #expect(hart[register: 10] >> 13 & 3 == 1 && hart[register: 10] >> 63 == 0)
        #expect(hart[register: 11] >> 13 & 3 == 3 && hart[register: 11] >> 63 == 1)
    }

    @Test("a reserved rounding mode is illegal, in the instruction and in frm")
    func rounding() throws {
        for (mode, frm, isLegal) in [
            (0, 5, true), (4, 0, true), (5, 0, false), (6, 0, false), (7, 4, true), (7, 5, false), (7, 7, false),
        ]
            as [(UInt32, UInt64, Bool)]
        {
            let machine = try machine()
            machine.hart.x[Word.fs] = 1
            machine.hart.x[Word.frm] = frm
            try machine.run([RV.r(0x53, mode, 1, 1, 2, 3)])
            #expect((machine.hart.mcause == 0) == isLegal)
        }
    }

    @Test("a single that is not boxed reads as the canonical NaN; results are boxed")
    func boxing() throws {
        let machine = try machine()
        let hart = machine.hart
        hart.x[Word.fs] = 1
        hart.x[Word.float + 2] = 0x3f80_0000
        hart.x[Word.float + 3] = 0xffff_ffff_3f80_0000
        try machine.run([
            RV.r(0x53, 0, 0, 4, 2, 3), RV.r(0x53, 0, 0, 5, 3, 3), RV.r(0x53, 0, 0x10, 6, 2, 2),
            RV.r(0x53, 0, 0x70, 10, 2, 0), RV.s(2, 2, 31, 0, opcode: 0x27),
        ])
        #expect(hart.x[Word.float + 4] == 0xffff_ffff_7fc0_0000)
        #expect(hart.x[Word.float + 5] == 0xffff_ffff_4000_0000)
        #expect(hart.x[Word.float + 6] == 0xffff_ffff_7fc0_0000)
        #expect(hart[register: 10] == 0x3f80_0000)
    }

    @Test(
        "the four fused multiply-adds have their signs",
        arguments: [(0x43, 7.0), (0x47, 5.0), (0x4b, -5.0), (0x4f, -7.0)])
    func fused(_ opcode: UInt32, _ expected: Double) throws {
        let machine = try machine()
        let hart = machine.hart
        hart.x[Word.fs] = 1
        hart.x[Word.float + 1] = (2.0).bitPattern
        hart.x[Word.float + 2] = (3.0).bitPattern
        hart.x[Word.float + 3] = (1.0).bitPattern
        try machine.run([RV.r(opcode, 0, 3 << 2 | 1, 4, 1, 2)])
        #expect(Double(bitPattern: hart.x[Word.float + 4]) == expected)
    }

    @Test("cbo.zero clears its block; each cbo needs its permission below machine mode")
    func cacheBlocks() throws {
        func cbo(_ operation: Int) -> UInt32 { RV.i(0x0f, 2, 0, 6, operation) }
        let machine = try machine()
        let hart = machine.hart
        hart[register: 6] = TestMachine.base + 0x810
        try machine.memory.write(TestMachine.base + 0x7c0, [UInt8](repeating: 0xaa, count: 0x100))
        try machine.run([cbo(4), cbo(0), cbo(1), cbo(2)])
        #expect(hart.mcause == 0)
        #expect(try machine.memory.bytes(at: TestMachine.base + 0x800, count: 64) == [UInt8](repeating: 0, count: 64))
        #expect(try machine.memory.load(TestMachine.base + 0x7ff, as: UInt8.self) == 0xaa)
        #expect(try machine.memory.load(TestMachine.base + 0x840, as: UInt8.self) == 0xaa)
        for (operation, bits) in [(0, 0x30), (1, 0x40), (2, 0x40), (4, 0x80)] as [(Int, UInt64)] {
            for (menvcfg, senvcfg, isLegal) in [(bits, bits, true), (bits, 0, false), (0, bits, false)] {
                let machine = try self.machine()
                machine.hart[register: 6] = TestMachine.base + 0x810
                machine.hart.menvcfg = menvcfg
                machine.hart.senvcfg = senvcfg
                machine.hart.privilege = 0
                machine.hart.updateRegime()
                try machine.run([cbo(operation)])
                #expect((machine.hart.mcause != 2) == isLegal)
            }
        }
    }
}
