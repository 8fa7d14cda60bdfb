/// Repeatable random numbers (splitmix64).
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    mutating func below(_ bound: UInt64) -> UInt64 { next().multipliedFullWidth(by: bound).high }
}

/// Operands that lie where floating point goes wrong: edges of the exponent range, long runs of ones and zeros, neighbours.
struct OperandGenerator {
    let fractionWidth: UInt64
    let exponentMax: UInt64
    var random: SeededGenerator

    init(width: Int, seed: UInt64) {
        fractionWidth = width == 32 ? 23 : 52
        exponentMax = width == 32 ? 0xff : 0x7ff
        random = SeededGenerator(seed: seed)
    }

    private var bias: UInt64 { exponentMax >> 1 }

    private mutating func fraction() -> UInt64 {
        let mask = (UInt64(1) << fractionWidth) - 1
        let shift = random.below(fractionWidth + 1)
        let bits: UInt64
        switch random.below(8) {
        case 0: bits = 0
        case 1: bits = mask
        case 2: bits = 1 << shift
        case 3: bits = mask << shift
        case 4: bits = mask >> shift
        case 5: bits = (random.next() & 7) &- 4
        case 6: bits = (1 << shift) &+ (random.next() & 3)
        default: bits = random.next()
        }
        return bits & mask
    }

    private mutating func exponent() -> UInt64 {
        switch random.below(8) {
        case 0: random.below(4)
        case 1: exponentMax - random.below(4)
        case 2, 3: bias - 3 + random.below(7)
        case 4: bias - fractionWidth - 3 + random.below(2 * fractionWidth + 6)
        case 5: bias / 2 - 3 + random.below(7)
        case 6: bias + bias / 2 - 3 + random.below(7)
        default: random.below(exponentMax + 1)
        }
    }

    mutating func next() -> UInt64 {
        let sign = (random.next() & 1) << (fractionWidth == 23 ? 31 : 63)
        return sign | exponent() << fractionWidth | fraction()
    }

    /// An operand that has something to do with another: its neighbour, its opposite, at a chosen distance.
    mutating func next(near other: UInt64) -> UInt64 {
        let top: UInt64 = fractionWidth == 23 ? 1 << 31 : 1 << 63
        let all = top | (top - 1)
        switch random.below(6) {
        case 0: return (other &+ (random.next() & 7) &- 4) & all
        case 1: return (other ^ top) & all
        case 2:
            let distance = random.below(2 * fractionWidth + 8) << fractionWidth
            return ((other &- distance) ^ (random.next() & top) ^ (random.next() & 3)) & all
        default: return next()
        }
    }
}
