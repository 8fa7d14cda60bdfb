import CFloatOracle
import Testing

import RISCVProcessor

#if DEBUG
    private let rounds = 30_000
#else
    private let rounds = 300_000
#endif

/// Integers of all lengths, with runs of ones and zeros.
private func integer(_ random: inout SeededGenerator) -> UInt64 {
    let shift = random.below(64)
    switch random.below(6) {
    case 0: return .max << shift
    case 1: return .max >> shift
    case 2: return (1 << shift) &+ (random.next() & 7) &- 4
    case 3: return 0 &- (random.next() >> shift)
    default: return random.next() >> shift
    }
}

@Suite(
    "Floating-point conversions against the host's unit",
    .enabled(if: oracle_is_usable(), "the host judges underflow before rounding"))
struct FloatingPointConversionTests {
    @Test("widening and narrowing", arguments: UInt8(0)..<4)
    func widths(mode: UInt8) {
        var narrow = OperandGenerator(width: 32, seed: UInt64(mode))
        var wide = OperandGenerator(width: 64, seed: UInt64(mode))
        for _ in 0..<rounds {
            let a = narrow.next()
            var expectedFlags: UInt8 = 0
            let expected = oracle_32(Int32(oracle_to_other_width.rawValue), a, 0, 0, Int32(mode), &expectedFlags)
            var flags: UInt8 = 0
            let result = SoftFloat.f32ToF64(UInt32(a), &flags)
            #expect(
                result == (isNaN64(expected) ? SoftFloat.canonicalNaN64 : expected) && flags == expectedFlags,
                "\(hex(a))")

            // Near what fits a single as well as anywhere.
            var random = wide.random
            let b =
                random.next() & 1 == 0
                ? wide.next() : (SoftFloat.f32ToF64(UInt32(a), &flags) ^ (1 << random.below(40)) &- random.below(3))
            wide.random = random
            var expectedNarrow = oracle_64(Int32(oracle_to_other_width.rawValue), b, 0, 0, Int32(mode), &expectedFlags)
            if isNaN32(expectedNarrow) { expectedNarrow = UInt64(SoftFloat.canonicalNaN32) }
            for before: UInt8 in [0, SoftFloat.Flags.inexact] {
                flags = before
                let result = SoftFloat.f64ToF32(b, mode, &flags)
                guard UInt64(result) == expectedNarrow, flags == expectedFlags | before else {
                    Issue.record(
                        "mode \(mode) of \(hex(b)): \(hex(UInt64(result))) \(flags), not \(hex(expectedNarrow)) \(expectedFlags)"
                    )
                    return
                }
            }
        }
    }

    @Test("from integers", arguments: UInt8(0)..<4)
    func fromIntegers(mode: UInt8) {
        var random = SeededGenerator(seed: UInt64(mode))
        for _ in 0..<rounds {
            let a = integer(&random)
            for before: UInt8 in [0, SoftFloat.Flags.inexact] {
                func check(_ name: String, _ bits: UInt64, _ flags: UInt8, _ expected: UInt64, _ expectedFlags: UInt8) {
                    if bits != expected || flags != expectedFlags | before {
                        Issue.record(
                            "\(name) mode \(mode) of \(hex(a)): \(hex(bits)) \(flags), not \(hex(expected)) \(expectedFlags)"
                        )
                    }
                }
                var seen: UInt8 = 0
                var flags = before
                let signed = Int32(oracle_from_i64.rawValue)
                let unsigned = Int32(oracle_from_u64.rawValue)
                let low = UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: a)))

                var expected = oracle_32(signed, a, 0, 0, Int32(mode), &seen)
                check("i64ToF32", UInt64(SoftFloat.i64ToF32(Int64(bitPattern: a), mode, &flags)), flags, expected, seen)
                expected = oracle_32(unsigned, a, 0, 0, Int32(mode), &seen)
                // The host's compiler converts the upper half of the unsigned numbers in two steps that are right only to nearest.
                if mode == 0 || a >> 63 == 0 {
                    flags = before
                    check("u64ToF32", UInt64(SoftFloat.u64ToF32(a, mode, &flags)), flags, expected, seen)
                }
                flags = before
                expected = oracle_64(signed, a, 0, 0, Int32(mode), &seen)
                check("i64ToF64", SoftFloat.i64ToF64(Int64(bitPattern: a), mode, &flags), flags, expected, seen)
                expected = oracle_64(unsigned, a, 0, 0, Int32(mode), &seen)
                if mode == 0 || a >> 63 == 0 {
                    flags = before
                    check("u64ToF64", SoftFloat.u64ToF64(a, mode, &flags), flags, expected, seen)
                }
                flags = before
                expected = oracle_32(signed, low, 0, 0, Int32(mode), &seen)
                check(
                    "i32ToF32", UInt64(SoftFloat.i32ToF32(Int32(truncatingIfNeeded: a), mode, &flags)), flags, expected,
                    seen)
                flags = before
                expected = oracle_32(signed, a & 0xffff_ffff, 0, 0, Int32(mode), &seen)
                check(
                    "u32ToF32", UInt64(SoftFloat.u32ToF32(UInt32(truncatingIfNeeded: a), mode, &flags)), flags,
                    expected, seen)
                flags = before
                expected = oracle_64(signed, low, 0, 0, Int32(mode), &seen)
                check("i32ToF64", SoftFloat.i32ToF64(Int32(truncatingIfNeeded: a), mode, &flags), flags, expected, seen)
                flags = before
                expected = oracle_64(signed, a & 0xffff_ffff, 0, 0, Int32(mode), &seen)
                check(
                    "u32ToF64", SoftFloat.u32ToF64(UInt32(truncatingIfNeeded: a), mode, &flags), flags, expected, seen)
            }
        }
    }

    /// What the host rounds to an integral value, cut to the range as RISC-V does.
    private func expectation<Result: FixedWidthInteger>(
        _ value: Double, _ integral: Double, _ seen: UInt8, as _: Result.Type
    ) -> (Result, UInt8) {
        if value.isNaN { return (.max, SoftFloat.Flags.invalid) }
        if let exact = Result(exactly: integral) { return (exact, seen) }
        return (integral < 0 ? .min : .max, SoftFloat.Flags.invalid)
    }

    @Test("to integers", arguments: UInt8(0)..<4)
    func toIntegers(mode: UInt8) {
        var operands = OperandGenerator(width: 64, seed: UInt64(mode) + 9)
        var singles = OperandGenerator(width: 32, seed: UInt64(mode) + 9)
        for _ in 0..<rounds {
            // Mostly between 2^-3 and 2^66.
            var random = operands.random
            var a = operands.next()
            var b = singles.next()
            if random.below(4) != 0 {
                let exponent = random.below(70)
                a = a & 0x800f_ffff_ffff_ffff | (1020 + exponent) << 52
                b = b & 0x807f_ffff | (124 + exponent) << 23
            }
            operands.random = random
            var seen: UInt8 = 0
            let integral = Double(
                bitPattern: oracle_64(Int32(oracle_round_to_integral.rawValue), a, 0, 0, Int32(mode), &seen))
            let value = Double(bitPattern: a)
            func check<Result: FixedWidthInteger>(
                _ value: Double, _ integral: Double, _ seen: UInt8, _ operation: (inout UInt8) -> Result
            ) {
                let (expected, expectedFlags) = expectation(value, integral, seen, as: Result.self)
                var flags: UInt8 = 0
                let result = operation(&flags)
                if result != expected || flags != expectedFlags {
                    Issue.record(
                        "\(Result.self) mode \(mode) of \(value): \(result) \(flags), not \(expected) \(expectedFlags)")
                }
            }
            check(value, integral, seen) { SoftFloat.f64ToI32(a, mode, &$0) }
            check(value, integral, seen) { SoftFloat.f64ToU32(a, mode, &$0) }
            check(value, integral, seen) { SoftFloat.f64ToI64(a, mode, &$0) }
            check(value, integral, seen) { SoftFloat.f64ToU64(a, mode, &$0) }

            let singleIntegral = Double(
                Float(
                    bitPattern: UInt32(
                        oracle_32(Int32(oracle_round_to_integral.rawValue), b, 0, 0, Int32(mode), &seen))))
            let single = Double(Float(bitPattern: UInt32(b)))
            check(single, singleIntegral, seen) { SoftFloat.f32ToI32(UInt32(b), mode, &$0) }
            check(single, singleIntegral, seen) { SoftFloat.f32ToU32(UInt32(b), mode, &$0) }
            check(single, singleIntegral, seen) { SoftFloat.f32ToI64(UInt32(b), mode, &$0) }
            check(single, singleIntegral, seen) { SoftFloat.f32ToU64(UInt32(b), mode, &$0) }
        }
    }
}
