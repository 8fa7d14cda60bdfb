/// A finite number that is not zero, of either width: `significand / 2^63 * 2^exponent`, bit 63 of the significand set.
///
/// An intermediate result that does not fit keeps its truth in the last bit: set when anything nonzero was cut off. That
/// is enough to round by, because both formats keep at most 53 of the 64 bits.
struct Parts {
    var isNegative: Bool
    var exponent: Int
    var significand: UInt64

    @inline(__always) init(isNegative: Bool, exponent: Int, significand: UInt64) {
        self.isNegative = isNegative
        self.exponent = exponent
        self.significand = significand
    }

    /// Takes a finite nonzero single apart.
    @inline(__always) init(_ bits: UInt32) {
        isNegative = bits >> 31 != 0
        let biased = Int(bits >> 23 & 0xff)
        let fraction = UInt64(bits & 0x7f_ffff)
        if biased == 0 {
            let zeros = fraction.leadingZeroBitCount
            significand = fraction &<< UInt64(truncatingIfNeeded: zeros)
            exponent = -149 &+ 63 &- zeros
        } else {
            significand = 1 << 63 | fraction << 40
            exponent = biased &- 127
        }
    }

    /// Takes a finite nonzero double apart.
    @inline(__always) init(_ bits: UInt64) {
        isNegative = bits >> 63 != 0
        let biased = Int(bits >> 52 & 0x7ff)
        let fraction = bits & (1 << 52 - 1)
        if biased == 0 {
            let zeros = fraction.leadingZeroBitCount
            significand = fraction &<< UInt64(truncatingIfNeeded: zeros)
            exponent = -1074 &+ 63 &- zeros
        } else {
            significand = 1 << 63 | fraction << 11
            exponent = biased &- 1023
        }
    }

    /// Takes an integer apart. `magnitude` is not zero.
    @inline(__always) init(isNegative: Bool, magnitude: UInt64) {
        let zeros = magnitude.leadingZeroBitCount
        self.isNegative = isNegative
        significand = magnitude &<< UInt64(truncatingIfNeeded: zeros)
        exponent = 63 &- zeros
    }

    /// `wide / 2^127 * 2^exponent`; `wide` is not zero and need not have its first bit set.
    @inline(__always) init(isNegative: Bool, exponent: Int, wide: UInt128) {
        let zeros = wide.leadingZeroBitCount
        let normalized = wide &<< UInt128(truncatingIfNeeded: zeros)
        self.isNegative = isNegative
        self.exponent = exponent &- zeros
        significand = UInt64(truncatingIfNeeded: normalized >> 64)
        if UInt64(truncatingIfNeeded: normalized) != 0 { significand |= 1 }
    }
}

extension SoftFloat {
    /// Shifts right; the last bit also says whether anything was shifted out. `count` is not negative.
    @inline(__always) static func shiftKeepingTruth(_ value: UInt64, _ count: Int) -> UInt64 {
        if count >= 64 { return value == 0 ? 0 : 1 }
        let amount = UInt64(truncatingIfNeeded: count)
        let kept = value &>> amount
        return kept &<< amount == value ? kept : kept | 1
    }

    /// Shifts right; the last bit also says whether anything was shifted out. `count` is not negative.
    @inline(__always) static func shiftKeepingTruth(_ value: UInt128, _ count: Int) -> UInt128 {
        if count >= 128 { return value == 0 ? 0 : 1 }
        let amount = UInt128(truncatingIfNeeded: count)
        let kept = value &>> amount
        return kept &<< amount == value ? kept : kept | 1
    }

    /// What to add to a significand before its last bits, which `mask` covers, are cut off.
    @inline(__always) static func increment(_ mode: UInt8, _ isNegative: Bool, _ mask: UInt64) -> UInt64 {
        switch mode {
        case Rounding.towardZero: 0
        case Rounding.down: isNegative ? mask : 0
        case Rounding.up: isNegative ? 0 : mask
        default: (mask &+ 1) >> 1
        }
    }

