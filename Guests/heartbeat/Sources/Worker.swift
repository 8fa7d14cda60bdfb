import Bare

/// What every hart does: rewrite pages at the set rate, check all of them each round, watch the clocks, sleep in between.
struct Worker {
    private let hart: Int
    private let shared: Shared
    private let console: Console
    private var set: WorkingSet
    private var epoch: UInt64
    private var setPageCount: UInt64
    /// The clock as last read, or the end of a sleep that was meant to be: what goes beyond is a pause.
    private var expected: UInt64
    private var wallExpected: UInt64
    private var rateStart: UInt64
    private var rate: UInt64
    private var ratedWrites: UInt64 = 0
    private var checking = true
    private var nextRound: UInt64
    private(set) var now: UInt64

    /// A longer sleep would leave typed commands waiting.
    private static let longestSleep = Platform.ticksPerSecond / 100
    /// Faults told in full; the rest are counted.
    private static let tellsMax: UInt64 = 16

    init(hart: Int, shared: Shared) {
        self.hart = hart
        self.shared = shared
        console = Console(lock: shared.consoleLock)
        setPageCount = shared[.pageCount]
        epoch = shared[.epoch]
        rate = shared[.dirtyPagesPerSecond]
        set = Self.workingSet(hart, shared)
        now = Platform.now
        expected = now
        wallExpected = Platform.wallNanoseconds
        rateStart = now
        nextRound = now
    }

    /// The RAM behind the image, in equal parts for each hart.
    private static func workingSet(_ hart: Int, _ shared: Shared) -> WorkingSet {
        let start = bare_image_end() &+ Shared.byteCount
        let part = (shared[.usableEnd] &- start) / shared[.hartCount] & ~(Platform.pageSize &- 1)
        return WorkingSet(
            from: start &+ part &* UInt64(hart), to: start &+ part &* UInt64(hart &+ 1), pageCount: shared[.pageCount],
            hart: hart)
    }

    /// Reads both clocks and keeps the largest gap between two readings.
    mutating func readClocks() {
        now = Platform.now
        let wall = Platform.wallNanoseconds
        if now > expected, now &- expected > shared[.pauseTicks, hart: hart] {
            shared[.pauseTicks, hart: hart] = now &- expected
        }
        if wall > wallExpected, wall &- wallExpected > shared[.wallPauseNanoseconds, hart: hart] {
            shared[.wallPauseNanoseconds, hart: hart] = wall &- wallExpected
        }
        expected = now
        wallExpected = wall
    }

    /// One piece of work, or a sleep that ends at `deadline` at the latest.
    mutating func step(until deadline: UInt64) {
        readClocks()
        followSettings()
        let owed = (now &- rateStart) / 1000 &* rate / (Platform.ticksPerSecond / 1000)
        if ratedWrites < owed {
            // After a pause the debt is forgiven: the rate is meant for the guest's own time.
            if owed &- ratedWrites > rate { ratedWrites = owed &- 1 }
            set.writeSome()
            ratedWrites &+= 1
            shared[.writes, hart: hart] &+= 1
            return
        }
        if checking {
            check()
            return
        }
        if now >= nextRound {
            nextRound = now &+ Platform.ticksPerSecond / max(1, shared[.roundsPerSecond])
            if shared[.roundsPerSecond] > 0 {
                set.beginCheck()
                checking = true
            }
            return
        }
        if shared[.spin] != 0 { return }
        var wake = min(deadline, nextRound, now &+ Self.longestSleep)
        if rate > 0 { wake = min(wake, now &+ Platform.ticksPerSecond / rate) }
        guard wake > now else { return }
        let before = now
        Platform.sleep(hart: hart, until: wake)
        // A sleep ends late, or early by an interrupt; only what exceeds it counts as a pause.
        let slept = Platform.now &- before
        expected = max(expected, min(wake, before &+ slept))
        wallExpected &+= min(slept, wake &- before) &* Platform.nanosecondsPerTick
    }

    private mutating func check() {
        switch set.checkNext() {
        case .pageRight: return
        case .allRight: shared[.rounds, hart: hart] &+= 1
        case .tableWrong: tellBad { $0.put("table") }
        case .pageWrong(let page):
            tellBad { $0.put("page ", page) }
            return
        }
        checking = false
    }

    private func tellBad(_ what: (Console) -> Void) {
        shared[.bad, hart: hart] &+= 1
        guard shared[.bad, hart: hart] <= Self.tellsMax else { return }
        console.exclusively {
            console.put("BAD ")
            what(console)
            console.put(" hart ", UInt64(hart))
            console.endLine()
        }
    }

    private mutating func followSettings() {
        if shared[.dirtyPagesPerSecond] != rate {
            rate = shared[.dirtyPagesPerSecond]
            rateStart = now
            ratedWrites = 0
        }
        var ownWork = false
        if shared[.pageCount] != setPageCount {
            setPageCount = shared[.pageCount]
            set = Self.workingSet(hart, shared)
            checking = true
            ownWork = true
        }
        if shared[.epoch] != epoch {
            epoch = shared[.epoch]
            for statistic in [Shared.Statistic.rounds, .writes, .bad, .pauseTicks, .wallPauseNanoseconds] {
                shared[statistic, hart: hart] = 0
            }
            ownWork = true
        }
        if ownWork { readClocksAfresh() }
    }

    /// What came before was our own work (filling pages, zeroing): not a pause.
    private mutating func readClocksAfresh() {
        now = Platform.now
        expected = now
        wallExpected = Platform.wallNanoseconds
    }
}
