import GuestMemory
import GuestTime
import ProcessorModel
import Synchronization

@testable import RISCVProcessor

/// A device page whose registers tests look at, and a finisher: any store to it ends the run.
final class TestBus: ProcessorBus {
    static let finisher: UInt64 = 0x10_0000
    static let registers: UInt64 = 0x1000_0000
    struct Access: Equatable {
        var address: UInt64
        var width: Int
        var value: UInt64
    }
    let stores = Mutex<[Access]>([])
    let finished = Atomic<Int>(0)
    let onFinish = Mutex<(@Sendable () -> Void)?>(nil)
    let onStore = Mutex<(@Sendable (UInt64) -> Void)?>(nil)

    func load(address: UInt64, width: Int) -> UInt64? {
        guard address >= Self.registers, address < Self.registers + 0x1000 else { return nil }
        // Every byte of a register is the low byte of its address.
        return (0..<UInt64(width)).reduce(0) { $0 | ((address + $1) & 0xff) << ($1 * 8) }
    }

    func store(address: UInt64, width: Int, value: UInt64) -> Bool {
        if address == Self.finisher {
            finished.wrappingAdd(1, ordering: .relaxed)
            onFinish.withLock { $0 }?()
            return true
        }
        guard address >= Self.registers, address < Self.registers + 0x1000 else { return false }
        stores.withLock { $0.append(Access(address: address, width: width, value: value)) }
        onStore.withLock { $0 }?(address)
        return true
    }
}

/// Harts, RAM at 0x8000_0000 and a ``TestBus``. The program begins at ``base``.
final class TestMachine: @unchecked Sendable {
    static let base: UInt64 = 0x8000_0000
    let memory: GuestMemory
    let ram: RAMBlock
    let bus = TestBus()
    let clock: VirtualClock
    let harts: [RISCVHart]
    var hart: RISCVHart { harts[0] }

    init(
        harts count: Int = 1, isa: String? = nil, byteCount: Int = 4 << 20, nanoseconds: Int64 = 0
    ) throws {
        ram = try RAMBlock(name: "ram", byteCount: byteCount, backend: .anonymous)
        memory = GuestMemory(regions: [MemoryRegion(address: Self.base, block: ram)])
        clock = VirtualClock(nanoseconds: nanoseconds)
        harts = try RISCVHart.makeHarts(
            count: count, configuration: try isa.map { try RISCVConfiguration(isa: $0) } ?? .standard, memory: memory,
            bus: bus, clock: clock)
        for hart in harts {
            hart.pc = Self.base
            hart[register: 31] = TestBus.finisher
        }
        bus.onFinish.withLock { [harts = harts.map { Weak($0) }] action in
            action = { for hart in harts { hart.value?.kick() } }
        }
    }

    private struct Weak: @unchecked Sendable {
        weak var value: RISCVHart?
        init(_ value: RISCVHart) { self.value = value }
    }

    /// Writes instructions; answers the address behind them.
    @discardableResult func write(_ words: [UInt32], at address: UInt64 = TestMachine.base) throws -> UInt64 {
        try memory.write(address, words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } })
        return address + UInt64(words.count * 4)
    }

    func write(halfwords: [UInt16], at address: UInt64 = TestMachine.base) throws {
        try memory.write(address, halfwords.flatMap { [UInt8(truncatingIfNeeded: $0), UInt8($0 >> 8)] })
    }

    /// Runs hart 0 until it stores to the finisher. Answers how often it wanted to wait.
    @discardableResult func run(_ words: [UInt32]? = nil) throws -> Int {
        if let words { try write(words + RV.stop) }
        hart.synchronizeCode()
        return runHart(0)
    }

    @discardableResult func runHart(_ index: Int) -> Int {
        var waits = 0
        while true {
            switch harts[index].run() {
            case .kicked: return waits
            case .waiting:
                waits += 1
                if waits > 1000 { return waits }
            case .failed(let reason): preconditionFailure(reason)
            }
        }
    }

    /// Lets everything be accessed from S and U: PMP entry 0 covers all.
    func openProtection() {
        hart.pmp.load(0, configuration: 0x1f, address: .max)
        hart.pmp.update()
    }
}
