/// The 32-bit instruction that a compressed one stands for, or 0 where there is none.
///
/// Source: RISC-V Unprivileged ISA, chapter "C", tables of the quadrants.
func expandCompressed(_ halfword: UInt16) -> UInt32 {
    let w = UInt32(halfword)
    let rd = w >> 7 & 31
    let rs2 = w >> 2 & 31
    let low = (w >> 2 & 7) + 8  // rd' or rs2'
    let high = (w >> 7 & 7) + 8  // rs1' or rd'
    func i(_ opcode: UInt32, _ f3: UInt32, _ rd: UInt32, _ rs1: UInt32, _ imm: UInt32) -> UInt32 {
        imm << 20 | rs1 << 15 | f3 << 12 | rd << 7 | opcode
    }
    func s(_ opcode: UInt32, _ f3: UInt32, _ rs1: UInt32, _ rs2: UInt32, _ imm: UInt32) -> UInt32 {
        (imm >> 5 & 0x7f) << 25 | rs2 << 20 | rs1 << 15 | f3 << 12 | (imm & 31) << 7 | opcode
    }
    func r(_ opcode: UInt32, _ f7: UInt32, _ f3: UInt32, _ rd: UInt32, _ rs1: UInt32, _ rs2: UInt32) -> UInt32 {
        f7 << 25 | rs2 << 20 | rs1 << 15 | f3 << 12 | rd << 7 | opcode
    }
    func branch(_ f3: UInt32) -> UInt32 {
        var imm = (w >> 10 & 3) << 3 | (w >> 5 & 3) << 6 | (w >> 3 & 3) << 1 | (w >> 2 & 1) << 5
        if w >> 12 & 1 != 0 { imm |= 0x1f00 }
        return (imm >> 12 & 1) << 31 | (imm >> 5 & 0x3f) << 25 | high << 15 | f3 << 12 | (imm >> 1 & 15) << 8
            | (imm >> 11 & 1) << 7 | 0x63
    }
    let imm6 = (w >> 12 & 1 != 0 ? 0xfe0 : 0) | (w >> 2 & 31)
    let shift = (w >> 7 & 0x20) | (w >> 2 & 31)
    let wordOffset = (w >> 7 & 0x38) | (w >> 4 & 4) | (w << 1 & 0x40)
    let doubleOffset = (w >> 7 & 0x38) | (w << 1 & 0xc0)
    let wordFromStack = (w >> 7 & 0x20) | (w >> 2 & 0x1c) | (w << 4 & 0xc0)
    let doubleFromStack = (w >> 7 & 0x20) | (w >> 2 & 0x18) | (w << 4 & 0x1c0)
    let wordToStack = (w >> 7 & 0x3c) | (w >> 1 & 0xc0)
    let doubleToStack = (w >> 7 & 0x38) | (w >> 1 & 0x1c0)

    switch (w & 3) << 3 | w >> 13 {
    case 0b00_000:
        let imm = (w >> 7 & 0x30) | (w >> 1 & 0x3c0) | (w >> 4 & 4) | (w >> 2 & 8)
        return imm == 0 ? 0 : i(0x13, 0, low, 2, imm)
    case 0b00_001: return i(0x07, 3, low, high, doubleOffset)
    case 0b00_010: return i(0x03, 2, low, high, wordOffset)
    case 0b00_011: return i(0x03, 3, low, high, doubleOffset)
    case 0b00_101: return s(0x27, 3, high, low, doubleOffset)
    case 0b00_110: return s(0x23, 2, high, low, wordOffset)
    case 0b00_111: return s(0x23, 3, high, low, doubleOffset)
    case 0b01_000: return i(0x13, 0, rd, rd, imm6)
    case 0b01_001: return rd == 0 ? 0 : i(0x1b, 0, rd, rd, imm6)
    case 0b01_010: return i(0x13, 0, rd, 0, imm6)
    case 0b01_011:
        if rd == 2 {
            var imm = (w >> 6 & 1) << 4 | (w >> 5 & 1) << 6 | (w >> 3 & 3) << 7 | (w >> 2 & 1) << 5
            if w >> 12 & 1 != 0 { imm |= 0xe00 }
            return imm == 0 ? 0 : i(0x13, 0, 2, 2, imm)
        }
        var imm = w >> 2 & 31
        if w >> 12 & 1 != 0 { imm |= 0xfffe0 }
        return imm == 0 ? 0 : imm << 12 | rd << 7 | 0x37
    case 0b01_100:
        switch w >> 10 & 3 {
        case 0: return i(0x13, 5, high, high, shift)
        case 1: return i(0x13, 5, high, high, shift | 0x400)
        case 2: return i(0x13, 7, high, high, imm6)
        default:
            switch (w >> 12 & 1) << 2 | (w >> 5 & 3) {
            case 0: return r(0x33, 0x20, 0, high, high, low)
            case 1: return r(0x33, 0, 4, high, high, low)
            case 2: return r(0x33, 0, 6, high, high, low)
            case 3: return r(0x33, 0, 7, high, high, low)
            case 4: return r(0x3b, 0x20, 0, high, high, low)
            case 5: return r(0x3b, 0, 0, high, high, low)
            default: return 0
            }
        }
    case 0b01_101:
        var imm = (w >> 11 & 1) << 4 | (w >> 9 & 3) << 8 | (w >> 8 & 1) << 10 | (w >> 7 & 1) << 6
        imm |= (w >> 6 & 1) << 7 | (w >> 3 & 7) << 1 | (w >> 2 & 1) << 5
        if w >> 12 & 1 != 0 { imm |= 0x1f_f800 }
        return (imm >> 20 & 1) << 31 | (imm >> 1 & 0x3ff) << 21 | (imm >> 11 & 1) << 20 | (imm >> 12 & 0xff) << 12
            | 0x6f
    case 0b01_110: return branch(0)
    case 0b01_111: return branch(1)
    case 0b10_000: return i(0x13, 1, rd, rd, shift)
    case 0b10_001: return i(0x07, 3, rd, 2, doubleFromStack)
    case 0b10_010: return rd == 0 ? 0 : i(0x03, 2, rd, 2, wordFromStack)
    case 0b10_011: return rd == 0 ? 0 : i(0x03, 3, rd, 2, doubleFromStack)
    case 0b10_100:
        if w >> 12 & 1 == 0 {
            if rs2 == 0 { return rd == 0 ? 0 : i(0x67, 0, 0, rd, 0) }
            return r(0x33, 0, 0, rd, 0, rs2)
        }
        if rs2 == 0 { return rd == 0 ? 0x0010_0073 : i(0x67, 0, 1, rd, 0) }
        return r(0x33, 0, 0, rd, rd, rs2)
    case 0b10_101: return s(0x27, 3, 2, rs2, doubleToStack)
    case 0b10_110: return s(0x23, 2, 2, rs2, wordToStack)
    case 0b10_111: return s(0x23, 3, 2, rs2, doubleToStack)
    default: return 0
    }
}
