/// Page tables in a sequence's data: its own tables, an identity mapping for what the runtime needs, and a window full of oddities.
private struct TableBuilder {
    let levels: Int
    let data: UInt64
    /// Words of the data; the tables fill it from the end.
    var words: [UInt64]
    private var nextTable: Int
    let root: Int

    init(levels: Int, data: UInt64, pageCount: Int) {
        self.levels = levels
        self.data = data
        words = [UInt64](repeating: 0, count: pageCount * 512)
        nextTable = pageCount - 1
        root = nextTable
        nextTable -= 1
    }

    func physical(page: Int) -> UInt64 { data + UInt64(page) * 4096 }

    /// The data word that holds the entry for an address at a level, with the tables above it made where they are missing.
    mutating func entry(for address: UInt64, level: Int) -> Int {
        var page = root
        for current in stride(from: levels - 1, to: level, by: -1) {
            let index = page * 512 + Int(address >> UInt64(12 + 9 * current) & 0x1ff)
            if words[index] == 0 {
                words[index] = pointing(to: physical(page: nextTable)) | 1
                nextTable -= 1
            }
            page = Int(((words[index] >> 10) << 12) - data) / 4096
        }
        return page * 512 + Int(address >> UInt64(12 + 9 * level) & 0x1ff)
    }
}

/// The page number of an entry that refers to a physical address.
private func pointing(to physical: UInt64) -> UInt64 { (physical >> 12) << 10 }

extension SequenceBuilder {
    private static let pageCount = 24
    /// Pages at the start of the data that accesses may hit.
    private static let targetPages = 4

    /// Flags of a leaf, mostly sensible.
    private mutating func leafFlags() -> UInt64 {
        var flags: UInt64 = chance(15, in: 16) ? 1 : 0
        flags |= pick([0x2, 0x6, 0xe, 0xe, 0x8, 0xa, 0x6, 0xc, 0x4])
        if chance(1, in: 2) { flags |= 0x10 }
        if chance(1, in: 4) { flags |= 0x20 }
        if chance(1, in: 2) { flags |= 0x40 }
        if chance(1, in: 2) { flags |= 0x80 }
        if chance(1, in: 4) { flags |= random.below(4) << 8 }
        if mayReachUserPages && flags & 0x10 != 0 { flags &= ~8 }
        if chance(1, in: 20) { flags |= 1 << (54 + random.below(10)) }
        return flags
    }

    /// Supervisor mode with SUM: no page is both executable and the user's, because QEMU 7.2, once it has loaded from such a page, also runs
    /// code from it.
    private var mayReachUserPages: Bool {
        guard let status = sequence.csrs[CSR.mstatus] else { return false }
        return status >> 11 & 3 == 1 && status >> 18 & 1 != 0
    }

