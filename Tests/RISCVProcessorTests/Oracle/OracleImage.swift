import Glibc
import GuestMemory

/// The runtime and a batch of sequences, laid out in guest memory.
struct OracleImage {
    static let byteCount = 64 << 20

    let sequences: [Sequence]
    let placements: [Placement]
    let dataByteCount: Int
    private let parts: [(address: UInt64, bytes: [UInt8])]

    /// Sequences of one plan; `make` gets the number of each and its place.
    init(count: Int, dataByteCount: Int, make: (Int, Placement) -> Sequence) {
        precondition(dataByteCount % guestPageSize == 0)
        let codeBase = OracleRuntime.recordsAddress + UInt64(count * OracleRuntime.recordByteCount)
        let dataBase = codeBase + UInt64(count * guestPageSize)
        precondition(
            Int(dataBase - OracleRuntime.base) + count * dataByteCount <= Self.byteCount, "too many sequences")
        placements = (0..<count).map {
            Placement(code: codeBase + UInt64($0 * guestPageSize), data: dataBase + UInt64($0 * dataByteCount))
        }
        var sequences: [Sequence] = []
        var parts: [(UInt64, [UInt8])] = [
            (OracleRuntime.base, Self.bytes(OracleRuntime.code(sequenceCount: count))),
            (OracleRuntime.stubAddress, Self.bytes(OracleRuntime.stub)),
        ]
        precondition(parts[0].1.count <= Int(OracleRuntime.contextAddress - OracleRuntime.base))
        for (index, place) in placements.enumerated() {
            let sequence = make(index, place)
            let (code, end) = sequence.assembled()
            precondition(code.count <= guestPageSize && sequence.data.count <= dataByteCount, "sequence is too long")
            let entry = place.code &+ sequence.codeOffset
            var record = [UInt8](repeating: 0, count: 1024)
            func put(_ value: UInt64, at offset: Int) {
                for byte in 0..<8 { record[offset + byte] = UInt8(truncatingIfNeeded: value >> UInt64(8 * byte)) }
            }
            for number in 0..<32 {
                put(number == 0 ? entry : sequence.x[number], at: OracleRuntime.xOffset + number * 8)
                put(sequence.f[number], at: OracleRuntime.fOffset + number * 8)
            }
            put(sequence.fcsr, at: OracleRuntime.fcsrOffset)
            put(entry &+ UInt64(end), at: OracleRuntime.endOffset)
            put(sequence.hasOnlyWords ? 1 : 0, at: OracleRuntime.flagsOffset)
            for (slot, csr) in OracleRuntime.csrs.enumerated() {
                put(
                    sequence.csrs[csr.number] ?? OracleRuntime.defaults[csr.number] ?? 0,
                    at: OracleRuntime.csrOffset + slot * 8)
            }
            parts.append((OracleRuntime.recordsAddress + UInt64(index * OracleRuntime.recordByteCount), record))
            parts.append((place.code, code))
            parts.append((place.data, sequence.data))
            sequences.append(sequence)
        }
        self.sequences = sequences
        self.parts = parts
        self.dataByteCount = dataByteCount
    }

    private static func bytes(_ words: [UInt32]) -> [UInt8] {
        words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> UInt32(8 * $0)) } }
    }

    /// Fills a fresh block.
    func write(to block: RAMBlock) {
        for (address, bytes) in parts where !bytes.isEmpty {
            bytes.withUnsafeBytes {
                _ = memcpy(block.base + Int(address - OracleRuntime.base), $0.baseAddress!, bytes.count)
            }
        }
    }

    /// What a machine left behind for one sequence.
    func outcome(of index: Int, in block: RAMBlock) -> SequenceOutcome {
        let record =
            block.base + Int(OracleRuntime.recordsAddress - OracleRuntime.base)
            + index * OracleRuntime.recordByteCount
        func words(_ offset: Int, _ count: Int) -> [UInt64] {
            (0..<count).map { record.load(fromByteOffset: offset + $0 * 8, as: UInt64.self) }
        }
        let data = block.base + Int(placements[index].data - OracleRuntime.base)
        let offset = sequences[index].codeOffset
        let code = block.base + Int(placements[index].code - OracleRuntime.base)
        let place = placements[index].code
        let trapCount = min(Int(words(OracleRuntime.trapCountOffset, 1)[0]), OracleRuntime.trapsMax)
        return SequenceOutcome(
            x: words(OracleRuntime.outXOffset, 32), f: words(OracleRuntime.outFOffset, 32),
            fcsr: words(OracleRuntime.outFCSROffset, 1)[0], cause: words(OracleRuntime.outCauseOffset, 1)[0],
            csrs: words(OracleRuntime.outCSROffset, OracleRuntime.csrs.count),
            traps: (0..<trapCount).map {
                words(
                    OracleRuntime.trapsOffset + $0 * OracleRuntime.wordsPerTrap * 8, OracleRuntime.wordsPerTrap)
            },
            data: words(Int(data - record), sequences[index].data.count / 8),
            isReadModifyWrite: { address in
                let physical = address &- offset
                guard physical >= place, physical < place + 4092 else { return false }
                let instruction = (code + Int(physical - place)).loadUnaligned(as: UInt32.self)
                return instruction & 0x7f == 0x2f && instruction >> 27 != 2
            })
    }
}

