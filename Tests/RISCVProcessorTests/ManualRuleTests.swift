import GuestMemory
import Testing

/// What the manuals prescribe where QEMU 7.2 does something else, so that the comparison with it cannot keep us to it.
@Suite("Rules of the manuals that QEMU breaks") struct ManualRuleTests {
    private static let data = 8192

    /// Runs one sequence on our hart alone.
    private func run(_ make: (Placement) -> Sequence) throws -> SequenceOutcome {
        let image = OracleImage(count: 1, dataByteCount: 16 * guestPageSize) { make($1) }
        return image.outcome(of: 0, in: try HartMachine.run(image))
    }

    private func sequence(_ words: [UInt32], x: [Int: UInt64] = [:], csrs: [Int: UInt64] = [:]) -> Sequence {
        var sequence = Sequence()
        for (number, value) in x { sequence.x[number] = value }
        sequence.csrs = csrs
        sequence.hasOnlyWords = true
        sequence.data = [UInt8](repeating: 0, count: Self.data)
        sequence.steps = words.map { Step("", $0) }
        return sequence
    }

    @Test("ctzw counts to 32 when the lower half is zero, whatever the upper is")
    func countTrailingZeros() throws {
        let outcome = try run { _ in sequence([0x6012_931b, 0x6013_939b], x: [5: 1 << 53, 7: 0]) }
        #expect(outcome.x[6] == 32 && outcome.x[7] == 32)
    }

    @Test("an AMO that may not even read raises store/AMO exceptions")
    func atomicFaults() throws {
        let amoadd = Encode.r(0x2f, 3, 0, 6, 5, 7)
        let outcome = try run { place in
            sequence(
                [amoadd, Encode.r(0x2f, 3, 0, 6, 28, 7)],
                x: [5: place.data + 1, 28: 0x20_0000])
        }
        #expect(outcome.traps.map { $0[0] } == [6, 7])
        #expect(outcome.traps.map { $0[2] }.last == 0x20_0000)
    }

    @Test("of several interrupts, external comes before software before timer")
    func interruptOrder() throws {
        let outcome = try run { _ in
            sequence(
                [Encode.nop, Encode.nop],
                csrs: [
                    CSR.mstatus: 0xa_0000_0000 | 3 << 13 | 1 << 11 | 1 << 7, CSR.mie: 0x222, CSR.mip: 0x222,
                ])
        }
        #expect(outcome.traps.map { $0[0] & 0xff } == [9, 1, 5])
        #expect(outcome.traps.map { $0[2] } == [9, 1, 5], "each by its vector")
    }

    @Test("setting no bits of fcsr from a register is a write, and makes the state dirty")
    func dirtyByWriting() throws {
        let outcome = try run { _ in
            sequence(
                [Encode.csrrs(0, CSR.fcsr, 5), Encode.csrr(6, CSR.mstatus)], x: [5: 0],
                csrs: [CSR.mstatus: 0xa_0000_0000 | 1 << 13 | 3 << 11])
        }
        #expect(outcome.x[6] >> 13 & 3 == 3)
    }

    @Test("a flag raised by a comparison makes the floating-point state dirty")
    func dirtyByFlag() throws {
        let outcome = try run { _ in
            var sequence = sequence(
                [Encode.r(0x53, 1, 0x51, 5, 1, 1), Encode.csrr(6, CSR.mstatus)],  // flt.d of a NaN
                csrs: [CSR.mstatus: 0xa_0000_0000 | 1 << 13 | 3 << 11])
            sequence.f[1] = 0x7ff8_0000_0000_0000
            return sequence
        }
        #expect(outcome.x[6] >> 13 & 3 == 3 && outcome.fcsr == 16)
    }

    @Test("software that looks for triggers finds that there are none")
    func noTriggers() throws {
        let outcome = try run { _ in
            sequence(
                [Encode.csrw(0x7a0, 5), Encode.csrr(6, 0x7a0), Encode.csrw(0x7a1, 5), Encode.csrr(7, 0x7a1)],
                x: [5: .max])
        }
        #expect(outcome.traps.isEmpty && outcome.x[6] == 0 && outcome.x[7] == 0)
    }

    @Test("pmpaddr holds 54 bits")
    func protectionAddressWidth() throws {
        let outcome = try run { _ in
            sequence([Encode.csrw(CSR.pmpaddr0, 5), Encode.csrr(6, CSR.pmpaddr0)], x: [5: .max])
        }
        #expect(outcome.x[6] == .max >> 10)
    }

