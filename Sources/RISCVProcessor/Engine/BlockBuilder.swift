/// Writes the operations of one block.
struct BlockBuilder {
    let first: OperationPointer
    var next: OperationPointer
    let page: UnsafeRawPointer
    let handle: UInt32
    let decoder: Decoder
    /// Without compressed instructions: jumps to odd halfwords trap.
    let isAligned: Bool
    /// The operation before, if the next instruction may be fused with it.
    var previous: OperationPointer?

    init(first: OperationPointer, page: UnsafeRawPointer, handle: UInt32, decoder: Decoder, isAligned: Bool) {
        self.first = first
        next = first
        previous = nil
        self.page = page
        self.handle = handle
        self.decoder = decoder
        self.isAligned = isAligned
    }

    mutating func emit(_ operation: Operation) {
        next.initialize(to: operation)
        next += 1
    }

    /// An exit to an offset of this page, with the stub that finds its target.
    private mutating func emitExit(_ operation: Operation, to offset: Int) {
        var exit = operation
        exit.imm = (next + 1).address
        emit(exit)
        emit(Operation(.resolve, imm: UInt64(handle) << 12 | UInt64(offset)))
    }

    mutating func build(from start: Int, instructionsMax: Int) {
        emit(Operation(.header, pcoff: UInt16(start)))
        var offset = start
        var count = 0
        while true {
            if offset >= 4096 {
                emit(Operation(.gotoFar, idx: UInt16(count), pcoff: 0xffe, imm: 4096))
                return
            }
            if count == instructionsMax {
                emitExit(Operation(.goto, idx: UInt16(count), pcoff: UInt16(offset)), to: offset)
                return
            }
            let lower = page.load(fromByteOffset: offset, as: UInt16.self)
            var length = 2
            var instruction = UInt32(lower)
            if lower & 3 == 3 {
                if offset == 0xffe {
                    emit(Operation(.straddle, idx: UInt16(count + 1), pcoff: 0xffe, imm: UInt64(handle)))
                    return
                }
                length = 4
                instruction |= UInt32(page.load(fromByteOffset: offset + 2, as: UInt16.self)) << 16
            }
            count += 1
            if !append(instruction, length: length, at: offset, count: count, mayLink: true) { return }
            offset += length
        }
    }

    /// A block of one instruction that leads to other pages only.
    mutating func buildSingle(_ instruction: UInt32, length: Int, at offset: UInt16) {
        emit(Operation(.header, pcoff: offset))
        if append(instruction, length: length, at: Int(offset), count: 1, mayLink: false) {
            emit(Operation(.gotoFar, idx: 1, pcoff: offset, imm: UInt64(Int(offset) + length)))
        }
    }

    /// One instruction; false when the block ends with it.
    private mutating func append(_ raw: UInt32, length: Int, at offset: Int, count: Int, mayLink: Bool) -> Bool {
        var word = raw
        if length == 2 { word = decoder.extensions.contains(.c) ? expandCompressed(UInt16(raw)) : 0 }
        var (operation, kind) = decoder.decode(word, length: UInt8(length))
        operation.idx = UInt16(count)
        operation.pcoff = UInt16(offset)
        switch kind {
        case .plain:
            if let before = previous, fuse(before, operation) { return true }
            previous = next
            emit(operation)
            return true
        case .branch:
            let before = previous
            previous = nil
            let target = offset &+ Int(Int64(bitPattern: operation.imm))
            if mayLink && target >= 0 && target < 4096 && !(isAligned && target & 2 != 0) {
                if let before, let fused = fusedBranch(before.pointee, operation) {
                    next = before
                    operation = fused
                }
                emitExit(operation, to: target)
            } else {
                switch operation.code {
                case .beq: operation.code = .beqFar
                case .bne: operation.code = .bneFar
                case .blt: operation.code = .bltFar
                case .bge: operation.code = .bgeFar
                case .bltu: operation.code = .bltuFar
                default: operation.code = .bgeuFar
                }
                emit(operation)
            }
            return true
        case .jump:
            let target = offset &+ Int(Int64(bitPattern: operation.imm))
            if isAligned && target & 2 != 0 {
                operation.code = .misalignedJump
                operation.rs1 = 0
                operation.imm = UInt64(bitPattern: Int64(target))
                operation.rd = 1  // an offset to the page
                emit(operation)
                return false
            }
            if mayLink && target >= 0 && target < 4096 {
                if operation.rd == 0 { operation.code = .jump }
                emitExit(operation, to: target)
            } else {
                operation.code = .jumpAndLinkFar
                if operation.rd == 0 { operation.rd = UInt8(Word.sink) }
                emit(operation)
            }
            return false
        case .last:
            if let before = previous, let call = fusedCall(before.pointee, operation), !isAligned {
                next = before
                let target = Int(call.pcoff) &+ Int(Int64(bitPattern: call.imm))
                if mayLink && target >= 0 && target < 4096 {
                    emitExit(call, to: target)
                } else {
                    var far = call
                    far.code = .jumpAndLinkFar
                    emit(far)
                }
                return false
            }
            if isAligned && (operation.code == .jumpRegister || operation.code == .jumpAndLinkRegister) {
                var check = operation
                check.code = .misalignedJump
                check.rd = 0  // an address
                emit(check)
            }
            emit(operation)
            return false
        }
    }
}
