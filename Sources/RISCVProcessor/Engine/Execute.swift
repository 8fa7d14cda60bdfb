import Synchronization

/// The engine: runs decoded operations until something needs ``RISCVHart/run()``.
extension RISCVHart {
    @inline(__always) private static func load<Value>(_ entry: Words, _ address: UInt64, as _: Value.Type) -> Value {
        UnsafeRawPointer(bitPattern: UInt(entry[1] &+ address)).unsafelyUnwrapped.load(as: Value.self)
    }
    @inline(__always) private static func store<Value>(_ entry: Words, _ address: UInt64, _ value: Value) {
        UnsafeMutableRawPointer(bitPattern: UInt(entry[1] &+ address)).unsafelyUnwrapped
            .assumingMemoryBound(to: Value.self).pointee = value
    }
    /// The cache entry that would hold the address.
    @inline(__always) private static func entry(_ table: Words, _ address: UInt64) -> Words {
        table + Int(truncatingIfNeeded: address >> 12 & 255) &* 2
    }
    /// Whether the entry is for the page of an address aligned to `size`.
    @inline(__always) private static func hits(_ entry: Words, _ address: UInt64, _ size: UInt64) -> Bool {
        entry[0] == address & (~0xfff | (size - 1))
    }
    @inline(__always) private static func jumpEntry(_ x: Words, _ address: UInt64) -> Words {
        Words(bitPattern: UInt(x[Word.jumpCache])).unsafelyUnwrapped
            + Int(truncatingIfNeeded: address >> 1 & UInt64(Word.jumpEntries - 1)) &* 2
    }
    @inline(__always) private static func operation(_ entry: Words) -> OperationPointer {
        OperationPointer(bitPattern: UInt(entry[1])).unsafelyUnwrapped
    }

