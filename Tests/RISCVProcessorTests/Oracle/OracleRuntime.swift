/// The bare-metal program around the test sequences.
///
/// It runs in machine mode, puts each sequence's state into the registers, enters it by `mret`, logs and skips every trap it takes
/// and, at its closing `ecall`, writes all registers into the sequence's record. Then it ends the machine by the test finisher.
///
/// A trap that goes to supervisor mode arrives at a stub, `ecall; sret`, so that its log entry too is written in machine mode.
enum OracleRuntime {
    static let base: UInt64 = 0x8000_0000
    static let contextAddress = base + 0x2000
    /// `stvec` of all sequences: a page that has nothing else.
    static let stubAddress = base + 0x3000
    static let recordsAddress = base + 0x10000
    static let recordByteCount = 8192
    static let finisherAddress: UInt64 = 0x10_0000
    static let trapsMax = 100
    static let wordsPerTrap = 7

    /// CSRs set before each sequence and written out after it, in this order.
    static let csrs: [(name: String, number: Int)] =
        [
            ("mideleg", CSR.mideleg), ("medeleg", CSR.medeleg), ("mie", CSR.mie), ("mip", CSR.mip),
            ("mcause", CSR.mcause), ("mtval", CSR.mtval), ("satp", CSR.satp), ("stvec", CSR.stvec),
            ("sscratch", CSR.sscratch), ("sepc", CSR.sepc), ("scause", CSR.scause), ("stval", CSR.stval),
            ("mcounteren", CSR.mcounteren), ("scounteren", CSR.scounteren), ("menvcfg", CSR.menvcfg),
            ("senvcfg", CSR.senvcfg),
        ] + (0..<8).map { ("pmpaddr\($0)", CSR.pmpaddr0 + $0) } + [("pmpcfg0", CSR.pmpcfg0), ("mstatus", CSR.mstatus)]

    /// Machine mode, floating point on, all of memory allowed by the last of eight PMP entries, hardware updates of A and D on
    /// (which a processor without `menvcfg.ADUE` ignores).
    static let defaults: [Int: UInt64] = [
        CSR.mstatus: 0xa_0000_0000 | 3 << 13 | 3 << 11,
        CSR.stvec: stubAddress,
        CSR.pmpaddr0 + 7: .max >> 10,
        CSR.pmpcfg0: 0x1f << 56,
        CSR.menvcfg: 1 << 61,
    ]

    // Offsets into a record.
    static let entryOffset = 0, xOffset = 0, fOffset = 256, fcsrOffset = 512, endOffset = 520, flagsOffset = 528
    static let csrOffset = 544
    static let outXOffset = 1024, outFOffset = 1280, outFCSROffset = 1536, outCauseOffset = 1544, trapCountOffset = 1552
    static let outCSROffset = 1560, trapsOffset = 2048

