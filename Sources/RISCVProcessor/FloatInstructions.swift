/// F and D: registers, rounding modes and flags around ``SoftFloat``.
///
/// Source: RISC-V Unprivileged ISA, chapters "F" and "D", version 2.2.
extension RISCVHart {
    /// The single in a register; what is not boxed reads as the canonical NaN.
    @inline(__always) private func single(_ number: UInt32) -> UInt32 {
        let value = x[Word.float + Int(number & 31)]
        return value >> 32 == 0xffff_ffff ? value.low : SoftFloat.canonicalNaN32
    }
    @inline(__always) private func double(_ number: UInt32) -> UInt64 { x[Word.float + Int(number & 31)] }
    @inline(__always) private func setSingle(_ number: UInt32, _ value: UInt32) {
        x[Word.float + Int(number & 31)] = 0xffff_ffff_0000_0000 | UInt64(value)
        x[Word.fs] = 3
    }
    @inline(__always) private func setDouble(_ number: UInt32, _ value: UInt64) {
        x[Word.float + Int(number & 31)] = value
        x[Word.fs] = 3
    }

    @inline(never) func float(_ ip: OperationPointer) -> OperationPointer {
        if x[Word.fs] == 0 { return raiseIllegal(ip) }
        let w = UInt32(truncatingIfNeeded: ip.imm)
        let rd = w >> 7 & 31
        let rs1 = w >> 15 & 31
        let rs2 = w >> 20 & 31
        let f3 = w >> 12 & 7
        let isDouble = w >> 25 & 1 != 0
        let operation = w >> 27
        let old = UInt8(truncatingIfNeeded: x[Word.fflags])
        var flags = old

        // What does not round has another use for the field.
        var mode = UInt8(truncatingIfNeeded: f3)
        let rounds =
            w & 0x7f != 0x53
            || !(operation == 0b00100 || operation == 0b00101 || operation == 0b10100
                || operation == 0b11100 || operation == 0b11110)
        if rounds {
            if mode == 7 { mode = UInt8(truncatingIfNeeded: x[Word.frm]) }
            if mode > 4 { return raiseIllegal(ip) }
        }

        if w & 0x7f != 0x53 {
            // fmadd, fmsub, fnmsub, fnmadd: rs3 is where the operation stands in OP-FP.
            let negateProduct = w >> 3 & 1 != 0
            let negateAddend = w >> 2 & 1 != 0
            if isDouble {
                let sign = UInt64(1) << 63
                let a = double(rs1) ^ (negateProduct ? sign : 0)
                let c = double(operation) ^ (negateAddend ? sign : 0)
                setDouble(rd, SoftFloat.fma64(a, double(rs2), c, mode, &flags))
            } else {
                let sign = UInt32(1) << 31
                let a = single(rs1) ^ (negateProduct ? sign : 0)
                let c = single(operation) ^ (negateAddend ? sign : 0)
                setSingle(rd, SoftFloat.fma32(a, single(rs2), c, mode, &flags))
            }
        } else if isDouble {
            doubleOperation(operation, rd, rs1, rs2, f3, mode, ip, &flags)
        } else {
            singleOperation(operation, rd, rs1, rs2, f3, mode, ip, &flags)
        }
        if flags != old {
            x[Word.fflags] = UInt64(flags)
            x[Word.fs] = 3
        }
        return ip + 1
    }

    private func singleOperation(
        _ operation: UInt32, _ rd: UInt32, _ rs1: UInt32, _ rs2: UInt32, _ f3: UInt32, _ mode: UInt8,
        _ ip: OperationPointer, _ flags: inout UInt8
    ) {
        switch operation {
        case 0: setSingle(rd, SoftFloat.add32(single(rs1), single(rs2), mode, &flags))
        case 1: setSingle(rd, SoftFloat.sub32(single(rs1), single(rs2), mode, &flags))
        case 2: setSingle(rd, SoftFloat.mul32(single(rs1), single(rs2), mode, &flags))
        case 3: setSingle(rd, SoftFloat.div32(single(rs1), single(rs2), mode, &flags))
        case 0b01011: setSingle(rd, SoftFloat.sqrt32(single(rs1), mode, &flags))
        case 0b00100:
            let sign = UInt32(1) << 31
            let a = single(rs1)
            let b = single(rs2)
            let chosen = f3 == 0 ? b : f3 == 1 ? ~b : a ^ b
            setSingle(rd, a & ~sign | chosen & sign)
        case 0b00101:
            let a = single(rs1)
            let b = single(rs2)
            switch f3 {
            case 0: setSingle(rd, SoftFloat.min32(a, b, &flags))
            case 1: setSingle(rd, SoftFloat.max32(a, b, &flags))
            case 2: setSingle(rd, SoftFloat.minimum32(a, b, &flags))
            default: setSingle(rd, SoftFloat.maximum32(a, b, &flags))
            }
        case 0b01000 where rs2 >= 4:
            setSingle(rd, SoftFloat.round32(single(rs1), mode, isExact: rs2 == 5, &flags))
        case 0b01000: setSingle(rd, SoftFloat.f64ToF32(double(rs1), mode, &flags))
        case 0b10100:
            let a = single(rs1)
            let b = single(rs2)
            let result: Bool
            switch f3 {
            case 0: result = SoftFloat.le32(a, b, &flags)
            case 1: result = SoftFloat.lt32(a, b, &flags)
            case 4, 5: result = SoftFloat.quietLess32(a, b, orEqual: f3 == 4, &flags)
            default: result = SoftFloat.eq32(a, b, &flags)
            }
            ip.set(x, result ? 1 : 0)
        case 0b11000:
            let a = single(rs1)
            switch rs2 {
            case 0: ip.setWord(x, UInt32(bitPattern: SoftFloat.f32ToI32(a, mode, &flags)))
            case 1: ip.setWord(x, SoftFloat.f32ToU32(a, mode, &flags))
            case 2: ip.set(x, UInt64(bitPattern: SoftFloat.f32ToI64(a, mode, &flags)))
            default: ip.set(x, SoftFloat.f32ToU64(a, mode, &flags))
            }
        case 0b11010:
            let a = ip.a(x)
            switch rs2 {
            case 0: setSingle(rd, SoftFloat.i32ToF32(Int32(bitPattern: a.low), mode, &flags))
            case 1: setSingle(rd, SoftFloat.u32ToF32(a.low, mode, &flags))
            case 2: setSingle(rd, SoftFloat.i64ToF32(a.signed, mode, &flags))
            default: setSingle(rd, SoftFloat.u64ToF32(a, mode, &flags))
            }
        case 0b11100:
            if f3 == 0 { ip.set(x, double(rs1).word) } else { ip.set(x, SoftFloat.classify32(single(rs1))) }
        case 0b11110 where rs2 == 1: setSingle(rd, SoftFloat.constant32(Int(rs1)))
        default: setSingle(rd, ip.a(x).low)
        }
    }

