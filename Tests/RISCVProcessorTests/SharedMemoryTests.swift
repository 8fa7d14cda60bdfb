import Glibc
import GuestMemory
import Synchronization
import Testing

@testable import RISCVProcessor

/// Runs each hart on a thread of its own until it waits for an interrupt: nothing is enabled, so that is the end.
private func runTogether(_ machine: TestMachine) {
    var threads: [pthread_t] = []
    final class Job: Sendable {
        let hart: RISCVHart
        init(_ hart: RISCVHart) { self.hart = hart }
    }
    for hart in machine.harts {
        let job = Unmanaged.passRetained(Job(hart))
        var thread = pthread_t()
        let result = pthread_create(
            &thread, nil,
            { argument in
                let job = Unmanaged<Job>.fromOpaque(argument!).takeRetainedValue()
                while case .kicked = job.hart.run() {}
                return nil
            }, job.toOpaque())
        precondition(result == 0)
        threads.append(thread)
    }
    for thread in threads { pthread_join(thread, nil) }
}

@Suite("Memory that harts and devices share") struct SharedMemoryTests {
    private let page = TestMachine.base + 0x8_0000

    // MARK: Atomics

    @Test(
        "read-modify-writes of both widths give the old value and store the new one",
        arguments: [
            (1, 0xffff_ffff_ffff_fff0, 7, 7), (0, 0xffff_ffff_ffff_fff0, 7, 0xffff_ffff_ffff_fff7), (4, 12, 10, 6),
            (12, 12, 10, 8), (8, 12, 10, 14), (16, 0xffff_ffff_ffff_fff0, 7, 0xffff_ffff_ffff_fff0),
            (20, 0xffff_ffff_ffff_fff0, 7, 7), (24, 0xffff_ffff_ffff_fff0, 7, 7),
            (28, 0xffff_ffff_ffff_fff0, 7, 0xffff_ffff_ffff_fff0),
        ] as [(UInt32, UInt64, UInt64, UInt64)])
    func operations(_ operation: UInt32, _ old: UInt64, _ operand: UInt64, _ new: UInt64) throws {
        for isDouble in [true, false] {
            let machine = try TestMachine()
            let hart = machine.hart
            hart[register: 6] = page
            hart[register: 5] = operand
            try machine.memory.store(page, isDouble ? old : old & 0xffff_ffff | 0xabcd << 32)
            try machine.run([RV.amo(operation, isDouble, 10, 5, 6)])
            #expect(hart[register: 10] == (isDouble ? old : old.word))
            let stored = try machine.memory.load(page, as: UInt64.self)
            #expect(stored == (isDouble ? new : new & 0xffff_ffff | 0xabcd << 32))
            #expect(machine.ram.dirty.isMarked(page: Int((page - TestMachine.base) / 4096)))
        }
    }

    @Test("sc succeeds once after lr, only there, and not after another store changed the value")
    func reservations() throws {
        let machine = try TestMachine()
        let hart = machine.hart
        hart[register: 6] = page
        hart[register: 7] = page + 8
        hart[register: 5] = 42
        try machine.memory.store(page, UInt64(1))
        try machine.run([
            RV.scd(10, 5, 6), RV.lrd(1, 6), RV.scd(11, 5, 6), RV.scd(12, 5, 6), RV.lrd(1, 6), RV.scd(13, 5, 7),
            RV.lrd(1, 6), RV.sd(0, 6, 0), RV.scd(14, 5, 6),
        ])
        #expect(hart[register: 10] == 1)
        #expect(hart[register: 11] == 0)
        #expect(hart[register: 12] == 1)
        #expect(hart[register: 13] == 1)
        #expect(hart[register: 14] == 1)
        #expect(try machine.memory.load(page, as: UInt64.self) == 0)
    }