    /// The runtime's code, to be put at ``base``.
    static func code(sequenceCount: Int) -> [UInt32] {
        // Context: x1 to x31 at 8 times their number, then the record's address and the next sequence's number.
        let recordSlot = 256
        let indexSlot = 264
        var a = LabelAssembler()
        let (x2, x5, x6, x7, x10, x11, x12, x13, x14, x15, x16, x17, x18, x31) = (
            2, 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 31
        )

        // Power-on.
        a.emit(Encode.u(0x17, x5, 0))  // auipc x5, 0
        let handlerFixup = a.words.count
        a.emit(Encode.addi(x5, x5, 0))
        a.emit(Encode.csrw(CSR.mtvec, x5))
        a.emit(Encode.li(x2, contextAddress))
        a.emit(Encode.csrw(CSR.mscratch, x2))
        a.emit(Encode.li(x5, 0x200_4000))  // no timer interrupt
        a.emit(Encode.addi(x6, 0, -1), Encode.sd(x6, 0, x5))

        a.label("next")
        a.emit(Encode.ld(x5, indexSlot, x2))
        a.emit(Encode.li(x6, UInt64(sequenceCount)))
        a.bgeu(x5, x6, "done")
        a.emit(Encode.i(0x13, 1, x7, x5, 13))
        a.emit(Encode.li(x6, recordsAddress))
        a.emit(Encode.add(x7, x7, x6))
        a.emit(Encode.sd(x7, recordSlot, x2))
        a.emit(Encode.addi(x5, x5, 1), Encode.sd(x5, indexSlot, x2))
        a.emit(Encode.li(x5, 3 << 13), Encode.csrrs_(0, CSR.mstatus, x5))
        for number in 0..<32 { a.emit(Encode.fld(number, fOffset + number * 8, x7)) }
        a.emit(Encode.ld(x5, fcsrOffset, x7), [Encode.csrw(CSR.fcsr, x5)])
        // PMP first opened, so that no entry of before blocks the change.
        for (index, csr) in csrs.enumerated() {
            a.emit(Encode.ld(x5, csrOffset + index * 8, x7), [Encode.csrw(csr.number, x5)])
        }
        a.emit(Encode.sfenceVMA, Encode.fenceI)
        a.emit(Encode.ld(x5, entryOffset, x7), [Encode.csrw(CSR.mepc, x5)])
        a.emit(Encode.addi(x31, x7, 0))
        for number in 1..<31 { a.emit(Encode.ld(number, xOffset + number * 8, x31)) }
        a.emit(Encode.ld(x31, xOffset + 31 * 8, x31), [Encode.mret])

        a.label("done")
        a.emit(Encode.li(x5, finisherAddress))
        a.emit(Encode.li(x6, 0x5555))
        a.emit(Encode.sw(x6, 0, x5))
        a.label("ended")
        a.jump("ended")

        // Trap.
        while a.words.count % 64 != 0 { a.emit(Encode.nop) }
        vectorTable(&a, tval: CSR.mtval)
        a.label("handler")
        a.emit(Encode.csrrw(x2, CSR.mscratch, x2))
        for number in [1] + Array(3..<32) { a.emit(Encode.sd(number, number * 8, x2)) }
        a.emit(Encode.csrr(x5, CSR.mscratch), Encode.sd(x5, 16, x2), Encode.csrw(CSR.mscratch, x2))
        a.emit(Encode.ld(x7, recordSlot, x2))
        a.emit(Encode.csrr(x10, CSR.mcause), Encode.csrr(x11, CSR.mepc))
        // What a breakpoint leaves in mtval and stval, its address or zero, is the implementation's choice.
        a.emit(Encode.addi(x5, 0, 3))
        a.bne(x10, x5, "notBreakpoint")
        a.emit(Encode.csrw(CSR.mtval, 0))
        a.label("notBreakpoint")
        a.emit(Encode.csrr(x6, CSR.scause))
        a.bne(x6, x5, "notSupervisorBreakpoint")
        a.emit(Encode.csrw(CSR.stval, 0))
        a.label("notSupervisorBreakpoint")
        a.emit(Encode.csrr(x12, CSR.mtval), Encode.csrr(x13, CSR.mstatus))
        a.emit(Encode.csrr(x15, CSR.scause), Encode.csrr(x16, CSR.sepc))
        a.emit(Encode.ld(x14, endOffset, x7))
        a.blt(x10, 0, "log")
        a.emit(Encode.addi(x5, 0, 8))
        a.bltu(x10, x5, "log")
        a.emit(Encode.addi(x6, 0, 11))
        a.bltu(x6, x10, "log")
        a.beq(x11, x14, "finish")
        a.emit(Encode.li(x6, stubAddress))
        a.bne(x11, x6, "log")
        a.bne(x15, x5, "log")
        a.beq(x16, x14, "finish")

        a.label("log")
        a.emit(Encode.ld(x17, trapCountOffset, x7))
        a.emit(Encode.addi(x5, 0, trapsMax))
        a.bgeu(x17, x5, "finish")
        a.emit(Encode.addi(x18, 0, wordsPerTrap * 8))
        a.emit(Encode.r(0x33, 0, 1, x18, x18, x17))  // mul
        a.emit(Encode.addi(x17, x17, 1), Encode.sd(x17, trapCountOffset, x7))
        a.emit(Encode.li(x5, UInt64(trapsOffset)))
        a.emit(Encode.add(x18, x18, x5), Encode.add(x18, x18, x7))
        for (index, register) in [x10, x11, x12, x13, x15, x16].enumerated() {
            a.emit(Encode.sd(register, index * 8, x18))
        }
        a.emit(Encode.csrr(x5, CSR.stval), Encode.sd(x5, 48, x18))
        a.blt(x10, 0, "interrupt")
        a.emit(Encode.li(x6, stubAddress))
        a.beq(x11, x6, "stub")
        // Where there was no instruction to be had, go back to where ra says the jump came from.
        a.emit(Encode.addi(x18, x10, 0))
        a.emit(Encode.addi(x17, x11, 0))
        a.emit(Encode.addi(x16, 0, 0))  // not from the stub
        a.label("skip")
        a.beq(x18, 0, "fetchFault")
        a.emit(Encode.addi(x5, 0, 1))
        a.beq(x18, x5, "fetchFault")
        a.emit(Encode.addi(x5, 0, 12))
        a.beq(x18, x5, "fetchFault")
        a.emit(Encode.ld(x5, flagsOffset, x7))
        a.bne(x5, 0, "skipWord")
        a.emit(Encode.lhu(x6, 0, x17), Encode.i(0x13, 7, x6, x6, 3))
        a.emit(Encode.addi(x5, 0, 3))
        a.beq(x6, x5, "skipWord")
        a.emit(Encode.addi(x17, x17, 2))
        a.jump("setReturn")
        a.label("skipWord")
        a.emit(Encode.addi(x17, x17, 4))
        a.jump("setReturn")
        a.label("fetchFault")
        a.emit(Encode.ld(x17, 8, x2))
        a.label("setReturn")
        a.bne(x16, 0, "setSupervisorReturn")
        a.emit(Encode.csrw(CSR.mepc, x17))

        a.label("resume")
        for number in [1] + Array(3..<32) { a.emit(Encode.ld(number, number * 8, x2)) }
        a.emit(Encode.ld(x2, 16, x2), [Encode.mret])

        a.label("interrupt")
        a.emit(Encode.addi(x5, x10, 0))
        a.label("disable")
        a.emit(Encode.addi(x6, 0, 1), Encode.r(0x33, 1, 0, x6, x6, x5))  // sll by the low six bits
        a.emit(Encode.csrrc(0, CSR.mie, x6))
        a.jump("resume")

        a.label("stub")
        a.emit(Encode.addi(x11, x11, 4), Encode.csrw(CSR.mepc, x11))
        a.emit(Encode.addi(x5, x15, 0))
        a.blt(x15, 0, "disable")
        a.emit(Encode.addi(x18, x15, 0), Encode.addi(x17, x16, 0), Encode.addi(x16, 0, 1))
        a.jump("skip")
        a.label("setSupervisorReturn")
        a.emit(Encode.csrw(CSR.sepc, x17))
        a.jump("resume")

        a.label("finish")
        a.emit(Encode.addi(x18, x7, outXOffset))
        for number in 1..<32 { a.emit(Encode.ld(x5, number * 8, x2), [Encode.sd(x5, number * 8, x18)]) }
        a.emit(Encode.sd(x10, outCauseOffset, x7))
        for (index, csr) in csrs.enumerated() {
            a.emit(Encode.csrr(x5, csr.number), Encode.sd(x5, outCSROffset + index * 8, x7))
        }
        a.emit(Encode.li(x5, 3 << 13), Encode.csrrs_(0, CSR.mstatus, x5))
        for number in 0..<32 { a.emit(Encode.fsd(number, outFOffset + number * 8, x7)) }
        a.emit(Encode.csrr(x5, CSR.fcsr), Encode.sd(x5, outFCSROffset, x7))
        a.jump("next")

        var code = a.finished()
        code[handlerFixup] = Encode.addi(x5, x5, a.offset(of: "table") | 1)
        return code
    }

