extension SoftFloat {
    // MARK: Arithmetic

    package static func add64(_ a: UInt64, _ b: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        if hostRounds(mode, flags) {
            // A sum below the normal numbers is exact, so any finite one will do.
            let sum = Double(bitPattern: a) + Double(bitPattern: b)
            if sum.isFinite { return sum.bitPattern }
        }
        return addInIntegers64(a, b, mode, &flags)
    }

    package static func sub64(_ a: UInt64, _ b: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        if hostRounds(mode, flags) {
            let difference = Double(bitPattern: a) - Double(bitPattern: b)
            if difference.isFinite { return difference.bitPattern }
        }
        // A NaN keeps being the same kind of NaN under another sign.
        return addInIntegers64(a, b ^ 0x8000_0000_0000_0000, mode, &flags)
    }

    package static func mul64(_ a: UInt64, _ b: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        if hostRounds(mode, flags) {
            let product = Double(bitPattern: a) * Double(bitPattern: b)
            if isOrdinary(product) { return product.bitPattern }
        }
        return mulInIntegers64(a, b, mode, &flags)
    }

    package static func div64(_ a: UInt64, _ b: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        if hostRounds(mode, flags) {
            let quotient = Double(bitPattern: a) / Double(bitPattern: b)
            if isOrdinary(quotient) { return quotient.bitPattern }
        }
        return divInIntegers64(a, b, mode, &flags)
    }

    package static func sqrt64(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        if hostRounds(mode, flags) {
            let root = Double(bitPattern: a).squareRoot()
            if isOrdinary(root) { return root.bitPattern }
        }
        return sqrtInIntegers64(a, mode, &flags)
    }

    /// `a * b + c`, rounded once.
    package static func fma64(
        _ a: UInt64, _ b: UInt64, _ c: UInt64, _ mode: UInt8, _ flags: inout UInt8
    ) -> UInt64 {
        if hostRounds(mode, flags) {
            let sum = Double(bitPattern: c).addingProduct(Double(bitPattern: a), Double(bitPattern: b))
            if isOrdinary(sum) { return sum.bitPattern }
        }
        return fmaInIntegers64(a, b, c, mode, &flags)
    }

    // MARK: The same without the host

    @inline(never) static func addInIntegers64(
        _ a: UInt64, _ b: UInt64, _ mode: UInt8, _ flags: inout UInt8
    ) -> UInt64 {
        if isNaN(a) || isNaN(b) { return propagate64(a, b, &flags) }
        if isInfinite(a) { return isInfinite(b) && a != b ? invalid64(&flags) : a }
        if isInfinite(b) { return b }
        if isZero(a) { return isZero(b) ? zeroSum64(isNegative(a), isNegative(b), mode) : b }
        if isZero(b) { return a }
        guard let sum = add(Parts(a), Parts(b)) else { return zeroSum64(true, false, mode) }
        return round64(sum, mode, &flags)
    }

    @inline(never) static func mulInIntegers64(
        _ a: UInt64, _ b: UInt64, _ mode: UInt8, _ flags: inout UInt8
    ) -> UInt64 {
        if isNaN(a) || isNaN(b) { return propagate64(a, b, &flags) }
        let negative = isNegative(a) != isNegative(b)
        if isInfinite(a) || isInfinite(b) {
            return isZero(a) || isZero(b) ? invalid64(&flags) : signed(negative, 0x7ff0_0000_0000_0000)
        }
        if isZero(a) || isZero(b) { return signed(negative, 0) }
        return round64(multiply(Parts(a), Parts(b)), mode, &flags)
    }

    @inline(never) static func divInIntegers64(
        _ a: UInt64, _ b: UInt64, _ mode: UInt8, _ flags: inout UInt8
    ) -> UInt64 {
        if isNaN(a) || isNaN(b) { return propagate64(a, b, &flags) }
        let negative = isNegative(a) != isNegative(b)
        if isInfinite(a) { return isInfinite(b) ? invalid64(&flags) : signed(negative, 0x7ff0_0000_0000_0000) }
        if isInfinite(b) { return signed(negative, 0) }
        if isZero(b) {
            if isZero(a) { return invalid64(&flags) }
            flags |= Flags.divideByZero
            return signed(negative, 0x7ff0_0000_0000_0000)
        }
        if isZero(a) { return signed(negative, 0) }
        return round64(divide(Parts(a), Parts(b)), mode, &flags)
    }

    @inline(never) static func sqrtInIntegers64(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        if isNaN(a) { return propagate64(a, a, &flags) }
        if isZero(a) { return a }
        if isNegative(a) { return invalid64(&flags) }
        if isInfinite(a) { return a }
        return round64(squareRoot(Parts(a)), mode, &flags)
    }

