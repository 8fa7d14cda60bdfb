extension SoftFloat {
    // MARK: Between widths

    /// FCVT.D.S: always exact.
    package static func f32ToF64(_ a: UInt32, _ flags: inout UInt8) -> UInt64 {
        if isNaN(a) {
            if isSignaling(a) { flags |= Flags.invalid }
            return canonicalNaN64
        }
        return Double(Float(bitPattern: a)).bitPattern
    }

    /// FCVT.S.D.
    package static func f64ToF32(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt32 {
        if hostRounds(mode, flags) {
            let single = Float(Double(bitPattern: a))
            if isOrdinary(single) { return single.bitPattern }
        }
        if isNaN(a) {
            if isSignaling(a) { flags |= Flags.invalid }
            return canonicalNaN32
        }
        if isInfinite(a) { return signed(isNegative(a), 0x7f80_0000) }
        if isZero(a) { return signed(isNegative(a), 0) }
        return round32(Parts(a), mode, &flags)
    }

    // MARK: From integers

    package static func i32ToF32(_ a: Int32, _ mode: UInt8, _ flags: inout UInt8) -> UInt32 {
        if hostRounds(mode, flags) { return Float(a).bitPattern }
        if a == 0 { return 0 }
        return round32(Parts(isNegative: a < 0, magnitude: UInt64(a.magnitude)), mode, &flags)
    }

    package static func u32ToF32(_ a: UInt32, _ mode: UInt8, _ flags: inout UInt8) -> UInt32 {
        if hostRounds(mode, flags) { return Float(a).bitPattern }
        if a == 0 { return 0 }
        return round32(Parts(isNegative: false, magnitude: UInt64(a.magnitude)), mode, &flags)
    }

    package static func i64ToF32(_ a: Int64, _ mode: UInt8, _ flags: inout UInt8) -> UInt32 {
        if hostRounds(mode, flags) { return Float(a).bitPattern }
        if a == 0 { return 0 }
        return round32(Parts(isNegative: a < 0, magnitude: a.magnitude), mode, &flags)
    }

    package static func u64ToF32(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt32 {
        if hostRounds(mode, flags) { return Float(a).bitPattern }
        if a == 0 { return 0 }
        return round32(Parts(isNegative: false, magnitude: a.magnitude), mode, &flags)
    }

    package static func i32ToF64(_ a: Int32, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        Double(a).bitPattern  // every one fits
    }

    package static func u32ToF64(_ a: UInt32, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        Double(a).bitPattern  // every one fits
    }

    package static func i64ToF64(_ a: Int64, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        if hostRounds(mode, flags) { return Double(a).bitPattern }
        if a == 0 { return 0 }
        return round64(Parts(isNegative: a < 0, magnitude: a.magnitude), mode, &flags)
    }

    package static func u64ToF64(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        if hostRounds(mode, flags) { return Double(a).bitPattern }
        if a == 0 { return 0 }
        return round64(Parts(isNegative: false, magnitude: a.magnitude), mode, &flags)
    }

    // MARK: To integers

    // FCVT.W, .WU, .L, .LU: out of range gives the nearest integer in range, a NaN the largest, both invalid.

    package static func f32ToI32(_ a: UInt32, _ mode: UInt8, _ flags: inout UInt8) -> Int32 {
        integer(a, mode, &flags)
    }

    package static func f32ToU32(_ a: UInt32, _ mode: UInt8, _ flags: inout UInt8) -> UInt32 {
        integer(a, mode, &flags)
    }

    package static func f32ToI64(_ a: UInt32, _ mode: UInt8, _ flags: inout UInt8) -> Int64 {
        integer(a, mode, &flags)
    }

    package static func f32ToU64(_ a: UInt32, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        integer(a, mode, &flags)
    }

    package static func f64ToI32(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> Int32 {
        integer(a, mode, &flags)
    }

    package static func f64ToU32(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt32 {
        integer(a, mode, &flags)
    }

    package static func f64ToI64(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> Int64 {
        integer(a, mode, &flags)
    }

    package static func f64ToU64(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        integer(a, mode, &flags)
    }

    @inline(__always) private static func integer<Result: FixedWidthInteger>(
        _ a: UInt32, _ mode: UInt8, _ flags: inout UInt8
    ) -> Result {
        if isNaN(a) {
            flags |= Flags.invalid
            return .max
        }
        var exceptions: UInt8 = 0
        let rounded = isZero(a) ? 0 : isInfinite(a) ? nil : magnitude(Parts(a), mode, &exceptions)
        return integer(isNegative: isNegative(a), magnitude: rounded, exceptions, &flags)
    }

    @inline(__always) private static func integer<Result: FixedWidthInteger>(
        _ a: UInt64, _ mode: UInt8, _ flags: inout UInt8
    ) -> Result {
        if isNaN(a) {
            flags |= Flags.invalid
            return .max
        }
        var exceptions: UInt8 = 0
        let rounded = isZero(a) ? 0 : isInfinite(a) ? nil : magnitude(Parts(a), mode, &exceptions)
        return integer(isNegative: isNegative(a), magnitude: rounded, exceptions, &flags)
    }

    /// - Parameter magnitude: Nil when it has more than 64 bits.
    @inline(__always) private static func integer<Result: FixedWidthInteger>(
        isNegative: Bool, magnitude: UInt64?, _ exceptions: UInt8, _ flags: inout UInt8
    ) -> Result {
        let limit = UInt64(truncatingIfNeeded: isNegative ? Result.min.magnitude : Result.max.magnitude)
        guard let magnitude, magnitude <= limit else {
            flags |= Flags.invalid
            return isNegative ? .min : .max
        }
        flags |= exceptions
        return Result(truncatingIfNeeded: isNegative ? 0 &- magnitude : magnitude)
    }

    /// The absolute value rounded to an integer (the sign decides which way is down), or nil when it has more than 64 bits.
    @inline(__always) private static func magnitude(
        _ parts: Parts, _ mode: UInt8, _ exceptions: inout UInt8
    ) -> UInt64? {
        if parts.exponent >= 64 { return nil }
        let distance = 63 &- parts.exponent
        if distance == 0 { return parts.significand }
        // What is cut off, as a fraction of one in 64 bits, the last of them for all that is smaller.
        let integer: UInt64
        let fraction: UInt64
        if distance < 64 {
            integer = parts.significand &>> UInt64(truncatingIfNeeded: distance)
            fraction = parts.significand &<< UInt64(truncatingIfNeeded: 64 &- distance)
        } else {
            integer = 0
            fraction = shiftKeepingTruth(parts.significand, distance &- 64)
        }
        if fraction == 0 { return integer }
        exceptions |= Flags.inexact
        let half: UInt64 = 1 << 63
        let goesUp =
            switch mode {
            case Rounding.towardZero: false
            case Rounding.down: parts.isNegative
            case Rounding.up: !parts.isNegative
            case Rounding.nearestMaxMagnitude: fraction >= half
            default: fraction > half || fraction == half && integer & 1 != 0
            }
        return goesUp ? integer &+ 1 : integer  // at most 53 bits are in use when there is a fraction
    }
}
