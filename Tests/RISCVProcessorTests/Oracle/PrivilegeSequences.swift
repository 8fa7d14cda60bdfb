extension SequenceBuilder {
    /// A CSR and which of its bits random values may have.
    private struct Writable {
        var csr: Int
        /// Bits a write may set.
        var mask: UInt64
        /// Bits every written value has.
        var fixed: UInt64 = 0
    }

    private static let supervisorRegisters = [
        // MPP, MPRV and UXL are not there; SD, XS and VS are read-only or absent.
        Writable(csr: CSR.sstatus, mask: 0x0c_6122, fixed: 0x2_0000_0000),
        Writable(csr: CSR.sie, mask: 0xbbb), Writable(csr: CSR.sip, mask: 0xbbb),
        Writable(csr: CSR.sscratch, mask: .max), Writable(csr: CSR.sepc, mask: ~1),
        Writable(csr: CSR.scause, mask: 1 << 63 | 0x0f), Writable(csr: CSR.stval, mask: .max),
        Writable(csr: CSR.scounteren, mask: 7),
    ]
    // Interrupt bits without those of the hypervisor extension, which QEMU 7.2 lets be written even when it is off.
    private static let machineRegisters = [
        Writable(csr: CSR.medeleg, mask: 0xb1ff), Writable(csr: CSR.mideleg, mask: 0xbbb),
        Writable(csr: CSR.mie, mask: 0xbbb), Writable(csr: CSR.mip, mask: 0xbbb),
        Writable(csr: CSR.mcounteren, mask: 7),
        Writable(csr: CSR.mepc, mask: ~1), Writable(csr: CSR.mcause, mask: 1 << 63 | 0x0f),
        Writable(csr: CSR.mtval, mask: .max), Writable(csr: CSR.misa, mask: .max),
        // QEMU 7.2 keeps the upper ten bits, which have to be zero.
        Writable(csr: CSR.pmpaddr0, mask: .max >> 10), Writable(csr: CSR.pmpaddr0 + 3, mask: .max >> 10),
        Writable(csr: CSR.pmpaddr0 + 15, mask: .max >> 10),
    ]

    /// Reads and writes one CSR, by any of the six instructions.
    private mutating func access(_ register: Writable) {
        let function = UInt32(pick([1, 2, 3, 5, 6, 7]))
        if function >= 5 {
            let mask = register.fixed == 0 ? register.mask : 0
            add("csr immediate", Encode.i(0x73, function, destination(), Int(random.below(32) & mask), register.csr))
        } else if chance(1, in: 4) {
            add("csr read", Encode.csrr(destination(), register.csr))
        } else {
            let bits = value() & register.mask
            let all = function == 3 ? bits : bits | register.fixed
            add(
                Step(
                    "csr",
                    Encode.li(Register.t0, all) + [Encode.i(0x73, function, destination(), Register.t0, register.csr)]))
        }
    }

    private mutating func limited(_ register: Writable) -> Writable {
        var register = register
        if register.csr == CSR.sie || register.csr == CSR.mie { register.mask &= ~0x222 | enabledInterrupts }
        return register
    }

    mutating func addSupervisorAccess() { access(limited(pick(Self.supervisorRegisters))) }
    mutating func addMachineAccess() { access(limited(pick(Self.machineRegisters))) }

    /// `mstatus` takes a new value, with a privilege mode that exists in MPP.
    mutating func addMachineStatus() {
        let bits = value() & 0x7e_61aa & ~(3 << 11)
        let mode = pick([UInt64(0), 1, 3])
        add(
            Step(
                "csrrw mstatus",
                Encode.li(Register.t0, 0xa_0000_0000 | bits | mode << 11)
                    + [Encode.csrrw(destination(), CSR.mstatus, Register.t0)]))
    }

    /// Counters: whether they may be read, not what they say.
    mutating func addCounterRead() {
        let register = destination()
        add(
            Step(
                "counter",
                [Encode.csrr(register, pick([CSR.cycle, CSR.time, CSR.instret])), Encode.addi(register, 0, 0)]))
    }

    /// Goes on in another mode by `mret`, or by `sret`.
    mutating func addModeChange() {
        let next = sequence.steps.count + 1
        let here = [Encode.u(0x17, Register.t0, 0), Encode.addi(Register.t0, Register.t0, 0)]
        // The return address last: an interrupt that the status enables comes before, and would overwrite it.
        if chance(1, in: 2) {
            let mode = pick([UInt64(0), 1, 1, 3])
            let status =
                Encode.li(Register.t1, 3 << 11) + [Encode.csrrc(0, CSR.mstatus, Register.t1)]
                + Encode.li(Register.t1, mode << 11) + [Encode.csrrs(0, CSR.mstatus, Register.t1)]
            add(
                Step(
                    "mret", status + here + [Encode.csrw(CSR.mepc, Register.t0), Encode.mret],
                    target: .pcRelative(step: next), targetWord: status.count))
        } else {
            let function: UInt32 = chance(1, in: 3) ? 2 : 3  // mostly to user mode
            let status = Encode.li(Register.t1, 1 << 8) + [Encode.i(0x73, function, 0, Register.t1, CSR.sstatus)]
            add(
                Step(
                    "sret", status + here + [Encode.csrw(CSR.sepc, Register.t0), Encode.sret],
                    target: .pcRelative(step: next), targetWord: status.count))
        }
    }

    mutating func addSystem() {
        switch random.below(9) {
        case 0: add("ecall", Encode.ecall)
        case 1: add("ebreak", Encode.ebreak)
        case 2: add("fadd.d", Encode.r(0x53, 0, 1, 1, 2, 3))
        case 3: add("sfence.vma", Encode.sfenceVMA | UInt32(random.below(1024)) << 15)
        case 4: add("satp", Encode.csrr(destination(), CSR.satp))
        case 5: add("satp", Encode.csrw(CSR.satp, 0))
        case 6: add("fence", 0x0ff0_000f)
        case 7: add("fence.i", Encode.fenceI)
        default: add("load from nowhere", Encode.u(0x37, Register.t0, 0x200), Encode.ld(Register.t0, 8, Register.t0))
        }
    }

    /// Of several interrupts at once, QEMU 7.2 takes that with the lowest number, where the manual has an order: one at most is enabled.
    mutating func chooseInterrupt() { enabledInterrupts = pick([0x002, 0x020, 0x200]) }

    /// Where traps and interrupts go, what is pending and enabled, and the guards in `mstatus`.
    mutating func chooseTrapState(mode: UInt64) {
        // An ecall of supervisor mode must always reach machine mode: it is how the runtime hears of traps below.
        sequence.csrs[CSR.medeleg] = random.next() & 0xb1ff & (chance(1, in: 3) ? 0 : .max)
        sequence.csrs[CSR.mideleg] = random.next() & 0x222
        chooseInterrupt()
        sequence.csrs[CSR.mie] = random.next() & enabledInterrupts
        sequence.csrs[CSR.mip] = random.next() & random.next() & 0x222
        if chance(1, in: 2) { sequence.csrs[CSR.stvec] = OracleRuntime.vectoredStub }
        sequence.csrs[CSR.mcounteren] = random.next() & 7
        sequence.csrs[CSR.scounteren] = random.next() & 7
        // MPIE becomes MIE; SIE, SPIE, SPP, SUM, MXR, TVM, TW, TSR at random, FS mostly on.
        let guards = random.next() & random.next() & 0x70_0000
        let floating = chance(7, in: 8) ? UInt64(number(1...3)) : 0
        sequence.csrs[CSR.mstatus] =
            0xa_0000_0000 | mode << 11 | floating << 13 | guards | random.next() & 0x0c_01a2
    }
}

