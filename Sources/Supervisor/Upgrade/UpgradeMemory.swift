import ComponentState
import FoundationEssentials
import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import Synchronization

/// The guest as the engine has it when only its RAM crosses: state goes with the hand-over, which also decides who runs.
final class MemoryOnlyGuest: MigratableGuest {
    private let guest: VirtGuest
    private let began = Atomic<Int64>(0)
    private let stopped = Atomic<Int64>(0)
    private let willPause: @Sendable () -> Void

    /// - Parameter willPause: Called when the guest is about to be stopped.
    init(_ guest: VirtGuest, willPause: @escaping @Sendable () -> Void = {}) {
        self.guest = guest
        self.willPause = willPause
    }

    /// When the engine began to stop the guest and when it stood still, CLOCK_MONOTONIC in nanoseconds; 0 is not yet.
    var pauseBegan: Int64 { began.load(ordering: .relaxed) }
    var pauseEnded: Int64 { stopped.load(ordering: .relaxed) }

    var machineName: String { guest.machineName }
    var ramBlocks: [RAMBlock] { guest.ramBlocks }
    func guestAddress(of block: RAMBlock) -> UInt64 { guest.guestAddress(of: block) }
    func restartDirtyTracking() throws { try guest.restartDirtyTracking() }
    func setThrottle(percent: Int) { guest.setThrottle(percent: percent) }
    var isRunning: Bool { guest.isRunning }
    var components: [any StatefulComponent] { [] }
    func finishLoading() throws {}

    func pause() throws {
        willPause()
        began.store(monotonicNanoseconds(), ordering: .relaxed)
        try guest.pause()
        stopped.store(monotonicNanoseconds(), ordering: .relaxed)
    }

    /// The hand-over resumes the guest, together with everything else that it suspended.
    func resume() throws {}
}

/// The source's RAM on its way.
final class UpgradeMemorySource {
    private let guest: MemoryOnlyGuest
    private let migration: MigrationSource
    private let transport: DescriptorTransport
    private let limitMilliseconds: Int
    private let guard_: Gate<PauseState>
    private var outcome: MigrationOutcome?

    /// For the one that watches the limit.
    private struct PauseState: Sendable {
        var hasBegun = false
        var isOver = false
    }

    /// - Parameters:
    ///   - socket: Our end of a socket pair for this RAM alone.
    ///   - allowance: How much may be sent before it is asked again; see ``UpgradeRoom``.
    init(
        _ guest: VirtGuest, plan: UpgradePlan, socket: OwnedDescriptor, limitMilliseconds: Int,
        allowance: @escaping @Sendable () throws -> Int
    ) throws(SystemCallError) {
        self.limitMilliseconds = limitMilliseconds
        let gate = Gate(PauseState())
        guard_ = gate
        self.guest = MemoryOnlyGuest(guest) { gate.update { $0.hasBegun = true } }
        transport = try DescriptorTransport(name: plan.channel.rawValue, socket: socket)
        var configuration = plan.configuration
        configuration.allowance = allowance
        configuration.verdictLimitMilliseconds = UInt64(limitMilliseconds)
        configuration.parameters.stallLimitMilliseconds = UInt64(limitMilliseconds)
        let hooks =
            plan.channel == .pageFlip
            ? PageFlipSource(transport: transport, guest: self.guest, configuration: configuration) {
                Diagnostics.write($0)
            } : nil
        migration = MigrationSource(
            guest: self.guest, transport: transport, configuration: configuration, hooks: hooks,
            pageObserver: HandoverFault.inMemory("source"))
    }

    var pauseBegan: Int64 { guest.pauseBegan }
    var pauseEnded: Int64 { guest.pauseEnded }
    var progress: MigrationProgress { migration.progress }

    /// Sends everything; on return the guest is paused and the successor has its memory.
    func send() throws {
        let watch = try HostThread(name: "pause limit") { [guard_, migration, limitMilliseconds] in
            guard_.wait { $0.hasBegun || $0.isOver }
            if !guard_.wait(timeoutNanoseconds: UInt64(limitMilliseconds) * 1_000_000, until: { $0.isOver }) {
                migration.cancel()
            }
        }
        let outcome = migration.run()
        guard_.update { $0.isOver = true }
        watch.join()
        self.outcome = outcome
        guard outcome == .guestMoved else {
            let error = migration.progress.error
            if outcome == .undecided { takeBack() }
            throw Refusal("RAM did not cross: \(error.map { "\($0)" } ?? "\(outcome)")")
        }
    }

    /// Makes the guest's memory whole again.
    private func takeBack() {
        migration.settle(.guestStayed)
        outcome = .guestStayed
    }

    /// The hand-over failed: the guest is ours, with all of its memory.
    func giveUp() throws {
        if outcome == .guestMoved || outcome == .undecided { takeBack() }
        transport.close()
        if let error = migration.progress.error, error.code == .guestFailed {
            throw Refusal("the guest's memory is not whole: \(error)")
        }
    }

    func release() { migration.settle(.guestMoved) }
}

/// The destination's RAM, as it comes.
final class UpgradeMemoryDestination: Sendable {
    private let migration: MigrationDestination
    private let thread: HostThread
    private let ended: Gate<MigrationOutcome?>

    init(_ guest: VirtGuest, plan: UpgradePlan, socket: OwnedDescriptor) throws(SystemCallError) {
        let transport = try DescriptorTransport(name: plan.channel.rawValue, socket: socket)
        let configuration = plan.configuration
        let hooks =
            plan.channel == .pageFlip
            ? PageFlipDestination(transport: transport, configuration: configuration) : nil
        let migration = MigrationDestination(
            guest: MemoryOnlyGuest(guest), transport: transport, configuration: configuration, hooks: hooks,
            pageObserver: HandoverFault.inMemory("destination"))
        self.migration = migration
        let gate = Gate<MigrationOutcome?>(nil)
        ended = gate
        thread = try HostThread(name: "memory", stackByteCount: 1 << 20) {
            let outcome = migration.run()
            gate.update { $0 = outcome }
        }
    }

    /// Returns when all of it is here.
    func finish() throws(Refusal) {
        ended.wait { $0 != nil }
        guard ended.read({ $0 }) == .guestMoved else {
            throw Refusal("RAM did not arrive: \(migration.progress.error.map { "\($0)" } ?? "the stream ended early")")
        }
    }
}

/// What the source says of RAM that it sent, for the report.
struct SentMemory {
    /// When the guest stood still, CLOCK_MONOTONIC in nanoseconds.
    var stopped: Int64 = 0
    /// Bytes that were copied out of pipe or socket.
    var copiedByteCount = 0
    /// Processor time of the source's part, in nanoseconds.
    var processorNanoseconds: Int64 = 0

    init() {}

    /// As it crosses: three integers. The guest stands still meanwhile, and a JSON coder takes longer than all devices.
    var bytes: [UInt8] {
        var writer = ByteWriter()
        for value in [stopped, Int64(copiedByteCount), processorNanoseconds] { writer.integer(value) }
        return writer.bytes
    }

    init(_ bytes: [UInt8]) throws(Refusal) {
        var reader = ByteReader(bytes, of: "what is said of the sent memory")
        stopped = try reader.integer()
        copiedByteCount = Int(try reader.integer(as: Int64.self))
        processorNanoseconds = try reader.integer()
        try reader.finish()
    }

    /// Of this process.
    static func processProcessorNanoseconds() -> Int64 {
        var time = timespec()
        unsafe clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }
}
