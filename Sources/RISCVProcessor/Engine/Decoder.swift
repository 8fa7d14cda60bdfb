/// What the block builder must know of a decoded instruction.
enum DecodedKind {
    /// Goes on with the next instruction.
    case plain
    /// A conditional branch; `imm` is the displacement.
    case branch
    /// `jal`; `imm` is the displacement.
    case jump
    /// Nothing follows it in the block.
    case last
}

/// Turns one 32-bit instruction into an operation.
struct Decoder {
    let extensions: ISAExtensions

    init(_ extensions: ISAExtensions) { self.extensions = extensions }

    private func has(_ needed: ISAExtensions) -> Bool { extensions.isSuperset(of: needed) }

    /// Decodes `w`, `length` bytes long in memory. Whatever is not implemented becomes ``OperationCode/illegal``.
    func decode(_ w: UInt32, length: UInt8) -> (Operation, DecodedKind) {
        let rd = UInt8(w >> 7 & 31)
        let rs1 = UInt8(w >> 15 & 31)
        let rs2 = UInt8(w >> 20 & 31)
        let f3 = w >> 12 & 7
        let f7 = w >> 25
        let iImm = UInt64(bitPattern: Int64(Int32(bitPattern: w) >> 20))
        let to = rd == 0 ? UInt8(Word.sink) : rd
        let illegal = (Operation(.illegal), DecodedKind.last)

        func outOfLine(_ code: OperationCode, _ kind: DecodedKind = .plain) -> (Operation, DecodedKind) {
            (Operation(code, rd: to, rs1: rs1, rs2: rs2, imm: UInt64(w)), kind)
        }
        func immediate(_ code: OperationCode, _ imm: UInt64) -> (Operation, DecodedKind) {
            if rd == 0 { return (Operation(.nop), .plain) }
            return (Operation(code, rd: to, rs1: rs1, imm: imm), .plain)
        }
        func registers(_ code: OperationCode) -> (Operation, DecodedKind) {
            if rd == 0 { return (Operation(.nop), .plain) }
            return (Operation(code, rd: to, rs1: rs1, rs2: rs2), .plain)
        }

        switch w & 0x7f {
        case 0x37:
            return rd == 0
                ? (Operation(.nop), .plain)
                : (Operation(.loadImmediate, rd: to, imm: UInt64(w & 0xffff_f000).word), .plain)
        case 0x17:
            return rd == 0
                ? (Operation(.nop), .plain)
                : (Operation(.addPCImmediate, rd: to, imm: UInt64(w & 0xffff_f000).word), .plain)
        case 0x6f:
            var imm = (w >> 21 & 0x3ff) << 1 | (w >> 20 & 1) << 11 | (w >> 12 & 0xff) << 12
            if w >> 31 != 0 { imm |= 0xfff0_0000 }
            return (Operation(.jumpAndLink, rd: rd, rs2: length, imm: UInt64(imm).word), .jump)
        case 0x67:
            guard f3 == 0 else { return illegal }
            return (
                Operation(rd == 0 ? .jumpRegister : .jumpAndLinkRegister, rd: to, rs1: rs1, rs2: length, imm: iImm),
                .last
            )
        case 0x63:
            var imm = (w >> 8 & 15) << 1 | (w >> 25 & 0x3f) << 5 | (w >> 7 & 1) << 11
            if w >> 31 != 0 { imm |= 0xffff_f000 }
            let codes: [OperationCode?] = [.beq, .bne, nil, nil, .blt, .bge, .bltu, .bgeu]
            guard let code = codes[Int(f3)] else { return illegal }
            return (Operation(code, rs1: rs1, rs2: rs2, imm: UInt64(imm).word), .branch)
        case 0x03:
            let codes: [OperationCode?] = [.lb, .lh, .lw, .ld, .lbu, .lhu, .lwu, nil]
            guard let code = codes[Int(f3)] else { return illegal }
            return (Operation(code, rd: to, rs1: rs1, imm: iImm), .plain)
        case 0x23:
            let imm = UInt64(UInt32(bitPattern: Int32(bitPattern: w) >> 25) << 5 | (w >> 7 & 31)).word
            let codes: [OperationCode?] = [.sb, .sh, .sw, .sd, nil, nil, nil, nil]
            guard let code = codes[Int(f3)] else { return illegal }
            return (Operation(code, rs1: rs1, rs2: rs2, imm: imm), .plain)
        case 0x07:
            if f3 == 2, has(.f) { return (Operation(.flw, rd: UInt8(Word.float) + rd, rs1: rs1, imm: iImm), .plain) }
            if f3 == 3, has(.d) { return (Operation(.fld, rd: UInt8(Word.float) + rd, rs1: rs1, imm: iImm), .plain) }
            return illegal
        case 0x27:
            let imm = UInt64(UInt32(bitPattern: Int32(bitPattern: w) >> 25) << 5 | (w >> 7 & 31)).word
            if f3 == 2, has(.f) { return (Operation(.fsw, rs1: rs1, rs2: UInt8(Word.float) + rs2, imm: imm), .plain) }
            if f3 == 3, has(.d) { return (Operation(.fsd, rs1: rs1, rs2: UInt8(Word.float) + rs2, imm: imm), .plain) }
            return illegal
        case 0x13:
            let shamt = UInt64(w >> 20 & 63)
            switch f3 {
            case 0:
                if rd != 0 && rs1 == 0 { return (Operation(.loadImmediate, rd: to, imm: iImm), .plain) }
                return immediate(iImm == 0 ? .move : .addi, iImm)
            case 2: return immediate(.slti, iImm)
            case 3: return immediate(.sltiu, iImm)
            case 4: return immediate(.xori, iImm)
            case 6:
                // prefetch.i, .r, .w are ori with rd = 0: nothing to do for them.
                return immediate(.ori, iImm)
            case 7: return immediate(.andi, iImm)
            case 1:
                switch w >> 26 {
                case 0: return immediate(.slli, shamt)
                case 0x12 where has(.zbs): return immediate(.bclri, shamt)
                case 0x1a where has(.zbs): return immediate(.binvi, shamt)
                case 0x0a where has(.zbs): return immediate(.bseti, shamt)
                case 0x18 where has(.zbb):
                    switch w >> 20 {
                    case 0x600: return immediate(.clz, 0)
                    case 0x601: return immediate(.ctz, 0)
                    case 0x602: return immediate(.cpop, 0)
                    case 0x604: return immediate(.sextb, 0)
                    case 0x605: return immediate(.sexth, 0)
                    default: return illegal
                    }
                default: return illegal
                }
            default:
                switch w >> 26 {
                case 0: return immediate(.srli, shamt)
                case 0x10: return immediate(.srai, shamt)
                case 0x12 where has(.zbs): return immediate(.bexti, shamt)
                case 0x18 where has(.zbb): return immediate(.rori, shamt)
                case 0x0a where has(.zbb) && w >> 20 == 0x287: return immediate(.orcb, 0)
                case 0x1a where has(.zbb) && w >> 20 == 0x6b8: return immediate(.rev8, 0)
                default: return illegal
                }
            }
        case 0x1b:
            let shamt = UInt64(w >> 20 & 31)
            switch f3 {
            case 0: return immediate(.addiw, iImm)
            case 1:
                if f7 == 0 { return immediate(.slliw, shamt) }
                if w >> 26 == 2, has(.zba) { return immediate(.slliuw, UInt64(w >> 20 & 63)) }
                if f7 == 0x30, has(.zbb) {
                    switch rs2 {
                    case 0: return immediate(.clzw, 0)
                    case 1: return immediate(.ctzw, 0)
                    case 2: return immediate(.cpopw, 0)
                    default: return illegal
                    }
                }
                return illegal
            case 5:
                if f7 == 0 { return immediate(.srliw, shamt) }
                if f7 == 0x20 { return immediate(.sraiw, shamt) }
                if f7 == 0x30, has(.zbb) { return immediate(.roriw, shamt) }
                return illegal
            default: return illegal
            }
        case 0x33:
            switch f7 << 3 | f3 {
            case 0x00 << 3 | 0:
                if rd != 0 && rs1 == 0 { return (Operation(.move, rd: to, rs1: rs2), .plain) }
                return registers(.add)
            case 0x20 << 3 | 0: return registers(.sub)
            case 0x00 << 3 | 1: return registers(.sll)
            case 0x00 << 3 | 2: return registers(.slt)
            case 0x00 << 3 | 3: return registers(.sltu)
            case 0x00 << 3 | 4: return registers(.xor)
            case 0x00 << 3 | 5: return registers(.srl)
            case 0x20 << 3 | 5: return registers(.sra)
            case 0x00 << 3 | 6: return registers(.or)
            case 0x00 << 3 | 7: return registers(.and)
            case 0x01 << 3 | 0 where has(.m): return registers(.mul)
            case 0x01 << 3 | 1 where has(.m): return registers(.mulh)
            case 0x01 << 3 | 2 where has(.m): return registers(.mulhsu)
            case 0x01 << 3 | 3 where has(.m): return registers(.mulhu)
            case 0x01 << 3 | 4 where has(.m): return registers(.div)
            case 0x01 << 3 | 5 where has(.m): return registers(.divu)
            case 0x01 << 3 | 6 where has(.m): return registers(.rem)
            case 0x01 << 3 | 7 where has(.m): return registers(.remu)
            case 0x10 << 3 | 2 where has(.zba): return registers(.sh1add)
            case 0x10 << 3 | 4 where has(.zba): return registers(.sh2add)
            case 0x10 << 3 | 6 where has(.zba): return registers(.sh3add)
            case 0x20 << 3 | 4 where has(.zbb): return registers(.xnor)
            case 0x20 << 3 | 6 where has(.zbb): return registers(.orn)
            case 0x20 << 3 | 7 where has(.zbb): return registers(.andn)
            case 0x05 << 3 | 4 where has(.zbb): return registers(.min)
            case 0x05 << 3 | 5 where has(.zbb): return registers(.minu)
            case 0x05 << 3 | 6 where has(.zbb): return registers(.max)
            case 0x05 << 3 | 7 where has(.zbb): return registers(.maxu)
            case 0x30 << 3 | 1 where has(.zbb): return registers(.rol)
            case 0x30 << 3 | 5 where has(.zbb): return registers(.ror)
            case 0x05 << 3 | 1 where has(.zbc): return registers(.clmul)
            case 0x05 << 3 | 2 where has(.zbc): return registers(.clmulr)
            case 0x05 << 3 | 3 where has(.zbc): return registers(.clmulh)
            case 0x24 << 3 | 1 where has(.zbs): return registers(.bclr)
            case 0x24 << 3 | 5 where has(.zbs): return registers(.bext)
            case 0x34 << 3 | 1 where has(.zbs): return registers(.binv)
            case 0x14 << 3 | 1 where has(.zbs): return registers(.bset)
            default: return illegal
            }
        case 0x3b:
            switch f7 << 3 | f3 {
            case 0x00 << 3 | 0: return registers(.addw)
            case 0x20 << 3 | 0: return registers(.subw)
            case 0x00 << 3 | 1: return registers(.sllw)
            case 0x00 << 3 | 5: return registers(.srlw)
            case 0x20 << 3 | 5: return registers(.sraw)
            case 0x01 << 3 | 0 where has(.m): return registers(.mulw)
            case 0x01 << 3 | 4 where has(.m): return registers(.divw)
            case 0x01 << 3 | 5 where has(.m): return registers(.divuw)
            case 0x01 << 3 | 6 where has(.m): return registers(.remw)
            case 0x01 << 3 | 7 where has(.m): return registers(.remuw)
            case 0x04 << 3 | 0 where has(.zba): return registers(.adduw)
            case 0x10 << 3 | 2 where has(.zba): return registers(.sh1adduw)
            case 0x10 << 3 | 4 where has(.zba): return registers(.sh2adduw)
            case 0x10 << 3 | 6 where has(.zba): return registers(.sh3adduw)
            case 0x04 << 3 | 4 where has(.zbb) && rs2 == 0: return registers(.zexth)
            case 0x30 << 3 | 1 where has(.zbb): return registers(.rolw)
            case 0x30 << 3 | 5 where has(.zbb): return registers(.rorw)
            default: return illegal
            }
        case 0x0f:
            switch f3 {
            case 0:
                // fence.tso, pause and fences that order stores before loads run; for the others the order in which a
                // host of this kind does things is enough.
                #if arch(x86_64)
                    let stores = w >> 24 & 5
                    let loads = w >> 20 & 10
                    if w != 0x0100_000f && (stores == 0 || loads == 0) { return (Operation(.nop), .plain) }
                #endif
                return outOfLine(.fence)
            case 1: return outOfLine(.fenceI, .last)
            case 2:
                guard rd == 0 else { return illegal }
                switch w >> 20 {
                case 0, 1, 2: return has(.zicbom) ? outOfLine(.cacheBlock) : illegal
                case 4: return has(.zicboz) ? outOfLine(.cacheBlock) : illegal
                default: return illegal
                }
            default: return illegal
            }
        case 0x2f:
            guard has(.a), f3 == 2 || f3 == 3 else { return illegal }
            switch w >> 27 {
            case 2: return rs2 == 0 ? outOfLine(.amo) : illegal
            case 0, 1, 3, 4, 8, 12, 16, 20, 24, 28: return outOfLine(.amo)
            default: return illegal
            }
        case 0x73:
            if f3 == 4 { return illegal }
            if f3 != 0 { return outOfLine(.csr) }
            // wrs.nto and wrs.sto: wait for a reservation to be lost.
            if w == 0x00d0_0073 || w == 0x01d0_0073 { return has(.zawrs) ? outOfLine(.system) : illegal }
            return outOfLine(.system, w & 0xfe00_7fff == 0x1200_0073 ? .plain : .last)
        case 0x43, 0x47, 0x4b, 0x4f:
            guard has(.f), w >> 25 & 3 < 2, w >> 25 & 3 == 0 || has(.d) else { return illegal }
            return outOfLine(.float)
        case 0x53:
            return isFloat(w) ? outOfLine(.float) : illegal
        default:
            return illegal
        }
    }

    /// Whether an OP-FP instruction exists; its rounding mode is judged when it runs.
    private func isFloat(_ w: UInt32) -> Bool {
        let format = w >> 25 & 3
        let f3 = w >> 12 & 7
        let rs2 = w >> 20 & 31
        guard has(.f), format < 2, format == 0 || has(.d) else { return false }
        switch w >> 27 {
        case 0, 1, 2, 3: return true
        case 0b01011: return rs2 == 0
        case 0b00100: return f3 < 3
        case 0b00101: return f3 < 2 || (f3 < 4 && has(.zfa))
        case 0b01000: return rs2 == 1 - format && has(.d) || (rs2 == 4 || rs2 == 5) && has(.zfa)
        case 0b10100: return f3 < 3 || (f3 == 4 || f3 == 5) && has(.zfa)
        case 0b11000: return rs2 < 4 || rs2 == 8 && f3 == 1 && format == 1 && has(.zfa)
        case 0b11010: return rs2 < 4
        case 0b11100: return rs2 == 0 && f3 < 2
        case 0b11110: return f3 == 0 && (rs2 == 0 || rs2 == 1 && has(.zfa))
        default: return false
        }
    }
}