    private func doubleOperation(
        _ operation: UInt32, _ rd: UInt32, _ rs1: UInt32, _ rs2: UInt32, _ f3: UInt32, _ mode: UInt8,
        _ ip: OperationPointer, _ flags: inout UInt8
    ) {
        switch operation {
        case 0: setDouble(rd, SoftFloat.add64(double(rs1), double(rs2), mode, &flags))
        case 1: setDouble(rd, SoftFloat.sub64(double(rs1), double(rs2), mode, &flags))
        case 2: setDouble(rd, SoftFloat.mul64(double(rs1), double(rs2), mode, &flags))
        case 3: setDouble(rd, SoftFloat.div64(double(rs1), double(rs2), mode, &flags))
        case 0b01011: setDouble(rd, SoftFloat.sqrt64(double(rs1), mode, &flags))
        case 0b00100:
            let sign = UInt64(1) << 63
            let a = double(rs1)
            let b = double(rs2)
            let chosen = f3 == 0 ? b : f3 == 1 ? ~b : a ^ b
            setDouble(rd, a & ~sign | chosen & sign)
        case 0b00101:
            let a = double(rs1)
            let b = double(rs2)
            switch f3 {
            case 0: setDouble(rd, SoftFloat.min64(a, b, &flags))
            case 1: setDouble(rd, SoftFloat.max64(a, b, &flags))
            case 2: setDouble(rd, SoftFloat.minimum64(a, b, &flags))
            default: setDouble(rd, SoftFloat.maximum64(a, b, &flags))
            }
        case 0b01000 where rs2 >= 4:
            setDouble(rd, SoftFloat.round64(double(rs1), mode, isExact: rs2 == 5, &flags))
        case 0b01000: setDouble(rd, SoftFloat.f32ToF64(single(rs1), &flags))
        case 0b10100:
            let a = double(rs1)
            let b = double(rs2)
            let result: Bool
            switch f3 {
            case 0: result = SoftFloat.le64(a, b, &flags)
            case 1: result = SoftFloat.lt64(a, b, &flags)
            case 4, 5: result = SoftFloat.quietLess64(a, b, orEqual: f3 == 4, &flags)
            default: result = SoftFloat.eq64(a, b, &flags)
            }
            ip.set(x, result ? 1 : 0)
        case 0b11000:
            let a = double(rs1)
            switch rs2 {
            case 0: ip.setWord(x, UInt32(bitPattern: SoftFloat.f64ToI32(a, mode, &flags)))
            case 1: ip.setWord(x, SoftFloat.f64ToU32(a, mode, &flags))
            case 2: ip.set(x, UInt64(bitPattern: SoftFloat.f64ToI64(a, mode, &flags)))
            case 8: ip.setWord(x, UInt32(bitPattern: SoftFloat.f64ToI32Modulo(a, &flags)))
            default: ip.set(x, SoftFloat.f64ToU64(a, mode, &flags))
            }
        case 0b11010:
            let a = ip.a(x)
            switch rs2 {
            case 0: setDouble(rd, SoftFloat.i32ToF64(Int32(bitPattern: a.low), mode, &flags))
            case 1: setDouble(rd, SoftFloat.u32ToF64(a.low, mode, &flags))
            case 2: setDouble(rd, SoftFloat.i64ToF64(a.signed, mode, &flags))
            default: setDouble(rd, SoftFloat.u64ToF64(a, mode, &flags))
            }
        case 0b11100:
            if f3 == 0 { ip.set(x, double(rs1)) } else { ip.set(x, SoftFloat.classify64(double(rs1))) }
        case 0b11110 where rs2 == 1: setDouble(rd, SoftFloat.constants64[Int(rs1)])
        default: setDouble(rd, ip.a(x))
        }
    }
}
