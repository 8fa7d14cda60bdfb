import GuestMemory
import Synchronization

/// Page tables, protection, and the caches of what they say.
extension RISCVHart {
    static let noAddress = UInt64.max

    /// The privilege that loads and stores have.
    @inline(__always) var dataPrivilege: UInt64 {
        status & Status.mprv != 0 ? status >> 11 & 3 : privilege
    }

    /// Physical address of a virtual one, or ``noAddress`` with ``faultCause`` set. Sets A, and D for a store, where the
    /// hardware does that. Protection of the address found is the caller's business.
    ///
    /// Source: RISC-V Privileged Architecture 1.12, section 4.3.2.
    func translate(_ address: UInt64, _ kind: Int) -> UInt64 {
        let privilege = kind == AccessKind.fetch ? self.privilege : dataPrivilege
        let mode = satp >> 60
        isLargePage = false
        if privilege == 3 || mode == 0 {
            if address >> 56 != 0 {
                faultCause = [Cause.loadAccess, Cause.storeAccess, Cause.fetchAccess][kind]
                return Self.noAddress
            }
            return address
        }
        let levels = Int(mode) - 5
        let pageFault: UInt64
        let accessFault: UInt64
        switch kind {
        case AccessKind.load: (pageFault, accessFault) = (Cause.loadPage, Cause.loadAccess)
        case AccessKind.store: (pageFault, accessFault) = (Cause.storePage, Cause.storeAccess)
        default: (pageFault, accessFault) = (Cause.fetchPage, Cause.fetchAccess)
        }
        faultCause = pageFault
        let unused = UInt64(64 - (12 + 9 * levels))
        guard UInt64(bitPattern: Int64(bitPattern: address << unused) >> Int64(unused)) == address else {
            return Self.noAddress
        }
        let reserved: UInt64 = ignoresMemoryTypes ? 0x27f : 0x3ff
        var table = (satp & 0xfff_ffff_ffff) << 12
        var level = levels - 1
        while true {
            let shift = UInt64(12 + 9 * level)
            let entryAddress = table + (address >> shift & 511) * 8
            let region = map.region(at: entryAddress)
            guard region >= 0,
                pmp.permissions(first: entryAddress, last: entryAddress + 7, privilege: 1)
                    & PhysicalMemoryProtection.read != 0
            else {
                faultCause = accessFault
                return Self.noAddress
            }
            let offset = Int(entryAddress - map.regions[region].address)
            let slot = UnsafeMutablePointer<Atomic<UInt64>>(
                OpaquePointer(map.regions[region].host + offset))
            var entry = slot.pointee.load(ordering: .relaxed)
            while true {  // again when another hart changed the entry under us
                if entry & 1 == 0 || entry & 6 == 4 || entry >> 54 & reserved != 0 { return Self.noAddress }
                if entry & 0xe == 0 {  // to the next table
                    if entry & 0xd0 != 0 || level == 0 { return Self.noAddress }
                    break
                }
                switch kind {
                case AccessKind.load:
                    guard entry & 2 != 0 || (status & Status.mxr != 0 && entry & 8 != 0) else { return Self.noAddress }
                case AccessKind.store:
                    guard entry & 4 != 0 else { return Self.noAddress }
                default:
                    guard entry & 8 != 0 else { return Self.noAddress }
                }
                if entry & 0x10 != 0 {
                    if privilege == 1 && (kind == AccessKind.fetch || status & Status.sum == 0) {
                        return Self.noAddress
                    }
                } else if privilege == 0 {
                    return Self.noAddress
                }
                let frame = entry >> 10 & 0xfff_ffff_ffff
                if frame & ((1 << (shift - 12)) - 1) != 0 { return Self.noAddress }
                let wanted: UInt64 = kind == AccessKind.store ? 0xc0 : 0x40
                if entry & wanted != wanted {
                    guard menvcfg & EnvironmentConfiguration.adue != 0 else { return Self.noAddress }
                    guard !map.regions[region].isReadOnly,
                        pmp.permissions(first: entryAddress, last: entryAddress + 7, privilege: 1)
                            & PhysicalMemoryProtection.write != 0
                    else {
                        faultCause = accessFault
                        return Self.noAddress
                    }
                    let (exchanged, original) = slot.pointee.compareExchange(
                        expected: entry, desired: entry | wanted, ordering: .acquiringAndReleasing)
                    map.willWrite(region: region, offset: offset, hart: index)
                    if !exchanged {
                        entry = original
                        continue
                    }
                }
                isLargePage = level > 0
                let mask = (UInt64(1) << shift) - 1
                return (frame << 12) & ~mask | address & mask
            }
            table = (entry >> 10 & 0xfff_ffff_ffff) << 12
            level -= 1
        }
    }

    // MARK: Filling

