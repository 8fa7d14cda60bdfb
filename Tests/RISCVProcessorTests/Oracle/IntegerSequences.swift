extension SequenceBuilder {
    private static let registerOperations = [
        Operation("add", 0x33, 0), Operation("sub", 0x33, 0, 0x20), Operation("sll", 0x33, 1),
        Operation("slt", 0x33, 2),
        Operation("sltu", 0x33, 3), Operation("xor", 0x33, 4), Operation("srl", 0x33, 5),
        Operation("sra", 0x33, 5, 0x20),
        Operation("or", 0x33, 6), Operation("and", 0x33, 7), Operation("addw", 0x3b, 0),
        Operation("subw", 0x3b, 0, 0x20),
        Operation("sllw", 0x3b, 1), Operation("srlw", 0x3b, 5), Operation("sraw", 0x3b, 5, 0x20),
    ]
    private static let multiplyOperations = [
        Operation("mul", 0x33, 0, 1), Operation("mulh", 0x33, 1, 1), Operation("mulhsu", 0x33, 2, 1),
        Operation("mulhu", 0x33, 3, 1), Operation("div", 0x33, 4, 1), Operation("divu", 0x33, 5, 1),
        Operation("rem", 0x33, 6, 1), Operation("remu", 0x33, 7, 1), Operation("mulw", 0x3b, 0, 1),
        Operation("divw", 0x3b, 4, 1), Operation("divuw", 0x3b, 5, 1), Operation("remw", 0x3b, 6, 1),
        Operation("remuw", 0x3b, 7, 1),
    ]
    private static let immediateOperations = [
        Operation("addi", 0x13, 0), Operation("slti", 0x13, 2), Operation("sltiu", 0x13, 3), Operation("xori", 0x13, 4),
        Operation("ori", 0x13, 6), Operation("andi", 0x13, 7), Operation("addiw", 0x1b, 0),
    ]
    private static let shiftOperations = [
        Operation("slli", 0x13, 1), Operation("srli", 0x13, 5), Operation("srai", 0x13, 5, 0x20),
        Operation("slliw", 0x1b, 1), Operation("srliw", 0x1b, 5), Operation("sraiw", 0x1b, 5, 0x20),
    ]
    private static let loads = ["lb", "lh", "lw", "ld", "lbu", "lhu", "lwu"].enumerated().map {
        Operation($1, 0x03, UInt32($0))
    }
    private static let stores = ["sb", "sh", "sw", "sd"].enumerated().map { Operation($1, 0x23, UInt32($0)) }
    private static let branches = [("beq", 0), ("bne", 1), ("blt", 4), ("bge", 5), ("bltu", 6), ("bgeu", 7)].map {
        Operation($0.0, 0x63, $0.1)
    }
    private static let bitOperations = [
        Operation("sh1add", 0x33, 2, 0x10), Operation("sh2add", 0x33, 4, 0x10), Operation("sh3add", 0x33, 6, 0x10),
        Operation("add.uw", 0x3b, 0, 0x04), Operation("sh1add.uw", 0x3b, 2, 0x10),
        Operation("sh2add.uw", 0x3b, 4, 0x10),
        Operation("sh3add.uw", 0x3b, 6, 0x10), Operation("andn", 0x33, 7, 0x20), Operation("orn", 0x33, 6, 0x20),
        Operation("xnor", 0x33, 4, 0x20), Operation("max", 0x33, 6, 5), Operation("maxu", 0x33, 7, 5),
        Operation("min", 0x33, 4, 5), Operation("minu", 0x33, 5, 5), Operation("rol", 0x33, 1, 0x30),
        Operation("rolw", 0x3b, 1, 0x30), Operation("ror", 0x33, 5, 0x30), Operation("rorw", 0x3b, 5, 0x30),
        Operation("clmul", 0x33, 1, 5), Operation("clmulr", 0x33, 2, 5), Operation("clmulh", 0x33, 3, 5),
        Operation("bclr", 0x33, 1, 0x24), Operation("bext", 0x33, 5, 0x24), Operation("binv", 0x33, 1, 0x34),
        Operation("bset", 0x33, 1, 0x14),
    ]
    /// With one operand; the second column is the whole immediate field.
    private static let unaryBitOperations: [(Operation, Int)] = [
        (Operation("clz", 0x13, 1), 0x600), (Operation("ctz", 0x13, 1), 0x601), (Operation("cpop", 0x13, 1), 0x602),
        (Operation("clzw", 0x1b, 1), 0x600), (Operation("ctzw", 0x1b, 1), 0x601), (Operation("cpopw", 0x1b, 1), 0x602),
        (Operation("sext.b", 0x13, 1), 0x604), (Operation("sext.h", 0x13, 1), 0x605),
        (Operation("zext.h", 0x3b, 4), 0x080),
        (Operation("orc.b", 0x13, 5), 0x287), (Operation("rev8", 0x13, 5), 0x6b8),
    ]
    private static let bitShiftOperations = [
        Operation("slli.uw", 0x1b, 1, 0x04), Operation("rori", 0x13, 5, 0x30), Operation("roriw", 0x1b, 5, 0x30),
        Operation("bclri", 0x13, 1, 0x24), Operation("bexti", 0x13, 5, 0x24), Operation("binvi", 0x13, 1, 0x34),
        Operation("bseti", 0x13, 1, 0x14),
    ]

    private mutating func addRegister(_ table: [Operation]) {
        let row = pick(table)
        let same = source()
        let second = chance(1, in: 8) ? same : source()
        add(row.name, Encode.r(row.opcode, row.funct3, row.funct7, destination(), same, second))
    }

    private mutating func addShift(_ table: [Operation]) {
        let row = pick(table)
        let width: UInt64 = row.opcode == 0x1b && row.name != "slli.uw" ? 32 : 64
        add(
            row.name,
            Encode.i(
                row.opcode, row.funct3, destination(), source(), Int(row.funct7) << 5 | Int(random.below(width))))
    }

    mutating func addArithmetic() {
        switch random.below(6) {
        case 0, 1: addRegister(Self.registerOperations)
        case 2:
            let row = pick(Self.immediateOperations)
            add(row.name, Encode.i(row.opcode, row.funct3, destination(), source(), number(-2048...2047)))
        case 3: addShift(Self.shiftOperations)
        case 4: addRegister(Self.multiplyOperations)
        default:
            let upper = number(0...0xfffff)
            if chance(1, in: 2) {
                add("lui", Encode.u(0x37, destination(), upper))
            } else {
                add("auipc", Encode.u(0x17, destination(), upper))
            }
        }
    }

    mutating func addBitManipulation() {
        switch random.below(4) {
        case 0, 1: addRegister(Self.bitOperations)
        case 2:
            let (row, immediate) = pick(Self.unaryBitOperations)
            if row.name == "ctzw" {
                // QEMU 7.2 counts through the upper half when the lower is zero, so it never is here.
                let register = destination()
                add(
                    row.name, Encode.i(0x13, 6, register, source(), 1 << number(0...10)),
                    Encode.i(row.opcode, row.funct3, destination(), register, immediate))
                return
            }
            add(row.name, Encode.i(row.opcode, row.funct3, destination(), source(), immediate))
        default: addShift(Self.bitShiftOperations)
        }
    }

    /// A load or store of the data, aligned or not.
    mutating func addMemoryAccess() {
        let offset = chance(1, in: 2) ? number(-32...31) * 8 : number(-256...255)
        if chance(1, in: 2) {
            let row = pick(Self.loads)
            add(row.name, Encode.i(row.opcode, row.funct3, destination(), pointer(), offset))
        } else {
            let row = pick(Self.stores)
            add(row.name, Encode.s(row.opcode, row.funct3, pointer(), source(), offset))
        }
    }

    mutating func addBranch() {
        switch random.below(5) {
        case 0:
            add(Step("jal", Encode.jal(destination(), 0), target: .jump(step: stepAhead())))
        case 1:
            let register = destination()
            guard register != 0 else { return }
            let target = stepAhead()
            add(
                Step(
                    "auipc, addi, jalr",
                    [
                        Encode.u(0x17, register, 0), Encode.addi(register, register, 0),
                        Encode.i(0x67, 0, destination(), register, number(0...1)),
                    ], target: .pcRelative(step: target)))
        default:
            let row = pick(Self.branches)
            let first = source()
            let second = chance(1, in: 4) ? first : source()
            add(Step(row.name, Encode.b(row.funct3, first, second, 0), target: .branch(step: stepAhead())))
        }
    }

    /// A loop of a few rounds around steps made by `body`.
    mutating func addLoop(_ body: (inout SequenceBuilder) -> Void) {
        let counter = pick([Register.t0, Register.t1, Register.t2, 28, 29])
        load(UInt64(number(1...5)), into: counter)
        let start = sequence.steps.count
        body(&self)
        // The counter may have been overwritten: keep what is left of it small and make it fall.
        add("andi", Encode.i(0x13, 7, counter, counter, 7))
        add(Step("beqz", Encode.b(0, counter, 0, 0), target: .branch(step: sequence.steps.count + 4)))
        add("addi", Encode.addi(counter, counter, -1))
        let rounds = 20  // a second counter that nothing else touches
        add("addi", Encode.addi(rounds, rounds, -1))
        add(Step("bgtz", Encode.b(4, 0, rounds, 0), target: .branch(step: start)))
    }

    /// Code that is overwritten and executed after `fence.i`.
    mutating func addSelfModification() {
        let instruction = Encode.addi(Register.t2, Register.t2, number(-2048...2047))
        let slot = sequence.steps.count + 2
        add(Step("li", Encode.li(Register.t0, UInt64(instruction))))
        add(
            Step(
                "store into code",
                [
                    Encode.u(0x17, Register.t1, 0), Encode.addi(Register.t1, Register.t1, 0),
                    Encode.sw(Register.t0, 0, Register.t1), Encode.fenceI,
                ], target: .pcRelative(step: slot)))
        add("replaced", Encode.addi(Register.t2, 0, 1))
    }
}

extension SequencePlan {
    static let integer = SequencePlan(name: "integer", count: 400) { _, random, place in
        var builder = SequenceBuilder(random, place)
        builder.sequence.x[20] = 12
        for _ in 0..<builder.number(8...40) {
            switch builder.random.below(10) {
            case 0...4: builder.addArithmetic()
            case 5, 6: builder.addMemoryAccess()
            case 7: builder.addBranch()
            default: builder.addBitManipulation()
            }
        }
        return builder.sequence
    }

    static let loops = SequencePlan(name: "loops and changed code", count: 150) { _, random, place in
        var builder = SequenceBuilder(random, place)
        builder.reserved = [20]
        builder.sequence.x[20] = 12
        for _ in 0..<3 {
            builder.addArithmetic()
            builder.addLoop { builder in
                for _ in 0..<builder.number(1...6) {
                    switch builder.random.below(8) {
                    case 0...3: builder.addArithmetic()
                    case 4...5: builder.addMemoryAccess()
                    case 6: builder.addSelfModification()
                    default: builder.addBitManipulation()
                    }
                }
            }
            builder.addSelfModification()
        }
        return builder.sequence
    }
}
