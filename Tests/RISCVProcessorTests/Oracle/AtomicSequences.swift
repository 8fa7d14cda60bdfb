extension SequenceBuilder {
    private static let atomicFunctions: [(String, UInt32)] = [
        ("amoswap", 1), ("amoadd", 0), ("amoxor", 4), ("amoand", 12), ("amoor", 8), ("amomin", 16), ("amomax", 20),
        ("amominu", 24), ("amomaxu", 28),
    ]

    /// Instructions that put an address in the data into a register: aligned to `alignment`, or sometimes not.
    private mutating func addressing(_ register: Int, alignment: Int) -> [UInt32] {
        [
            Encode.addi(register, pointer(), number(-256...255)),
            Encode.i(0x13, 7, register, register, chance(1, in: 12) ? -1 : -alignment),
        ]
    }

    mutating func addAtomic() {
        let isDouble = chance(1, in: 2)
        let width: UInt32 = isDouble ? 3 : 2
        let order = UInt32(random.below(4))
        let (name, function) = pick(Self.atomicFunctions)
        let address = addressing(Register.t0, alignment: isDouble ? 8 : 4)
        add(
            Step(
                name + (isDouble ? ".d" : ".w"),
                address + [Encode.r(0x2f, width, function << 2 | order, destination(), Register.t0, source())]))
    }

    /// A reservation and the store under it, with what must or must not make the store fail.
    ///
    /// Left out: a store-conditional to a bad address without a reservation, which the manual lets either fail or fault, and stores to the reserved
    /// place in between, which QEMU does not see when they store what was there.
    mutating func addReservation() {
        let isDouble = chance(1, in: 2)
        let width: UInt32 = isDouble ? 3 : 2
        let order = UInt32(random.below(4))
        let alignment = isDouble ? 8 : 4
        let address = [
            Encode.addi(Register.t0, pointer(), number(-256...255)),
            Encode.i(0x13, 7, Register.t0, Register.t0, -alignment),
        ]
        let storeConditional = Encode.r(0x2f, width, 3 << 2 | order, destination(), Register.t0, source())
        let reserve = Encode.r(0x2f, width, 2 << 2 | order, destination(), Register.t0, 0)
        switch random.below(5) {
        case 0: add(Step("sc without lr", address + [storeConditional]))
        case 1:
            add(
                Step(
                    "lr, sc elsewhere",
                    address + [reserve, Encode.addi(Register.t0, Register.t0, 64), storeConditional]))
        case 2: add(Step("lr, sc, sc", address + [reserve, storeConditional, storeConditional]))
        case 3:
            let bad = Encode.r(0x2f, width, 2 << 2 | order, destination(), Register.t0, 0)
            add(Step("lr misaligned", address + [Encode.addi(Register.t0, Register.t0, number(1...3)), bad]))
        default:
            add(Step("lr, sc", address + [reserve, Encode.addi(destination(), source(), 1), storeConditional]))
        }
    }
}

extension SequencePlan {
    static let atomic = SequencePlan(name: "atomic", count: 250) { _, random, place in
        var builder = SequenceBuilder(random, place)
        builder.reserved = [Register.t0]
        for _ in 0..<builder.number(8...30) {
            switch builder.random.below(8) {
            case 0...3: builder.addAtomic()
            case 4, 5: builder.addReservation()
            case 6: builder.addArithmetic()
            default: builder.addMemoryAccess()
            }
        }
        return builder.sequence
    }
}