    /// Host address for an access of `width` bytes that stays within one page, and an entry in the cache where there may
    /// be one. Nil: a fault (``faultCause`` is set), or no RAM there (``faultCause`` is 0 and ``csrValue`` is the physical
    /// address).
    func hostAddress(_ address: UInt64, _ width: UInt64, _ kind: Int) -> UnsafeMutableRawPointer? {
        let physical = translate(address, kind)
        if physical == Self.noAddress { return nil }
        let needed = kind == AccessKind.store ? PhysicalMemoryProtection.write : PhysicalMemoryProtection.read
        let privilege = dataPrivilege
        var permissions = pmp.permissions(first: physical & ~0xfff, last: physical | 0xfff, privilege: privilege)
        let isUniform = permissions != PhysicalMemoryProtection.mixed
        if !isUniform {
            permissions = pmp.permissions(first: physical, last: physical &+ (width - 1), privilege: privilege)
            if permissions == PhysicalMemoryProtection.mixed { permissions = 0 }
        }
        if permissions & needed == 0 {
            faultCause = kind == AccessKind.store ? Cause.storeAccess : Cause.loadAccess
            return nil
        }
        let region = map.region(at: physical)
        if region < 0 || (kind == AccessKind.store && map.regions[region].isReadOnly) {
            faultCause = 0
            csrValue = physical
            return nil
        }
        let offset = Int(physical - map.regions[region].address)
        let host = map.regions[region].host + offset
        if kind == AccessKind.store { map.willWrite(region: region, offset: offset, hart: index) }
        if isUniform {
            let slot = Int(truncatingIfNeeded: address >> 12 & 255)
            let tlb = Words(bitPattern: UInt(x[Word.tlb])).unsafelyUnwrapped
            let entry = tlb + (kind == AccessKind.store ? Word.storeTLB : 0) + slot * 2
            entry[0] = address & ~0xfff
            entry[1] = UInt64(UInt(bitPattern: host)) &- address
            let regime = (tlb - (x + Word.tlbs)) / Word.tlbWords
            used[regime * 8 + (kind == AccessKind.store ? 4 : 0) + slot >> 6] |= 1 << UInt64(slot & 63)
            if isLargePage { largePages |= Self.largePageBit(address) }
        }
        return host
    }

    @inline(__always) static func largePageBit(_ address: UInt64) -> UInt64 {
        1 << ((address >> 30) &* 0x9e37_79b9_7f4a_7c15 >> 58)
    }

    // MARK: Which caches are in force

    /// After any change of privilege or of the bits of `mstatus` that loads and stores depend on.
    func updateRegime() {
        let data = dataPrivilege
        let regime: Int
        if data == 3 {
            regime = Regime.machine
        } else if status & Status.mxr != 0 || data != privilege {
            regime = Regime.other
            let key = 1 << 63 | data << 20 | status & (Status.mxr | Status.sum)
            if key != otherKey {
                flushRegime(Regime.other)
                otherKey = key
            }
        } else if data == 0 {
            regime = Regime.user
        } else {
            regime = status & Status.sum != 0 ? Regime.supervisorWithUser : Regime.supervisor
        }
        x[Word.tlb] = UInt64(UInt(bitPattern: x + Word.tlbs + regime * Word.tlbWords))
        x[Word.jumpCache] = UInt64(UInt(bitPattern: x + Word.jumps + jumpIndex * Word.jumpWords))
    }

    /// Which of the jump and fetch caches belongs to the privilege.
    @inline(__always) var jumpIndex: Int { privilege == 3 ? 0 : privilege == 1 ? 1 : 2 }

    // MARK: Flushing

    private func flushRegime(_ regime: Int) {
        flush(regime, store: false)
        flush(regime, store: true)
    }

    private func flush(_ regime: Int, store: Bool) {
        let marks = used + regime * 8 + (store ? 4 : 0)
        let table = x + Word.tlbs + regime * Word.tlbWords + (store ? Word.storeTLB : 0)
        for word in 0..<4 {
            var bits = marks[word]
            while bits != 0 {
                table[(word * 64 + bits.trailingZeroBitCount) * 2] = .max
                bits &= bits - 1
            }
            marks[word] = 0
        }
    }

    /// No store goes past ``SharedMemoryMap/willWrite(region:offset:hart:)`` from here on.
    func dropStoreEntries() {
        for regime in 0..<Word.regimeCount { flush(regime, store: true) }
    }

    func flushJumps() {
        guard hasJumpEntries else { return }
        hasJumpEntries = false
        for index in 0..<3 {
            let table = x + Word.jumps + index * Word.jumpWords
            for entry in 0..<Word.jumpEntries { table[entry * 2] = .max }
            let fetches = x + Word.fetches + index * Word.fetchWords
            for entry in 0..<Word.fetchEntries { fetches[entry * 2] = .max }
        }
        jumpPages.update(repeating: 0, count: 64)
    }

    /// All cached translations, of machine mode too.
    func flushTranslations() {
        for regime in 0..<Word.regimeCount { flushRegime(regime) }
        largePages = 0
        flushJumps()
    }

    /// All cached translations of addresses that page tables translate.
    func flushPagedTranslations() {
        for regime in 1..<Word.regimeCount { flushRegime(regime) }
        largePages = 0
        flushJumps()
    }

    /// What is cached for one virtual page. True when code may have been cached for it.
    func flushPage(_ address: UInt64) -> Bool {
        if largePages & Self.largePageBit(address) != 0 {
            flushPagedTranslations()
            return true
        }
        let slot = Int(truncatingIfNeeded: address >> 12 & 255)
        for regime in 1..<Word.regimeCount {
            let table = x + Word.tlbs + regime * Word.tlbWords
            table[slot * 2] = .max
            table[Word.storeTLB + slot * 2] = .max
        }
        let page = address >> 12 & 4095
        if jumpPages[Int(page >> 6)] & 1 << (page & 63) != 0 {
            flushJumps()
            return true
        }
        return false
    }

    /// Every cache, decoded code included.
    func dropEverything() {
        flushTranslations()
        otherKey = 0
        dropCode()
        reservedAddress = 0
        updateRegime()
    }

    func dropCode() {
        mustDropCode = false
        flushJumps()
        code.removeAll { map.forget(page: $0, hart: index) }
    }
}
