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

    /// FCVT.W.S: out of range gives the nearest integer in range, a NaN the largest, both invalid.
    package static func f32ToI32(_ a: UInt32, _ mode: UInt8, _ flags: inout UInt8) -> Int32 {
        if isNaN(a) {
            flags |= Flags.invalid
            return .max
        }
        var exceptions: UInt8 = 0
        let magnitude = magnitude32(a, mode, &exceptions)
        if isNegative(a) {
            guard let magnitude, magnitude <= 1 << 31 else {
                flags |= Flags.invalid
                return .min
            }
            flags |= exceptions
            return Int32(truncatingIfNeeded: 0 &- magnitude)
        }
        guard let magnitude, magnitude < 1 << 31 else {
            flags |= Flags.invalid
            return .max
        }
        flags |= exceptions
        return Int32(truncatingIfNeeded: magnitude)
    }

    /// FCVT.WU.S: out of range gives the nearest integer in range, a NaN the largest, both invalid.
    package static func f32ToU32(_ a: UInt32, _ mode: UInt8, _ flags: inout UInt8) -> UInt32 {
        if isNaN(a) {
            flags |= Flags.invalid
            return .max
        }
        var exceptions: UInt8 = 0
        guard let magnitude = magnitude32(a, mode, &exceptions), magnitude >> 32 == 0 else {
            flags |= Flags.invalid
            return isNegative(a) ? 0 : .max
        }
        if isNegative(a) && magnitude != 0 {
            flags |= Flags.invalid
            return 0
        }
        flags |= exceptions
        return UInt32(truncatingIfNeeded: magnitude)
    }

    /// FCVT.L.S: out of range gives the nearest integer in range, a NaN the largest, both invalid.
    package static func f32ToI64(_ a: UInt32, _ mode: UInt8, _ flags: inout UInt8) -> Int64 {
        if isNaN(a) {
            flags |= Flags.invalid
            return .max
        }
        var exceptions: UInt8 = 0
        let magnitude = magnitude32(a, mode, &exceptions)
        if isNegative(a) {
            guard let magnitude, magnitude <= 1 << 63 else {
                flags |= Flags.invalid
                return .min
            }
            flags |= exceptions
            return Int64(truncatingIfNeeded: 0 &- magnitude)
        }
        guard let magnitude, magnitude < 1 << 63 else {
            flags |= Flags.invalid
            return .max
        }
        flags |= exceptions
        return Int64(truncatingIfNeeded: magnitude)
    }

    /// FCVT.LU.S: out of range gives the nearest integer in range, a NaN the largest, both invalid.
    package static func f32ToU64(_ a: UInt32, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        if isNaN(a) {
            flags |= Flags.invalid
            return .max
        }
        var exceptions: UInt8 = 0
        guard let magnitude = magnitude32(a, mode, &exceptions) else {
            flags |= Flags.invalid
            return isNegative(a) ? 0 : .max
        }
        if isNegative(a) && magnitude != 0 {
            flags |= Flags.invalid
            return 0
        }
        flags |= exceptions
        return magnitude
    }

    /// FCVT.W.D: out of range gives the nearest integer in range, a NaN the largest, both invalid.
    package static func f64ToI32(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> Int32 {
        if isNaN(a) {
            flags |= Flags.invalid
            return .max
        }
        var exceptions: UInt8 = 0
        let magnitude = magnitude64(a, mode, &exceptions)
        if isNegative(a) {
            guard let magnitude, magnitude <= 1 << 31 else {
                flags |= Flags.invalid
                return .min
            }
            flags |= exceptions
            return Int32(truncatingIfNeeded: 0 &- magnitude)
        }
        guard let magnitude, magnitude < 1 << 31 else {
            flags |= Flags.invalid
            return .max
        }
        flags |= exceptions
        return Int32(truncatingIfNeeded: magnitude)
    }

    /// FCVT.WU.D: out of range gives the nearest integer in range, a NaN the largest, both invalid.
    package static func f64ToU32(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt32 {
        if isNaN(a) {
            flags |= Flags.invalid
            return .max
        }
        var exceptions: UInt8 = 0
        guard let magnitude = magnitude64(a, mode, &exceptions), magnitude >> 32 == 0 else {
            flags |= Flags.invalid
            return isNegative(a) ? 0 : .max
        }
        if isNegative(a) && magnitude != 0 {
            flags |= Flags.invalid
            return 0
        }
        flags |= exceptions
        return UInt32(truncatingIfNeeded: magnitude)
    }

    /// FCVT.L.D: out of range gives the nearest integer in range, a NaN the largest, both invalid.
    package static func f64ToI64(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> Int64 {
        if isNaN(a) {
            flags |= Flags.invalid
            return .max
        }
        var exceptions: UInt8 = 0
        let magnitude = magnitude64(a, mode, &exceptions)
        if isNegative(a) {
            guard let magnitude, magnitude <= 1 << 63 else {
                flags |= Flags.invalid
                return .min
            }
            flags |= exceptions
            return Int64(truncatingIfNeeded: 0 &- magnitude)
        }
        guard let magnitude, magnitude < 1 << 63 else {
            flags |= Flags.invalid
            return .max
        }
        flags |= exceptions
        return Int64(truncatingIfNeeded: magnitude)
    }

    /// FCVT.LU.D: out of range gives the nearest integer in range, a NaN the largest, both invalid.
    package static func f64ToU64(_ a: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        if isNaN(a) {
            flags |= Flags.invalid
            return .max
        }
        var exceptions: UInt8 = 0
        guard let magnitude = magnitude64(a, mode, &exceptions) else {
            flags |= Flags.invalid
            return isNegative(a) ? 0 : .max
        }
        if isNegative(a) && magnitude != 0 {
            flags |= Flags.invalid
            return 0
        }
        flags |= exceptions
        return magnitude
    }

    /// The absolute value rounded to an integer (the sign decides which way is down), or nil when it has more than 64 bits.
    /// `a` is not a NaN.
    @inline(__always) private static func magnitude32(
        _ a: UInt32, _ mode: UInt8, _ exceptions: inout UInt8
    ) -> UInt64? {
        if isZero(a) { return 0 }
        if isInfinite(a) { return nil }
        return magnitude(Parts(a), mode, &exceptions)
    }

    /// The absolute value rounded to an integer (the sign decides which way is down), or nil when it has more than 64 bits.
    /// `a` is not a NaN.
    @inline(__always) private static func magnitude64(
        _ a: UInt64, _ mode: UInt8, _ exceptions: inout UInt8
    ) -> UInt64? {
        if isZero(a) { return 0 }
        if isInfinite(a) { return nil }
        return magnitude(Parts(a), mode, &exceptions)
    }

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