    /// The stub's page: the stub, and a vector table that leads to it.
    static let stub: [UInt32] = {
        var a = LabelAssembler()
        a.label("handler")
        a.emit(Encode.ecall, Encode.sret)
        while a.words.count % 64 != 0 { a.emit(Encode.nop) }
        vectorTable(&a, tval: CSR.stval)
        return a.finished()
    }()

    /// Where `stvec` points in vectored mode.
    static let vectoredStub = (stubAddress + 256) | 1

    /// A vector table whose every interrupt leaves its number in `mtval` or `stval` and goes on at "handler".
    private static func vectorTable(_ a: inout LabelAssembler, tval: Int) {
        a.label("table")
        a.jump("handler")
        for interrupt in 1..<12 { a.jump("interrupt\(interrupt)") }
        for interrupt in 1..<12 {
            a.label("interrupt\(interrupt)")
            a.emit(Encode.i(0x73, 5, 0, interrupt, tval))
            a.jump("handler")
        }
    }
}

extension Encode {
    /// One instruction as a list, to stand beside ``li(_:_:)``.
    static func csrrs_(_ rd: Int, _ csr: Int, _ rs1: Int) -> [UInt32] { [csrrs(rd, csr, rs1)] }
}

extension LabelAssembler {
    mutating func emit(_ first: UInt32, _ rest: [UInt32]) { emit([first] + rest) }
    mutating func emit(_ first: [UInt32], _ rest: [UInt32]) { emit(first + rest) }
}
