import Testing

@testable import RISCVProcessor

/// One instruction with operands x10 and x11 and its result in x12.
struct InstructionCase: Sendable, CustomTestStringConvertible {
    var name: String
    var word: UInt32
    var a: UInt64
    var b: UInt64
    var result: UInt64
    var testDescription: String { "\(name) 0x\(String(a, radix: 16)), 0x\(String(b, radix: 16))" }

    init(_ name: String, _ word: UInt32, _ a: UInt64, _ b: UInt64, _ result: UInt64) {
        self.name = name
        self.word = word
        self.a = a
        self.b = b
        self.result = result
    }
}

private func op(_ f3: UInt32, _ f7: UInt32) -> UInt32 { RV.r(0x33, f3, f7, 12, 10, 11) }
private func opWord(_ f3: UInt32, _ f7: UInt32) -> UInt32 { RV.r(0x3b, f3, f7, 12, 10, 11) }
private func immediate(_ f3: UInt32, _ imm: Int) -> UInt32 { RV.i(0x13, f3, 12, 10, imm) }
private func immediateWord(_ f3: UInt32, _ imm: Int) -> UInt32 { RV.i(0x1b, f3, 12, 10, imm) }
private let minus1 = UInt64.max
private let smallest: UInt64 = 1 << 63
private let smallestWord: UInt64 = 0xffff_ffff_8000_0000

