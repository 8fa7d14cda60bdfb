import GuestMemory

/// Finding and building blocks.
extension RISCVHart {
    /// Room for a block: header, three per two instructions or two per branch, a check before a jump, the last exit.
    static let blockOperationsMax = 2 * 64 + 8
    static let codePageMask: UInt64 = 0xfff

    /// Where the engine goes for a virtual address: the first operation of a block, or ``leaveOperation`` after a fault
    /// (then the trap was taken) or when code must be dropped first.
    func lookUp(_ pc: UInt64) -> OperationPointer {
        let virtualPage = pc & ~0xfff
        let fetch = x + Word.fetches + jumpIndex * Word.fetchWords + Int(truncatingIfNeeded: pc >> 12 & 255) * 2
        let page: CodePagePointer
        if fetch[0] == virtualPage {
            page = CodePagePointer(bitPattern: UInt(fetch[1])).unsafelyUnwrapped
        } else {
            let physical = translate(pc, AccessKind.fetch)
            if physical == Self.noAddress { return trapOnFetch(faultCause, pc, pc) }
            let region = map.region(at: physical)
            let permissions = pmp.permissions(first: physical & ~0xfff, last: physical | 0xfff, privilege: privilege)
            if permissions == PhysicalMemoryProtection.mixed && region >= 0 { return uncachedInstruction(at: pc) }
            if region < 0 || permissions & PhysicalMemoryProtection.execute == 0 {
                return trapOnFetch(Cause.fetchAccess, pc, pc)
            }
            let offset = Int(physical - map.regions[region].address)
            let pageIndex = map.regions[region].firstPage + offset >> 12
            map.settle(page: pageIndex, for: self)
            if let known = code.existingPage(pageIndex) {
                page = known
            } else {
                guard let made = code.makePage(pageIndex, host: map.regions[region].host + (offset & ~0xfff)) else {
                    return leaveToDropCode(pc)
                }
                page = made
            }
            fetch[0] = virtualPage
            fetch[1] = page.address
            let hashed = pc >> 12 & 4095
            jumpPages[Int(hashed >> 6)] |= 1 << (hashed & 63)
            hasJumpEntries = true
            if isLargePage { largePages |= Self.largePageBit(pc) }
        }
        guard let result = block(in: page, at: Int(truncatingIfNeeded: pc & 0xfff)) else { return leaveToDropCode(pc) }
        x[Word.vbase] = virtualPage
        let jump =
            Words(bitPattern: UInt(x[Word.jumpCache])).unsafelyUnwrapped
            + Int(truncatingIfNeeded: pc >> 1 & UInt64(Word.jumpEntries - 1)) * 2
        jump[0] = pc
        jump[1] = result.address
        return result
    }

    private func leaveToDropCode(_ pc: UInt64) -> OperationPointer {
        mustDropCode = true
        x[Word.pc] = pc
        x[Word.retiredInBlock] = 0
        return leaveOperation
    }

    /// A fault of the fetch at `pc`; `address` is what could not be fetched.
    func trapOnFetch(_ cause: UInt64, _ pc: UInt64, _ address: UInt64) -> OperationPointer {
        x[Word.pc] = pc
        x[Word.retiredInBlock] = 0
        trap(cause, address)
        return leaveOperation
    }

    /// After an exit whose target is not in the jump cache, or with the quantum used up. `from` is the operation that
    /// jumps; what it retires is already accounted for.
    @inline(never) func jump(to pc: UInt64, quantum: Int, from: OperationPointer) -> OperationPointer {
        if pc & 2 != 0 && !configuration.extensions.contains(.c) {
            x[Word.pc] = x[Word.vbase] &+ from.pcoff
            x[Word.retiredInBlock] = .max
            trap(Cause.misalignedFetch, pc)
            return leaveOperation
        }
        if quantum < 0 {
            x[Word.pc] = pc
            x[Word.retiredInBlock] = 0
            return leaveOperation
        }
        let entry =
            Words(bitPattern: UInt(x[Word.jumpCache])).unsafelyUnwrapped
            + Int(truncatingIfNeeded: pc >> 1 & UInt64(Word.jumpEntries - 1)) * 2
        if entry[0] == pc {
            x[Word.vbase] = pc & ~0xfff
            return OperationPointer(bitPattern: UInt(entry[1])).unsafelyUnwrapped
        }
        return lookUp(pc)
    }

    /// The quantum is used up at an exit to `target` in the same page.
    @inline(never) func endQuantum(at target: OperationPointer) -> OperationPointer {
        if target.pointee.code == .resolve {
            x[Word.pc] = x[Word.vbase] &+ (target.imm & Self.codePageMask)
        } else {
            x[Word.pc] = x[Word.vbase] &+ (target - 1).pcoff
        }
        x[Word.retiredInBlock] = 0
        return leaveOperation
    }

    /// Runs at the stub behind an exit: finds or builds the block the exit leads to, and makes the exit lead there.
    @inline(never) func resolve(_ stub: OperationPointer) -> OperationPointer {
        let page = code.page(handle: UInt32(truncatingIfNeeded: stub.imm >> 12))
        let offset = stub.imm & Self.codePageMask
        guard let target = block(in: page, at: Int(offset)) else {
            return leaveToDropCode(x[Word.vbase] &+ offset)
        }
        stub[-1].imm = target.address
        return target
    }