    @inline(never) static func fmaInIntegers64(
        _ a: UInt64, _ b: UInt64, _ c: UInt64, _ mode: UInt8, _ flags: inout UInt8
    ) -> UInt64 {
        // Infinity times zero is invalid even when the addend is a quiet NaN.
        if isInfinite(a) && isZero(b) || isZero(a) && isInfinite(b) { return invalid64(&flags) }
        if isNaN(a) || isNaN(b) || isNaN(c) {
            if isSignaling(c) { flags |= Flags.invalid }
            return propagate64(a, b, &flags)
        }
        let negative = isNegative(a) != isNegative(b)
        if isInfinite(a) || isInfinite(b) {
            return isInfinite(c) && isNegative(c) != negative
                ? invalid64(&flags) : signed(negative, 0x7ff0_0000_0000_0000)
        }
        if isInfinite(c) { return c }
        if isZero(a) || isZero(b) { return isZero(c) ? zeroSum64(negative, isNegative(c), mode) : c }
        if isZero(c) { return round64(multiply(Parts(a), Parts(b)), mode, &flags) }
        guard let sum = multiplyAdd(Parts(a), Parts(b), Parts(c)) else { return zeroSum64(true, false, mode) }
        return round64(sum, mode, &flags)
    }

    /// The result when an operand is a NaN.
    private static func propagate64(_ a: UInt64, _ b: UInt64, _ flags: inout UInt8) -> UInt64 {
        if isSignaling(a) || isSignaling(b) { flags |= Flags.invalid }
        return canonicalNaN64
    }

    /// The sum of two zeros with these signs, and of two numbers that cancel.
    private static func zeroSum64(_ a: Bool, _ b: Bool, _ mode: UInt8) -> UInt64 {
        signed(a == b ? a : mode == Rounding.down, 0)
    }

    // MARK: Comparison

    /// FMIN: of two zeros the negative one, of a NaN and a number the number.
    package static func min64(_ a: UInt64, _ b: UInt64, _ flags: inout UInt8) -> UInt64 {
        if isNaN(a) || isNaN(b) { return pickNumber64(a, b, &flags) }
        return order(a) < order(b) ? a : b
    }

    /// FMAX: of two zeros the positive one, of a NaN and a number the number.
    package static func max64(_ a: UInt64, _ b: UInt64, _ flags: inout UInt8) -> UInt64 {
        if isNaN(a) || isNaN(b) { return pickNumber64(a, b, &flags) }
        return order(a) > order(b) ? a : b
    }

    private static func pickNumber64(_ a: UInt64, _ b: UInt64, _ flags: inout UInt8) -> UInt64 {
        if isSignaling(a) || isSignaling(b) { flags |= Flags.invalid }
        return isNaN(a) ? (isNaN(b) ? canonicalNaN64 : b) : a
    }

    /// A number whose order as an integer is that of the floats, the negative zero below the positive one.
    @inline(__always) private static func order(_ a: UInt64) -> Int64 {
        let bits = Int64(bitPattern: a)
        return bits >= 0 ? bits : bits ^ .max
    }

    /// FEQ, quiet: invalid only for a signaling NaN.
    package static func eq64(_ a: UInt64, _ b: UInt64, _ flags: inout UInt8) -> Bool {
        if isNaN(a) || isNaN(b) {
            if isSignaling(a) || isSignaling(b) { flags |= Flags.invalid }
            return false
        }
        return a == b || isZero(a) && isZero(b)
    }

    /// FLT, signaling: invalid for any NaN.
    package static func lt64(_ a: UInt64, _ b: UInt64, _ flags: inout UInt8) -> Bool {
        if isNaN(a) || isNaN(b) {
            flags |= Flags.invalid
            return false
        }
        return order(a) < order(b) && !(isZero(a) && isZero(b))
    }

    /// FLE, signaling: invalid for any NaN.
    package static func le64(_ a: UInt64, _ b: UInt64, _ flags: inout UInt8) -> Bool {
        if isNaN(a) || isNaN(b) {
            flags |= Flags.invalid
            return false
        }
        return order(a) <= order(b) || isZero(a) && isZero(b)
    }

    /// FCLASS: one bit of ten set, as in table "Format of result of FCLASS instruction".
    package static func classify64(_ a: UInt64) -> UInt64 {
        if isNaN(a) { return isSignaling(a) ? 1 << 8 : 1 << 9 }
        let distance: UInt64 =
            if isInfinite(a) {
                3
            } else if isZero(a) {
                0
            } else {
                (a & ~0x8000_0000_0000_0000) < 0x0010_0000_0000_0000 ? 1 : 2
            }
        // Negative infinity is bit 0, negative zero bit 3, positive zero bit 4, positive infinity bit 7.
        return 1 &<< (isNegative(a) ? 3 &- distance : 4 &+ distance)
    }
}
