import ComponentState
import Foundation
import RISCVProcessor
import Testing

/// Zfa and Zawrs: QEMU 7.2, the oracle of the others, has neither, so the host's own arithmetic is asked.
@Suite("What newer processors offer") struct AdditionalFloatTests {
    private static let numbers: [Double] =
        [
            0, -0.0, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 4.503_599_627_370_495e15,
            4.503_599_627_370_496e15,
        ]
        + [
            .leastNonzeroMagnitude, -.leastNonzeroMagnitude, 8388607.5, -8388607.5, 1e300, .infinity, -.infinity,
            0.499_999_999_999_999_94,
        ]
        + (0..<2000).map { _ in
            Double(
                bitPattern: UInt64.random(in: 0x3f00_0000_0000_0000...0x4400_0000_0000_0000) | UInt64.random(in: 0...1)
                    << 63)
        }

    private static let rules: [(mode: UInt8, rule: FloatingPointRoundingRule)] = [
        (0, .toNearestOrEven), (1, .towardZero), (2, .down), (3, .up), (4, .toNearestOrAwayFromZero),
    ]

    @Test("fround gives what the host rounds to, and froundnx says when it was inexact") func rounding() {
        for (mode, rule) in Self.rules {
            for number in Self.numbers {
                var flags: UInt8 = 0
                let result = SoftFloat.round64(number.bitPattern, mode, isExact: true, &flags)
                let expected = number.rounded(rule)
                #expect(result == expected.bitPattern, "\(number) in mode \(mode)")
                #expect(flags == (expected == number ? 0 : SoftFloat.Flags.inexact), "\(number)")
                let single = Float(number)
                flags = 0
                let narrow = SoftFloat.round32(single.bitPattern, mode, isExact: false, &flags)
                #expect(narrow == single.rounded(rule).bitPattern && flags == 0, "\(single) in mode \(mode)")
            }
        }
        var flags: UInt8 = 0
        #expect(SoftFloat.round64(0x7ff0_0000_0000_0001, 0, isExact: false, &flags) == SoftFloat.canonicalNaN64)
        #expect(flags == SoftFloat.Flags.invalid)
    }

    @Test("fcvtmod.w.d is the integer part modulo 2^32") func modulo() {
        func converted(_ number: Double) -> (Int32, UInt8) {
            var flags: UInt8 = 0
            return (SoftFloat.f64ToI32Modulo(number.bitPattern, &flags), flags)
        }
        #expect(converted(-1.5) == (-1, SoftFloat.Flags.inexact))
        #expect(converted(4_294_967_297) == (1, SoftFloat.Flags.invalid))
        #expect(converted(-2_147_483_648) == (.min, 0))
        #expect(converted(2_147_483_648) == (.min, SoftFloat.Flags.invalid))
        #expect(converted(.infinity) == (0, SoftFloat.Flags.invalid))
        #expect(converted(1e30) == (0, SoftFloat.Flags.invalid))
        #expect(converted(0.25) == (0, SoftFloat.Flags.inexact))
    }

    @Test("the quiet comparisons and the minimum that keeps a NaN") func comparisons() {
        let quiet = SoftFloat.canonicalNaN64
        var flags: UInt8 = 0
        #expect(!SoftFloat.quietLess64(quiet, 0, orEqual: true, &flags) && flags == 0)
        #expect(SoftFloat.quietLess64((1.0).bitPattern, (1.0).bitPattern, orEqual: true, &flags))
        #expect(!SoftFloat.quietLess64((1.0).bitPattern, (1.0).bitPattern, orEqual: false, &flags))
        #expect(SoftFloat.minimum64(quiet, (1.0).bitPattern, &flags) == quiet && flags == 0)
        #expect(SoftFloat.maximum64((2.0).bitPattern, (1.0).bitPattern, &flags) == (2.0).bitPattern)
    }

    @Test("fli.d, fround.d and fcvtmod.w.d run; wrs.nto ends") func instructions() throws {
        let machine = try TestMachine()
        try machine.run([
            0x0000_6337,  // lui t1, 6: mstatus.FS
            RV.csrrs(0, 0x300, 6),
            RV.r(0x53, 0, 0x79, 1, 21, 1),  // fli.d f1, 2.5
            RV.r(0x53, 0, 0x21, 2, 1, 4),  // fround.d f2, f1, rne
            RV.r(0x53, 1, 0x61, 5, 2, 8),  // fcvtmod.w.d x5, f2, rtz
            0x00d0_0073, 0x01d0_0073,  // wrs.nto, wrs.sto
            RV.addi(7, 0, 9),
        ])
        #expect(machine.hart[register: 5] == 2)
        #expect(machine.hart[register: 7] == 9)
    }

    @Test("extensions of a device tree's string are told apart, and what is not here is named") func names() {
        let default7 = "rv64imafdch_zicsr_zifencei_zihintpause_zba_zbb_zbc_zbs_sstc"
        let offered = RISCVConfiguration.extensionNames(ofISA: default7)
        #expect(offered.contains("h") && offered.contains("sstc") && offered.contains("d"))
        for layout in [.native, .qemu7_2, .qemu10_0] as [StateLayout] {
            #expect(RISCVConfiguration.lacking(offered, in: layout).isEmpty)
        }
        let newer = RISCVConfiguration.extensionNames(ofISA: default7 + "_zicboz_zacas_svadu")
        #expect(RISCVConfiguration.lacking(newer, in: .native) == ["zacas"])
        #expect(RISCVConfiguration.lacking(newer, in: .qemu7_2) == ["svadu", "zacas", "zicboz"])
    }
}