    /// A sequence under translation: supervisor or user mode, or machine mode with `MPRV`.
    mutating func buildTranslated() {
        let mode = UInt64(number(8...10))
        let levels = Int(mode) - 5
        let isMachine = chance(1, in: 5)
        let level = UInt64(random.below(2))  // whose rights the accesses have
        var status = 0xa_0000_0000 | 3 << 13 as UInt64
        if chance(1, in: 2) { status |= 1 << 18 }
        if chance(1, in: 2) { status |= 1 << 19 }
        sequence.csrs[CSR.mstatus] = status | (isMachine ? 3 : level) << 11
        var tables = TableBuilder(levels: levels, data: place.data, pageCount: Self.pageCount)
        for index in 0..<Self.targetPages * 512 { tables.words[index] = value() }
        // Something to jump to in each page: a return, and one whose halves are the last of a page and the first of the next.
        for page in 0..<Self.targetPages {
            tables.words[page * 512 + 128] = 0x0000_8067_0000_8067
            tables.words[page * 512] &= ~0xffff
            tables.words[page * 512 + 511] = tables.words[page * 512 + 511] & (.max >> 16) | 0x8067 << 48
        }

        // Runtime, stub, code and data as they are, for supervisor mode.
        let identity = tables.entry(for: OracleRuntime.base, level: 2)
        tables.words[identity] = pointing(to: OracleRuntime.base) | 0xcf
        // The code for user mode.
        let userCode: UInt64 = 0x10_0000_0000 + random.below(512) << 12
        let userEntry = tables.entry(for: userCode, level: 0)
        tables.words[userEntry] = pointing(to: place.code) | 0xd9

        // The window: addresses that lead, or do not, into the first pages of the data.
        var addresses: [UInt64] = []
        var entries: [(index: Int, address: UInt64)] = []
        let top = UInt64(1) << UInt64(12 + 9 * levels - 1)
        let isHigh = chance(1, in: 3)
        let base: UInt64 = isHigh ? 0 &- top : 0x20_0000_0000
        let leafBase = base + 5 << 21
        for page in 0..<8 {
            let address = leafBase + UInt64(page * 4096)
            let index = tables.entry(for: address, level: 0)
            let target = tables.physical(page: number(0...Self.targetPages - 1))
            tables.words[index] = pointing(to: target) | leafFlags()
            entries.append((index, address))
            addresses.append(address)
        }
        for megapage in 0..<3 {
            let address = base + UInt64(8 + megapage) << 21
            let index = tables.entry(for: address, level: 1)
            let target = place.data & ~0x1f_ffff
            let misaligned = chance(1, in: 6) ? random.below(512) << 10 : 0
            tables.words[index] = pointing(to: target) | leafFlags() | misaligned
            entries.append((index, address + (place.data & 0x1f_ffff)))
            addresses.append(address + (place.data & 0x1f_ffff))
        }
        for gigapage in 0..<2 {
            let address = base + UInt64(2 + gigapage) << 30
            let index = tables.entry(for: address, level: 2)
            let misaligned = chance(1, in: 6) ? random.below(1 << 18) << 10 : 0
            tables.words[index] = pointing(to: OracleRuntime.base) | leafFlags() | misaligned
            addresses.append(address + (place.data - OracleRuntime.base))
        }
        // A page with nothing behind it, alone: what an access does that only begins or ends there is not prescribed.
        let vacant = leafBase + 20 << 12
        let vacantEntry = tables.entry(for: vacant, level: 0)
        tables.words[vacantEntry] = pointing(to: 0x20_0000) | (chance(1, in: 2) && !mayReachUserPages ? 0xdf : 0xcf)
        // A table that is not one: a leaf where it should be a pointer and flags that pointers must not have.
        let broken = base + 12 << 21
        let brokenIndex = tables.entry(for: broken, level: 0)
        tables.words[brokenIndex] = pointing(to: place.data) | (mayReachUserPages ? 0xcf : 0xdf)
        let above = tables.entry(for: broken, level: 1)
        if chance(3, in: 4) { tables.words[above] ^= pick([1, 0x10, 0x40, 0x80, 1 << 54, 1 << 61, 1 << 63]) }
        addresses.append(broken)
        // Not canonical, and not mapped.
        addresses.append(base ^ top &<< 1)
        addresses.append(base ^ 1 << 63)
        addresses.append(base + 100 << 21)

        sequence.data = tables.words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64(8 * $0)) }
        }
        sequence.hasOnlyWords = true
        sequence.csrs[CSR.satp] = mode << 60 | random.below(4) << 44 | tables.physical(page: tables.root) >> 12
        if !isMachine {
            if chance(1, in: 2) { sequence.csrs[CSR.medeleg] = 0xb1ff }
            if level == 0 { sequence.codeOffset = userCode &- place.code }
        }
        for _ in 0..<number(10...24) {
            let isVacant = chance(1, in: 16)
            addTranslatedAccess(
                to: isVacant ? vacant : pick(addresses), underPrivilege: isMachine ? level : nil, canJump: !isMachine,
                isAligned: isVacant)
            if chance(1, in: 6) && (isMachine || level == 1) { addEntryChange(pick(entries).index) }
        }
    }

    private mutating func addTranslatedAccess(
        to address: UInt64, underPrivilege: UInt64?, canJump: Bool, isAligned: Bool
    ) {
        // Mostly within the page, sometimes over its edge.
        // The return must still be where it is jumped to.
        let hasStored = sequence.steps.contains { $0.name.hasPrefix("store") || $0.name.hasPrefix("amoadd") }
        let crosses = chance(1, in: 3) && !isAligned && !hasStored
        var offset =
            isAligned
            ? 64
            : chance(1, in: 5)
                ? 4096 - random.below(8) : random.below(500) * 8 + (chance(1, in: 4) ? random.below(8) : 0)
        if (1016...1031).contains(offset) { offset += 32 }
        var words = Encode.li(Register.t0, address &+ offset)
        let name: String
        let access: [UInt32]
        switch random.below(8) {
        case 0 where canJump:
            name = "jump"
            words = Encode.li(Register.t0, address &+ (crosses ? 4094 : 1024))
            access = [Encode.i(0x67, 0, Register.ra, Register.t0, 0)]
        case 1:
            name = "amoadd"
            // A load before it: QEMU sets the accessed bit also when the AMO may read but not write and faults.
            access = [
                Encode.i(0x13, 7, Register.t0, Register.t0, -8), Encode.ld(Register.t2, 0, Register.t0),
                Encode.r(0x2f, 3, 0, destination(), Register.t0, source()),
            ]
        case 2:
            name = "lr, sc"
            access = [
                Encode.i(0x13, 7, Register.t0, Register.t0, -8), Encode.r(0x2f, 3, 2 << 2, Register.t1, Register.t0, 0),
            ]
        case 3, 4:
            let width = UInt32(random.below(4))
            name = "store"
            access = [Encode.s(0x23, width, Register.t0, source(), 0)]
        case 5:
            name = "fld"
            access = [Encode.fld(Int(random.below(32)), 0, Register.t0)]
        default:
            let width = UInt32(random.below(7))
            name = "load"
            access = [Encode.i(0x03, width, destination(), Register.t0, 0)]
        }
        if let underPrivilege {
            // Before each instruction, because a trap ends with MPP set to user mode. (QEMU 7.2 does not see that change by itself.)
            let adopt =
                Encode.li(Register.t1, 3 << 11) + [Encode.csrrc(0, CSR.mstatus, Register.t1)]
                + Encode.li(Register.t1, 1 << 17 | underPrivilege << 11) + [Encode.csrrs(0, CSR.mstatus, Register.t1)]
            words +=
                access.flatMap { adopt + [$0] } + Encode.li(Register.t1, 1 << 17)
                + [Encode.csrrc(0, CSR.mstatus, Register.t1)]
        } else {
            words += access
        }
        add(Step("\(name) \(hex(address &+ offset))", words))
    }

    /// Changes a page-table entry as the guest would, with the fence that it needs.
    private mutating func addEntryChange(_ index: Int) {
        let entry = place.data + UInt64(index) * 8
        let flags = leafFlags()
        add(
            Step(
                "change entry",
                Encode.li(Register.t0, entry) + [Encode.ld(Register.t1, 0, Register.t0)]
                    + [
                        Encode.i(0x13, 5, Register.t1, Register.t1, 10),
                        Encode.i(0x13, 1, Register.t1, Register.t1, 10),
                        Encode.i(0x13, 6, Register.t1, Register.t1, Int(flags & 0xff)),
                        Encode.sd(Register.t1, 0, Register.t0),
                        Encode.sfenceVMA,
                    ]))
    }
}