    @Test("two harts that count with lr and sc lose nothing", arguments: [2, 4])
    func countingWithReservations(_ harts: Int) throws {
        let machine = try TestMachine(harts: harts)
        // x6 counter, x7 rounds
        try machine.write([
            RV.lrd(10, 6), RV.addi(10, 10, 1), RV.scd(11, 10, 6), RV.bne(11, 0, -12), RV.addi(7, 7, -1),
            RV.bne(7, 0, -20), RV.wfi, RV.jal(0, -4),
        ])
        for hart in machine.harts {
            hart[register: 6] = page
            hart[register: 7] = 5_000
        }
        runTogether(machine)
        #expect(try machine.memory.load(page, as: UInt64.self) == UInt64(5_000 * harts))
    }

    @Test("harts that add atomically to neighbouring words lose nothing")
    func countingAtomically() throws {
        let machine = try TestMachine(harts: 3)
        try machine.write([
            RV.amo(0, false, 0, 5, 6), RV.amo(0, true, 0, 5, 8), RV.addi(7, 7, -1), RV.bne(7, 0, -12), RV.wfi,
            RV.jal(0, -4),
        ])
        for hart in machine.harts {
            hart[register: 5] = 1
            hart[register: 6] = page + 4 * UInt64(hart.index)
            hart[register: 8] = page + 64
            hart[register: 7] = 5_000
        }
        runTogether(machine)
        for index in 0..<3 {
            #expect(try machine.memory.load(page + 4 * UInt64(index), as: UInt32.self) == 5_000)
        }
        #expect(try machine.memory.load(page + 64, as: UInt64.self) == 15_000)
    }

    @Test("with fences, what one hart published before a flag the other sees behind it")
    func messagePassing() throws {
        let machine = try TestMachine(harts: 2)
        let fence: UInt32 = 0x0ff0_000f
        // Hart 0 writes the value, then the flag; hart 1 waits for the flag and checks the value; and the other way round.
        let writer: [UInt32] = [
            RV.addi(7, 7, 1), RV.sd(7, 6, 0), fence, RV.sd(7, 6, 64), RV.ld(9, 6, 128), RV.bne(9, 7, -4),
            RV.bne(7, 8, -24), RV.wfi, RV.jal(0, -4),
        ]
        let reader: [UInt32] = [
            RV.addi(7, 7, 1), RV.ld(9, 6, 64), RV.bne(9, 7, -4), fence, RV.ld(10, 6, 0), RV.sub(10, 10, 7),
            RV.add(11, 11, 10), RV.sd(7, 6, 128), RV.bne(7, 8, -32), RV.wfi, RV.jal(0, -4),
        ]
        try machine.write(writer)
        try machine.write(reader, at: TestMachine.base + 0x1000)
        machine.harts[1].pc = TestMachine.base + 0x1000
        for hart in machine.harts {
            hart[register: 6] = page
            hart[register: 8] = 300
        }
        runTogether(machine)
        #expect(machine.harts[1][register: 7] == 300)
        #expect(machine.harts[1][register: 11] == 0)
    }

    // MARK: Dirty pages

    @Test("every kind of store marks its page; loads and fetches mark nothing")
    func marking() throws {
        let machine = try TestMachine()
        let hart = machine.hart
        hart.x[Word.fs] = 1
        try machine.write(
            [
                RV.sb(5, 6, 0), RV.sw(5, 7, 0), RV.amo(0, true, 0, 5, 8), RV.s(3, 1, 9, 0, opcode: 0x27),
                RV.i(0x0f, 2, 0, 10, 4), RV.sd(5, 11, 0), RV.ld(13, 12, 0), RV.lrd(13, 14), RV.scd(15, 5, 14),
            ] + RV.stop)
        machine.ram.dirty.clearAll()
        let at: [UInt64] = [0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x17, 0x18]
        for (register, page) in zip([6, 7, 8, 9, 10], at) { hart[register: register] = TestMachine.base + page << 12 }
        hart[register: 11] = TestMachine.base + 0x15 << 12 | 0xffc  // pages 15 and 16
        hart[register: 12] = TestMachine.base + 0x17 << 12
        hart[register: 14] = TestMachine.base + 0x18 << 12
        machine.runHart(0)
        #expect(hart.mcause == 0)
        let marked = (0..<machine.ram.pageCount).filter { machine.ram.dirty.isMarked(page: $0) }
        #expect(marked == [0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x18])
    }