    @Test("a locked PMP entry binds machine mode, and neither it nor the address below a locked range changes")
    func lockedProtection() throws {
        let outcome = try run { place in
            sequence(
                [
                    Encode.csrw(CSR.pmpaddr0, 5), Encode.csrw(CSR.pmpaddr0 + 1, 6), Encode.csrw(CSR.pmpcfg0, 7),
                    Encode.csrw(CSR.pmpaddr0, 0), Encode.csrw(CSR.pmpaddr0 + 1, 0), Encode.csrw(CSR.pmpcfg0, 0),
                    Encode.csrr(10, CSR.pmpaddr0), Encode.csrr(11, CSR.pmpaddr0 + 1), Encode.csrr(12, CSR.pmpcfg0),
                    Encode.ld(13, 0, 14), Encode.sd(13, 0, 14), Encode.sd(13, 64, 14),
                ],
                x: [
                    5: place.data >> 2, 6: (place.data + 64) >> 2, 7: 0x8900,  // a locked range that can only be read
                    14: place.data,
                ])
        }
        #expect(outcome.x[10] != 0 && outcome.x[11] != 0 && outcome.x[12] == 0x8900)
        #expect(outcome.traps.map { $0[0] } == [7])
    }

    /// A three-level tree at the end of the data with an identity gigapage for the runtime and leaves for the page at `0x20_0000_0000`
    /// and the next.
    private func tables(_ place: Placement, _ first: UInt64, _ second: UInt64) -> (data: [UInt8], satp: UInt64) {
        var words = [UInt64](repeating: 0, count: 8 * 512)
        func entry(_ address: UInt64) -> UInt64 { (address >> 12) << 10 }
        words[5 * 512 + 2] = entry(OracleRuntime.base) | 0xcf
        words[5 * 512 + 128] = entry(place.data + 6 * 4096) | 1
        words[6 * 512] = entry(place.data + 7 * 4096) | 1
        words[7 * 512] = first == 0 ? 0 : entry(place.data) | first
        words[7 * 512 + 1] = second == 0 ? 0 : entry(place.data + 4096) | second
        words[0] = 0x8067  // ret
        let bytes = words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64(8 * $0)) } }
        return (bytes, 8 << 60 | (place.data + 5 * 4096) >> 12)
    }

    private func translated(
        _ words: [UInt32], _ first: UInt64, _ second: UInt64, status: UInt64, x: [Int: UInt64] = [:]
    ) throws -> SequenceOutcome {
        try run { place in
            let (data, satp) = tables(place, first, second)
            var sequence = sequence(
                words, x: x.merging([5: 0x20_0000_0000]) { given, _ in given },
                csrs: [CSR.mstatus: 0xa_0000_0000 | 3 << 13 | status, CSR.satp: satp])
            sequence.data = data
            return sequence
        }
    }

    @Test("supervisor mode does not run the user's code, even after loading from its page under SUM")
    func userCode() throws {
        let outcome = try translated(
            [Encode.ld(6, 0, 5), Encode.i(0x67, 0, 1, 5, 0)], 0xdf, 0, status: 1 << 11 | 1 << 18)
        #expect(outcome.traps.map { $0[0] } == [12])
    }

    @Test("MPRV follows MPP when a trap's return changes it")
    func modifiedPrivilege() throws {
        // A supervisor page: the first load may, the second, after a trap has left MPP at user mode, may not.
        let outcome = try translated(
            [Encode.ld(6, 0, 5), Encode.ecall, Encode.ld(6, 0, 5)], 0xcf, 0, status: 3 << 11,
            x: [7: 1 << 17 | 1 << 11])
        // Without MPRV both go to the physical address, where nothing is.
        #expect(outcome.traps.map { $0[0] } == [5, 11, 5])
        let modified = try translated(
            [
                Encode.csrrc(0, CSR.mstatus, 28), Encode.csrrs(0, CSR.mstatus, 7), Encode.ld(6, 0, 5), Encode.ecall,
                Encode.ld(6, 0, 5), Encode.csrrc(0, CSR.mstatus, 7),
            ], 0xcf, 0, status: 3 << 11, x: [7: 1 << 17 | 1 << 11, 28: 3 << 11])
        #expect(modified.traps.map { $0[0] } == [11, 13])
    }

    @Test("an AMO to a page that cannot be written faults and leaves the accessed bit alone")
    func atomicWithoutRight() throws {
        let outcome = try translated([Encode.r(0x2f, 3, 0, 6, 5, 7)], 0x03, 0, status: 1 << 11)
        #expect(outcome.traps.map { $0[0] } == [15])
        #expect(outcome.data[7 * 512] & 0xff == 0x03)
    }

    @Test("an access over a page's edge names the page that faults")
    func splitAccess() throws {
        let edge = try translated(
            [Encode.ld(6, 0, 7), Encode.sd(6, 0, 7)], 0xcf, 0, status: 1 << 11, x: [7: 0x20_0000_0ffc])
        #expect(edge.traps.map { $0[0] } == [13, 15])
        #expect(edge.traps.map { $0[2] } == [0x20_0000_1000, 0x20_0000_1000])
    }
}