@Suite("Integer instructions") struct IntegerInstructionTests {
    static let base: [InstructionCase] = [
        .init("addi", immediate(0, -5), 3, 0, minus1 - 1),
        .init("slti", immediate(2, -1), smallest, 0, 1),
        .init("slti", immediate(2, -1), 0, 0, 0),
        .init("sltiu", immediate(3, -1), 5, 0, 1),
        .init("sltiu", immediate(3, 5), 5, 0, 0),
        .init("xori", immediate(4, -1), 0x0f, 0, ~0x0f),
        .init("ori", immediate(6, 0x70), 0x0f, 0, 0x7f),
        .init("andi", immediate(7, -16), 0xff, 0, 0xf0),
        .init("slli", immediate(1, 63), 3, 0, smallest),
        .init("srli", immediate(5, 63), smallest, 0, 1),
        .init("srai", immediate(5, 0x400 | 63), smallest, 0, minus1),
        .init("addiw", immediateWord(0, 1), 0x7fff_ffff, 0, smallestWord),
        .init("slliw", immediateWord(1, 31), 1, 0, smallestWord),
        .init("srliw", immediateWord(5, 31), smallestWord, 0, 1),
        .init("sraiw", immediateWord(5, 0x400 | 31), 0x8000_0000, 0, minus1),
        .init("add", op(0, 0), minus1, 2, 1),
        .init("sub", op(0, 0x20), 1, 2, minus1),
        .init("sll", op(1, 0), 1, 64 + 5, 32),
        .init("slt", op(2, 0), minus1, 0, 1),
        .init("sltu", op(3, 0), minus1, 0, 0),
        .init("xor", op(4, 0), 0b1100, 0b1010, 0b0110),
        .init("srl", op(5, 0), smallest, 64 + 62, 2),
        .init("sra", op(5, 0x20), smallest, 62, minus1 - 1),
        .init("or", op(6, 0), 0b1100, 0b1010, 0b1110),
        .init("and", op(7, 0), 0b1100, 0b1010, 0b1000),
        .init("addw", opWord(0, 0), 0x7fff_ffff, 1, smallestWord),
        .init("subw", opWord(0, 0x20), 0, 1, minus1),
        .init("sllw", opWord(1, 0), 1, 32 + 31, smallestWord),
        .init("srlw", opWord(5, 0), minus1, 28, 15),
        .init("sraw", opWord(5, 0x20), 0x8000_0000, 31, minus1),
    ]
    static let multiplication: [InstructionCase] = [
        .init("mul", op(0, 1), minus1, 3, minus1 - 2),
        .init("mulh", op(1, 1), minus1, minus1, 0),
        .init("mulh", op(1, 1), smallest, smallest, 1 << 62),
        .init("mulhsu", op(2, 1), minus1, minus1, minus1),
        .init("mulhsu", op(2, 1), 2, smallest, 1),
        .init("mulhu", op(3, 1), minus1, minus1, minus1 - 1),
        .init("div", op(4, 1), minus1 - 6, 2, minus1 - 2),
        .init("div by zero", op(4, 1), 7, 0, minus1),
        .init("div overflow", op(4, 1), smallest, minus1, smallest),
        .init("divu", op(5, 1), minus1, 2, minus1 >> 1),
        .init("divu by zero", op(5, 1), 7, 0, minus1),
        .init("rem", op(6, 1), minus1 - 6, 2, minus1),
        .init("rem by zero", op(6, 1), 7, 0, 7),
        .init("rem overflow", op(6, 1), smallest, minus1, 0),
        .init("remu", op(7, 1), 7, 4, 3),
        .init("remu by zero", op(7, 1), 7, 0, 7),
        .init("mulw", opWord(0, 1), 0x1_0000_0003, 0x4000_0000, 0xffff_ffff_c000_0000),
        .init("divw", opWord(4, 1), 0xffff_fff9, 2, minus1 - 2),
        .init("divw overflow", opWord(4, 1), 0x8000_0000, 0xffff_ffff, smallestWord),
        .init("divw by zero", opWord(4, 1), 1, 1 << 32, minus1),
        .init("divuw", opWord(5, 1), 0xffff_fff8, 2, 0x7fff_fffc),
        .init("divuw by zero", opWord(5, 1), 1, 0, minus1),
        .init("remw", opWord(6, 1), 0xffff_fff9, 2, minus1),
        .init("remw overflow", opWord(6, 1), 0x8000_0000, 0xffff_ffff, 0),
        .init("remuw by zero", opWord(7, 1), 0x8000_0000, 0, smallestWord),
    ]
    static let bits: [InstructionCase] = [
        .init("add.uw", RV.r(0x3b, 0, 4, 12, 10, 11), minus1, 1, 0x1_0000_0000),
        .init("sh1add", op(2, 0x10), 3, 1, 7),
        .init("sh2add", op(4, 0x10), 3, 1, 13),
        .init("sh3add", op(6, 0x10), 3, 1, 25),
        .init("sh1add.uw", opWord(2, 0x10), minus1, 1, 0x1_ffff_ffff),
        .init("sh2add.uw", opWord(4, 0x10), minus1, 1, 0x3_ffff_fffd),
        .init("sh3add.uw", opWord(6, 0x10), minus1, 1, 0x7_ffff_fff9),
        .init("slli.uw", RV.i(0x1b, 1, 12, 10, 0x080 | 36), minus1, 0, 0xffff_fff0_0000_0000),
        .init("andn", op(7, 0x20), 0b1111, 0b0101, 0b1010),
        .init("orn", op(6, 0x20), 0, 0xf, ~0xf),
        .init("xnor", op(4, 0x20), 0b1100, 0b1010, ~0b0110),
        .init("clz", immediate(1, 0x600), 1, 0, 63),
        .init("clz of zero", immediate(1, 0x600), 0, 0, 64),
        .init("ctz", immediate(1, 0x601), 8, 0, 3),
        .init("cpop", immediate(1, 0x602), 0xff00_0000_0000_00ff, 0, 16),
        .init("clzw", immediateWord(1, 0x600), 0xffff_ffff_0000_0001, 0, 31),
        .init("ctzw", immediateWord(1, 0x601), 0xffff_ffff_0000_0000, 0, 32),
        .init("cpopw", immediateWord(1, 0x602), minus1, 0, 32),
        .init("max", op(6, 5), minus1, 1, 1),
        .init("maxu", op(7, 5), minus1, 1, minus1),
        .init("min", op(4, 5), minus1, 1, minus1),
        .init("minu", op(5, 5), minus1, 1, 1),
        .init("sext.b", immediate(1, 0x604), 0x180, 0, ~0x7f),
        .init("sext.h", immediate(1, 0x605), 0x18000, 0, ~0x7fff),
        .init("zext.h", RV.r(0x3b, 4, 4, 12, 10, 0), minus1, 0, 0xffff),
        .init("rol", op(1, 0x30), smallest | 1, 1, 3),
        .init("ror", op(5, 0x30), 3, 1, smallest | 1),
        .init("rori", immediate(5, 0x600 | 4), 0x1f, 0, 0xf000_0000_0000_0001),
        .init("rolw", opWord(1, 0x30), 0x8000_0001, 1, 3),
        .init("rorw", opWord(5, 0x30), 3, 1, 0xffff_ffff_8000_0001),
        .init("roriw", immediateWord(5, 0x600 | 1), 3, 0, 0xffff_ffff_8000_0001),
        .init("orc.b", immediate(5, 0x287), 0x0001_8000_4000_00ff, 0, 0x00ff_ff00_ff00_00ff),
        .init("rev8", immediate(5, 0x6b8), 0x0102_0304_0506_0708, 0, 0x0807_0605_0403_0201),
        .init("clmul", op(1, 5), 0b101, 0b11, 0b1111),
        .init("clmulh", op(3, 5), smallest, 6, 3),
        .init("clmulr", op(2, 5), smallest, 3, 3),
        .init("clmulr", op(2, 5), smallest, smallest, smallest),
        .init("bclr", op(1, 0x24), minus1, 64 + 3, ~8),
        .init("bext", op(5, 0x24), 8, 3, 1),
        .init("binv", op(1, 0x34), 8, 3, 0),
        .init("bset", op(1, 0x14), 0, 63, smallest),
        .init("bclri", immediate(1, 0x480 | 3), minus1, 0, ~8),
        .init("bexti", immediate(5, 0x480 | 63), smallest, 0, 1),
        .init("binvi", immediate(1, 0x680 | 3), 0, 0, 8),
        .init("bseti", immediate(1, 0x280 | 63), 0, 0, smallest),
    ]