    /// Runs from `start` until `quantum` instructions are done or a slow path wants to leave. Answers what is left of the
    /// quantum, less the instructions of blocks left by their exits; ``Word/pc`` and ``Word/retiredInBlock`` say the rest.
    ///
    /// What must hold here, for speed (`Documentation/interpreter.md`): the switch is exhaustive and has no default; nothing
    /// stands between the head of the loop and the switch; no case calls anything but `@inline(never)` methods of this class; only
    /// `ip`, `n`, `t` and `x` live across operations.
    @inline(never) func execute(_ start: OperationPointer, _ quantum: Int) -> Int {
        let x = self.x
        var t = Words(bitPattern: UInt(x[Word.tlb])).unsafelyUnwrapped
        var ip = start
        var n = quantum
        while true {
            switch ip.pointee.code {
            case .nop: ip += 1
            case .loadImmediate:
                ip.set(x, ip.imm)
                ip += 1
            case .addPCImmediate:
                ip.set(x, x[Word.vbase] &+ ip.pcoff &+ ip.imm)
                ip += 1
            case .move:
                ip.set(x, ip.a(x))
                ip += 1
            case .addi:
                ip.set(x, ip.a(x) &+ ip.imm)
                ip += 1
            case .slti:
                ip.set(x, ip.a(x).signed < ip.imm.signed ? 1 : 0)
                ip += 1
            case .sltiu:
                ip.set(x, ip.a(x) < ip.imm ? 1 : 0)
                ip += 1
            case .xori:
                ip.set(x, ip.a(x) ^ ip.imm)
                ip += 1
            case .ori:
                ip.set(x, ip.a(x) | ip.imm)
                ip += 1
            case .andi:
                ip.set(x, ip.a(x) & ip.imm)
                ip += 1
            case .slli:
                ip.set(x, ip.a(x) &<< ip.imm)
                ip += 1
            case .srli:
                ip.set(x, ip.a(x) &>> ip.imm)
                ip += 1
            case .srai:
                ip.set(x, UInt64(bitPattern: ip.a(x).signed &>> ip.imm.signed))
                ip += 1
            case .addiw:
                ip.setWord(x, ip.a(x).low &+ ip.imm.low)
                ip += 1
            case .slliw:
                ip.setWord(x, ip.a(x).low &<< ip.imm.low)
                ip += 1
            case .srliw:
                ip.setWord(x, ip.a(x).low &>> ip.imm.low)
                ip += 1
            case .sraiw:
                ip.setWord(x, UInt32(bitPattern: Int32(bitPattern: ip.a(x).low) &>> Int32(bitPattern: ip.imm.low)))
                ip += 1
            case .add:
                ip.set(x, ip.a(x) &+ ip.b(x))
                ip += 1
            case .sub:
                ip.set(x, ip.a(x) &- ip.b(x))
                ip += 1
            case .sll:
                ip.set(x, ip.a(x) &<< ip.b(x))
                ip += 1
            case .slt:
                ip.set(x, ip.a(x).signed < ip.b(x).signed ? 1 : 0)
                ip += 1
            case .sltu:
                ip.set(x, ip.a(x) < ip.b(x) ? 1 : 0)
                ip += 1
            case .xor:
                ip.set(x, ip.a(x) ^ ip.b(x))
                ip += 1
            case .srl:
                ip.set(x, ip.a(x) &>> ip.b(x))
                ip += 1
            case .sra:
                ip.set(x, UInt64(bitPattern: ip.a(x).signed &>> ip.b(x).signed))
                ip += 1
            case .or:
                ip.set(x, ip.a(x) | ip.b(x))
                ip += 1
            case .and:
                ip.set(x, ip.a(x) & ip.b(x))
                ip += 1
            case .addw:
                ip.setWord(x, ip.a(x).low &+ ip.b(x).low)
                ip += 1
            case .subw:
                ip.setWord(x, ip.a(x).low &- ip.b(x).low)
                ip += 1
            case .sllw:
                ip.setWord(x, ip.a(x).low &<< ip.b(x).low)
                ip += 1
            case .srlw:
                ip.setWord(x, ip.a(x).low &>> ip.b(x).low)
                ip += 1
            case .sraw:
                ip.setWord(x, UInt32(bitPattern: Int32(bitPattern: ip.a(x).low) &>> Int32(bitPattern: ip.b(x).low)))
                ip += 1

            case .mul:
                ip.set(x, ip.a(x) &* ip.b(x))
                ip += 1
            case .mulh:
                ip.set(x, UInt64(bitPattern: ip.a(x).signed.multipliedFullWidth(by: ip.b(x).signed).high))
                ip += 1
            case .mulhsu:
                let a = ip.a(x)
                let b = ip.b(x)
                ip.set(x, a.multipliedFullWidth(by: b).high &- (a.signed < 0 ? b : 0))
                ip += 1
            case .mulhu:
                ip.set(x, ip.a(x).multipliedFullWidth(by: ip.b(x)).high)
                ip += 1
            case .div:
                ip.set(x, IntegerArithmetic.divide(ip.a(x), ip.b(x)))
                ip += 1
            case .divu:
                let b = ip.b(x)
                ip.set(x, b == 0 ? .max : ip.a(x) / b)
                ip += 1
            case .rem:
                ip.set(x, IntegerArithmetic.remainder(ip.a(x), ip.b(x)))
                ip += 1
            case .remu:
                let b = ip.b(x)
                ip.set(x, b == 0 ? ip.a(x) : ip.a(x) % b)
                ip += 1
            case .mulw:
                ip.setWord(x, ip.a(x).low &* ip.b(x).low)
                ip += 1
            case .divw:
                ip.setWord(x, IntegerArithmetic.divide(ip.a(x).low, ip.b(x).low))
                ip += 1
            case .divuw:
                let b = ip.b(x).low
                ip.setWord(x, b == 0 ? .max : ip.a(x).low / b)
                ip += 1
            case .remw:
                ip.setWord(x, IntegerArithmetic.remainder(ip.a(x).low, ip.b(x).low))
                ip += 1
            case .remuw:
                let b = ip.b(x).low
                ip.setWord(x, b == 0 ? ip.a(x).low : ip.a(x).low % b)
                ip += 1

            case .adduw:
                ip.set(x, ip.b(x) &+ UInt64(ip.a(x).low))
                ip += 1
            case .sh1add:
                ip.set(x, ip.b(x) &+ ip.a(x) &<< 1)
                ip += 1
            case .sh2add:
                ip.set(x, ip.b(x) &+ ip.a(x) &<< 2)
                ip += 1
            case .sh3add:
                ip.set(x, ip.b(x) &+ ip.a(x) &<< 3)
                ip += 1
            case .sh1adduw:
                ip.set(x, ip.b(x) &+ UInt64(ip.a(x).low) &<< 1)
                ip += 1
            case .sh2adduw:
                ip.set(x, ip.b(x) &+ UInt64(ip.a(x).low) &<< 2)
                ip += 1
            case .sh3adduw:
                ip.set(x, ip.b(x) &+ UInt64(ip.a(x).low) &<< 3)
                ip += 1
            case .slliuw:
                ip.set(x, UInt64(ip.a(x).low) &<< ip.imm)
                ip += 1

            case .andn:
                ip.set(x, ip.a(x) & ~ip.b(x))
                ip += 1
            case .orn:
                ip.set(x, ip.a(x) | ~ip.b(x))
                ip += 1
            case .xnor:
                ip.set(x, ~(ip.a(x) ^ ip.b(x)))
                ip += 1
            case .clz:
                ip.set(x, UInt64(truncatingIfNeeded: ip.a(x).leadingZeroBitCount))
                ip += 1
            case .ctz:
                ip.set(x, UInt64(truncatingIfNeeded: ip.a(x).trailingZeroBitCount))
                ip += 1
            case .cpop:
                ip.set(x, UInt64(truncatingIfNeeded: ip.a(x).nonzeroBitCount))
                ip += 1
            case .clzw:
                ip.set(x, UInt64(truncatingIfNeeded: ip.a(x).low.leadingZeroBitCount))
                ip += 1
            case .ctzw:
                ip.set(x, UInt64(truncatingIfNeeded: ip.a(x).low.trailingZeroBitCount))
                ip += 1
            case .cpopw:
                ip.set(x, UInt64(truncatingIfNeeded: ip.a(x).low.nonzeroBitCount))
                ip += 1
            case .max:
                let a = ip.a(x)
                let b = ip.b(x)
                ip.set(x, a.signed > b.signed ? a : b)
                ip += 1
            case .maxu:
                let a = ip.a(x)
                let b = ip.b(x)
                ip.set(x, a > b ? a : b)
                ip += 1
            case .min:
                let a = ip.a(x)
                let b = ip.b(x)
                ip.set(x, a.signed < b.signed ? a : b)
                ip += 1
            case .minu:
                let a = ip.a(x)
                let b = ip.b(x)
                ip.set(x, a < b ? a : b)
                ip += 1
            case .sextb:
                ip.set(x, UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: ip.a(x)))))
                ip += 1
            case .sexth:
                ip.set(x, UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: ip.a(x)))))
                ip += 1
            case .zexth:
                ip.set(x, ip.a(x) & 0xffff)
                ip += 1
            case .rol:
                let a = ip.a(x)
                let b = ip.b(x)
                ip.set(x, a &<< b | a &>> (0 &- b))
                ip += 1
            case .ror:
                let a = ip.a(x)
                let b = ip.b(x)
                ip.set(x, a &>> b | a &<< (0 &- b))
                ip += 1
            case .rori:
                let a = ip.a(x)
                let b = ip.imm
                ip.set(x, a &>> b | a &<< (0 &- b))
                ip += 1
            case .rolw:
                let a = ip.a(x).low
                let b = ip.b(x).low
                ip.setWord(x, a &<< b | a &>> (0 &- b))
                ip += 1
            case .rorw:
                let a = ip.a(x).low
                let b = ip.b(x).low
                ip.setWord(x, a &>> b | a &<< (0 &- b))
                ip += 1
            case .roriw:
                let a = ip.a(x).low
                let b = ip.imm.low
                ip.setWord(x, a &>> b | a &<< (0 &- b))
                ip += 1
            case .orcb:
                ip.set(x, IntegerArithmetic.orCombineBytes(ip.a(x)))
                ip += 1
            case .rev8:
                ip.set(x, ip.a(x).byteSwapped)
                ip += 1

            case .clmul:
                ip.set(x, IntegerArithmetic.carrylessLow(ip.a(x), ip.b(x)))
                ip += 1
            case .clmulh:
                ip.set(x, IntegerArithmetic.carrylessHigh(ip.a(x), ip.b(x)))
                ip += 1
            case .clmulr:
                ip.set(x, IntegerArithmetic.carrylessReversed(ip.a(x), ip.b(x)))
                ip += 1

            case .bclr:
                ip.set(x, ip.a(x) & ~(1 &<< ip.b(x)))
                ip += 1
            case .bext:
                ip.set(x, ip.a(x) &>> ip.b(x) & 1)
                ip += 1
            case .binv:
                ip.set(x, ip.a(x) ^ (1 &<< ip.b(x)))
                ip += 1
            case .bset:
                ip.set(x, ip.a(x) | (1 &<< ip.b(x)))
                ip += 1
            case .bclri:
                ip.set(x, ip.a(x) & ~(1 &<< ip.imm))
                ip += 1
            case .bexti:
                ip.set(x, ip.a(x) &>> ip.imm & 1)
                ip += 1
            case .binvi:
                ip.set(x, ip.a(x) ^ (1 &<< ip.imm))
                ip += 1
            case .bseti:
                ip.set(x, ip.a(x) | (1 &<< ip.imm))
                ip += 1

            case .lb:
                let address = ip.a(x) &+ ip.imm
                let entry = Self.entry(t, address)
                if Self.hits(entry, address, 1) {
                    ip.set(x, UInt64(bitPattern: Int64(Self.load(entry, address, as: Int8.self))))
                    ip += 1
                } else {
                    ip = slowLoad(ip, address, 0)
                }
            case .lh:
                let address = ip.a(x) &+ ip.imm
                let entry = Self.entry(t, address)
                if Self.hits(entry, address, 2) {
                    ip.set(x, UInt64(bitPattern: Int64(Self.load(entry, address, as: Int16.self))))
                    ip += 1
                } else {
                    ip = slowLoad(ip, address, 1)
                }
            case .lw:
                let address = ip.a(x) &+ ip.imm
                let entry = Self.entry(t, address)
                if Self.hits(entry, address, 4) {
                    ip.set(x, UInt64(bitPattern: Int64(Self.load(entry, address, as: Int32.self))))
                    ip += 1
                } else {
                    ip = slowLoad(ip, address, 2)
                }
            case .ld:
                let address = ip.a(x) &+ ip.imm
                let entry = Self.entry(t, address)
                if Self.hits(entry, address, 8) {
                    ip.set(x, Self.load(entry, address, as: UInt64.self))
                    ip += 1
                } else {
                    ip = slowLoad(ip, address, 3)
                }
            case .lbu:
                let address = ip.a(x) &+ ip.imm
                let entry = Self.entry(t, address)
                if Self.hits(entry, address, 1) {
                    ip.set(x, UInt64(Self.load(entry, address, as: UInt8.self)))
                    ip += 1
                } else {
                    ip = slowLoad(ip, address, 4)
                }
            case .lhu:
                let address = ip.a(x) &+ ip.imm
                let entry = Self.entry(t, address)
                if Self.hits(entry, address, 2) {
                    ip.set(x, UInt64(Self.load(entry, address, as: UInt16.self)))
                    ip += 1
                } else {
                    ip = slowLoad(ip, address, 5)
                }
            case .lwu:
                let address = ip.a(x) &+ ip.imm
                let entry = Self.entry(t, address)
                if Self.hits(entry, address, 4) {
                    ip.set(x, UInt64(Self.load(entry, address, as: UInt32.self)))
                    ip += 1
                } else {
                    ip = slowLoad(ip, address, 6)
                }
            case .sb:
                let address = ip.a(x) &+ ip.imm
                let entry = Self.entry(t + Word.storeTLB, address)
                if Self.hits(entry, address, 1) {
                    Self.store(entry, address, UInt8(truncatingIfNeeded: ip.b(x)))
                    ip += 1
                } else {
                    ip = slowStore(ip, address, ip.b(x), 0)
                }
            case .sh:
                let address = ip.a(x) &+ ip.imm
                let entry = Self.entry(t + Word.storeTLB, address)
                if Self.hits(entry, address, 2) {
                    Self.store(entry, address, UInt16(truncatingIfNeeded: ip.b(x)))
                    ip += 1
                } else {
                    ip = slowStore(ip, address, ip.b(x), 1)
                }
            case .sw:
                let address = ip.a(x) &+ ip.imm
                let entry = Self.entry(t + Word.storeTLB, address)
                if Self.hits(entry, address, 4) {
                    Self.store(entry, address, ip.b(x).low)
                    ip += 1
                } else {
                    ip = slowStore(ip, address, ip.b(x), 2)
                }
            case .sd:
                let address = ip.a(x) &+ ip.imm
                let entry = Self.entry(t + Word.storeTLB, address)
                if Self.hits(entry, address, 8) {
                    Self.store(entry, address, ip.b(x))
                    ip += 1
                } else {
                    ip = slowStore(ip, address, ip.b(x), 3)
                }
            case .flw:
                if x[Word.fs] != 0 {
                    let address = ip.a(x) &+ ip.imm
                    let entry = Self.entry(t, address)
                    if Self.hits(entry, address, 4) {
                        ip.set(x, UInt64(Self.load(entry, address, as: UInt32.self)) | 0xffff_ffff_0000_0000)
                        x[Word.fs] = 3
                        ip += 1
                    } else {
                        ip = slowLoadFloat(ip, address, 2)
                    }
                } else {
                    ip = raiseIllegal(ip)
                }
            case .fld:
                if x[Word.fs] != 0 {
                    let address = ip.a(x) &+ ip.imm
                    let entry = Self.entry(t, address)
                    if Self.hits(entry, address, 8) {
                        ip.set(x, Self.load(entry, address, as: UInt64.self))
                        x[Word.fs] = 3
                        ip += 1
                    } else {
                        ip = slowLoadFloat(ip, address, 3)
                    }
                } else {
                    ip = raiseIllegal(ip)
                }
            case .fsw:
                if x[Word.fs] != 0 {
                    let address = ip.a(x) &+ ip.imm
                    let entry = Self.entry(t + Word.storeTLB, address)
                    if Self.hits(entry, address, 4) {
                        Self.store(entry, address, ip.b(x).low)
                        ip += 1
                    } else {
                        ip = slowStore(ip, address, ip.b(x), 2)
                    }
                } else {
                    ip = raiseIllegal(ip)
                }
            case .fsd:
                if x[Word.fs] != 0 {
                    let address = ip.a(x) &+ ip.imm
                    let entry = Self.entry(t + Word.storeTLB, address)
                    if Self.hits(entry, address, 8) {
                        Self.store(entry, address, ip.b(x))
                        ip += 1
                    } else {
                        ip = slowStore(ip, address, ip.b(x), 3)
                    }
                } else {
                    ip = raiseIllegal(ip)
                }

            case .loadPair:
                let address = ip.a(x) &+ ip.imm.word
                let second = address &+ ip.imm.upper
                let entry = Self.entry(t, address)
                if Self.hits(entry, address, 8) && (address ^ second) & ~0xff8 == 0 {
                    ip.set(x, Self.load(entry, address, as: UInt64.self))
                    x[Int(ip.pointee.rs2)] = Self.load(entry, second, as: UInt64.self)
                    ip += 3
                } else {
                    ip += 1
                }
            case .storePair:
                let address = ip.a(x) &+ ip.imm.word
                let second = address &+ ip.imm.upper
                let entry = Self.entry(t + Word.storeTLB, address)
                if Self.hits(entry, address, 8) && (address ^ second) & ~0xff8 == 0 {
                    Self.store(entry, address, x[Int(ip.pointee.rd)])
                    Self.store(entry, second, ip.b(x))
                    ip += 3
                } else {
                    ip += 1
                }
            case .addLoadDouble:
                let address = ip.a(x) &+ ip.b(x) &+ ip.imm
                let entry = Self.entry(t, address)
                if Self.hits(entry, address, 8) {
                    ip.set(x, Self.load(entry, address, as: UInt64.self))
                    ip += 3
                } else {
                    ip += 1
                }
            case .addLoadWord:
                let address = ip.a(x) &+ ip.b(x) &+ ip.imm
                let entry = Self.entry(t, address)
                if Self.hits(entry, address, 4) {
                    ip.set(x, UInt64(bitPattern: Int64(Self.load(entry, address, as: Int32.self))))
                    ip += 3
                } else {
                    ip += 1
                }
            case .addLoadUnsignedWord:
                let address = ip.a(x) &+ ip.b(x) &+ ip.imm
                let entry = Self.entry(t, address)
                if Self.hits(entry, address, 4) {
                    ip.set(x, UInt64(Self.load(entry, address, as: UInt32.self)))
                    ip += 3
                } else {
                    ip += 1
                }
            case .addLoadByte:
                let address = ip.a(x) &+ ip.b(x) &+ ip.imm
                let entry = Self.entry(t, address)
                if Self.hits(entry, address, 1) {
                    ip.set(x, UInt64(Self.load(entry, address, as: UInt8.self)))
                    ip += 3
                } else {
                    ip += 1
                }
            case .movePair:
                ip.set(x, ip.a(x))
                x[Int(truncatingIfNeeded: ip.imm)] = ip.b(x)
                ip += 1
            case .shiftPair:
                ip.set(x, (ip.a(x) &<< ip.imm) &>> (ip.imm &>> 8))
                ip += 1
            case .shiftAdd:
                ip.set(x, (ip.a(x) &<< ip.imm) &+ ip.b(x))
                ip += 1
            case .addiBne:
                let sum = x[Int(ip.pointee.rd)] &+ UInt64(bitPattern: Int64(Int8(bitPattern: ip.pointee.rs1)))
                ip.set(x, sum)
                if sum != ip.b(x) {
                    n &-= ip.idx
                    ip = ip.target
                    if n < 0 { ip = endQuantum(at: ip) }
                } else {
                    ip += 2
                }
            case .addiBeq:
                let sum = x[Int(ip.pointee.rd)] &+ UInt64(bitPattern: Int64(Int8(bitPattern: ip.pointee.rs1)))
                ip.set(x, sum)
                if sum == ip.b(x) {
                    n &-= ip.idx
                    ip = ip.target
                    if n < 0 { ip = endQuantum(at: ip) }
                } else {
                    ip += 2
                }

            case .beq:
                if ip.a(x) == ip.b(x) {
                    n &-= ip.idx
                    ip = ip.target
                    if n < 0 { ip = endQuantum(at: ip) }
                } else {
                    ip += 2
                }
            case .bne:
                if ip.a(x) != ip.b(x) {
                    n &-= ip.idx
                    ip = ip.target
                    if n < 0 { ip = endQuantum(at: ip) }
                } else {
                    ip += 2
                }
            case .blt:
                if ip.a(x).signed < ip.b(x).signed {
                    n &-= ip.idx
                    ip = ip.target
                    if n < 0 { ip = endQuantum(at: ip) }
                } else {
                    ip += 2
                }
            case .bge:
                if ip.a(x).signed >= ip.b(x).signed {
                    n &-= ip.idx
                    ip = ip.target
                    if n < 0 { ip = endQuantum(at: ip) }
                } else {
                    ip += 2
                }
            case .bltu:
                if ip.a(x) < ip.b(x) {
                    n &-= ip.idx
                    ip = ip.target
                    if n < 0 { ip = endQuantum(at: ip) }
                } else {
                    ip += 2
                }
            case .bgeu:
                if ip.a(x) >= ip.b(x) {
                    n &-= ip.idx
                    ip = ip.target
                    if n < 0 { ip = endQuantum(at: ip) }
                } else {
                    ip += 2
                }
            case .jump, .goto:
                n &-= ip.idx
                ip = ip.target
                if n < 0 { ip = endQuantum(at: ip) }
            case .jumpAndLink:
                ip.set(x, x[Word.vbase] &+ ip.pcoff &+ UInt64(ip.pointee.rs2))
                n &-= ip.idx
                ip = ip.target
                if n < 0 { ip = endQuantum(at: ip) }

            case .beqFar:
                if ip.a(x) == ip.b(x) {
                    n &-= ip.idx
                    ip = jump(to: x[Word.vbase] &+ ip.pcoff &+ ip.imm, quantum: n, from: ip)
                } else {
                    ip += 1
                }
            case .bneFar:
                if ip.a(x) != ip.b(x) {
                    n &-= ip.idx
                    ip = jump(to: x[Word.vbase] &+ ip.pcoff &+ ip.imm, quantum: n, from: ip)
                } else {
                    ip += 1
                }
            case .bltFar:
                if ip.a(x).signed < ip.b(x).signed {
                    n &-= ip.idx
                    ip = jump(to: x[Word.vbase] &+ ip.pcoff &+ ip.imm, quantum: n, from: ip)
                } else {
                    ip += 1
                }
            case .bgeFar:
                if ip.a(x).signed >= ip.b(x).signed {
                    n &-= ip.idx
                    ip = jump(to: x[Word.vbase] &+ ip.pcoff &+ ip.imm, quantum: n, from: ip)
                } else {
                    ip += 1
                }
            case .bltuFar:
                if ip.a(x) < ip.b(x) {
                    n &-= ip.idx
                    ip = jump(to: x[Word.vbase] &+ ip.pcoff &+ ip.imm, quantum: n, from: ip)
                } else {
                    ip += 1
                }
            case .bgeuFar:
                if ip.a(x) >= ip.b(x) {
                    n &-= ip.idx
                    ip = jump(to: x[Word.vbase] &+ ip.pcoff &+ ip.imm, quantum: n, from: ip)
                } else {
                    ip += 1
                }
            case .jumpAndLinkFar:
                let base = x[Word.vbase] &+ ip.pcoff
                let target = base &+ ip.imm
                ip.set(x, base &+ UInt64(ip.pointee.rs2))
                n &-= ip.idx
                let entry = Self.jumpEntry(x, target)
                if entry[0] == target && n >= 0 {
                    x[Word.vbase] = target & ~0xfff
                    ip = Self.operation(entry)
                } else {
                    ip = jump(to: target, quantum: n, from: ip)
                }
            case .gotoFar:
                let target = x[Word.vbase] &+ ip.imm
                n &-= ip.idx
                let entry = Self.jumpEntry(x, target)
                if entry[0] == target && n >= 0 {
                    x[Word.vbase] = target & ~0xfff
                    ip = Self.operation(entry)
                } else {
                    ip = jump(to: target, quantum: n, from: ip)
                }
            case .jumpRegister:
                let target = (ip.a(x) &+ ip.imm) & ~1
                n &-= ip.idx
                let entry = Self.jumpEntry(x, target)
                if entry[0] == target && n >= 0 {
                    x[Word.vbase] = target & ~0xfff
                    ip = Self.operation(entry)
                } else {
                    ip = jump(to: target, quantum: n, from: ip)
                }
            case .jumpAndLinkRegister:
                let target = (ip.a(x) &+ ip.imm) & ~1
                ip.set(x, x[Word.vbase] &+ ip.pcoff &+ UInt64(ip.pointee.rs2))
                n &-= ip.idx
                let entry = Self.jumpEntry(x, target)
                if entry[0] == target && n >= 0 {
                    x[Word.vbase] = target & ~0xfff
                    ip = Self.operation(entry)
                } else {
                    ip = jump(to: target, quantum: n, from: ip)
                }

            case .amo: ip = atomic(ip)
            case .csr:
                x[Word.quantum] = UInt64(bitPattern: Int64(n))
                ip = accessControlRegister(ip)
                t = Words(bitPattern: UInt(x[Word.tlb])).unsafelyUnwrapped
            case .float: ip = float(ip)
            case .system: ip = system(ip)
            case .fence: ip = fence(ip)
            case .fenceI: ip = fenceInstructions(ip)
            case .cacheBlock: ip = cacheBlock(ip)
            case .illegal: ip = raiseIllegal(ip)
            case .misalignedJump: ip = checkJump(ip)
            case .resolve: ip = resolve(ip)
            case .straddle:
                n &-= ip.idx &- 1
                ip = straddle(ip)
            case .header, .leave: return n
            }
        }
    }

    @inline(never) private func fence(_ ip: OperationPointer) -> OperationPointer {
        if UInt32(truncatingIfNeeded: ip.imm) == 0x0100_000f {
            pause()
        } else {
            atomicMemoryFence(ordering: .sequentiallyConsistent)
        }
        return ip + 1
    }
}