    /// The single nearest to the parts in the given mode.
    static func round32(_ parts: Parts, _ mode: UInt8, _ flags: inout UInt8) -> UInt32 {
        let bits = rounded(
            parts, biasedExponent: parts.exponent &+ 127, cut: 40, exponentMax: 0xff, mode, &flags)
        return signed(parts.isNegative, UInt32(truncatingIfNeeded: bits))
    }

    /// The double nearest to the parts in the given mode.
    static func round64(_ parts: Parts, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        let bits = rounded(
            parts, biasedExponent: parts.exponent &+ 1023, cut: 11, exponentMax: 0x7ff, mode, &flags)
        return signed(parts.isNegative, bits)
    }

    /// Exponent and fraction fields of the rounded result. The last `cut` bits of the significand have no place in it.
    @inline(__always) private static func rounded(
        _ parts: Parts, biasedExponent: Int, cut: UInt64, exponentMax: Int, _ mode: UInt8, _ flags: inout UInt8
    ) -> UInt64 {
        let mask = 1 &<< cut &- 1
        let fractionWidth = 63 &- cut
        let increment = increment(mode, parts.isNegative, mask)
        var significand = parts.significand
        var base: UInt64 = 0
        var isTiny = false
        if biasedExponent >= exponentMax {
            return overflowed(parts.isNegative, fractionWidth, exponentMax, mode, &flags)
        }
        if biasedExponent >= 1 {
            // The significand's first bit adds one to the exponent field.
            base = UInt64(truncatingIfNeeded: biasedExponent &- 1) &<< fractionWidth
        } else {
            // Tiny, unless rounding with an unbounded exponent would have reached the smallest normal number.
            isTiny = biasedExponent < 0 || !significand.addingReportingOverflow(increment).overflow
            significand = shiftKeepingTruth(significand, 1 &- biasedExponent)
        }
        let cutOff = significand & mask
        let (sum, carry) = significand.addingReportingOverflow(increment)
        var kept = sum &>> cut | (carry ? 2 &<< fractionWidth : 0)
        if cutOff == (mask &+ 1) >> 1, mode != Rounding.nearestMaxMagnitude, increment == cutOff {
            kept &= ~1  // a tie goes to the even neighbour
        }
        if cutOff != 0 {
            flags |= isTiny ? Flags.inexact | Flags.underflow : Flags.inexact
        }
        let bits = base &+ kept
        if bits &>> fractionWidth >= UInt64(truncatingIfNeeded: exponentMax) {
            return overflowed(parts.isNegative, fractionWidth, exponentMax, mode, &flags)
        }
        return bits
    }

    /// Infinity, or the largest finite number when the mode rounds towards it.
    private static func overflowed(
        _ isNegative: Bool, _ fractionWidth: UInt64, _ exponentMax: Int, _ mode: UInt8, _ flags: inout UInt8
    ) -> UInt64 {
        flags |= Flags.overflow | Flags.inexact
        let infinity = UInt64(truncatingIfNeeded: exponentMax) &<< fractionWidth
        switch mode {
        case Rounding.towardZero: return infinity &- 1
        case Rounding.down: return isNegative ? infinity : infinity &- 1
        case Rounding.up: return isNegative ? infinity &- 1 : infinity
        default: return infinity
        }
    }

    // MARK: Arithmetic on parts

    /// The sum, or nil when it is exactly zero.
    @inline(__always) static func add(_ a: Parts, _ b: Parts) -> Parts? {
        let aIsLarger = a.exponent > b.exponent || a.exponent == b.exponent && a.significand >= b.significand
        let large = aIsLarger ? a : b
        let small = aIsLarger ? b : a
        // At a distance of one or none nothing is shifted out: 11 bits are free. Beyond that at most one bit cancels.
        let aligned = shiftKeepingTruth(small.significand, large.exponent &- small.exponent)
        if large.isNegative == small.isNegative {
            let (sum, carry) = large.significand.addingReportingOverflow(aligned)
            return carry
                ? Parts(
                    isNegative: large.isNegative, exponent: large.exponent &+ 1,
                    significand: sum >> 1 | sum & 1 | 1 << 63)
                : Parts(isNegative: large.isNegative, exponent: large.exponent, significand: sum)
        }
        let difference = large.significand &- aligned
        if difference == 0 { return nil }
        let zeros = difference.leadingZeroBitCount
        return Parts(
            isNegative: large.isNegative, exponent: large.exponent &- zeros,
            significand: difference &<< UInt64(truncatingIfNeeded: zeros))
    }

