import Testing

import RISCVProcessor

private let NV = SoftFloat.Flags.invalid
private let DZ = SoftFloat.Flags.divideByZero
private let OF = SoftFloat.Flags.overflow
private let UF = SoftFloat.Flags.underflow
private let NX = SoftFloat.Flags.inexact
private let qNaN: UInt64 = 0xfff8_1234_0000_0001
private let sNaN: UInt64 = 0x7ff0_0000_0000_0001
private let inf: UInt64 = 0x7ff0_0000_0000_0000
private let qNaN32: UInt32 = 0xffc1_2345
private let sNaN32: UInt32 = 0x7f80_0001
private let inf32: UInt32 = 0x7f80_0000

private func bits(_ value: Double) -> UInt64 { value.bitPattern }
private func bits(_ value: Float) -> UInt32 { value.bitPattern }

/// A result and the flags it set.
private func run<Result>(_ operation: (inout UInt8) -> Result) -> (Result, UInt8) {
    var flags: UInt8 = 0
    let result = operation(&flags)
    return (result, flags)
}

@Suite("Floating-point rules of RISC-V") struct FloatingPointRuleTests {
    @Test("a NaN result is the canonical one, and only signaling NaNs are invalid", arguments: FloatOperation.allCases)
    func nans(operation: FloatOperation) {
        for (nan, nan32, expected) in [(qNaN, qNaN32, UInt8(0)), (sNaN, sNaN32, NV)] {
            #expect(run { operation(nan, bits(1.0), bits(1.0), 0, &$0) } == (SoftFloat.canonicalNaN64, expected))
            #expect(
                run { operation(nan32, bits(Float(1)), bits(Float(1)), 0, &$0) } == (SoftFloat.canonicalNaN32, expected)
            )
            if operation != .sqrt {
                #expect(run { operation(bits(1.0), nan, bits(1.0), 0, &$0) } == (SoftFloat.canonicalNaN64, expected))
                #expect(
                    run { operation(bits(Float(1)), nan32, bits(Float(1)), 0, &$0) } == (
                        SoftFloat.canonicalNaN32, expected
                    ))
            }
            if operation == .fma {
                #expect(run { operation(bits(1.0), bits(1.0), nan, 0, &$0) } == (SoftFloat.canonicalNaN64, expected))
                // Infinity times zero is invalid whatever is added.
                #expect(run { operation(inf, 0, nan, 0, &$0) } == (SoftFloat.canonicalNaN64, NV))
                #expect(run { operation(UInt32(0), inf32, nan32, 0, &$0) } == (SoftFloat.canonicalNaN32, NV))
            }
        }
    }

    @Test("what has no result is invalid, and a number by zero is infinity") func invalid() {
        #expect(run { SoftFloat.sub64(inf, inf, 0, &$0) } == (SoftFloat.canonicalNaN64, NV))
        #expect(run { SoftFloat.mul64(inf, 1 << 63, 0, &$0) } == (SoftFloat.canonicalNaN64, NV))
        #expect(run { SoftFloat.div64(0, 1 << 63, 0, &$0) } == (SoftFloat.canonicalNaN64, NV))
        #expect(run { SoftFloat.div64(inf, inf, 0, &$0) } == (SoftFloat.canonicalNaN64, NV))
        #expect(run { SoftFloat.sqrt64(bits(-1.0), 0, &$0) } == (SoftFloat.canonicalNaN64, NV))
        #expect(run { SoftFloat.sqrt64(bits(-0.0), 0, &$0) } == (bits(-0.0), 0))
        #expect(run { SoftFloat.div64(bits(-1.0), 0, 0, &$0) } == (bits(-Double.infinity), DZ))
        #expect(run { SoftFloat.div32(bits(Float(1)), 0, 0, &$0) } == (inf32, DZ))
    }

    @Test("overflow gives infinity or the largest number, by mode", arguments: [UInt8](0...4))
    func overflow(mode: UInt8) {
        let big = bits(Double.greatestFiniteMagnitude)
        let sign: UInt64 = 1 << 63
        #expect(run { SoftFloat.add64(big, big, mode, &$0) } == ([1, 2].contains(mode) ? big : inf, OF | NX))
        #expect(
            run { SoftFloat.add64(big | sign, big | sign, mode, &$0) }
                == (([1, 3].contains(mode) ? big : inf) | sign, OF | NX))
    }

    @Test("underflow is judged after rounding") func tininess() {
        // (1 + 2^-52) * the largest subnormal lies in the last half unit below the smallest normal number.
        let largestSubnormal: UInt64 = 0x000f_ffff_ffff_ffff
        let product = run { SoftFloat.mul64(largestSubnormal, bits(1 + 0x1p-52), 0, &$0) }
        #expect(product == (0x0010_0000_0000_0000, NX))  // reaches it with an unbounded exponent too: not tiny
        let lower = run { SoftFloat.mul64(largestSubnormal, bits(1 + 0x1p-52), 1, &$0) }
        #expect(lower == (largestSubnormal, NX | UF))
        // A quarter of a unit above the largest subnormal rounds down: tiny.
        let third = run { SoftFloat.div64(bits(0x1p-1022), bits(3.0), 0, &$0) }
        #expect(third == (bits(0x1p-1022 / 3), NX | UF))
        // Exact, however small: no underflow.
        #expect(run { SoftFloat.mul64(bits(0x1p-1022), bits(0.5), 0, &$0) } == (bits(0x1p-1023), 0))
    }

    @Test("a sum of zero is negative only when both are, or rounding down", arguments: [UInt8](0...4))
    func zeros(mode: UInt8) {
        let negative: UInt64 = mode == 2 ? 1 << 63 : 0
        #expect(run { SoftFloat.sub64(bits(1.5), bits(1.5), mode, &$0) } == (negative, 0))
        #expect(run { SoftFloat.add64(bits(-0.0), bits(0.0), mode, &$0) } == (negative, 0))
        #expect(run { SoftFloat.add64(bits(-0.0), bits(-0.0), mode, &$0) } == (1 << 63, 0))
        #expect(run { SoftFloat.fma64(bits(2.0), bits(3.0), bits(-6.0), mode, &$0) } == (negative, 0))
        #expect(run { SoftFloat.fma64(bits(-0.0), bits(3.0), bits(-0.0), mode, &$0) } == (1 << 63, 0))
    }

    @Test("minimum and maximum order the zeros and prefer numbers to NaNs") func minimumMaximum() {
        #expect(run { SoftFloat.min64(bits(0.0), bits(-0.0), &$0) } == (bits(-0.0), 0))
        #expect(run { SoftFloat.max64(bits(-0.0), bits(0.0), &$0) } == (bits(0.0), 0))
        #expect(run { SoftFloat.min64(bits(-2.0), bits(-1.0), &$0) } == (bits(-2.0), 0))
        #expect(run { SoftFloat.max32(bits(Float(-2)), bits(Float(1)), &$0) } == (bits(Float(1)), 0))
        #expect(run { SoftFloat.min64(qNaN, bits(1.0), &$0) } == (bits(1.0), 0))
        #expect(run { SoftFloat.max64(bits(1.0), qNaN, &$0) } == (bits(1.0), 0))
        #expect(run { SoftFloat.max64(bits(1.0), sNaN, &$0) } == (bits(1.0), NV))
        #expect(run { SoftFloat.min32(sNaN32, bits(Float(1)), &$0) } == (bits(Float(1)), NV))
        #expect(run { SoftFloat.min64(qNaN, qNaN, &$0) } == (SoftFloat.canonicalNaN64, 0))
        #expect(run { SoftFloat.min32(qNaN32, sNaN32, &$0) } == (SoftFloat.canonicalNaN32, NV))
    }

    @Test("equality is quiet, order is signaling") func comparison() {
        #expect(run { SoftFloat.eq64(bits(0.0), bits(-0.0), &$0) } == (true, 0))
        #expect(run { SoftFloat.eq64(qNaN, qNaN, &$0) } == (false, 0))
        #expect(run { SoftFloat.eq64(qNaN, sNaN, &$0) } == (false, NV))
        #expect(run { SoftFloat.eq32(qNaN32, qNaN32, &$0) } == (false, 0))
        #expect(run { SoftFloat.lt64(qNaN, bits(1.0), &$0) } == (false, NV))
        #expect(run { SoftFloat.le32(bits(Float(1)), qNaN32, &$0) } == (false, NV))
        #expect(run { SoftFloat.lt64(bits(-0.0), bits(0.0), &$0) } == (false, 0))
        #expect(run { SoftFloat.le64(bits(0.0), bits(-0.0), &$0) } == (true, 0))
        let values = [-Double.infinity, -2, -1, -0x1p-1074, -0.0, 0.0, 0x1p-1074, 1, 2, .infinity]
        for a in values {
            for b in values {
                #expect(run { SoftFloat.lt64(bits(a), bits(b), &$0) } == (a < b, 0))
                #expect(run { SoftFloat.le64(bits(a), bits(b), &$0) } == (a <= b, 0))
                #expect(run { SoftFloat.eq64(bits(a), bits(b), &$0) } == (a == b, 0))
                #expect(run { SoftFloat.lt32(bits(Float(a)), bits(Float(b)), &$0) } == (Float(a) < Float(b), 0))
                #expect(run { SoftFloat.le32(bits(Float(a)), bits(Float(b)), &$0) } == (Float(a) <= Float(b), 0))
            }
        }
    }

    @Test("classes stand in the order of the manual's table") func classes() {
        let doubles: [UInt64] = [
            bits(-Double.infinity), bits(-1.0), bits(-0x1p-1074), bits(-0.0), bits(0.0), bits(0x1p-1074), bits(1.0),
            inf, sNaN,
            qNaN,
        ]
        let singles: [UInt32] = [
            bits(-Float.infinity), bits(Float(-1)), bits(Float(-0x1p-149)), bits(Float(-0.0)), bits(Float(0)),
            bits(Float(0x1p-149)), bits(Float(1)), inf32, sNaN32, qNaN32,
        ]
        for index in 0..<10 {
            #expect(SoftFloat.classify64(doubles[index]) == 1 << UInt64(index))
            #expect(SoftFloat.classify32(singles[index]) == 1 << UInt64(index))
        }
    }

    @Test("to nearest, ties away: only ties differ from ties to even") func tiesAway() {
        let rmm = SoftFloat.Rounding.nearestMaxMagnitude
        #expect(run { SoftFloat.add64(bits(1.0), bits(0x1p-53), rmm, &$0) } == (bits(1 + 0x1p-52), NX))
        #expect(run { SoftFloat.add64(bits(-1.0), bits(-0x1p-53), rmm, &$0) } == (bits(-1 - 0x1p-52), NX))
        #expect(run { SoftFloat.add64(bits(1.0), bits(0x1p-53), 0, &$0) } == (bits(1.0), NX))
        #expect(run { SoftFloat.add64(bits(1.0), bits(0x1.fffffp-54), rmm, &$0) } == (bits(1.0), NX))
        #expect(run { SoftFloat.mul64(1, bits(0.5), rmm, &$0) } == (1, NX | UF))
        #expect(run { SoftFloat.mul64(1, bits(0.5), 0, &$0) } == (0, NX | UF))
        #expect(run { SoftFloat.f64ToI32(bits(2.5), rmm, &$0) } == (3, NX))
        #expect(run { SoftFloat.f64ToI32(bits(-2.5), rmm, &$0) } == (-3, NX))
        #expect(run { SoftFloat.f64ToI32(bits(2.4999999), rmm, &$0) } == (2, NX))
        #expect(run { SoftFloat.f32ToU64(bits(Float(0.5)), rmm, &$0) } == (1, NX))
        #expect(run { SoftFloat.i64ToF64(1 << 53 + 1, rmm, &$0) } == (bits(0x1p53 + 2), NX))
        #expect(run { SoftFloat.f64ToF32(bits(1 + 0x1p-24), rmm, &$0) } == (bits(1 + Float(0x1p-23)), NX))

        // Products of singles are exact as doubles, so that a tie is seen by measuring to both neighbours.
        var operands = OperandGenerator(width: 32, seed: 4)
        var ties = 0
        for _ in 0..<20_000 {
            let a = Float(bitPattern: UInt32(operands.next() & 0xffff_f000 | operands.random.next() & 0xf))
            let b = Float(bitPattern: UInt32(operands.next() & 0xffff_8000))
            let exact = Double(a) * Double(b)
            guard exact.isFinite, abs(exact) < 0x1p127, exact != 0 else { continue }
            let down = Float(bitPattern: run { SoftFloat.mul32(bits(a), bits(b), 2, &$0) }.0)
            let up = Float(bitPattern: run { SoftFloat.mul32(bits(a), bits(b), 3, &$0) }.0)
            let even = run { SoftFloat.mul32(bits(a), bits(b), 0, &$0) }
            let away = run { SoftFloat.mul32(bits(a), bits(b), rmm, &$0) }
            if down != up, exact - Double(down) == Double(up) - exact {
                ties += 1
                #expect(away == (bits(exact < 0 ? down : up), even.1), "\(a) * \(b)")
            } else {
                #expect(away == even, "\(a) * \(b)")
            }
        }
        #expect(ties > 50)
    }

    @Test("integers out of range are the nearest in range, a NaN the largest") func saturation() {
        #expect(run { SoftFloat.f64ToI32(qNaN, 0, &$0) } == (.max, NV))
        #expect(run { SoftFloat.f64ToU32(sNaN, 0, &$0) } == (.max, NV))
        #expect(run { SoftFloat.f32ToI64(qNaN32, 0, &$0) } == (.max, NV))
        #expect(run { SoftFloat.f32ToU64(qNaN32, 0, &$0) } == (.max, NV))
        #expect(run { SoftFloat.f64ToI64(bits(-Double.infinity), 0, &$0) } == (.min, NV))
        #expect(run { SoftFloat.f64ToU64(bits(-1.0), 0, &$0) } == (0, NV))
        #expect(run { SoftFloat.f64ToU64(bits(-0.5), 1, &$0) } == (0, NX))
        #expect(run { SoftFloat.f64ToU64(bits(-0.5), 2, &$0) } == (0, NV))
        #expect(run { SoftFloat.f64ToI32(bits(-2147483648.5), 0, &$0) } == (.min, NX))
        #expect(run { SoftFloat.f64ToI32(bits(-2147483648.5), 2, &$0) } == (.min, NV))
        #expect(run { SoftFloat.f64ToI32(bits(2147483647.5), 0, &$0) } == (.max, NV))
        #expect(run { SoftFloat.f64ToI32(bits(2147483647.5), 1, &$0) } == (.max, NX))
        #expect(run { SoftFloat.f64ToU32(bits(4294967295.5), 1, &$0) } == (.max, NX))
        #expect(run { SoftFloat.u64ToF64(.max, 0, &$0) } == (bits(0x1p64), NX))
        #expect(run { SoftFloat.u64ToF64(.max, 1, &$0) } == (bits(0x1.fffffffffffffp63), NX))
        #expect(run { SoftFloat.u64ToF32(.max, 3, &$0) } == (bits(Float(0x1p64)), NX))
    }
}
