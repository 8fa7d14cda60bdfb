import GuestMemory
import Testing

@testable import RISCVProcessor

/// The same program in blocks of 64 instructions, with pairs fused, and one instruction at a time must do the same.
@Suite("Fused pairs") struct FusionTests {
    /// A small linear congruential generator, so that a seed names a program.
    private struct Source {
        var state: UInt64
        mutating func next(_ bound: Int) -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int((state >> 33) % UInt64(bound))
        }
    }

    private static let data = TestMachine.base + 0x10_0000

    /// Pairs of the kinds that are fused, and near misses: other registers, distances across pages, wild addresses.
    private func program(_ seed: Int) -> [UInt32] {
        var source = Source(state: UInt64(seed) &* 0x9e37_79b9_7f4a_7c15 &+ 1)
        func register() -> Int { 5 + source.next(6) }
        func base() -> Int { source.next(12) == 0 ? register() : 13 + source.next(3) }
        func offset() -> Int { source.next(8) == 0 ? source.next(4096) - 2048 : (source.next(64) - 32) * 8 }
        func same(_ number: Int) -> Int { source.next(6) == 0 ? register() : number }
        var words: [UInt32] = []
        while words.count < 300 {
            let rd = register()
            let a = register()
            switch source.next(12) {
            case 0:
                words += [
                    RV.lui(rd, UInt32(source.next(1 << 20))), RV.addi(same(rd), same(rd), source.next(4096) - 2048),
                ]
            case 1:
                words += [
                    RV.lui(rd, UInt32(source.next(1 << 20))),
                    RV.i(0x1b, 0, same(rd), same(rd), source.next(4096) - 2048),
                ]
            case 2:
                words += [
                    RV.auipc(rd, UInt32(source.next(1 << 20))), RV.addi(same(rd), same(rd), source.next(4096) - 2048),
                ]
            case 3:
                let from = base()
                words += [RV.ld(rd, from, offset()), RV.ld(register(), same(from), offset())]
            case 4:
                // Never over the program itself.
                let to = source.next(12) == 0 ? 0 : 13 + source.next(3)
                words += [RV.sd(rd, to, offset()), RV.sd(a, source.next(6) == 0 ? 13 + source.next(3) : to, offset())]
            case 5:
                let f3 = [3, 2, 6, 4, 0, 1][source.next(6)] as Int
                let index = register()
                words += [
                    RV.i(0x13, 7, index, index, 0x7f8), RV.add(rd, 13 + source.next(3), index),
                    RV.i(0x03, UInt32(f3), same(rd), same(rd), offset()),
                ]
            case 6: words += [RV.add(rd, 0, a), RV.add(register(), 0, same(rd)), RV.add(register(), 0, register())]
            case 7:
                words += [
                    RV.i(0x13, 1, rd, a, source.next(64)), RV.i(0x13, 5, same(rd), same(rd), source.next(64)),
                ]
            case 8:
                words += [RV.i(0x13, 1, rd, a, source.next(64)), RV.add(same(rd), same(rd), register())]
            case 9:
                words += [RV.addi(rd, same(rd), source.next(300) - 150), RV.bne(same(rd), a, 8), RV.add(a, a, rd)]
            case 10:
                words += [
                    RV.addi(rd, 0, 5), RV.addi(rd, rd, -1), source.next(2) == 0 ? RV.bne(rd, 0, -4) : RV.beq(rd, 0, 8),
                    RV.nop,
                ]
            default:
                let link = [1, 5, 6][source.next(3)]
                words += [
                    RV.auipc(link, 0), RV.jalr(source.next(4) == 0 ? 0 : link, link, 12), RV.nop,
                    RV.csrr(rd, CSR.minstret),
                ]
            }
        }
        return words
    }

    private func run(_ words: [UInt32], instructionsMax: Int) throws -> (
        registers: [UInt64], memory: [UInt8], retired: UInt64
    ) {
        let machine = try TestMachine()
        let hart = machine.hart
        hart.blockInstructionsMax = instructionsMax
        let handler = TestMachine.base + 0x8_0000
        hart.mtvec = handler
        hart.mscratch = 0
        // Counts causes in x30 and goes on behind the instruction that trapped.
        try machine.write(
            [
                RV.csrr(29, CSR.mepc), RV.addi(29, 29, 4), RV.csrw(CSR.mepc, 29), RV.csrr(29, CSR.mtval),
                RV.add(30, 30, 29),
                RV.csrr(29, CSR.mcause), RV.add(30, 30, 29), RV.csrr(29, CSR.minstret), RV.add(30, 30, 29), RV.mret,
            ], at: handler)
        for number in 5..<12 { hart[register: number] = UInt64(number) &* 0x1234_5678_9abc_def1 }
        hart[register: 13] = Self.data + 0x800
        hart[register: 14] = Self.data + 0xfc0
        hart[register: 15] = Self.data + 0x1000
        var source = Source(state: 99)
        try machine.memory.write(Self.data - 0x1000, (0..<0x4000).map { _ in UInt8(source.next(256)) })
        try machine.run(words)
        return (
            (0..<32).map { hart[register: $0] }, try machine.memory.bytes(at: Self.data - 0x1000, count: 0x4000),
            hart.retiredInstructions
        )
    }

    @Test("do what their instructions do apart, in result, trap and count", arguments: 0..<40)
    func same(_ seed: Int) throws {
        let words = program(seed)
        let fused = try run(words, instructionsMax: 64)
        let single = try run(words, instructionsMax: 1)
        for number in 0..<32 { #expect(fused.registers[number] == single.registers[number], "x\(number)") }
        #expect(fused.memory == single.memory)
        #expect(fused.retired == single.retired)
    }

    @Test("are there: the pairs of a function's frame, of an address and of a loop become one operation each")
    func present() throws {
        var builder = BlockBuilder(
            first: .allocate(capacity: 200),
            page: UnsafeRawPointer(UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 8)),
            handle: 0, decoder: Decoder(RISCVConfiguration.standard.extensions), isAligned: false)
        defer {
            builder.first.deallocate()
            builder.page.deallocate()
        }
        let words = [
            RV.sd(1, 2, 8), RV.sd(8, 2, 0), RV.ld(1, 2, 8), RV.ld(8, 2, 0), RV.lui(5, 1), RV.addi(5, 5, 1),
            RV.add(5, 5, 6),
            RV.lw(5, 5, 0), RV.i(0x13, 1, 7, 7, 32), RV.i(0x13, 5, 7, 7, 32), RV.addi(9, 9, -1), RV.bne(9, 0, -4),
            RV.auipc(1, 1), RV.jalr(1, 1, 0),
        ]
        let page = UnsafeMutableRawPointer(mutating: builder.page)
        for (index, word) in words.enumerated() { page.storeBytes(of: word, toByteOffset: index * 4, as: UInt32.self) }
        builder.build(from: 0, instructionsMax: 64)
        let codes = (0..<builder.next - builder.first).map { builder.first[$0].code }
        #expect(
            codes == [
                .header, .storePair, .sd, .sd, .loadPair, .ld, .ld, .loadImmediate, .addLoadWord, .add, .lw, .shiftPair,
                .addiBne, .resolve, .jumpAndLinkFar,
            ])
    }
}
