import Glibc
import Testing

/// Random instruction sequences end the same on our hart and on QEMU's, in every register, flag and byte.
///
/// The seed of each kind is fixed; `SIDESTEP_ORACLE_SEED` and `SIDESTEP_ORACLE_COUNT` ask for others and for more.
@Suite(
    "Instructions against QEMU",
    .enabled(if: QEMUMachine.path != nil, "qemu-system-riscv64 is not installed"), .serialized)
struct InstructionOracleTests {
    static let plans: [SequencePlan] =
        [
            .integer, .loops, .compressed, .atomic, .float, .floatState, .decoding, .machineRegisters, .privilege,
            .translation,
            .protection,
        ] + [0, 1, 3].map { .registerSweep(mode: $0, except: excludedRegisters) }

    /// CSR numbers that the sweep leaves out.
    ///
    /// Without programmable counters, QEMU 7.2 has none of `mhpmcounter3` to 31 and their selectors; they must be there, if only as zeros.
    /// Its triggers are switched off for the comparison; ours has the registers that say there is no trigger.
    static let excludedRegisters = Set(0xb03...0xb1f).union(0x323...0x33f).union(0x7a0...0x7a3)

    /// Bits of CSRs that are not compared.
    static let ignored: [Int: UInt64] = [
        CSR.menvcfg: 1 << 61  // ADUE: QEMU 7.2 always updates A and D and has no switch for it
    ]

    private static func setting(_ name: String) -> UInt64? { getenv(name).flatMap { UInt64(String(cString: $0)) } }

    private static func generator(_ seed: UInt64, _ index: Int) -> SeededGenerator {
        SeededGenerator(seed: seed &* 0x1_0000_0001 &+ UInt64(index) << 20)
    }

    @Test("both machines end the same", arguments: plans)
    func same(plan: SequencePlan) throws {
        let seed = Self.setting("SIDESTEP_ORACLE_SEED") ?? 1
        let count = Self.setting("SIDESTEP_ORACLE_COUNT").map { Int($0) } ?? plan.count
        let image = OracleImage(count: count, dataByteCount: plan.dataByteCount) { index, place in
            plan.generate(index, Self.generator(seed, index), place)
        }
        let theirs = try QEMUMachine.run(image)
        let ours = try HartMachine.run(image)
        var reported = 0
        for index in 0..<count {
            let found = image.outcome(of: index, in: ours)
                .differences(from: image.outcome(of: index, in: theirs), ignoring: Self.ignored)
            if found.isEmpty { continue }
            reported += 1
            if reported <= 3 { try report(plan, seed, index, found) }
        }
        #expect(reported == 0, "\(reported) of \(count) sequences differ (seed \(seed))")
    }

    /// Finds the first step after which the machines differ, by running the sequence cut at every length.
    private func report(_ plan: SequencePlan, _ seed: UInt64, _ index: Int, _ found: [String]) throws {
        func whole(_ place: Placement) -> Sequence { plan.generate(index, Self.generator(seed, index), place) }
        let length = whole(Placement(code: OracleRuntime.base, data: OracleRuntime.base)).steps.count
        let image = OracleImage(count: length + 1, dataByteCount: plan.dataByteCount) { whole($1).prefix($0) }
        let theirs = try QEMUMachine.run(image)
        let ours = try HartMachine.run(image)
        for cut in 0...length {
            let differences = image.outcome(of: cut, in: ours)
                .differences(from: image.outcome(of: cut, in: theirs), ignoring: Self.ignored)
            if differences.isEmpty { continue }
            let sequence = image.sequences[cut]
            let last = sequence.steps.last?.name ?? "nothing"
            let registers = (0..<32).map { "x\($0) \(hex(sequence.x[$0])) f\($0) \(hex(sequence.f[$0]))" }
            Issue.record(
                """
                \(plan.name), seed \(seed), sequence \(index): differs from step \(cut - 1) (\(last)) on:
                \(differences.prefix(12).joined(separator: "\n"))
                code at \(hex(image.placements[cut].code)), data at \(hex(image.placements[cut].data)), \
                CSRs \(sequence.csrs.map { "\(String($0.key, radix: 16))=\(hex($0.value))" }.sorted()), fcsr \(sequence.fcsr)
                \(sequence.listing().split(separator: "\n").suffix(12).joined(separator: "\n"))
                \(registers.joined(separator: "; "))
                """)
            return
        }
        Issue.record("\(plan.name), seed \(seed), sequence \(index) differs only as a whole: \(found.prefix(8))")
    }
}