    @Test("the result is the architecture's", arguments: base + multiplication + bits)
    func result(_ test: InstructionCase) throws {
        let machine = try TestMachine()
        machine.hart[register: 10] = test.a
        machine.hart[register: 11] = test.b
        try machine.run([test.word])
        #expect(machine.hart[register: 12] == test.result)
    }

    @Test("register 0 stays zero whatever is written to it", arguments: base + multiplication + bits)
    func zero(_ test: InstructionCase) throws {
        let machine = try TestMachine()
        machine.hart[register: 10] = test.a
        machine.hart[register: 11] = test.b
        try machine.run([test.word & ~(31 << 7), RV.addi(13, 0, 7)])
        #expect(machine.hart[register: 0] == 0)
        #expect(machine.hart[register: 13] == 7)
    }

    @Test("an extension that the configuration omits is illegal", arguments: multiplication + bits)
    func omitted(_ test: InstructionCase) throws {
        let machine = try TestMachine(isa: "rv64iac_zicsr")
        machine.hart.mtvec = TestMachine.base + 0x100
        try machine.write(RV.stop, at: TestMachine.base + 0x100)
        try machine.run([test.word])
        #expect(machine.hart.mcause == 2)
        #expect(machine.hart.mepc == TestMachine.base)
        #expect(machine.hart.mtval == UInt64(test.word))
    }

    @Test("lui and auipc sign-extend; jumps link behind themselves")
    func upper() throws {
        let machine = try TestMachine()
        try machine.run([
            RV.lui(10, 0x80000), RV.auipc(11, 0xfffff), RV.jal(1, 8), RV.nop, RV.auipc(12, 0), RV.jalr(5, 12, 12),
            RV.addi(13, 0, 1), RV.addi(14, 0, 1),
        ])
        #expect(machine.hart[register: 10] == 0xffff_ffff_8000_0000)
        #expect(machine.hart[register: 11] == TestMachine.base + 4 - 0x1000)
        #expect(machine.hart[register: 1] == TestMachine.base + 12)
        #expect(machine.hart[register: 5] == TestMachine.base + 24)
        #expect(machine.hart[register: 13] == 0)
        #expect(machine.hart[register: 14] == 1)
    }

    @Test("jalr reads its base before it writes its link")
    func jumpThroughLink() throws {
        let machine = try TestMachine()
        machine.hart[register: 1] = TestMachine.base + 8
        try machine.run([RV.jalr(1, 1, 1), RV.addi(10, 0, 1), RV.addi(11, 0, 1)])
        #expect(machine.hart[register: 1] == TestMachine.base + 4)
        #expect(machine.hart[register: 10] == 0 && machine.hart[register: 11] == 1)
    }

    @Test(
        "a branch goes where its operands say, near and far",
        arguments: [0, 1, 4, 5, 6, 7] as [UInt32], [0x40, 0x1ff0 - 0x1000])
    func branch(_ f3: UInt32, _ distance: Int) throws {
        let operands: [(UInt64, UInt64)] = [(1, 1), (1, 2), (2, 1), (minus1, 1), (1, minus1)]
        for (a, b) in operands {
            let machine = try TestMachine()
            machine.hart[register: 10] = a
            machine.hart[register: 11] = b
            let start = TestMachine.base + 0x100
            machine.hart.pc = start
            try machine.write([RV.b(f3, 10, 11, distance)] + RV.stop, at: start)
            try machine.write([RV.addi(12, 0, 1)] + RV.stop, at: start + UInt64(distance))
            try machine.run()
            let taken: Bool
            switch f3 {
            case 0: taken = a == b
            case 1: taken = a != b
            case 4: taken = Int64(bitPattern: a) < Int64(bitPattern: b)
            case 5: taken = Int64(bitPattern: a) >= Int64(bitPattern: b)
            case 6: taken = a < b
            default: taken = a >= b
            }
            #expect(machine.hart[register: 12] == (taken ? 1 : 0))
        }
    }
}
