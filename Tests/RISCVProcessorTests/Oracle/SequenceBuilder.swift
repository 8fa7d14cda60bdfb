/// Makes random steps. What all kinds of sequences have in common: which registers hold pointers into the data, what values are
/// interesting, and single instructions by table.
struct SequenceBuilder {
    var random: SeededGenerator
    var sequence = Sequence()
    let place: Placement
    /// Registers that point into the middle of the data and are never written.
    let pointers = [Register.sp, Register.s0, Register.s1]
    /// Other registers that random steps leave alone.
    var reserved: [Int] = []
    /// Supervisor interrupts that steps may enable.
    var enabledInterrupts: UInt64 = 0x222

    init(_ random: SeededGenerator, _ place: Placement, dataByteCount: Int = 1280) {
        self.random = random
        self.place = place
        for number in 1..<32 { sequence.x[number] = value() }
        for pointer in pointers {
            sequence.x[pointer] = place.data + 512 + self.random.below(8) * (self.random.below(3) == 0 ? 1 : 8)
        }
        for number in 0..<32 { sequence.f[number] = floatValue() }
        sequence.data = (0..<dataByteCount).map { _ in 0 }
        for index in sequence.data.indices { sequence.data[index] = UInt8(truncatingIfNeeded: self.random.next()) }
    }

    // MARK: Choices

    mutating func chance(_ one: UInt64, in all: UInt64) -> Bool { random.below(all) < one }
    mutating func pick<Element>(_ list: [Element]) -> Element { list[Int(random.below(UInt64(list.count)))] }
    mutating func number(_ range: ClosedRange<Int>) -> Int {
        range.lowerBound + Int(random.below(UInt64(range.count)))
    }

    /// Any register to read.
    mutating func source() -> Int { Int(random.below(32)) }
    /// Any register that may be written.
    mutating func destination() -> Int {
        while true {
            let register = Int(random.below(32))
            if !pointers.contains(register) && !reserved.contains(register) { return register }
        }
    }
    mutating func pointer() -> Int { pick(pointers) }

    /// A register value: small, at an edge, one bit, or anything.
    mutating func value() -> UInt64 {
        let shift = random.below(64)
        switch random.below(10) {
        case 0: return 0
        case 1: return .max
        case 2: return random.below(64)
        case 3: return 1 << shift
        case 4: return (1 << shift) &- 1
        case 5: return .max << shift
        case 6: return UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: random.next())))
        case 7: return 1 << 63 &+ random.below(5) &- 2
        case 8: return 1 << 31 &+ random.below(5) &- 2
        default: return random.next()
        }
    }

    /// A floating-point register value: doubles and boxed singles with their edges, NaNs of both kinds, and badly boxed ones.
    mutating func floatValue() -> UInt64 {
        let seed = random.next()
        switch random.below(8) {
        case 0...2:
            var operands = OperandGenerator(width: 64, seed: seed)
            return operands.next()
        case 3...5:
            var operands = OperandGenerator(width: 32, seed: seed)
            return 0xffff_ffff_0000_0000 | operands.next()
        case 6:
            let singles: [UInt64] = [
                0, 0x8000_0000, 0x3f80_0000, 0xbf80_0000, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0x7f80_0001,
                0xffc1_2345, 0x0080_0000, 0x007f_ffff, 1, 0x7f7f_ffff, 0x4f00_0000, 0x5f00_0000, 0xcf00_0000,
            ]
            return 0xffff_ffff_0000_0000 | singles[Int(seed % 16)]
        default:
            let doubles: [UInt64] = [
                0, 1 << 63, 0x3ff0_0000_0000_0000, 0xbff0_0000_0000_0000, 0x7ff0_0000_0000_0000,
                0xfff0_0000_0000_0000, 0x7ff8_0000_0000_0000, 0x7ff0_0000_0000_0001, 0xfff8_1234_5678_9abc,
                0x0010_0000_0000_0000, 0x000f_ffff_ffff_ffff, 1, 0x7fef_ffff_ffff_ffff, 0x41e0_0000_0000_0000,
                0x43e0_0000_0000_0000, 0x7fff_ffff_3f80_0000,
            ]
            return doubles[Int(seed % 16)]
        }
    }

    mutating func add(_ step: Step) { sequence.steps.append(step) }
    mutating func add(_ name: String, _ words: UInt32...) { sequence.steps.append(Step(name, words)) }

    /// Loads a constant.
    mutating func load(_ value: UInt64, into register: Int) { add(Step("li", Encode.li(register, value))) }

    /// A step further on, for a branch.
    mutating func stepAhead() -> Int { sequence.steps.count + number(1...5) }
}

/// A row of an instruction table.
struct Operation {
    var name: String
    var opcode: UInt32
    var funct3: UInt32
    var funct7: UInt32 = 0

    init(_ name: String, _ opcode: UInt32, _ funct3: UInt32, _ funct7: UInt32 = 0) {
        self.name = name
        self.opcode = opcode
        self.funct3 = funct3
        self.funct7 = funct7
    }
}
