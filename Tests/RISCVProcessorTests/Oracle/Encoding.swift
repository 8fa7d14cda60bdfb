/// Integer register numbers by the names the runtime of the test programs uses.
enum Register {
    static let zero = 0, ra = 1, sp = 2, gp = 3, tp = 4, t0 = 5, t1 = 6, t2 = 7, s0 = 8, s1 = 9
}

/// Instruction formats. Immediates are taken modulo their field.
enum Encode {
    static func r(_ opcode: UInt32, _ funct3: UInt32, _ funct7: UInt32, _ rd: Int, _ rs1: Int, _ rs2: Int) -> UInt32 {
        funct7 << 25 | UInt32(rs2) << 20 | UInt32(rs1) << 15 | funct3 << 12 | UInt32(rd) << 7 | opcode
    }

    static func r4(_ opcode: UInt32, _ width: UInt32, _ rm: UInt32, _ rd: Int, _ rs1: Int, _ rs2: Int, _ rs3: Int)
        -> UInt32
    {
        UInt32(rs3) << 27 | width << 25 | UInt32(rs2) << 20 | UInt32(rs1) << 15 | rm << 12 | UInt32(rd) << 7 | opcode
    }

    static func i(_ opcode: UInt32, _ funct3: UInt32, _ rd: Int, _ rs1: Int, _ immediate: Int) -> UInt32 {
        UInt32(truncatingIfNeeded: immediate) << 20 | UInt32(rs1) << 15 | funct3 << 12 | UInt32(rd) << 7 | opcode
    }

    static func s(_ opcode: UInt32, _ funct3: UInt32, _ rs1: Int, _ rs2: Int, _ immediate: Int) -> UInt32 {
        let bits = UInt32(truncatingIfNeeded: immediate)
        return (bits >> 5 & 0x7f) << 25 | UInt32(rs2) << 20 | UInt32(rs1) << 15 | funct3 << 12 | (bits & 0x1f) << 7
            | opcode
    }

    static func b(_ funct3: UInt32, _ rs1: Int, _ rs2: Int, _ offset: Int) -> UInt32 {
        let bits = UInt32(truncatingIfNeeded: offset)
        return (bits >> 12 & 1) << 31 | (bits >> 5 & 0x3f) << 25 | UInt32(rs2) << 20 | UInt32(rs1) << 15 | funct3 << 12
            | (bits >> 1 & 0xf) << 8 | (bits >> 11 & 1) << 7 | 0x63
    }

    static func u(_ opcode: UInt32, _ rd: Int, _ immediate: Int) -> UInt32 {
        UInt32(truncatingIfNeeded: immediate) << 12 | UInt32(rd) << 7 | opcode
    }

    static func jal(_ rd: Int, _ offset: Int) -> UInt32 {
        let bits = UInt32(truncatingIfNeeded: offset)
        return (bits >> 20 & 1) << 31 | (bits >> 1 & 0x3ff) << 21 | (bits >> 11 & 1) << 20 | (bits >> 12 & 0xff) << 12
            | UInt32(rd) << 7 | 0x6f
    }

    static func addi(_ rd: Int, _ rs1: Int, _ immediate: Int) -> UInt32 { i(0x13, 0, rd, rs1, immediate) }
    static func add(_ rd: Int, _ rs1: Int, _ rs2: Int) -> UInt32 { r(0x33, 0, 0, rd, rs1, rs2) }
    static func ld(_ rd: Int, _ offset: Int, _ base: Int) -> UInt32 { i(0x03, 3, rd, base, offset) }
    static func lhu(_ rd: Int, _ offset: Int, _ base: Int) -> UInt32 { i(0x03, 5, rd, base, offset) }
    static func sd(_ rs2: Int, _ offset: Int, _ base: Int) -> UInt32 { s(0x23, 3, base, rs2, offset) }
    static func sw(_ rs2: Int, _ offset: Int, _ base: Int) -> UInt32 { s(0x23, 2, base, rs2, offset) }
    static func fld(_ rd: Int, _ offset: Int, _ base: Int) -> UInt32 { i(0x07, 3, rd, base, offset) }
    static func fsd(_ rs2: Int, _ offset: Int, _ base: Int) -> UInt32 { s(0x27, 3, base, rs2, offset) }
    static func csrrw(_ rd: Int, _ csr: Int, _ rs1: Int) -> UInt32 { i(0x73, 1, rd, rs1, csr) }
    static func csrrs(_ rd: Int, _ csr: Int, _ rs1: Int) -> UInt32 { i(0x73, 2, rd, rs1, csr) }
    static func csrrc(_ rd: Int, _ csr: Int, _ rs1: Int) -> UInt32 { i(0x73, 3, rd, rs1, csr) }
    static func csrr(_ rd: Int, _ csr: Int) -> UInt32 { csrrs(rd, csr, 0) }
    static func csrw(_ csr: Int, _ rs1: Int) -> UInt32 { csrrw(0, csr, rs1) }
    static let ecall: UInt32 = 0x0000_0073
    static let ebreak: UInt32 = 0x0010_0073
    static let mret: UInt32 = 0x3020_0073
    static let sret: UInt32 = 0x1020_0073
    static let wfi: UInt32 = 0x1050_0073
    static let fenceI: UInt32 = 0x0000_100f
    static let sfenceVMA: UInt32 = 0x1200_0073
    static let nop: UInt32 = 0x0000_0013

    /// The shortest obvious way to a 64-bit constant, touching only `rd`.
    static func li(_ rd: Int, _ value: UInt64) -> [UInt32] {
        let signed = Int64(bitPattern: value)
        if signed >= -2048 && signed < 2048 { return [addi(rd, 0, Int(signed))] }
        if signed >= -0x8000_0000 && signed < 0x7fff_f800 {
            let low = (signed << 52) >> 52
            let upper = u(0x37, rd, Int((signed - low) >> 12))
            return low == 0 ? [upper] : [upper, i(0x1b, 0, rd, rd, Int(low))]
        }
        let low = (signed << 52) >> 52
        let rest = (signed &- low) >> 12
        return li(rd, UInt64(bitPattern: rest)) + [i(0x13, 1, rd, rd, 12)] + (low == 0 ? [] : [addi(rd, rd, Int(low))])
    }
}