    @Test("after a restart of tracking, a page with a fast write path is marked again")
    func restart() throws {
        let machine = try TestMachine()
        let hart = machine.hart
        hart[register: 6] = page
        let number = Int((page - TestMachine.base) / 4096)
        try machine.write([RV.sd(5, 6, 0), RV.jal(0, 8)] + RV.stop)
        try machine.write(RV.stop, at: TestMachine.base + 12)
        for _ in 0..<3 {
            machine.ram.dirty.clearAll()
            hart.restartDirtyTracking()
            hart.pc = TestMachine.base
            machine.runHart(0)
            #expect(machine.ram.dirty.isMarked(page: number))
        }
    }

    @Test("restarts while harts run: whatever a round's copy misses is marked for the next")
    func restartWhileRunning() throws {
        let machine = try TestMachine(harts: 2)
        let pages = 48
        let rounds: UInt64 = 1000
        // Each hart counts up in its word of every page: x6 base, x8 end, x7 counter, x9 limit.
        try machine.write([
            RV.addi(7, 7, 1), RV.addi(10, 6, 0), RV.sd(7, 10, 0), RV.add(10, 10, 11), RV.bne(10, 8, -8),
            RV.bne(7, 9, -20), RV.wfi, RV.jal(0, -4),
        ])
        for hart in machine.harts {
            let base = page + UInt64(hart.index) * 8
            hart[register: 6] = base
            hart[register: 8] = base + UInt64(pages) * 4096
            hart[register: 9] = rounds
            hart[register: 11] = 4096
        }
        final class Shared: Sendable {
            let machine: TestMachine
            let isDone = Atomic<Bool>(false)
            init(_ machine: TestMachine) { self.machine = machine }
        }
        let shared = Shared(machine)
        let argument = Unmanaged.passRetained(shared)
        var thread = pthread_t()
        let created = pthread_create(
            &thread, nil,
            { argument in
                let shared = Unmanaged<Shared>.fromOpaque(argument!).takeRetainedValue()
                runTogether(shared.machine)
                shared.isDone.store(true, ordering: .releasing)
                return nil
            }, argument.toOpaque())
        precondition(created == 0)

        let first = Int((page - TestMachine.base) / 4096)
        let copy = UnsafeMutableRawPointer.allocate(byteCount: machine.ram.byteCount, alignment: 4096)
        defer { copy.deallocate() }
        memcpy(copy, machine.ram.base, machine.ram.byteCount)
        func round() {
            // As a migration does: take the marks, drop the fast paths, then copy.
            var taken: [Int] = []
            for word in 0..<machine.ram.dirty.wordCount {
                var bits = machine.ram.dirty.take(word: word)
                while bits != 0 {
                    taken.append(word * 64 + bits.trailingZeroBitCount)
                    bits &= bits - 1
                }
            }
            for hart in machine.harts { hart.restartDirtyTracking() }
            for page in taken { memcpy(copy + page * 4096, machine.ram.base + page * 4096, 4096) }
        }
        while !shared.isDone.load(ordering: .acquiring) { round() }
        pthread_join(thread, nil)
        round()
        for page in first..<first + pages {
            #expect(memcmp(copy + page * 4096, machine.ram.base + page * 4096, 4096) == 0)
            #expect((copy + page * 4096).load(as: UInt64.self) == rounds)
        }
    }

    // MARK: Code that changes

    @Test("a hart's own stores to code are seen after fence.i, in a page already written to and in one decoded first")
    func ownCode() throws {
        for writesBefore in [false, true] {
            let machine = try TestMachine()
            let hart = machine.hart
            let function = page + 0x100
            try machine.write([RV.addi(10, 10, 1), RV.jalr(0, 1, 0)], at: function)
            hart[register: 6] = function
            hart[register: 7] = UInt64(RV.addi(10, 10, 16))
            hart[register: 8] = UInt64(RV.addi(10, 10, 256))
            try machine.run([
                writesBefore ? RV.sd(0, 6, 64) : RV.nop, RV.jalr(1, 6, 0), RV.sw(7, 6, 0), RV.fenceI, RV.jalr(1, 6, 0),
                RV.sw(8, 6, 0), RV.fenceI, RV.jalr(1, 6, 0), RV.jalr(1, 6, 0),
            ])
            #expect(hart[register: 10] == 1 + 16 + 512)
        }
    }

