package import ComponentState
package import GuestMemory
import Glibc
import MigrationEngine
package import Synchronization

/// What a scripted guest does to its memory.
package struct GuestScript: Hashable, Sendable {
    package enum Pattern: Hashable, Sendable {
        /// One page after the other, again and again.
        case sequential
        case random
        /// Most writes go to the first `percent` of the pages.
        case hotSpot(percent: Int)
    }

    package var seed: UInt64 = 1
    package var pattern = Pattern.random
    package var threadCount = 2
    /// Pages written per second by each thread; 0 is as fast as it can.
    package var pagesPerSecondPerThread = 0
    /// Every so many writes of a page make it all zero; 0 never.
    package var zeroEvery: UInt32 = 7
    /// Share of the pages that begin with contents, in percent; the rest are holes.
    package var filledPercent = 60

    package init() {}
}

/// A guest without processor or devices: threads write whole pages whose contents follow from the seed, the page and
/// how often it was written, and a ledger, which travels as device state, says how often that was. A page that is lost,
/// stale or torn cannot hide.
///
/// It marks pages as a processor with a cached translation does: the first write to a page after
/// ``restartDirtyTracking()`` is marked *before* it is made, later ones not at all.
package final class ScriptedGuest: MigratableGuest {
    package let machineName: String
    package let ramBlocks: [RAMBlock]
    package let script: GuestScript
    private let ledger: Ledger
    package let extraComponents: [any StatefulComponent]

    private struct Control {
        /// Who should be running.
        var wantsRun = false
        var isEnding = false
        /// Threads between two writes, waiting to be let on.
        var parked = 0
        /// Raised by ``ScriptedGuest/restartDirtyTracking()``.
        var epoch = 0
        /// Epoch each thread has seen.
        var seen: [Int]
        var throttlePercent = 0
    }

    private let control: Gate<Control>
    private let wantsAttention = Atomic<Bool>(false)
    private let threads: [pthread_t]
    private let writes = Atomic<UInt64>(0)

    /// Faults to play: thrown by the next call.
    package let faults = Mutex<Faults>(Faults())
    package struct Faults: Sendable {
        package var pause: (any Error & Sendable)?
        package var resume: (any Error & Sendable)?
        package var restartDirtyTracking: (any Error & Sendable)?
        package var finishLoading: (any Error & Sendable)?
    }
    /// How often the guest was told to run or stop.
    package let pauseCount = Atomic<Int>(0)
    package let resumeCount = Atomic<Int>(0)
    package let throttleMax = Atomic<Int>(0)

    /// - Parameters:
    ///   - fills: False makes a destination: memory as it comes, threads ready but never started before a load.
    package init(
        script: GuestScript = GuestScript(), machineName: String = "scripted", blocks: [RAMBlock], fills: Bool = true,
        components: [any StatefulComponent] = []
    ) {
        self.machineName = machineName
        self.script = script
        ramBlocks = blocks
        extraComponents = components
        ledger = Ledger(pageCount: blocks.reduce(0) { $0 + $1.pageCount })
        control = Gate(Control(seen: Array(repeating: 0, count: script.threadCount)))
        let start = (0..<script.threadCount).map { Start(index: $0) }
        threads = start.map { start in
            var thread = pthread_t()
            unsafe pthread_create(
                &thread, nil,
                { argument in
                    let start = unsafe Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue()
                    start.guest.wait { $0 != nil }
                    let guest = start.guest.update { guest in
                        defer { guest = nil }
                        return guest
                    }
                    guest?.run(start.index)
                    return nil
                }, Unmanaged.passRetained(start).toOpaque())
            return thread
        }
        if fills { fill() }
        for start in start { start.guest.update { $0 = self } }
    }

    private final class Start: Sendable {
        let index: Int
        let guest = Gate<ScriptedGuest?>(nil)
        init(index: Int) { self.index = index }
    }

    /// Ends the threads; must be called before the last reference goes away.
    package func end() {
        control.update { $0.isEnding = true }
        wantsAttention.store(true, ordering: .releasing)
        for thread in threads { pthread_join(thread, nil) }
    }

    // MARK: Contents

    private func fill() {
        var page = 0
        for block in ramBlocks {
            for index in 0..<block.pageCount {
                defer { page += 1 }
                guard Self.mix(script.seed, UInt64(page)) % 100 < UInt64(script.filledPercent) else { continue }
                ledger.set(page, 1)
                unsafe Self.write(
                    block.base + index * guestPageSize, seed: script.seed, page: page, count: 1, script.zeroEvery)
            }
        }
    }

    private static func mix(_ seed: UInt64, _ value: UInt64) -> UInt64 {
        var z = seed &+ value &* 0x9e37_79b9_7f4a_7c15
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    private static func isZero(count: UInt32, _ zeroEvery: UInt32) -> Bool {
        count == 0 || (zeroEvery > 0 && count % zeroEvery == 0)
    }

    /// The words of a page: the first is its key, the others count up from it in steps of its own.
    private static func write(
        _ pointer: UnsafeMutableRawPointer, seed: UInt64, page: Int, count: UInt32, _ zeroEvery: UInt32
    ) {
        if isZero(count: count, zeroEvery) {
            unsafe memset(pointer, 0, guestPageSize)
            return
        }
        let key = mix(seed &+ UInt64(count), UInt64(page)) | 1
        let words = unsafe pointer.assumingMemoryBound(to: UInt64.self)
        var value = key
        let step = key >> 7 | 1
        for index in 0..<(guestPageSize / 8) {
            unsafe words[index] = value
            value &+= step
        }
    }

    /// What is wrong with a page.
    package enum Flaw: Hashable, Sendable, CustomStringConvertible {
        /// Whole, but from an earlier write.
        case stale(block: String, page: Int, expected: UInt32, found: UInt32)
        /// Neither what it should be nor what it ever was.
        case torn(block: String, page: Int, expected: UInt32)

        package var description: String {
            switch self {
            case .stale(let block, let page, let expected, let found):
                "\(block) page \(page): write \(found), should be \(expected)"
            case .torn(let block, let page, let expected): "\(block) page \(page): torn, should be write \(expected)"
            }
        }
    }

    /// Compares every page with the ledger. Only while the guest is paused.
    /// - Returns: The first flaws, at most 10.
    package func flaws() -> [Flaw] {
        var found: [Flaw] = []
        let expected = UnsafeMutableRawPointer.allocate(byteCount: guestPageSize, alignment: 16)
        defer { unsafe expected.deallocate() }
        var page = 0
        for block in ramBlocks {
            for index in 0..<block.pageCount {
                defer { page += 1 }
                let pointer = unsafe block.base + index * guestPageSize
                let count = ledger.count(page)
                func matches(_ count: UInt32) -> Bool {
                    unsafe Self.write(expected, seed: script.seed, page: page, count: count, script.zeroEvery)
                    return unsafe memcmp(expected, pointer, guestPageSize) == 0
                }
                if matches(count) { continue }
                let earlier = stride(from: Int(count) - 1, through: max(0, Int(count) - 64), by: -1)
                    .first { matches(UInt32($0)) }
                if let earlier {
                    found.append(.stale(block: block.name, page: index, expected: count, found: UInt32(earlier)))
                } else {
                    found.append(.torn(block: block.name, page: index, expected: count))
                }
                if found.count == 10 { return found }
            }
        }
        return found
    }

    /// Pages written since the guest was made, by all threads.
    package var writeCount: UInt64 { writes.load(ordering: .relaxed) }

    /// Waits until the guest has written so many pages more; false when it does not run.
    package func waitForWrites(_ count: UInt64) -> Bool {
        let target = writeCount + count
        while writeCount < target {
            guard control.read({ $0.wantsRun }) else { return false }
            sched_yield()
        }
        return true
    }

    // MARK: Threads

    private func run(_ thread: Int) {
        let total = ledger.pageCount
        var random = Self.mix(script.seed, 0xabcdef + UInt64(thread) + UInt64(ledger.generation))
        var marked = [Bool](repeating: false, count: total)
        var epoch = 0
        var sequence = 0
        var parkedBefore = true
        var pace = Pace(pagesPerSecond: script.pagesPerSecondPerThread)
        while true {
            if parkedBefore || wantsAttention.load(ordering: .acquiring) || !pace.isDue {
                // A safe point: between two writes.
                var isEnding = false
                var isParked = false
                var newEpoch = epoch
                control.update { control in
                    control.seen[thread] = control.epoch
                    newEpoch = control.epoch
                    isEnding = control.isEnding
                    isParked = !control.wantsRun && !isEnding
                    if isParked { control.parked += 1 }
                }
                if newEpoch != epoch {
                    epoch = newEpoch
                    for index in marked.indices { marked[index] = false }
                }
                if isEnding { return }
                if isParked {
                    control.wait { $0.wantsRun || $0.isEnding || $0.seen[thread] != $0.epoch }
                    control.update { $0.parked -= 1 }
                    parkedBefore = true
                    continue
                }
                parkedBefore = false
                if !pace.isDue {
                    usleep(500)
                    continue
                }
                let throttle = control.read { $0.throttlePercent }
                if throttle > 0 { usleep(UInt32(throttle * 10)) }
            }
            random = Self.mix(random, 1)
            let choice: Int
            let own = total / script.threadCount + (thread < total % script.threadCount ? 1 : 0)
            guard own > 0 else { sched_yield(); continue }
            switch script.pattern {
            case .sequential:
                choice = sequence % own
                sequence += 1
            case .random: choice = Int(random % UInt64(own))
            case .hotSpot(let percent):
                let hot = max(1, own * percent / 100)
                choice = random >> 60 == 0 ? Int(random % UInt64(own)) : Int(random % UInt64(hot))
            }
            let page = choice * script.threadCount + thread  // pages are dealt out to threads, so each has one writer
            guard page < total else { continue }
            let (block, index) = locate(page)
            let count = ledger.count(page) &+ 1
            if !marked[page] {
                marked[page] = true
                block.dirty.mark(page: index)
            }
            ledger.set(page, count)
            unsafe Self.write(
                block.base + index * guestPageSize, seed: script.seed, page: page, count: count, script.zeroEvery)
            writes.wrappingAdd(1, ordering: .relaxed)
            pace.took()
        }
    }

    private func locate(_ page: Int) -> (RAMBlock, Int) {
        var page = page
        for block in ramBlocks {
            if page < block.pageCount { return (block, page) }
            page -= block.pageCount
        }
        preconditionFailure("no such page")
    }

    /// Keeps a thread to its rate, without accuracy.
    private struct Pace {
        let nanosecondsPerPage: UInt64
        var next: UInt64

        init(pagesPerSecond: Int) {
            nanosecondsPerPage = pagesPerSecond == 0 ? 0 : 1_000_000_000 / UInt64(pagesPerSecond)
            next = 0
        }

        var isDue: Bool { nanosecondsPerPage == 0 || Self.now() >= next }

        mutating func took() {
            guard nanosecondsPerPage > 0 else { return }
            next = max(next, Self.now() &- 10 * nanosecondsPerPage) &+ nanosecondsPerPage
        }

        static func now() -> UInt64 {
            var time = timespec()
            unsafe clock_gettime(CLOCK_MONOTONIC, &time)
            return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
        }
    }

    // MARK: MigratableGuest

    package var components: [any StatefulComponent] { [ledger] + extraComponents }
    package var isRunning: Bool { control.read { $0.wantsRun } }

    package func restartDirtyTracking() throws {
        if let fault = faults.withLock({ $0.restartDirtyTracking.take() }) { throw fault }
        let epoch = control.update { control in
            control.epoch += 1
            return control.epoch
        }
        wantsAttention.store(true, ordering: .releasing)
        control.wait { control in
            control.isEnding || control.seen.allSatisfy { $0 >= epoch }
        }
        settle()
    }

    package func setThrottle(percent: Int) {
        control.update { $0.throttlePercent = percent }
        if percent > throttleMax.load(ordering: .relaxed) { throttleMax.store(percent, ordering: .relaxed) }
        settle()
    }

    package func pause() throws {
        if let fault = faults.withLock({ $0.pause.take() }) { throw fault }
        pauseCount.wrappingAdd(1, ordering: .relaxed)
        control.update { $0.wantsRun = false }
        wantsAttention.store(true, ordering: .releasing)
        control.wait { $0.isEnding || $0.parked == script.threadCount }
    }

    package func resume() throws {
        if let fault = faults.withLock({ $0.resume.take() }) { throw fault }
        resumeCount.wrappingAdd(1, ordering: .relaxed)
        control.update { $0.wantsRun = true }
        settle()
    }

    /// The threads need not look at the control when there is nothing in it for them.
    private func settle() {
        let isQuiet = control.read { $0.wantsRun && !$0.isEnding && $0.throttlePercent == 0 }
        wantsAttention.store(!isQuiet, ordering: .releasing)
    }

    package func finishLoading() throws {
        if let fault = faults.withLock({ $0.finishLoading.take() }) { throw fault }
    }
}

/// How often each page was written; travels as device state.
@safe private final class Ledger: StatefulComponent {
    let pageCount: Int
    // SAFETY: each entry has one writer thread; it is read as a whole only while the guest is paused.
    nonisolated(unsafe) private let counts: UnsafeMutablePointer<UInt32>
    private let generationValue = Atomic<UInt32>(0)

    init(pageCount: Int) {
        self.pageCount = pageCount
        unsafe counts = .allocate(capacity: max(pageCount, 1))
        unsafe counts.initialize(repeating: 0, count: pageCount)
    }

    deinit { unsafe counts.deallocate() }

    func count(_ page: Int) -> UInt32 { unsafe counts[page] }
    func set(_ page: Int, _ count: UInt32) { unsafe counts[page] = count }
    /// How often it was loaded, so that a moved guest does not repeat itself.
    var generation: UInt32 { generationValue.load(ordering: .relaxed) }

    let sectionName = "scripted-guest"
    let instance: UInt32 = 0
    func sectionVersion(for layout: StateLayout) -> UInt32? { 1 }
    let readableVersions: ClosedRange<UInt32> = 1...1

    func codeState(with coder: inout any StateCoder) throws(StateError) {
        var total = UInt32(pageCount)
        try coder.uint32("pages", &total)
        guard total == UInt32(pageCount) else {
            throw .invalid(component: coder.component, field: "pages", value: "\(total)")
        }
        var values = unsafe Array(UnsafeBufferPointer(start: counts, count: pageCount))
        try coder.uint32Array("counts", &values)
        guard coder.isDecoding else { return }
        for (index, value) in values.enumerated() { set(index, value) }
        generationValue.wrappingAdd(1, ordering: .relaxed)
    }
}
