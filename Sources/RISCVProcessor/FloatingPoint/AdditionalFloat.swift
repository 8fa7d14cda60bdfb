/// What the extension Zfa adds to F and D.
///
/// Source: RISC-V Unprivileged ISA, chapter "Zfa", version 1.0.
extension SoftFloat {
    /// The constants of FLI.D; those of FLI.S are the same numbers, but for the smallest normal one.
    package static let constants64: [UInt64] = [
        0xbff0_0000_0000_0000, 0x0010_0000_0000_0000, 0x3ef0_0000_0000_0000, 0x3f00_0000_0000_0000,
        0x3f70_0000_0000_0000, 0x3f80_0000_0000_0000, 0x3fb0_0000_0000_0000, 0x3fc0_0000_0000_0000,
        0x3fd0_0000_0000_0000, 0x3fd4_0000_0000_0000, 0x3fd8_0000_0000_0000, 0x3fdc_0000_0000_0000,
        0x3fe0_0000_0000_0000, 0x3fe4_0000_0000_0000, 0x3fe8_0000_0000_0000, 0x3fec_0000_0000_0000,
        0x3ff0_0000_0000_0000, 0x3ff4_0000_0000_0000, 0x3ff8_0000_0000_0000, 0x3ffc_0000_0000_0000,
        0x4000_0000_0000_0000, 0x4004_0000_0000_0000, 0x4008_0000_0000_0000, 0x4010_0000_0000_0000,
        0x4020_0000_0000_0000, 0x4030_0000_0000_0000, 0x4060_0000_0000_0000, 0x4070_0000_0000_0000,
        0x40e0_0000_0000_0000, 0x40f0_0000_0000_0000, 0x7ff0_0000_0000_0000, canonicalNaN64,
    ]

    package static func constant32(_ index: Int) -> UInt32 {
        if index == 1 { return 0x0080_0000 }
        if index == 31 { return canonicalNaN32 }
        return Float(Double(bitPattern: constants64[index])).bitPattern
    }

    /// FMINM, FMAXM: a NaN for any NaN.
    package static func minimum32(_ a: UInt32, _ b: UInt32, _ flags: inout UInt8) -> UInt32 {
        let result = min32(a, b, &flags)
        return isNaN(a) || isNaN(b) ? canonicalNaN32 : result
    }
    package static func maximum32(_ a: UInt32, _ b: UInt32, _ flags: inout UInt8) -> UInt32 {
        let result = max32(a, b, &flags)
        return isNaN(a) || isNaN(b) ? canonicalNaN32 : result
    }
    package static func minimum64(_ a: UInt64, _ b: UInt64, _ flags: inout UInt8) -> UInt64 {
        let result = min64(a, b, &flags)
        return isNaN(a) || isNaN(b) ? canonicalNaN64 : result
    }
    package static func maximum64(_ a: UInt64, _ b: UInt64, _ flags: inout UInt8) -> UInt64 {
        let result = max64(a, b, &flags)
        return isNaN(a) || isNaN(b) ? canonicalNaN64 : result
    }

    /// FLTQ, FLEQ: invalid only for a signaling NaN.
    package static func quietLess32(_ a: UInt32, _ b: UInt32, orEqual: Bool, _ flags: inout UInt8) -> Bool {
        guard !isNaN(a), !isNaN(b) else { return eq32(a, b, &flags) }
        return orEqual ? le32(a, b, &flags) : lt32(a, b, &flags)
    }
    package static func quietLess64(_ a: UInt64, _ b: UInt64, orEqual: Bool, _ flags: inout UInt8) -> Bool {
        guard !isNaN(a), !isNaN(b) else { return eq64(a, b, &flags) }
        return orEqual ? le64(a, b, &flags) : lt64(a, b, &flags)
    }

