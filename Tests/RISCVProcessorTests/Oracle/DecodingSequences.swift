extension SequenceBuilder {
    /// A four-byte word that is legal or nearly so or anything; never a jump, nor what is excluded below.
    mutating func addAnyWord() {
        while true {
            let word: UInt32
            if chance(1, in: 3) {
                word = UInt32(truncatingIfNeeded: random.next()) | 3
            } else {
                var other = SequenceBuilder(random, place)
                switch random.below(6) {
                case 0: other.addArithmetic()
                case 1: other.addBitManipulation()
                case 2: other.addMemoryAccess()
                case 3: other.addAtomic()
                default: other.addFloat()
                }
                random = other.random
                guard let parcels = other.sequence.steps.last?.parcels.suffix(2), parcels.count == 2 else { continue }
                var legal = UInt32(parcels.first!) | UInt32(parcels.last!) << 16
                for _ in 0..<number(0...2) { legal ^= 1 << UInt32(random.below(30) + 2) }
                word = legal
            }
            let opcode = word & 0x7f
            // Jumps and branches could loop; wfi waits.
            if [0x63, 0x67, 0x6f].contains(opcode) || word == Encode.wfi || word & 0x1c == 0x1c { continue }
            // ctzw: see addBitManipulation.
            if word & 0xfff0_707f == 0x6010_101b { continue }
            // QEMU lets a store-conditional to a bad address fail instead of fault.
            if opcode == 0x2f && word >> 27 == 3 { continue }
            return add("word", word)
        }
    }

    /// Any two-byte instruction that is not a jump.
    mutating func addAnyHalf() {
        while true {
            let half = UInt16(truncatingIfNeeded: random.next())
            let quadrant = half & 3
            let function = half >> 13
            if quadrant == 3 || quadrant == 1 && function >= 5 || quadrant == 2 && function == 4 && half & 0x7c == 0 {
                continue
            }
            return add(Step(compressed: "half", half))
        }
    }
}

extension SequencePlan {
    /// Anything at all, in user mode, shut in by PMP: only its own code and data are there.
    static let decoding = SequencePlan(name: "decoding", count: 400) { _, random, place in
        var builder = SequenceBuilder(random, place)
        builder.sequence.csrs = [
            CSR.mstatus: 0xa_0000_0000 | 3 << 13,
            CSR.pmpaddr0: place.code >> 2 | 0x1ff, CSR.pmpaddr0 + 1: place.data >> 2 | 0x1ff,
            CSR.pmpcfg0: 0x1b1d,
        ]
        for _ in 0..<30 {
            if builder.chance(1, in: 3) { builder.addAnyHalf() } else { builder.addAnyWord() }
        }
        return builder.sequence
    }
}