    @Test("what a device writes over code is seen after fence.i")
    func deviceWritesCode() throws {
        let machine = try TestMachine()
        let hart = machine.hart
        let function = page + 0x100
        try machine.write([RV.addi(10, 10, 1), RV.jalr(0, 1, 0)], at: function)
        machine.bus.onStore.withLock { action in
            action = { [memory = machine.memory] _ in try? memory.store(function, RV.addi(10, 10, 16)) }
        }
        hart[register: 6] = function
        hart[register: 7] = TestBus.registers
        try machine.run([RV.jalr(1, 6, 0), RV.sb(0, 7, 0), RV.fenceI, RV.jalr(1, 6, 0)])
        #expect(hart[register: 10] == 17)
    }

    @Test("what another hart writes over code is seen after a message and the local fence.i, hundreds of times")
    func otherHartsCode() throws {
        let machine = try TestMachine(harts: 2)
        let function = page + 0x1100
        let fence: UInt32 = 0x0ff0_000f
        try machine.write([RV.addi(10, 0, 0), RV.jalr(0, 1, 0)], at: function)
        // Hart 0: writes `addi x10, x0, k`, tells hart 1, waits for its answer.
        try machine.write([
            RV.addi(7, 7, 1), RV.i(0x13, 7, 9, 7, 0x3ff), RV.i(0x13, 1, 9, 9, 20), RV.add(9, 9, 5), RV.sw(9, 6, 0),
            fence,
            RV.sd(7, 12, 0), RV.ld(13, 12, 64), RV.bne(13, 7, -4), RV.bne(7, 8, -36), RV.wfi, RV.jal(0, -4),
        ])
        // Hart 1: waits for the message, calls, compares.
        try machine.write(
            [
                RV.addi(7, 7, 1), RV.ld(13, 12, 0), RV.bne(13, 7, -4), fence, RV.fenceI, RV.jalr(1, 6, 0),
                RV.i(0x13, 7, 9, 7, 0x3ff), RV.sub(9, 9, 10), RV.beq(9, 0, 8), RV.addi(14, 14, 1), RV.sd(7, 12, 64),
                RV.bne(7, 8, -44), RV.wfi, RV.jal(0, -4),
            ], at: TestMachine.base + 0x1000)
        machine.harts[1].pc = TestMachine.base + 0x1000
        for hart in machine.harts {
            hart[register: 5] = UInt64(RV.addi(10, 0, 0))
            hart[register: 6] = function
            hart[register: 8] = 300
            hart[register: 12] = page + 0x4000
        }
        runTogether(machine)
        #expect(machine.harts[1][register: 7] == 300)
        #expect(machine.harts[1][register: 14] == 0)
    }

    @Test("when there is no room for more decoded code, all is dropped and the guest goes on")
    func fullStore() throws {
        let machine = try TestMachine(byteCount: 64 << 20)
        let hart = machine.hart
        // A call into each of more pages than there are records for, twice.
        let pages = 9000
        for index in 0..<pages {
            try machine.write([RV.addi(10, 10, 1), RV.jalr(0, 1, 0)], at: TestMachine.base + UInt64(index + 1) * 4096)
        }
        for _ in 0..<2 {
            hart.pc = TestMachine.base
            hart[register: 6] = TestMachine.base
            hart[register: 7] = 4096
            hart[register: 8] = UInt64(pages)
            try machine.run([RV.add(6, 6, 7), RV.jalr(1, 6, 0), RV.addi(8, 8, -1), RV.bne(8, 0, -12)])
        }
        #expect(hart[register: 10] == UInt64(2 * pages))
    }
}
