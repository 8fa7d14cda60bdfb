package import GuestMemory
package import GuestTime
package import LinuxCalls
package import ProcessorModel
import Synchronization

/// One RV64 hart in software.
///
/// SAFETY: all mutable state belongs to the thread that calls ``run()``, or, while nobody does, to whoever stopped the machine.
/// The exceptions are atomics: the interrupt inputs, the requests and the counters that others may read.
package final class RISCVHart: Processor, @unchecked Sendable {
    package let index: Int
    package let configuration: RISCVConfiguration
    let map: SharedMemoryMap
    let bus: any ProcessorBus
    let clock: VirtualClock

    // MARK: The engine's memory

    /// Registers, scalars, translation caches; see ``Word``.
    let x: Words
    /// What ``x`` lies in.
    private let words: OwnedMapping
    let code: CodeStore
    let decoder: Decoder
    /// A lone ``OperationCode/leave``: where slow paths send the engine that must go back to ``run()``.
    let leaveOperation: OperationPointer
    /// Operations of an instruction that is not kept: see ``uncachedInstruction(at:)``.
    let scratch: OperationPointer
    /// At most 64. Tests set 1, so that nothing is fused and every instruction is left and entered.
    var blockInstructionsMax = 64
    /// Which entries of the caches are in use, so that a flush touches only those. One set for each regime: four words
    /// for loads, four for stores.
    let used: Words
    /// Which virtual pages the jump caches may have entries for, hashed to 4096 bits; bit 4096 and up: any at all.
    let jumpPages: Words
    var hasJumpEntries = false
    /// Which gibibytes of virtual memory have entries that came from larger pages, hashed to 64 bits.
    var largePages: UInt64 = 0
    /// What regime ``Regime/other`` was filled for.
    var otherKey: UInt64 = 0
    /// A loaded state had `menvcfg.PBMTE` set, which this hart has not: its page tables may name memory types, all alike here.
    var ignoresMemoryTypes = false
    /// The guest booted on a processor with the hypervisor extension. OpenSBI 1.6 then reads `mtinst` and `mtval2` at each
    /// trap, whatever `misa` says by now: they are there and zero.
    var hypervisorWasOffered = false
    /// What it left in that extension's registers; nil when it did not come from a monitor that sends them.
    var hypervisor: HypervisorRegisters?
    /// No room for code is left: drop everything before the next block.
    var mustDropCode = false

    // MARK: Architectural state beyond the registers

    var privilege: UInt64 = 3
    /// Without FS, which is ``Word/fs``, and SD, which follows from it.
    var status: UInt64 = 0
    var misa: UInt64 = 0
    var medeleg: UInt64 = 0
    var mideleg: UInt64 = 0
    var mie: UInt64 = 0
    /// The bits of `mip` that software writes: SSIP, STIP, SEIP.
    var softwarePending: UInt64 = 0
    var mtvec: UInt64 = 0
    var mcounteren: UInt64 = 0
    var mcountinhibit: UInt64 = 0
    var menvcfg: UInt64 = 0
    var mscratch: UInt64 = 0
    var mepc: UInt64 = 0
    var mcause: UInt64 = 0
    var mtval: UInt64 = 0
    var stvec: UInt64 = 0
    var scounteren: UInt64 = 0
    var senvcfg: UInt64 = 0
    var sscratch: UInt64 = 0
    var sepc: UInt64 = 0
    var scause: UInt64 = 0
    var stval: UInt64 = 0
    var satp: UInt64 = 0
    var stimecmp: UInt64 = 0
    var pmp = PhysicalMemoryProtection()
    /// Held by `lr`: host address, 0 for none, and the value that was read.
    var reservedAddress: UInt = 0
    var reservedValue: UInt64 = 0
    /// Retired instructions less the counter; the counter itself while it is inhibited.
    var cycleOffset: UInt64 = 0
    var instretOffset: UInt64 = 0
    var retired: UInt64 = 0

    // MARK: Derived

    /// `time` has reached `stimecmp`; looked up once a quantum.
    var isTimerDue = false
    /// Instructions until the clock is looked at.
    var budget = 0
    /// ``budget`` when the engine was entered.
    var budgetAtEntry = 0
    /// In `wfi`, with nothing to wake it yet.
    var isWaiting = false
    /// Set by `wfi` for ``run()``.
    var wantsToWait = false
    /// Why the last ``translate(_:_:)`` failed.
    var faultCause: UInt64 = 0
    /// Bytes from the access's address to the part of it that faulted: not zero when it lies on the next page.
    var faultOffset: UInt64 = 0
    /// The page found by ``translate(_:_:)`` is larger than 4 KiB.
    var isLargePage = false
    var csrValue: UInt64 = 0
    var throttleStart: Int64 = 0

    // MARK: What other threads touch

    /// Levels of the inputs, at the bits of `mip`.
    let lines = Atomic<UInt64>(0)
    let requests = Atomic<UInt32>(0)
    /// Whether a thread is inside ``run()``.
    let isInside = Atomic<Bool>(false)
    let runner = Atomic<UInt>(0)
    let throttlePercent = Atomic<Int>(0)
    let publicRetired = Atomic<UInt64>(0)
    let staleFlag = Atomic<Bool>(false)
    let stalePages = Mutex<[Int]>([])
    /// In a structure: a closure that is itself what a mutex holds gains a wrapping with every look at it.
    let wakeUp = Mutex<WakeUp?>(nil)

    struct WakeUp {
        let call: @Sendable () -> Void
    }

    /// What ``hasPendingInterrupt`` needs, published when the hart waits.
    let publicEnabled = Atomic<UInt64>(0)
    let publicPending = Atomic<UInt64>(0)
    let publicTimer = Atomic<UInt64>(.max)

    enum Request {
        static let kick: UInt32 = 1
        static let dropStoreEntries: UInt32 = 2
    }

    /// Instructions between two looks at the clock and at what other threads want.
    static let quantum = 4_000

    /// Where the hart begins after ``reset()``.
    package var resetVector: UInt64 = 0x1000

    init(
        index: Int, configuration: RISCVConfiguration, map: SharedMemoryMap, bus: any ProcessorBus, clock: VirtualClock
    ) throws(SystemCallError) {
        self.index = index
        self.configuration = configuration
        self.map = map
        self.bus = bus
        self.clock = clock
        code = try CodeStore(guestPageCount: map.pageCount)
        words = try OwnedMapping(byteCount: Word.count * 8)
        x = words.base.bindMemory(to: UInt64.self, capacity: Word.count)
        decoder = Decoder(configuration.extensions)
        leaveOperation = .allocate(capacity: 1)
        leaveOperation.initialize(to: Operation(.leave))
        scratch = .allocate(capacity: 8)
        scratch.initialize(repeating: Operation(.leave), count: 8)
        used = .allocate(capacity: 8 * Word.regimeCount)
        used.initialize(repeating: 0, count: 8 * Word.regimeCount)
        jumpPages = .allocate(capacity: 64)
        jumpPages.initialize(repeating: 0, count: 64)
        for word in Word.tlbs..<Word.count { x[word] = .max }
        reset()
    }

    deinit {
        leaveOperation.deallocate()
        scratch.deallocate()
        used.deallocate()
        jumpPages.deallocate()
    }

    /// Makes the harts of one machine; they share `memory` and know of each other. Sets the memory's code watch.
    /// Interrupt inputs are low, and each hart begins at ``resetVector`` in machine mode.
    /// - Throws: The address space is too short for what they decode.
    package static func makeHarts(
        count: Int, configuration: RISCVConfiguration, memory: GuestMemory, bus: any ProcessorBus, clock: VirtualClock
    ) throws(SystemCallError) -> [RISCVHart] {
        precondition(count >= 1 && count <= 8, "1 to 8 harts")
        let map = try SharedMemoryMap(memory: memory)
        var harts: [RISCVHart] = []
        for index in 0..<count {
            harts.append(
                try RISCVHart(index: index, configuration: configuration, map: map, bus: bus, clock: clock))
        }
        map.setHarts(harts)
        memory.setCodeWatch { [weak map, harts = WeakHarts(harts)] region, pages in
            guard let map, harts.areAlive else { return }
            map.wasWritten(region: region, pages: pages)
        }
        return harts
    }

    /// Power-on state. Interrupt inputs keep their levels: they belong to whoever drives them.
    package func reset() {
        for register in 0..<Word.scalarCount where register != Word.tlb && register != Word.jumpCache {
            x[register] = 0
        }
        x[Word.pc] = resetVector
        privilege = 3
        status = 0xa_0000_0000
        misa = 2 << 62 | configuration.misaExtensions
        medeleg = 0
        mideleg = 0
        mie = 0
        softwarePending = 0
        mtvec = 0
        mcounteren = 0
        mcountinhibit = 0
        hypervisorWasOffered = false
        hypervisor = nil
        ignoresMemoryTypes = false
        menvcfg = configuration.extensions.contains(.svadu) ? EnvironmentConfiguration.adue : 0
        mscratch = 0
        mepc = 0
        mcause = 0
        mtval = 0
        stvec = 0
        scounteren = 0
        senvcfg = 0
        sscratch = 0
        sepc = 0
        scause = 0
        stval = 0
        satp = 0
        stimecmp = 0
        pmp = PhysicalMemoryProtection()
        reservedAddress = 0
        cycleOffset = 0
        instretOffset = 0
        retired = 0
        publicRetired.store(0, ordering: .relaxed)
        isTimerDue = false
        isWaiting = false
        wantsToWait = false
        budget = 0
        dropEverything()
    }

    // MARK: Registers

    package var pc: UInt64 {
        get { x[Word.pc] }
        set { x[Word.pc] = newValue }
    }

    /// An integer register by number; writes to register 0 are lost. Only while the hart is stopped.
    package subscript(register number: Int) -> UInt64 {
        get { x[number & 31] }
        set { if number & 31 != 0 { x[number & 31] = newValue } }
    }

    package var retiredInstructions: UInt64 { publicRetired.load(ordering: .relaxed) }

    package func registerDump() -> String {
        func hex(_ value: UInt64) -> String {
            let digits = String(value, radix: 16)
            return String(repeating: "0", count: 16 - digits.count) + digits
        }
        func field(_ name: String, _ value: UInt64) -> String {
            " " + name + String(repeating: " ", count: max(9 - name.count, 1)) + hex(value)
        }
        var lines = [field("pc", pc)]
        lines.append(field("mhartid", UInt64(index)))
        lines.append(field("priv", privilege))
        let control: [(String, UInt64)] = [
            ("mstatus", statusValue), ("mip", pendingValue), ("mie", mie), ("mideleg", mideleg), ("medeleg", medeleg),
            ("mtvec", mtvec), ("stvec", stvec), ("mepc", mepc), ("sepc", sepc), ("mcause", mcause), ("scause", scause),
            ("mtval", mtval), ("stval", stval), ("mscratch", mscratch), ("sscratch", sscratch), ("satp", satp),
            ("stimecmp", stimecmp),
        ]
        lines += control.map { field($0.0, $0.1) }
        let names = [
            "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6",
            "a7",
            "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
        ]
        for row in stride(from: 0, to: 32, by: 4) {
            lines.append((row..<row + 4).map { field("x\($0)/\(names[$0])", x[$0]) }.joined())
        }
        for row in stride(from: 0, to: 32, by: 4) {
            lines.append((row..<row + 4).map { field("f\($0)", x[Word.float + $0]) }.joined())
        }
        return lines.joined(separator: "\n") + "\n"
    }
}

/// Tells a callback of the memory whether the harts are still there, without keeping them.
private final class WeakHarts: Sendable {
    // SAFETY: a weak reference is loaded atomically, and nothing writes this one after init.
    private struct Reference: @unchecked Sendable { weak var hart: RISCVHart? }
    private let references: [Reference]
    init(_ harts: [RISCVHart]) { references = harts.map { Reference(hart: $0) } }
    var areAlive: Bool { references.allSatisfy { $0.hart != nil } }
}
