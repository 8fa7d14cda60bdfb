/// IEEE 754 arithmetic on raw bits with the results and flags that RISC-V prescribes, the same on every host.
///
/// Every operation takes the rounding mode as in `frm` (see ``Rounding``; a reserved mode is the caller's to refuse and
/// rounds like 0 here) and adds to the accrued flags, laid out as in `fflags` (see ``Flags``).
/// NaN results are the canonical NaN; underflow is judged after rounding.
///
/// There are two ways to a result. Where the host's own arithmetic provably gives it (round to nearest even, inexact
/// already set, result finite and away from both edges of the exponent range) that is used; otherwise the operands are taken apart
/// (see ``Parts``) and the work is done in integers.
///
/// Source: IEEE 754-2008; RISC-V Unprivileged ISA, chapters "F" and "D", version 2.2.
package enum SoftFloat {
    /// Accrued exceptions, bit for bit as in `fflags`.
    package enum Flags {
        package static let inexact: UInt8 = 1
        package static let underflow: UInt8 = 2
        package static let overflow: UInt8 = 4
        package static let divideByZero: UInt8 = 8
        package static let invalid: UInt8 = 16
    }

    /// Rounding modes, as in `frm`.
    package enum Rounding {
        package static let nearestEven: UInt8 = 0
        package static let towardZero: UInt8 = 1
        package static let down: UInt8 = 2
        package static let up: UInt8 = 3
        package static let nearestMaxMagnitude: UInt8 = 4
    }

    package static let canonicalNaN32: UInt32 = 0x7fc0_0000
    package static let canonicalNaN64: UInt64 = 0x7ff8_0000_0000_0000

    // MARK: What bits mean

    @inline(__always) static func isNaN(_ a: UInt32) -> Bool { a & 0x7fff_ffff > 0x7f80_0000 }
    @inline(__always) static func isNaN(_ a: UInt64) -> Bool { a & (.max >> 1) > 0x7ff0_0000_0000_0000 }
    @inline(__always) static func isInfinite(_ a: UInt32) -> Bool { a & 0x7fff_ffff == 0x7f80_0000 }
    @inline(__always) static func isInfinite(_ a: UInt64) -> Bool { a & (.max >> 1) == 0x7ff0_0000_0000_0000 }
    @inline(__always) static func isZero(_ a: UInt32) -> Bool { a & 0x7fff_ffff == 0 }
    @inline(__always) static func isZero(_ a: UInt64) -> Bool { a & (.max >> 1) == 0 }
    @inline(__always) static func isNegative(_ a: UInt32) -> Bool { a >> 31 != 0 }
    @inline(__always) static func isNegative(_ a: UInt64) -> Bool { a >> 63 != 0 }
    @inline(__always) static func isSignaling(_ a: UInt32) -> Bool { isNaN(a) && a & 0x0040_0000 == 0 }
    @inline(__always) static func isSignaling(_ a: UInt64) -> Bool { isNaN(a) && a & 0x0008_0000_0000_0000 == 0 }

    @inline(__always) static func signed(_ negative: Bool, _ magnitude: UInt32) -> UInt32 {
        magnitude | (negative ? 0x8000_0000 : 0)
    }
    @inline(__always) static func signed(_ negative: Bool, _ magnitude: UInt64) -> UInt64 {
        magnitude | (negative ? 1 << 63 : 0)
    }

    /// The result when no number is right although no operand is a NaN, as for infinity less infinity.
    @inline(__always) static func invalid32(_ flags: inout UInt8) -> UInt32 {
        flags |= Flags.invalid
        return canonicalNaN32
    }
    @inline(__always) static func invalid64(_ flags: inout UInt8) -> UInt64 {
        flags |= Flags.invalid
        return canonicalNaN64
    }

    // MARK: When the host's result is the result

    /// The host rounds to nearest even, and its inexact flag is not looked at.
    @inline(__always) static func hostRounds(_ mode: UInt8, _ flags: UInt8) -> Bool {
        mode == Rounding.nearestEven && flags & Flags.inexact != 0
    }

    /// Finite, and so far above the subnormals that no rounding went through them.
    ///
    /// A NaN or infinite operand of `+ - * /`, square root or a fused multiply-add never gives such a result, and overflow to nearest
    /// gives infinity, so inexact is the only exception it can have.
    @inline(__always) static func isOrdinary(_ a: Float) -> Bool {
        (a.bitPattern >> 23 & 0xff) &- 2 < 0xfd
    }
    @inline(__always) static func isOrdinary(_ a: Double) -> Bool {
        (a.bitPattern >> 52 & 0x7ff) &- 2 < 0x7fd
    }
}