/// Everything that is compared of one sequence.
struct SequenceOutcome {
    var x: [UInt64]
    var f: [UInt64]
    var fcsr: UInt64
    /// `mcause` of the closing `ecall`; of the last trap, when there were too many.
    var cause: UInt64
    var csrs: [UInt64]
    var traps: [[UInt64]]
    var data: [UInt64]
    /// Whether there is an AMO or a store-conditional at an address.
    var isReadModifyWrite: (UInt64) -> Bool

    /// What differs, as text; empty when nothing does. Bits named in `ignoring` (by CSR number) are not looked at.
    func differences(from other: SequenceOutcome, ignoring: [Int: UInt64]) -> [String] {
        var found: [String] = []
        func compare(_ name: String, _ ours: UInt64, _ theirs: UInt64, ignoring mask: UInt64 = 0) {
            if (ours ^ theirs) & ~mask != 0 { found.append("\(name) is \(hex(ours)), QEMU has \(hex(theirs))") }
        }
        // QEMU 7.2 says load where the manual wants store/AMO, when a read-modify-write cannot even read.
        func compareCause(_ name: String, _ ours: UInt64, _ theirs: UInt64, at address: UInt64) {
            let isQuirk =
                [[6, 4], [7, 5], [15, 13]].contains([ours, theirs])
                && (isReadModifyWrite(address) || isReadModifyWrite(address &- 4))
            if !isQuirk { compare(name, ours, theirs) }
        }
        for number in 1..<32 { compare("x\(number)", x[number], other.x[number]) }
        for number in 0..<32 { compare("f\(number)", f[number], other.f[number]) }
        compare("fcsr", fcsr, other.fcsr)
        compare("last mcause", cause, other.cause)
        for (index, csr) in OracleRuntime.csrs.enumerated() {
            if csr.number == CSR.scause {
                let sepc = csrs[OracleRuntime.csrs.firstIndex { $0.number == CSR.sepc }!]
                compareCause(csr.name, csrs[index], other.csrs[index], at: sepc)
            } else {
                compare(csr.name, csrs[index], other.csrs[index], ignoring: ignoring[csr.number] ?? 0)
            }
        }
        compare("number of traps", UInt64(traps.count), UInt64(other.traps.count))
        let fields = [
            ("mcause", CSR.mcause), ("mepc", CSR.mepc), ("mtval", CSR.mtval), ("mstatus", CSR.mstatus),
            ("scause", CSR.scause), ("sepc", CSR.sepc), ("stval", CSR.stval),
        ]
        for (index, (ours, theirs)) in zip(traps, other.traps).enumerated() {
            for (slot, field) in fields.enumerated() {
                if field.1 == CSR.mcause || field.1 == CSR.scause {
                    let address = ours[field.1 == CSR.mcause ? 1 : 5]
                    compareCause("trap \(index): \(field.0)", ours[slot], theirs[slot], at: address)
                    continue
                }
                compare("trap \(index): \(field.0)", ours[slot], theirs[slot], ignoring: ignoring[field.1] ?? 0)
            }
        }
        for (index, (ours, theirs)) in zip(data, other.data).enumerated() {
            compare("data +0x\(String(index * 8, radix: 16))", ours, theirs)
        }
        return found
    }
}