extension SequencePlan {
    static let machineRegisters = SequencePlan(name: "machine CSRs", count: 200) { _, random, place in
        var builder = SequenceBuilder(random, place)
        builder.reserved = [Register.t0]
        builder.chooseInterrupt()
        for _ in 0..<builder.number(8...30) {
            switch builder.random.below(8) {
            case 0...2: builder.addMachineAccess()
            case 3, 4: builder.addSupervisorAccess()
            case 5: builder.addMachineStatus()
            case 6: builder.addSystem()
            default: builder.addArithmetic()
            }
        }
        return builder.sequence
    }

    static let privilege = SequencePlan(name: "privilege", count: 500) { _, random, place in
        var builder = SequenceBuilder(random, place)
        builder.reserved = [Register.t0, Register.t1]
        builder.chooseTrapState(mode: builder.pick([UInt64(0), 1, 1, 3]))
        for _ in 0..<builder.number(8...24) {
            switch builder.random.below(12) {
            case 0...2: builder.addSupervisorAccess()
            case 3: builder.addMachineAccess()
            case 4, 5: builder.addModeChange()
            case 6: builder.addCounterRead()
            case 7...9: builder.addSystem()
            default: builder.addArithmetic()
            }
        }
        return builder.sequence
    }

    /// Every CSR number is read and, if it can be, written with what it held: the same ones are there for the same modes.
    static func registerSweep(mode: UInt64, except excluded: Set<Int>) -> SequencePlan {
        let each = 40  // two traps for each fit the log
        return SequencePlan(name: "all CSR numbers in mode \(mode)", count: 4096 / each + 1) { index, random, place in
            var builder = SequenceBuilder(random, place)
            builder.sequence.csrs[CSR.mstatus] = 0xa_0000_0000 | 3 << 13 | mode << 11
            for csr in index * each..<min(index * each + each, 4096) where !excluded.contains(csr) {
                builder.add(
                    Step(
                        "csr 0x" + String(csr, radix: 16),
                        [
                            Encode.csrr(Register.t0, csr), Encode.csrrw(Register.t0, csr, Register.t0),
                            Encode.addi(Register.t0, 0, 0),
                        ]))
            }
            return builder.sequence
        }
    }
}
