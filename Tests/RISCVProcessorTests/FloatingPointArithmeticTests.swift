import CFloatOracle
import Testing

import RISCVProcessor

/// How often each comparison with the host's unit is made.
#if DEBUG
    private let rounds = 50_000
#else
    private let rounds = 400_000
#endif

enum FloatOperation: Int32, CaseIterable, Sendable {
    case add, sub, mul, div, sqrt, fma

    func callAsFunction(_ a: UInt32, _ b: UInt32, _ c: UInt32, _ mode: UInt8, _ flags: inout UInt8) -> UInt32 {
        switch self {
        case .add: SoftFloat.add32(a, b, mode, &flags)
        case .sub: SoftFloat.sub32(a, b, mode, &flags)
        case .mul: SoftFloat.mul32(a, b, mode, &flags)
        case .div: SoftFloat.div32(a, b, mode, &flags)
        case .sqrt: SoftFloat.sqrt32(a, mode, &flags)
        case .fma: SoftFloat.fma32(a, b, c, mode, &flags)
        }
    }

    func callAsFunction(_ a: UInt64, _ b: UInt64, _ c: UInt64, _ mode: UInt8, _ flags: inout UInt8) -> UInt64 {
        switch self {
        case .add: SoftFloat.add64(a, b, mode, &flags)
        case .sub: SoftFloat.sub64(a, b, mode, &flags)
        case .mul: SoftFloat.mul64(a, b, mode, &flags)
        case .div: SoftFloat.div64(a, b, mode, &flags)
        case .sqrt: SoftFloat.sqrt64(a, mode, &flags)
        case .fma: SoftFloat.fma64(a, b, c, mode, &flags)
        }
    }
}

func isNaN32(_ bits: UInt64) -> Bool { bits & 0x7fff_ffff > 0x7f80_0000 }
func isNaN64(_ bits: UInt64) -> Bool { bits & (.max >> 1) > 0x7ff0_0000_0000_0000 }

func hex(_ values: UInt64...) -> String { values.map { "0x" + String($0, radix: 16) }.joined(separator: " ") }

@Suite(
    "Floating-point arithmetic against the host's unit",
    .enabled(if: oracle_is_usable(), "the host judges underflow before rounding"))
struct FloatingPointArithmeticTests {
    static let cases = FloatOperation.allCases.flatMap { operation in (0..<4).map { (operation, UInt8($0)) } }

    @Test("single precision gives the host's bits and flags", arguments: cases)
    func single(operation: FloatOperation, mode: UInt8) {
        var operands = OperandGenerator(width: 32, seed: UInt64(operation.rawValue) << 8 | UInt64(mode))
        for _ in 0..<rounds {
            let a = operands.next()
            let b = operands.next(near: a)
            let c = operands.next(near: operands.random.next() & 1 == 0 ? a : b)
            var expectedFlags: UInt8 = 0
            var expected = oracle_32(operation.rawValue, a, b, c, Int32(mode), &expectedFlags)
            if isNaN32(expected) { expected = UInt64(SoftFloat.canonicalNaN32) }
            if operation == .fma, isNaN32(c), isInvalidProduct(single: a, b) {
                expectedFlags |= SoftFloat.Flags.invalid
            }
            // Inexact set before is what lets the host's unit be used.
            for before: UInt8 in [0, SoftFloat.Flags.inexact] {
                var flags = before
                let result = operation(UInt32(a), UInt32(b), UInt32(c), mode, &flags)
                guard UInt64(result) == expected, flags == expectedFlags | before else {
                    Issue.record(
                        "\(operation) mode \(mode) of \(hex(a, b, c)): \(hex(UInt64(result))) flags \(flags), not \(hex(expected)) flags \(expectedFlags)"
                    )
                    return
                }
            }
        }
    }

    @Test("double precision gives the host's bits and flags", arguments: cases)
    func double(operation: FloatOperation, mode: UInt8) {
        var operands = OperandGenerator(width: 64, seed: UInt64(operation.rawValue) << 8 | UInt64(mode))
        for _ in 0..<rounds {
            let a = operands.next()
            let b = operands.next(near: a)
            let c = operands.next(near: operands.random.next() & 1 == 0 ? a : b)
            var expectedFlags: UInt8 = 0
            var expected = oracle_64(operation.rawValue, a, b, c, Int32(mode), &expectedFlags)
            if isNaN64(expected) { expected = SoftFloat.canonicalNaN64 }
            // x86's unit follows RISC-V in all but one: it leaves infinity times zero plus a quiet NaN to the implementation.
            if operation == .fma, isNaN64(c), isInvalidProduct(a, b) { expectedFlags |= SoftFloat.Flags.invalid }
            for before: UInt8 in [0, SoftFloat.Flags.inexact] {
                var flags = before
                let result = operation(a, b, c, mode, &flags)
                guard result == expected, flags == expectedFlags | before else {
                    Issue.record(
                        "\(operation) mode \(mode) of \(hex(a, b, c)): \(hex(result)) flags \(flags), not \(hex(expected)) flags \(expectedFlags)"
                    )
                    return
                }
            }
        }
    }

    private func isInvalidProduct(single a: UInt64, _ b: UInt64) -> Bool {
        let x = Float(bitPattern: UInt32(a))
        let y = Float(bitPattern: UInt32(b))
        return x.isInfinite && y.isZero || x.isZero && y.isInfinite
    }

    private func isInvalidProduct(_ a: UInt64, _ b: UInt64) -> Bool {
        let x = Double(bitPattern: a)
        let y = Double(bitPattern: b)
        return x.isInfinite && y.isZero || x.isZero && y.isInfinite
    }
}