/// Integer results that take more than an expression.
enum IntegerArithmetic {
    @inline(__always) static func divide(_ a: UInt64, _ b: UInt64) -> UInt64 {
        if b == 0 { return .max }
        if b == .max { return 0 &- a }
        return UInt64(bitPattern: a.signed / b.signed)
    }
    @inline(__always) static func remainder(_ a: UInt64, _ b: UInt64) -> UInt64 {
        if b == 0 { return a }
        if b == .max { return 0 }
        return UInt64(bitPattern: a.signed % b.signed)
    }
    @inline(__always) static func divide(_ a: UInt32, _ b: UInt32) -> UInt32 {
        if b == 0 { return .max }
        if b == .max { return 0 &- a }
        return UInt32(bitPattern: Int32(bitPattern: a) / Int32(bitPattern: b))
    }
    @inline(__always) static func remainder(_ a: UInt32, _ b: UInt32) -> UInt32 {
        if b == 0 { return a }
        if b == .max { return 0 }
        return UInt32(bitPattern: Int32(bitPattern: a) % Int32(bitPattern: b))
    }

    /// Each byte that is not zero becomes all ones.
    @inline(never) static func orCombineBytes(_ a: UInt64) -> UInt64 {
        let low: UInt64 = 0x7f7f_7f7f_7f7f_7f7f
        let high = ((a & low) &+ low | a) & ~low
        return (high >> 7) &* 0xff
    }

    @inline(never) static func carrylessLow(_ a: UInt64, _ b: UInt64) -> UInt64 {
        var result: UInt64 = 0
        var rest = b
        while rest != 0 {
            result ^= a &<< UInt64(rest.trailingZeroBitCount)
            rest &= rest - 1
        }
        return result
    }
    @inline(never) static func carrylessHigh(_ a: UInt64, _ b: UInt64) -> UInt64 {
        carrylessReversed(a, b) >> 1
    }
    /// Bits 126 to 63 of the product.
    @inline(never) static func carrylessReversed(_ a: UInt64, _ b: UInt64) -> UInt64 {
        var result: UInt64 = 0
        var rest = b
        while rest != 0 {
            result ^= a &>> UInt64(63 - rest.trailingZeroBitCount)
            rest &= rest - 1
        }
        return result
    }
}
