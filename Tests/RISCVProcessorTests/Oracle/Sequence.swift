/// One step of a test sequence: an instruction or a few that belong together.
struct Step {
    enum Target {
        case branch(step: Int), jump(step: Int), compressedBranch(step: Int), compressedJump(step: Int)
        /// An `auipc` and the `addi` after it.
        case pcRelative(step: Int)
    }

    var name: String
    var parcels: [UInt16]
    /// What the instruction at ``targetParcel`` refers to: the address of another step.
    var target: Target?
    var targetParcel = 0

    init(_ name: String, _ words: UInt32..., target: Target? = nil) { self.init(name, words, target: target) }

    init(_ name: String, _ words: [UInt32], target: Target? = nil, targetWord: Int = 0) {
        self.name = name
        parcels = words.flatMap { [UInt16(truncatingIfNeeded: $0), UInt16(truncatingIfNeeded: $0 >> 16)] }
        self.target = target
        targetParcel = targetWord * 2
    }

    init(compressed name: String, _ half: UInt16, target: Target? = nil) {
        self.name = name
        parcels = [half]
        self.target = target
    }
}

/// Where a sequence lives in guest memory.
struct Placement {
    /// Its code, a page.
    var code: UInt64
    /// Its own data, ``SequencePlan/dataByteCount`` bytes from a page boundary.
    var data: UInt64
}

/// A test sequence: the state it begins in and the steps it runs, until the `ecall` behind the last one.
struct Sequence {
    /// Registers at the start; x0 is ignored.
    var x = [UInt64](repeating: 0, count: 32)
    var f = [UInt64](repeating: 0, count: 32)
    var fcsr: UInt64 = 0
    /// CSRs at the start, where they differ from ``OracleRuntime/defaults``. `mstatus.MPP` is the mode it runs in.
    var csrs: [Int: UInt64] = [:]
    /// All instructions have four bytes, so that the trap handler need not read them (it could not, under translation).
    var hasOnlyWords = false
    /// What is added to the code's physical address to get its virtual one.
    var codeOffset: UInt64 = 0
    var data: [UInt8] = []
    var steps: [Step] = []

    /// The machine code with the closing `ecall`, and the offset of that.
    func assembled() -> (code: [UInt8], end: Int) {
        var offsets: [Int] = []
        var offset = 0
        for step in steps {
            offsets.append(offset)
            offset += step.parcels.count * 2
        }
        offsets.append(offset)
        func address(_ step: Int) -> Int { offsets[min(step, steps.count)] }
        var code: [UInt8] = []
        for (index, step) in steps.enumerated() {
            var parcels = step.parcels
            let at = offsets[index] + step.targetParcel * 2
            func patch(_ bits: UInt32, at parcel: Int) {
                parcels[parcel] |= UInt16(truncatingIfNeeded: bits)
                parcels[parcel + 1] |= UInt16(truncatingIfNeeded: bits >> 16)
            }
            switch step.target {
            case nil: break
            case .branch(let target): patch(Encode.b(0, 0, 0, address(target) - at) & ~0x7f, at: step.targetParcel)
            case .jump(let target): patch(Encode.jal(0, address(target) - at) & ~0x7f, at: step.targetParcel)
            case .compressedBranch(let target):
                parcels[step.targetParcel] |= Compressed.branchOffset(address(target) - at)
            case .compressedJump(let target): parcels[step.targetParcel] |= Compressed.jumpOffset(address(target) - at)
            case .pcRelative(let target):
                let distance = address(target) - at
                let low = (distance << 52) >> 52
                patch(Encode.u(0, 0, (distance - low) >> 12), at: step.targetParcel)
                patch(Encode.i(0, 0, 0, 0, low), at: step.targetParcel + 2)
            }
            for parcel in parcels { code += [UInt8(truncatingIfNeeded: parcel), UInt8(parcel >> 8)] }
        }
        let end = code.count
        for byte in 0..<4 { code.append(UInt8(truncatingIfNeeded: Encode.ecall >> UInt32(8 * byte))) }
        return (code, end)
    }

    /// The same up to a step; branches beyond it go to the end.
    func prefix(_ count: Int) -> Sequence {
        var shorter = self
        shorter.steps = Array(steps.prefix(count))
        return shorter
    }

    /// For a report: each step's name and code.
    func listing() -> String {
        var lines: [String] = []
        let (code, _) = assembled()
        var offset = 0
        for (index, step) in steps.enumerated() {
            let parcels = stride(from: offset, to: offset + step.parcels.count * 2, by: 2).map {
                let half = UInt16(code[$0]) | UInt16(code[$0 + 1]) << 8
                return String(repeating: "0", count: 4 - String(half, radix: 16).count) + String(half, radix: 16)
            }
            lines.append("  \(index) +0x\(String(offset, radix: 16)) \(step.name): \(parcels.joined(separator: " "))")
            offset += step.parcels.count * 2
        }
        return lines.joined(separator: "\n")
    }
}

/// How one kind of sequence is made: from its number, a seed and the place it will have, on which no random choice may depend.
struct SequencePlan: Sendable, CustomStringConvertible {
    var name: String
    var count: Int
    var dataByteCount = 4096
    var generate: @Sendable (Int, SeededGenerator, Placement) -> Sequence

    var description: String { name }
}
