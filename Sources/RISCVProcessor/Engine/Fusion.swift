/// Two instructions in one operation.
///
/// Nothing here changes what an instruction does: an entry in the middle of a pair has a block of its own, and where the second of a
/// pair can fault, the operation only handles the case that the caches answer and is followed by the two instructions apart.
extension BlockBuilder {
    /// Joins `second` to the operation before it. False when the two are no pair.
    mutating func fuse(_ before: OperationPointer, _ second: Operation) -> Bool {
        let first = before.pointee
        switch (first.code, second.code) {
        case (.loadImmediate, .addi), (.addPCImmediate, .addi):
            guard second.rs1 == first.rd, second.rd == first.rd else { return false }
            return keep(before, first.code, imm: first.imm &+ second.imm, idx: second.idx)
        case (.loadImmediate, .addiw):
            guard second.rs1 == first.rd, second.rd == first.rd else { return false }
            return keep(before, first.code, imm: (first.imm &+ second.imm).word, idx: second.idx)
        case (.ld, .ld):
            guard first.rs1 == second.rs1, first.rd != first.rs1 else { return false }
            let distance = second.imm &- first.imm
            var pair = first
            pair.code = .loadPair
            pair.rs2 = second.rd
            pair.imm = first.imm & 0xffff_ffff | distance << 32
            return replace(before, pair, first, second)
        case (.sd, .sd):
            guard first.rs1 == second.rs1 else { return false }
            let distance = second.imm &- first.imm
            var pair = first
            pair.code = .storePair
            pair.rd = first.rs2
            pair.rs2 = second.rs2
            pair.imm = first.imm & 0xffff_ffff | distance << 32
            return replace(before, pair, first, second)
        case (.add, .ld), (.add, .lw), (.add, .lwu), (.add, .lbu):
            guard second.rs1 == first.rd, second.rd == first.rd else { return false }
            var pair = first
            switch second.code {
            case .ld: pair.code = .addLoadDouble
            case .lw: pair.code = .addLoadWord
            case .lwu: pair.code = .addLoadUnsignedWord
            default: pair.code = .addLoadByte
            }
            pair.imm = second.imm
            return replace(before, pair, first, second)
        case (.move, .move):
            before.pointee.code = .movePair
            before.pointee.rs2 = second.rs1
            before.pointee.imm = UInt64(second.rd)
            return finish(before, second.idx)
        case (.slli, .srli):
            guard second.rs1 == first.rd, second.rd == first.rd else { return false }
            before.pointee.code = .shiftPair
            before.pointee.imm = first.imm | second.imm << 8
            return finish(before, second.idx)
        case (.slli, .add):
            // The other operand of the sum must not be what was shifted.
            guard second.rd == first.rd, (second.rs1 == first.rd) != (second.rs2 == first.rd) else { return false }
            before.pointee.code = .shiftAdd
            before.pointee.rs2 = second.rs1 == first.rd ? second.rs2 : second.rs1
            return finish(before, second.idx)
        default: return false
        }
    }

    /// Still one operation, and open to the next instruction.
    private func keep(_ before: OperationPointer, _ code: OperationCode, imm: UInt64, idx: UInt16) -> Bool {
        before.pointee.imm = imm
        before.pointee.idx = idx
        return true
    }

    private mutating func finish(_ before: OperationPointer, _ idx: UInt16) -> Bool {
        before.pointee.idx = idx
        previous = nil
        return true
    }

    /// The pair, then the two apart.
    private mutating func replace(
        _ before: OperationPointer, _ pair: Operation, _ first: Operation, _ second: Operation
    ) -> Bool {
        before.pointee = pair
        before.pointee.idx = second.idx
        emit(first)
        emit(second)
        previous = nil
        return true
    }

    /// A register stepped and compared: the end of a loop.
    func fusedBranch(_ first: Operation, _ second: Operation) -> Operation? {
        guard first.code == .addi, first.rd == first.rs1, second.code == .bne || second.code == .beq,
            let step = Int8(exactly: Int64(bitPattern: first.imm)),
            (second.rs1 == first.rd) != (second.rs2 == first.rd)
        else { return nil }
        var pair = second
        pair.code = second.code == .bne ? .addiBne : .addiBeq
        pair.rd = first.rd
        pair.rs1 = UInt8(bitPattern: step)
        pair.rs2 = second.rs1 == first.rd ? second.rs2 : second.rs1
        return pair
    }

    /// `auipc` and `jalr` through the register that is linked to: a call to an address that is known. `imm` is the displacement
    /// from `pcoff`.
    func fusedCall(_ first: Operation, _ second: Operation) -> Operation? {
        guard first.code == .addPCImmediate, second.code == .jumpAndLinkRegister, second.rs1 == first.rd,
            second.rd == first.rd
        else { return nil }
        var call = second
        call.code = .jumpAndLink
        call.imm = (first.imm &+ second.imm &+ UInt64(first.pcoff)) & ~1 &- UInt64(first.pcoff)
        call.pcoff = first.pcoff
        // Where the next instruction is, counted from there.
        call.rs2 = UInt8(second.pcoff &- first.pcoff) &+ second.rs2
        return call
    }
}