    /// The block that begins at an offset of a page; built if there is none. Nil when there is no room.
    private func block(in page: CodePagePointer, at offset: Int) -> OperationPointer? {
        let index = page.table[offset >> 1]
        if index != 0 { return code.operations + Int(index) }
        return build(page, offset)
    }

    private func build(_ page: CodePagePointer, _ start: Int) -> OperationPointer? {
        guard let room = code.reserve(Self.blockOperationsMax) else { return nil }
        map.settle(page: page.pointee.pageIndex, for: self)
        var builder = BlockBuilder(
            first: room, page: page.pointee.host, handle: page.pointee.handle, decoder: decoder,
            isAligned: !configuration.extensions.contains(.c))
        builder.build(from: start, instructionsMax: blockInstructionsMax)
        let result = room + 1
        page.table[start >> 1] = code.index(of: result)
        code.commit(builder.next - room)
        return result
    }

    // MARK: Instructions that no block holds

    /// The instruction that begins in the last halfword of the running block's page: its second half may come from
    /// anywhere, so it is read anew each time. What came before it in the block is already accounted for.
    @inline(never) func straddle(_ operation: OperationPointer) -> OperationPointer {
        let page = code.page(handle: UInt32(truncatingIfNeeded: operation.imm))
        let pc = x[Word.vbase] &+ 0xffe
        let second = pc &+ 2
        guard let upper = fetchHalfword(second) else {
            return trapOnFetch(faultCause, pc, second)
        }
        let lower = page.pointee.host.load(fromByteOffset: 0xffe, as: UInt16.self)
        let instruction = UInt32(upper) << 16 | UInt32(lower)
        if page.pointee.straddling != 0, page.pointee.straddlingInstruction == instruction {
            return code.operations + Int(page.pointee.straddling)
        }
        guard let room = code.reserve(8) else { return leaveToDropCode(pc) }
        var builder = BlockBuilder(
            first: room, page: page.pointee.host, handle: page.pointee.handle, decoder: decoder,
            isAligned: !configuration.extensions.contains(.c))
        builder.buildSingle(instruction, length: 4, at: 0xffe)
        code.commit(builder.next - room)
        page.pointee.straddlingInstruction = instruction
        page.pointee.straddling = code.index(of: room + 1)
        return room + 1
    }

    /// One instruction from a page whose parts have different protection. Nothing of it is kept.
    private func uncachedInstruction(at pc: UInt64) -> OperationPointer {
        guard let lower = fetchHalfword(pc) else { return trapOnFetch(faultCause, pc, pc) }
        var instruction = UInt32(lower)
        if lower & 3 == 3 {
            guard let upper = fetchHalfword(pc &+ 2) else { return trapOnFetch(faultCause, pc, pc &+ 2) }
            instruction |= UInt32(upper) << 16
        }
        var builder = BlockBuilder(
            first: scratch, page: UnsafeRawPointer(scratch), handle: 0, decoder: decoder,
            isAligned: !configuration.extensions.contains(.c))
        builder.buildSingle(instruction, length: lower & 3 == 3 ? 4 : 2, at: UInt16(pc & 0xfff))
        x[Word.vbase] = pc & ~0xfff
        return scratch + 1
    }

    /// Two bytes of code, or nil with ``faultCause``.
    func fetchHalfword(_ address: UInt64) -> UInt16? {
        let fetch = x + Word.fetches + jumpIndex * Word.fetchWords + Int(truncatingIfNeeded: address >> 12 & 255) * 2
        if fetch[0] == address & ~0xfff {
            let page = CodePagePointer(bitPattern: UInt(fetch[1])).unsafelyUnwrapped
            return page.pointee.host.load(fromByteOffset: Int(address & 0xfff), as: UInt16.self)
        }
        let physical = translate(address, AccessKind.fetch)
        if physical == Self.noAddress { return nil }
        faultCause = Cause.fetchAccess
        let region = map.region(at: physical)
        let permissions = pmp.permissions(first: physical, last: physical &+ 1, privilege: privilege)
        guard region >= 0,
            permissions & (PhysicalMemoryProtection.execute | PhysicalMemoryProtection.mixed)
                == PhysicalMemoryProtection.execute
        else { return nil }
        return map.regions[region].host.load(
            fromByteOffset: Int(physical - map.regions[region].address), as: UInt16.self)
    }

    /// The instruction at an address that was just executed, as it stands in memory; 0 if it cannot be read.
    func instruction(at pc: UInt64) -> UInt64 {
        guard let lower = fetchHalfword(pc) else { return 0 }
        guard lower & 3 == 3 else { return UInt64(lower) }
        guard let upper = fetchHalfword(pc &+ 2) else { return 0 }
        return UInt64(upper) << 16 | UInt64(lower)
    }

    // MARK: fence.i

    /// Called from any thread: the bytes of a page we decoded from change.
    func noteStale(page index: Int) {
        stalePages.withLock { $0.append(index) }
        staleFlag.store(true, ordering: .releasing)
    }

    /// Drops what was decoded from pages that changed since.
    func synchronizeCode() {
        guard staleFlag.exchange(false, ordering: .acquiringAndReleasing) else { return }
        let pages = stalePages.withLock { list in
            let result = list
            list = []
            return result
        }
        for index in pages {
            if let page = code.existingPage(index) {
                code.clear(page)
                map.forget(page: index, hart: self.index)
            }
        }
        flushJumps()
    }
}
