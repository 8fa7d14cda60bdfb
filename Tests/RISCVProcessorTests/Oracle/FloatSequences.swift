extension SequenceBuilder {
    /// Mostly a static mode, often the dynamic one, now and then one that is reserved.
    private mutating func roundingMode() -> UInt32 {
        switch random.below(16) {
        case 0: UInt32(number(5...6))
        case 1...7: 7
        default: UInt32(random.below(5))
        }
    }

    /// - Parameter changingFlagsOnly: Whether the result may be an integer. QEMU 7.2 does not call the state dirty when only the flags
    ///   have changed.
    mutating func addFloat(changingFlagsOnly: Bool = true) {
        let format = UInt32(random.below(2))
        let suffix = format == 0 ? ".s" : ".d"
        let (rd, rs1, rs2) = (Int(random.below(32)), Int(random.below(32)), Int(random.below(32)))
        let rm = roundingMode()
        func operation(_ name: String, _ function: UInt32, _ rm: UInt32, _ rd: Int, _ rs1: Int, _ rs2: Int) {
            sequence.steps.append(Step(name + suffix, Encode.r(0x53, rm, function << 2 | format, rd, rs1, rs2)))
        }
        var choice = random.below(18)
        if !changingFlagsOnly, choice == 8 || choice == 9 { choice = 0 }
        switch choice {
        case 0: operation("fadd", 0, rm, rd, rs1, rs2)
        case 1: operation("fsub", 1, rm, rd, rs1, rs2)
        case 2: operation("fmul", 2, rm, rd, rs1, rs2)
        case 3: operation("fdiv", 3, rm, rd, rs1, rs2)
        case 4: operation("fsqrt", 0x0b, rm, rd, rs1, 0)
        case 5: operation("fsgnj", 4, UInt32(random.below(3)), rd, rs1, chance(1, in: 3) ? rs1 : rs2)
        case 6: operation("fmin, fmax", 5, UInt32(random.below(2)), rd, rs1, rs2)
        case 7: operation("fcvt between widths", 8, rm, rd, rs1, format == 0 ? 1 : 0)
        case 8: operation("fle, flt, feq", 0x14, UInt32(random.below(3)), destination(), rs1, rs2)
        case 9: operation("fcvt to integer", 0x18, rm, destination(), rs1, number(0...3))
        case 10: operation("fcvt from integer", 0x1a, rm, rd, source(), number(0...3))
        case 11: operation("fclass", 0x1c, 1, destination(), rs1, 0)
        case 12: operation("fmv to x", 0x1c, 0, destination(), rs1, 0)
        case 13: operation("fmv from x", 0x1e, 0, rd, source(), 0)
        case 14...16:
            let opcode = pick([UInt32(0x43), 0x47, 0x4b, 0x4f])
            add("fmadd and kin" + suffix, Encode.r4(opcode, format, rm, rd, rs1, rs2, Int(random.below(32))))
        default:
            let offset = chance(1, in: 2) ? number(-32...31) * 8 : number(-256...255)
            if chance(1, in: 2) {
                add("fl", Encode.i(0x07, 2 + format, rd, pointer(), offset))
            } else {
                add("fs", Encode.s(0x27, 2 + format, pointer(), rs2, offset))
            }
        }
    }

    mutating func addFloatControl() {
        let csr = pick([CSR.fflags, CSR.frm, CSR.fcsr])
        let function = UInt32(pick([1, 2, 3, 5, 6, 7]))
        if function >= 5 {
            add("csr immediate", Encode.i(0x73, function, destination(), Int(random.below(32)), csr))
        } else if chance(1, in: 2) {
            load(random.below(256) | 0x100, into: Register.t0)
            add("csr", Encode.i(0x73, function, destination(), Register.t0, csr))
        } else {
            // Setting or clearing the bits of a register that holds zero is a write all the same, but not to QEMU 7.2.
            add("csr", Encode.i(0x73, 1, destination(), source(), csr))
        }
        // A reserved dynamic mode does not stay long.
        if chance(3, in: 4) { add("csrrwi frm", Encode.i(0x73, 5, 0, number(0...4), CSR.frm)) }
    }
}

extension SequencePlan {
    /// What floating-point instructions do to `mstatus.FS`, and what it does to them.
    static let floatState = SequencePlan(name: "floating-point state", count: 250) { _, random, place in
        var builder = SequenceBuilder(random, place)
        builder.reserved = [Register.t0]
        for _ in 0..<builder.number(2...8) {
            builder.add(
                Step(
                    "set FS",
                    Encode.li(Register.t0, 3 << 13) + [Encode.csrrc(0, CSR.mstatus, Register.t0)]
                        + Encode.li(Register.t0, UInt64(builder.number(0...3)) << 13)
                        + [Encode.csrrs(0, CSR.mstatus, Register.t0)]))
            if builder.chance(1, in: 5) {
                builder.addFloatControl()
            } else {
                builder.addFloat(changingFlagsOnly: false)
            }
            builder.add("csrr", Encode.csrr(builder.destination(), CSR.mstatus))
        }
        return builder.sequence
    }

    static let float = SequencePlan(name: "floating point", count: 900) { _, random, place in
        var builder = SequenceBuilder(random, place)
        builder.sequence.fcsr = builder.random.below(160)  // modes up to ties away, any flags
        for _ in 0..<builder.number(8...40) {
            switch builder.random.below(16) {
            case 0: builder.addFloatControl()
            case 1: builder.addArithmetic()
            default: builder.addFloat()
            }
        }
        return builder.sequence
    }
}
