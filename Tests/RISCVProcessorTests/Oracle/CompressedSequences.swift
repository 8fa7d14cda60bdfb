/// The formats of 16-bit instructions.
enum Compressed {
    /// The field of `c.beqz` and `c.bnez`.
    static func branchOffset(_ offset: Int) -> UInt16 {
        let bits = UInt16(truncatingIfNeeded: offset)
        return (bits >> 8 & 1) << 12 | (bits >> 3 & 3) << 10 | (bits >> 6 & 3) << 5 | (bits >> 1 & 3) << 3
            | (bits >> 5 & 1) << 2
    }

    /// The field of `c.j`.
    static func jumpOffset(_ offset: Int) -> UInt16 {
        let bits = UInt16(truncatingIfNeeded: offset)
        return (bits >> 11 & 1) << 12 | (bits >> 4 & 1) << 11 | (bits >> 8 & 3) << 9 | (bits >> 10 & 1) << 8
            | (bits >> 6 & 1) << 7 | (bits >> 7 & 1) << 6 | (bits >> 1 & 7) << 3 | (bits >> 5 & 1) << 2
    }
}

extension SequenceBuilder {
    /// One of x8 to x15 that may be written, less 8.
    private mutating func shortDestination() -> UInt16 {
        while true {
            let register = number(8...15)
            if !pointers.contains(register) && !reserved.contains(register) { return UInt16(register - 8) }
        }
    }
    private mutating func short() -> UInt16 { UInt16(random.below(8)) }
    private mutating func shortPointer() -> UInt16 { UInt16(pick([Register.s0, Register.s1]) - 8) }
    private mutating func field(_ width: UInt64) -> UInt16 { UInt16(random.below(1 << width)) }

    /// A 16-bit instruction with random fields.
    mutating func addCompressed() {
        func place(_ five: UInt16) -> UInt16 { (five >> 5 & 1) << 12 | (five & 0x1f) << 2 }
        let immediate = field(6)
        switch random.below(24) {
        case 0:
            let scaled = field(8)
            add(Step(compressed: "c.addi4spn", (scaled == 0 ? 1 : scaled) << 5 | shortDestination() << 2))
        case 1:
            add(Step(compressed: "c.fld", 0x2000 | field(3) << 10 | shortPointer() << 7 | field(2) << 5 | short() << 2))
        case 2:
            add(
                Step(
                    compressed: "c.lw",
                    0x4000 | field(3) << 10 | shortPointer() << 7 | field(2) << 5 | shortDestination() << 2))
        case 3:
            add(
                Step(
                    compressed: "c.ld",
                    0x6000 | field(3) << 10 | shortPointer() << 7 | field(2) << 5 | shortDestination() << 2))
        case 4:
            add(Step(compressed: "c.fsd", 0xa000 | field(3) << 10 | shortPointer() << 7 | field(2) << 5 | short() << 2))
        case 5:
            add(Step(compressed: "c.sw", 0xc000 | field(3) << 10 | shortPointer() << 7 | field(2) << 5 | short() << 2))
        case 6:
            add(Step(compressed: "c.sd", 0xe000 | field(3) << 10 | shortPointer() << 7 | field(2) << 5 | short() << 2))
        case 7: add(Step(compressed: "c.addi", 0x0001 | place(immediate) | UInt16(destination()) << 7))
        case 8:
            let register = destination()
            if register != 0 { add(Step(compressed: "c.addiw", 0x2001 | place(immediate) | UInt16(register) << 7)) }
        case 9: add(Step(compressed: "c.li", 0x4001 | place(immediate) | UInt16(destination()) << 7))
        case 10:
            let register = destination()
            if register != 2 && immediate != 0 {
                add(Step(compressed: "c.lui", 0x6001 | place(immediate) | UInt16(register) << 7))
            }
        case 11: add(Step(compressed: "c.srli", 0x8001 | place(immediate) | shortDestination() << 7))
        case 12: add(Step(compressed: "c.srai", 0x8401 | place(immediate) | shortDestination() << 7))
        case 13: add(Step(compressed: "c.andi", 0x8801 | place(immediate) | shortDestination() << 7))
        case 14:
            add(Step(compressed: "c.sub to c.and", 0x8c01 | shortDestination() << 7 | field(2) << 5 | short() << 2))
        case 15:
            // The last two of these four are reserved.
            add(Step(compressed: "c.subw, c.addw", 0x9c01 | shortDestination() << 7 | field(2) << 5 | short() << 2))
        case 16: add(Step(compressed: "c.slli", 0x0002 | place(immediate) | UInt16(destination()) << 7))
        case 17: add(Step(compressed: "c.fldsp", 0x2002 | place(immediate) | field(5) << 7))
        case 18:
            let register = destination()
            if register != 0 { add(Step(compressed: "c.lwsp", 0x4002 | place(immediate) | UInt16(register) << 7)) }
        case 19:
            let register = destination()
            if register != 0 { add(Step(compressed: "c.ldsp", 0x6002 | place(immediate) | UInt16(register) << 7)) }
        case 20:
            let register = UInt16(source())
            if register != 0 {
                add(
                    Step(
                        compressed: chance(1, in: 2) ? "c.mv" : "c.add",
                        (random.next() & 1 == 0 ? 0x8002 : 0x9002) | UInt16(destination()) << 7 | register << 2))
            }
        case 21: add(Step(compressed: "c.fsdsp", 0xa002 | field(6) << 7 | field(5) << 2))
        case 22: add(Step(compressed: "c.swsp", 0xc002 | field(6) << 7 | field(5) << 2))
        default: add(Step(compressed: "c.sdsp", 0xe002 | field(6) << 7 | field(5) << 2))
        }
    }

    mutating func addCompressedBranch() {
        switch random.below(6) {
        case 0: add(Step(compressed: "c.j", 0xa001, target: .compressedJump(step: stepAhead())))
        case 1: add(Step(compressed: "c.beqz", 0xc001 | short() << 7, target: .compressedBranch(step: stepAhead())))
        case 2: add(Step(compressed: "c.bnez", 0xe001 | short() << 7, target: .compressedBranch(step: stepAhead())))
        case 3: add(Step(compressed: "c.ebreak", 0x9002))
        case 4:
            let register = destination()
            guard register > 1 else { return }
            var step = Step(
                "auipc, addi, c.jr", [Encode.u(0x17, register, 0), Encode.addi(register, register, 0)],
                target: .pcRelative(step: stepAhead()))
            step.parcels.append((random.next() & 1 == 0 ? 0x8002 : 0x9002) | UInt16(register) << 7)
            add(step)
        default:
            // Encodings that mean nothing.
            add(
                Step(
                    compressed: "reserved",
                    pick([0x0000, 0x0004, 0x4002, 0x6002, 0x8002, 0x6101, 0x2001, 0x9c41, 0x9c61, 0x8000])))
        }
    }
}

extension SequencePlan {
    static let compressed = SequencePlan(name: "compressed", count: 400) { _, random, place in
        var builder = SequenceBuilder(random, place)
        builder.sequence.x[20] = 12
        for _ in 0..<builder.number(8...50) {
            switch builder.random.below(8) {
            case 0...4: builder.addCompressed()
            case 5: builder.addArithmetic()
            case 6: builder.addMemoryAccess()
            default: builder.addCompressedBranch()
            }
        }
        return builder.sequence
    }
}
