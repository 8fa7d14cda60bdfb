/// Just enough of an assembler for tests: each function answers the 32-bit instruction.
enum RV {
    static func r(_ opcode: UInt32, _ f3: UInt32, _ f7: UInt32, _ rd: Int, _ rs1: Int, _ rs2: Int) -> UInt32 {
        f7 << 25 | UInt32(rs2) << 20 | UInt32(rs1) << 15 | f3 << 12 | UInt32(rd) << 7 | opcode
    }
    static func i(_ opcode: UInt32, _ f3: UInt32, _ rd: Int, _ rs1: Int, _ imm: Int) -> UInt32 {
        UInt32(truncatingIfNeeded: imm) << 20 | UInt32(rs1) << 15 | f3 << 12 | UInt32(rd) << 7 | opcode
    }
    static func s(_ f3: UInt32, _ rs2: Int, _ rs1: Int, _ imm: Int, opcode: UInt32 = 0x23) -> UInt32 {
        let imm = UInt32(truncatingIfNeeded: imm)
        return (imm >> 5 & 0x7f) << 25 | UInt32(rs2) << 20 | UInt32(rs1) << 15 | f3 << 12 | (imm & 31) << 7 | opcode
    }
    static func b(_ f3: UInt32, _ rs1: Int, _ rs2: Int, _ offset: Int) -> UInt32 {
        let imm = UInt32(truncatingIfNeeded: offset)
        return (imm >> 12 & 1) << 31 | (imm >> 5 & 0x3f) << 25 | UInt32(rs2) << 20 | UInt32(rs1) << 15 | f3 << 12
            | (imm >> 1 & 15) << 8 | (imm >> 11 & 1) << 7 | 0x63
    }
    static func jal(_ rd: Int, _ offset: Int) -> UInt32 {
        let imm = UInt32(truncatingIfNeeded: offset)
        return (imm >> 20 & 1) << 31 | (imm >> 1 & 0x3ff) << 21 | (imm >> 11 & 1) << 20 | (imm >> 12 & 0xff) << 12
            | UInt32(rd) << 7 | 0x6f
    }
    static func lui(_ rd: Int, _ imm: UInt32) -> UInt32 { imm << 12 | UInt32(rd) << 7 | 0x37 }
    static func auipc(_ rd: Int, _ imm: UInt32) -> UInt32 { imm << 12 | UInt32(rd) << 7 | 0x17 }
    static func jalr(_ rd: Int, _ rs1: Int, _ imm: Int) -> UInt32 { i(0x67, 0, rd, rs1, imm) }

    static func addi(_ rd: Int, _ rs1: Int, _ imm: Int) -> UInt32 { i(0x13, 0, rd, rs1, imm) }
    static func add(_ rd: Int, _ rs1: Int, _ rs2: Int) -> UInt32 { r(0x33, 0, 0, rd, rs1, rs2) }
    static func sub(_ rd: Int, _ rs1: Int, _ rs2: Int) -> UInt32 { r(0x33, 0, 0x20, rd, rs1, rs2) }
    static func beq(_ rs1: Int, _ rs2: Int, _ offset: Int) -> UInt32 { b(0, rs1, rs2, offset) }
    static func bne(_ rs1: Int, _ rs2: Int, _ offset: Int) -> UInt32 { b(1, rs1, rs2, offset) }
    static func ld(_ rd: Int, _ rs1: Int, _ imm: Int) -> UInt32 { i(0x03, 3, rd, rs1, imm) }
    static func lw(_ rd: Int, _ rs1: Int, _ imm: Int) -> UInt32 { i(0x03, 2, rd, rs1, imm) }
    static func lbu(_ rd: Int, _ rs1: Int, _ imm: Int) -> UInt32 { i(0x03, 4, rd, rs1, imm) }
    static func sd(_ rs2: Int, _ rs1: Int, _ imm: Int) -> UInt32 { s(3, rs2, rs1, imm) }
    static func sw(_ rs2: Int, _ rs1: Int, _ imm: Int) -> UInt32 { s(2, rs2, rs1, imm) }
    static func sb(_ rs2: Int, _ rs1: Int, _ imm: Int) -> UInt32 { s(0, rs2, rs1, imm) }

    static func csrrw(_ rd: Int, _ csr: Int, _ rs1: Int) -> UInt32 { i(0x73, 1, rd, rs1, csr) }
    static func csrrs(_ rd: Int, _ csr: Int, _ rs1: Int) -> UInt32 { i(0x73, 2, rd, rs1, csr) }
    static func csrrc(_ rd: Int, _ csr: Int, _ rs1: Int) -> UInt32 { i(0x73, 3, rd, rs1, csr) }
    static func csrrsi(_ rd: Int, _ csr: Int, _ imm: Int) -> UInt32 { i(0x73, 6, rd, imm, csr) }
    static func csrr(_ rd: Int, _ csr: Int) -> UInt32 { csrrs(rd, csr, 0) }
    static func csrw(_ csr: Int, _ rs1: Int) -> UInt32 { csrrw(0, csr, rs1) }

    static func amo(_ operation: UInt32, _ isDouble: Bool, _ rd: Int, _ rs2: Int, _ rs1: Int) -> UInt32 {
        r(0x2f, isDouble ? 3 : 2, operation << 2, rd, rs1, rs2)
    }
    static func lrd(_ rd: Int, _ rs1: Int) -> UInt32 { amo(2, true, rd, 0, rs1) }
    static func scd(_ rd: Int, _ rs2: Int, _ rs1: Int) -> UInt32 { amo(3, true, rd, rs2, rs1) }

    static let ecall: UInt32 = 0x73
    static let ebreak: UInt32 = 0x0010_0073
    static let mret: UInt32 = 0x3020_0073
    static let sret: UInt32 = 0x1020_0073
    static let wfi: UInt32 = 0x1050_0073
    static let fenceI: UInt32 = 0x100f
    static let nop: UInt32 = 0x13
    static func sfenceVMA(_ rs1: Int = 0, _ rs2: Int = 0) -> UInt32 { r(0x73, 0, 9, 0, rs1, rs2) }
    /// Stores to the test bus' finisher, whose address is in x31, and loops there until the run ends.
    static let stop: [UInt32] = [sw(0, 31, 0), jal(0, 0)]
}

/// Numbers of control registers that tests use.
enum CSR {
    static let fflags = 0x001, frm = 0x002, fcsr = 0x003
    static let sstatus = 0x100, sie = 0x104, stvec = 0x105, scounteren = 0x106, senvcfg = 0x10a
    static let sscratch = 0x140, sepc = 0x141, scause = 0x142, stval = 0x143, sip = 0x144, stimecmp = 0x14d,
        satp = 0x180
    static let mstatus = 0x300, misa = 0x301, medeleg = 0x302, mideleg = 0x303, mie = 0x304, mtvec = 0x305
    static let mcounteren = 0x306, menvcfg = 0x30a, mcountinhibit = 0x320
    static let mscratch = 0x340, mepc = 0x341, mcause = 0x342, mtval = 0x343, mip = 0x344
    static let pmpcfg0 = 0x3a0, pmpaddr0 = 0x3b0
    static let mcycle = 0xb00, minstret = 0xb02
    static let cycle = 0xc00, time = 0xc01, instret = 0xc02, mhartid = 0xf14
}