    @inline(__always) static func multiply(_ a: Parts, _ b: Parts) -> Parts {
        let product = a.significand.multipliedFullWidth(by: b.significand)
        return Parts(
            isNegative: a.isNegative != b.isNegative, exponent: a.exponent &+ b.exponent &+ 1,
            wide: UInt128(product.high) << 64 | UInt128(product.low))
    }

    @inline(__always) static func divide(_ a: Parts, _ b: Parts) -> Parts {
        // Halving the dividend keeps the quotient within 64 bits; it has at least 63.
        let (quotient, remainder) = b.significand.dividingFullWidth((a.significand >> 1, a.significand << 63))
        let zeros = quotient.leadingZeroBitCount
        return Parts(
            isNegative: a.isNegative != b.isNegative, exponent: a.exponent &- b.exponent &- zeros,
            significand: quotient &<< UInt64(truncatingIfNeeded: zeros) | (remainder != 0 ? 1 : 0))
    }

    /// `a` is positive.
    static func squareRoot(_ a: Parts) -> Parts {
        // The radicand as an integer of 115 or 116 bits, so that the root has 58: 53 to keep, and some to round by.
        let isOdd = a.exponent & 1 != 0
        let radicand = UInt128(a.significand) << (isOdd ? 52 : 51)
        // The host's root of it is right in 52 bits; one step of Newton's method, and the last bit is looked at.
        var root = UInt64((Double(a.significand) * (isOdd ? 0x1p52 : 0x1p51)).squareRoot())
        root = (root &+ UInt64(truncatingIfNeeded: radicand / UInt128(root))) >> 1
        while UInt128(root) &* UInt128(root) > radicand { root &-= 1 }
        while UInt128(root &+ 1) &* UInt128(root &+ 1) <= radicand { root &+= 1 }
        let isExact = UInt128(root) &* UInt128(root) == radicand
        return Parts(
            isNegative: false, exponent: a.exponent >> 1, significand: root << 6 | (isExact ? 0 : 1))
    }

    /// `a * b + c` rounded once, or nil when it is exactly zero.
    static func multiplyAdd(_ a: Parts, _ b: Parts, _ c: Parts) -> Parts? {
        let wide = a.significand.multipliedFullWidth(by: b.significand)
        var product = UInt128(wide.high) << 64 | UInt128(wide.low)
        var productExponent = a.exponent &+ b.exponent &+ 1
        if product >> 127 == 0 {
            product <<= 1
            productExponent &-= 1
        }
        let productIsNegative = a.isNegative != b.isNegative
        let addend = UInt128(c.significand) << 64
        let productIsLarger =
            productExponent > c.exponent || productExponent == c.exponent && product >= addend
        let large = productIsLarger ? product : addend
        let small = productIsLarger ? addend : product
        let exponent = productIsLarger ? productExponent : c.exponent
        let isNegative = productIsLarger ? productIsNegative : c.isNegative
        // A product has 106 bits and an addend 53, so that what cancels is never what was shifted out.
        let aligned = shiftKeepingTruth(
            small, productIsLarger ? productExponent &- c.exponent : c.exponent &- productExponent)
        if productIsNegative == c.isNegative {
            let (sum, carry) = large.addingReportingOverflow(aligned)
            return carry
                ? Parts(isNegative: isNegative, exponent: exponent &+ 1, wide: sum >> 1 | sum & 1 | 1 << 127)
                : Parts(isNegative: isNegative, exponent: exponent, wide: sum)
        }
        let difference = large &- aligned
        return difference == 0 ? nil : Parts(isNegative: isNegative, exponent: exponent, wide: difference)
    }
}
