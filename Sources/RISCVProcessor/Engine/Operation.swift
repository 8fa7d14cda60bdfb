/// What an ``Operation`` does. Numbered densely and without a default case anywhere, so that the switch over it compiles
/// to one table jump at the end of each case (see `Documentation/interpreter.md`).
enum OperationCode: UInt8 {
    // Integer, register and immediate.
    case nop, loadImmediate, addPCImmediate, move
    case addi, slti, sltiu, xori, ori, andi, slli, srli, srai, addiw, slliw, srliw, sraiw
    // Integer, two registers.
    case add, sub, sll, slt, sltu, xor, srl, sra, or, and, addw, subw, sllw, srlw, sraw
    // M
    case mul, mulh, mulhsu, mulhu, div, divu, rem, remu, mulw, divw, divuw, remw, remuw
    // Zba
    case adduw, sh1add, sh2add, sh3add, sh1adduw, sh2adduw, sh3adduw, slliuw
    // Zbb
    case andn, orn, xnor, clz, ctz, cpop, clzw, ctzw, cpopw, max, maxu, min, minu, sextb, sexth, zexth
    case rol, ror, rori, rolw, rorw, roriw, orcb, rev8
    // Zbc
    case clmul, clmulh, clmulr
    // Zbs
    case bclr, bext, binv, bset, bclri, bexti, binvi, bseti
    // Memory.
    case lb, lh, lw, ld, lbu, lhu, lwu, sb, sh, sw, sd, flw, fld, fsw, fsd
    // Two instructions in one. Those that access memory are followed by the two apart, for when the caches do not answer.
    case loadPair, storePair, addLoadDouble, addLoadWord, addLoadUnsignedWord, addLoadByte
    case movePair, shiftPair, shiftAdd
    case addiBne, addiBeq
    // Exits whose target lies in the same page: `imm` is the pointer to the target's first operation.
    case beq, bne, blt, bge, bltu, bgeu, jump, jumpAndLink, goto
    // Exits to another page: `imm` is the displacement (from the page of the block for `gotoFar`).
    case beqFar, bneFar, bltFar, bgeFar, bltuFar, bgeuFar, jumpAndLinkFar, gotoFar
    // To an address in a register.
    case jumpRegister, jumpAndLinkRegister
    // Out of line; `imm` holds the instruction.
    case amo, csr, float, system, fence, fenceI, cacheBlock, illegal, misalignedJump
    // Not instructions.
    case resolve, straddle, header, leave
}

/// One decoded instruction, or two fused ones.
struct Operation {
    var code: OperationCode
    /// Destination register; register 0 is decoded as ``Word/sink``, so that nobody tests for it.
    var rd: UInt8
    var rs1: UInt8
    /// Second source; for jumps that link, the length of the instruction.
    var rs2: UInt8
    /// Instructions retired when this operation is done, counted from the start of the block.
    var idx: UInt16
    /// Offset of the instruction in its page; of the second one when two are fused.
    var pcoff: UInt16
    /// Immediate; for an exit within the page, the address of the target's first operation.
    var imm: UInt64

    init(
        _ code: OperationCode, rd: UInt8 = 0, rs1: UInt8 = 0, rs2: UInt8 = 0, idx: UInt16 = 0, pcoff: UInt16 = 0,
        imm: UInt64 = 0
    ) {
        self.code = code
        self.rd = rd
        self.rs1 = rs1
        self.rs2 = rs2
        self.idx = idx
        self.pcoff = pcoff
        self.imm = imm
    }
}

typealias OperationPointer = UnsafeMutablePointer<Operation>
typealias Words = UnsafeMutablePointer<UInt64>

extension UnsafeMutablePointer where Pointee == Operation {
    /// The first source.
    @inline(__always) func a(_ x: Words) -> UInt64 { x[Int(pointee.rs1)] }
    /// The second source.
    @inline(__always) func b(_ x: Words) -> UInt64 { x[Int(pointee.rs2)] }
    @inline(__always) var imm: UInt64 { pointee.imm }
    @inline(__always) var idx: Int { Int(pointee.idx) }
    @inline(__always) var pcoff: UInt64 { UInt64(pointee.pcoff) }
    @inline(__always) func set(_ x: Words, _ value: UInt64) { x[Int(pointee.rd)] = value }
    /// A 32-bit result, sign-extended.
    @inline(__always) func setWord(_ x: Words, _ value: UInt32) {
        x[Int(pointee.rd)] = UInt64(bitPattern: Int64(Int32(bitPattern: value)))
    }
    /// Where an exit within the page goes.
    @inline(__always) var target: OperationPointer {
        OperationPointer(bitPattern: UInt(pointee.imm)).unsafelyUnwrapped
    }
    @inline(__always) var address: UInt64 { UInt64(UInt(bitPattern: self)) }
}

extension UInt64 {
    /// The high 32 bits as a signed number.
    @inline(__always) var upper: UInt64 { UInt64(bitPattern: Int64(bitPattern: self) >> 32) }
    @inline(__always) var low: UInt32 { UInt32(truncatingIfNeeded: self) }
    @inline(__always) var signed: Int64 { Int64(bitPattern: self) }
    /// The low 32 bits, sign-extended.
    @inline(__always) var word: UInt64 { UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: self))) }
}

/// Places in a hart's state block, in 8-byte words from its base.
enum Word {
    /// What is written to register 0.
    static let sink = 32
    /// f0...f31
    static let float = 64
    /// Virtual address of the page that the running block lies in.
    static let vbase = 96
    /// Program counter; valid outside the engine.
    static let pc = 97
    /// Instructions of the running block that count as retired, when the engine was left in the middle of one.
    static let retiredInBlock = 98
    /// Address of the translation caches in force.
    static let tlb = 99
    /// Address of the jump cache in force.
    static let jumpCache = 100
    /// mstatus.FS
    static let fs = 101
    static let fflags = 102
    static let frm = 103
    /// What is left of the quantum at an operation that asks.
    static let quantum = 104

    static let scalarCount = 128

    // One pair of translation caches for each regime: 256 loads, then 256 stores, {tag, addend}.
    static let tlbEntries = 256
    static let storeTLB = 512
    static let tlbWords = 1024
    static let regimeCount = 5
    static let tlbs = scalarCount
    // One jump cache for each privilege (M, S, U): {virtual pc, operation}.
    static let jumpEntries = 4096
    static let jumpWords = jumpEntries * 2
    static let jumps = tlbs + tlbWords * regimeCount
    // One fetch cache for each privilege: {virtual page, address of the code page}.
    static let fetchEntries = 256
    static let fetchWords = fetchEntries * 2
    static let fetches = jumps + jumpWords * 3
    static let count = fetches + fetchWords * 3
}

/// Which pair of translation caches is in force.
enum Regime {
    static let machine = 0
    /// Supervisor that may not touch user pages.
    static let supervisor = 1
    /// Supervisor that may (`sstatus.SUM`).
    static let supervisorWithUser = 2
    static let user = 3
    /// `MPRV` or `MXR` in use.
    static let other = 4
}