extension SequencePlan {
    static let translation = SequencePlan(name: "address translation", count: 250, dataByteCount: 24 * 4096) {
        _, random, place in
        var builder = SequenceBuilder(random, place, dataByteCount: 8)
        builder.reserved = [Register.ra, Register.t0, Register.t1]
        builder.buildTranslated()
        return builder.sequence
    }

    /// Physical memory protection in supervisor and user mode and under `MPRV`: regions of all three kinds, in overlapping order.
    static let protection = SequencePlan(name: "physical memory protection", count: 250) { _, random, place in
        var builder = SequenceBuilder(random, place)
        builder.reserved = [Register.t0, Register.t1]
        let isMachine = builder.chance(1, in: 3)
        let level = builder.random.below(2)
        var configuration: UInt64 = 0
        for entry in 0..<6 {
            // Within the data: a power of two for NAPOT, any word for the others.
            var address = (place.data + builder.random.below(320) * 4) >> 2
            if builder.chance(1, in: 2) { address |= (1 << builder.random.below(8)) - 1 }
            builder.sequence.csrs[CSR.pmpaddr0 + entry] = address
            let rights = builder.pick([UInt64(0), 1, 3, 3, 4, 5, 7])
            // A first entry up to an address would begin at zero and take everything.
            let matching = entry == 0 ? builder.pick([0, 2, 3]) : builder.random.below(4)
            configuration |= (matching << 3 | rights) << UInt64(8 * entry)
        }
        // The rest of memory is there, with the rights that the code needs, or only the code.
        if builder.chance(1, in: 3) {
            builder.sequence.csrs[CSR.pmpaddr0 + 6] = place.code >> 2 | 0x1ff
            builder.sequence.csrs[CSR.pmpaddr0 + 7] = OracleRuntime.stubAddress >> 2 | 0x1ff
            configuration |= 0x1c1c << 48
        } else {
            configuration |= 0x1f << 56
        }
        builder.sequence.csrs[CSR.pmpcfg0] = configuration
        let status: UInt64 = 0xa_0000_0000 | 3 << 13
        builder.sequence.csrs[CSR.mstatus] = status | (isMachine ? 3 : level) << 11
        for _ in 0..<builder.number(10...30) {
            let width = UInt32(builder.random.below(4))
            let address = place.data + builder.random.below(1280 >> UInt64(width)) << UInt64(width)
            let access =
                switch builder.random.below(5) {
                case 0, 1: Encode.s(0x23, width, Register.t0, builder.source(), 0)
                case 2: Encode.r(0x2f, width | 2, 0, builder.destination(), Register.t0, builder.source())
                default: Encode.i(0x03, width, builder.destination(), Register.t0, 0)
                }
            var words = Encode.li(Register.t0, address)
            if isMachine {
                words +=
                    Encode.li(Register.t1, 3 << 11) + [Encode.csrrc(0, CSR.mstatus, Register.t1)]
                    + Encode.li(Register.t1, 1 << 17 | level << 11) + [Encode.csrrs(0, CSR.mstatus, Register.t1)]
                    + [access] + Encode.li(Register.t1, 1 << 17) + [Encode.csrrc(0, CSR.mstatus, Register.t1)]
            } else {
                words.append(access)
            }
            builder.add(Step("access \(hex(address))", words))
        }
        return builder.sequence
    }
}