    /// FROUND and, with `isExact`, FROUNDNX, which says so when the number was no integer.
    package static func round64(_ a: UInt64, _ mode: UInt8, isExact: Bool, _ flags: inout UInt8) -> UInt64 {
        if isNaN(a) {
            if isSignaling(a) { flags |= Flags.invalid }
            return canonicalNaN64
        }
        return rounded(a, fractionBits: 52, bias: 1023, mode, isExact: isExact, &flags)
    }

    package static func round32(_ a: UInt32, _ mode: UInt8, isExact: Bool, _ flags: inout UInt8) -> UInt32 {
        if isNaN(a) {
            if isSignaling(a) { flags |= Flags.invalid }
            return canonicalNaN32
        }
        let sign = UInt64(a >> 31) << 63
        let result = rounded(
            sign | UInt64(a & 0x7fff_ffff), fractionBits: 23, bias: 127, mode, isExact: isExact, &flags)
        return UInt32(truncatingIfNeeded: result & 0x7fff_ffff) | a & 0x8000_0000
    }

    /// Of either format, with the sign in the highest bit.
    private static func rounded(
        _ a: UInt64, fractionBits: UInt64, bias: UInt64, _ mode: UInt8, isExact: Bool, _ flags: inout UInt8
    ) -> UInt64 {
        let sign = a & 1 << 63
        let magnitude = a & ~(1 << 63)
        let exponent = magnitude >> fractionBits
        guard magnitude != 0, exponent < bias + fractionBits else { return a }
        // Units of the number's last place; below one, everything is behind the point.
        let one = bias << fractionBits
        let isNegative = sign != 0
        let half: Int  // how the part behind the point compares with a half
        let isOdd: Bool
        let low: UInt64
        let down: UInt64
        let up: UInt64
        if exponent < bias {
            low = magnitude
            let middle = (bias - 1) << fractionBits
            half = magnitude < middle ? -1 : magnitude == middle ? 0 : 1
            isOdd = false
            (down, up) = (0, one)
        } else {
            let shift = bias + fractionBits - exponent
            low = magnitude & (1 << shift - 1)
            let middle = UInt64(1) << (shift - 1)
            half = low < middle ? -1 : low == middle ? 0 : 1
            // Where the leading one is the last place, the exponent's last bit stands there, which is one too.
            isOdd = magnitude >> shift & 1 != 0
            (down, up) = (magnitude - low, magnitude - low + 1 << shift)
        }
        guard low != 0 else { return a }
        if isExact { flags |= Flags.inexact }
        let increments: Bool =
            switch mode {
            case Rounding.towardZero: false
            case Rounding.down: isNegative
            case Rounding.up: !isNegative
            case Rounding.nearestMaxMagnitude: half >= 0
            default: half > 0 || half == 0 && isOdd
            }
        return sign | (increments ? up : down)
    }

    /// FCVTMOD.W.D: the number's integer part modulo 2^32.
    package static func f64ToI32Modulo(_ a: UInt64, _ flags: inout UInt8) -> Int32 {
        let exponent = Int(a >> 52 & 0x7ff) - 1023
        let isNegative = isNegative(a)
        if exponent == 1024 {
            flags |= Flags.invalid
            return 0
        }
        if exponent < 0 {
            if !isZero(a) { flags |= Flags.inexact }
            return 0
        }
        let significand = a & (1 << 52 - 1) | 1 << 52
        let integer: UInt64
        var isInexact = false
        if exponent <= 52 {
            integer = significand >> UInt64(52 - exponent)
            isInexact = significand & (1 << UInt64(52 - exponent) - 1) != 0
        } else {
            integer = exponent - 52 < 64 ? significand << UInt64(exponent - 52) : 0
        }
        if exponent < 31 || isNegative && exponent == 31 && integer == 1 << 31 {
            if isInexact { flags |= Flags.inexact }
        } else {
            flags |= Flags.invalid
        }
        let low = UInt32(truncatingIfNeeded: integer)
        return Int32(bitPattern: isNegative ? 0 &- low : low)
    }
}
