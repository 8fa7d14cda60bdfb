import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationStream
import MigrationTestKit
import Synchronization
import Testing

@Suite("A postcopy whose channel breaks") struct PostcopyRecoveryTests {
    enum Way: CaseIterable, Sendable {
        case socket, releasing, flip

        var configuration: MigrationConfiguration {
            switch self {
            // Not even a first pass: all pages are still to be sent when the channel breaks.
            case .socket: Rig.postcopy(.precopy)
            case .releasing: Rig.postcopy(.precopy, [.releaseRAM])
            case .flip: Rig.postcopy(.postcopy, [.unixPageFlipping])
            }
        }
    }

    /// Gives both ends a new channel whenever both wait for one; ends the source when there is nobody to wait for.
    static func lookAfter(_ ends: Rig.Ends, _ recoveries: borrowing Mutex<Int>) {
        while ends.source.progress.outcome == nil || ends.destination.progress.outcome == nil {
            usleep(300)
            let (near, far) = (ends.source.progress, ends.destination.progress)
            guard near.status == .postcopyPaused else {
                // The source kept its guest or is done: a destination that still waits waits in vain.
                if near.outcome != nil, far.status == .postcopyPaused { ends.destination.abandon() }
                continue
            }
            if far.outcome != nil {
                ends.source.abandon()
            } else if far.status == .postcopyPaused, let pair = try? Rig.pair() {
                recoveries.withLock { $0 += 1 }
                ends.destination.recover(over: pair.1)
                ends.source.recover(over: pair.0)
                awaitAttempt(ends)
            }
        }
    }

    /// Until the source goes on over its new channel; one that broke at once may be over before anybody looks.
    static func awaitAttempt(_ ends: Rig.Ends) {
        for _ in 0..<500 where ends.source.progress.status == .postcopyPaused && ends.source.progress.outcome == nil {
            usleep(100)
        }
    }

    /// One migration with a fault; answers whether the fault happened, and how often the postcopy was recovered.
    static func attempt(
        _ side: Side, _ way: Way, _ fault: FaultyTransport.Fault, pages: [Int] = [700, 20]
    ) throws -> (hasBroken: Bool, recoveries: Int) {
        let rig = try Rig(script: Rig.script(threads: 1, rate: 20_000), pages: pages)
        // A guest whose memory never comes has threads that never end.
        let isLost = Mutex(false)
        defer {
            rig.source.end()
            if !isLost.withLock({ $0 }) { rig.destination.end() }
        }
        try rig.source.resume()
        let broken = Mutex<FaultyTransport?>(nil)
        let ends = try rig.postcopyEnds(
            way.configuration,
            wrap: { near, far in
                let faulty = FaultyTransport(side == .source ? near : far, fault)
                broken.withLock { $0 = faulty }
                return side == .source ? (faulty, far) : (near, faulty)
            })
        ends.source.startPostcopy()
        let recoveries = Mutex(0)
        let outcome = try Rig.run(ends, beside: { lookAfter(ends, recoveries) })
        let hasBroken = broken.withLock { $0!.hasBroken }
        let count = recoveries.withLock { $0 }
        let place =
            "\(side) \(way) \(fault): \(outcome), \(String(describing: ends.source.progress.error)), "
            + "\(String(describing: ends.destination.progress.error)), \(count) recoveries"
        if outcome.destination == .undecided {
            isLost.withLock { $0 = true }
            Issue.record("the guest ran at the destination and its memory was not brought: \(place)")
            return (hasBroken, count)
        }
        let holder: ScriptedGuest
        switch outcome.source {
        case .guestMoved:
            #expect(
                outcome.destination == .guestMoved && !rig.source.isRunning && rig.destination.isRunning, "\(place)")
            holder = rig.destination
        case .guestStayed:
            #expect(
                outcome.destination == .guestStayed && rig.source.isRunning && !rig.destination.isRunning, "\(place)")
            holder = rig.source
        case .undecided:
            // The source cannot know: it holds a paused guest that the destination never took. One that did take it, and is
            // done, had told so before.
            #expect(hasBroken && !rig.source.isRunning && outcome.destination == .guestStayed, "\(place)")
            ends.source.settle(.guestStayed)
            holder = rig.source
        }
        #expect(holder.isRunning && holder.waitForWrites(20), "\(place)")
        try holder.pause()
        #expect(holder.flaws() == [], "\(place)")
        return (hasBroken, count)
    }

    @Test(
        "at every call: the guest is in one place and whole, and one that had left has all of its memory in the end",
        arguments: Side.allCases, Way.allCases)
    func walk(side: Side, way: Way) throws {
        var recoveries = 0
        for isCut in [false, true] {
            try Rig.walk(callCountMin: 5) { call in
                let result = try Self.attempt(side, way, isCut ? .cut(atCall: call) : .closed(atCall: call))
                recoveries += result.recoveries
                return result.hasBroken
            }
        }
        #expect(recoveries > 3, "the channel never broke where it matters")
    }

    @Test("bytes in any portions and threads in any order make no difference", arguments: Way.allCases)
    func portions(way: Way) throws {
        for fault in [
            FaultyTransport.Fault.short(byteCount: 1), .short(byteCount: 4095), .delayed(yields: 20),
        ] {
            for side in Side.allCases {
                #expect(try Self.attempt(side, way, fault, pages: [150, 5]).hasBroken == false)
            }
        }
    }

    @Test("broken off by hand again and again, at either end, it still arrives", arguments: Side.allCases)
    func brokenOff(side: Side) throws {
        let rig = try Rig(script: Rig.script(threads: 2, rate: 2000), pages: [9000])
        defer { rig.end() }
        try rig.source.resume()
        var configuration = Rig.postcopy(.postcopy, [.releaseRAM])
        configuration.parameters.maxPostcopyBandwidthBytesPerSecond = 10 << 20
        let ends = try rig.postcopyEnds(configuration)
        let recoveries = Mutex(0)
        let breaker = try HostThread(name: "breaker") {
            for _ in 0..<4 {
                while ends.source.progress.status != .postcopyActive
                    || ends.destination.progress.status != .postcopyActive
                {
                    if ends.source.progress.outcome != nil { return }
                    usleep(300)
                }
                usleep(20_000)
                if side == .source { ends.source.breakChannel() } else { ends.destination.breakChannel() }
                while ends.source.progress.status == .postcopyActive { usleep(300) }
            }
        }
        let outcome = try Rig.run(ends, beside: { Self.lookAfter(ends, recoveries) })
        breaker.join()
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(recoveries.withLock { $0 } > 0)
        #expect(ends.source.progress.error == nil && ends.destination.progress.error == nil)
        #expect(rig.destination.waitForWrites(100))
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
        #expect(rig.residentPageCount == 0)
    }

    @Test("a new channel that breaks at once leaves both waiting for another")
    func recoveryFails() throws {
        // No call sends more than a piece and the page the one thread waits for: as there is not even a first pass, most
        // pages are still to come after all calls below, whatever the host's load.
        let rig = try Rig(script: Rig.script(threads: 1, rate: 8000), pages: [9000])
        let isLost = Mutex(false)
        defer {
            rig.source.end()
            if !isLost.withLock({ $0 }) { rig.destination.end() }
        }
        try rig.source.resume()
        let hasSwitched = Atomic<Bool>(false)
        let ends = try rig.postcopyEnds(
            Rig.postcopy(.precopy),
            wrap: { near, far in
                // Breaks at the first call after the guest has left.
                (WatchedTransport(near) { _ in !hasSwitched.load(ordering: .relaxed) }, far)
            },
            observer: { progress in
                if progress.status == .postcopyActive { hasSwitched.store(true, ordering: .relaxed) }
            })
        ends.source.startPostcopy()
        let tries = Mutex(0)
        let breaks = Mutex(0)
        let outcome = try Rig.run(
            ends,
            beside: {
                func isOver() -> Bool {
                    ends.source.progress.outcome != nil || ends.destination.progress.outcome != nil
                }
                for call in 1..<12 {
                    while ends.source.progress.status != .postcopyPaused
                        || ends.destination.progress.status != .postcopyPaused
                    {
                        if isOver() {
                            ends.source.abandon()
                            return ends.destination.abandon()
                        }
                        usleep(300)
                    }
                    guard let pair = try? Rig.pair() else { return }
                    tries.withLock { $0 += 1 }
                    ends.destination.recover(over: pair.1)
                    guard call < 11 else { return ends.source.recover(over: pair.0) }
                    let faulty = FaultyTransport(pair.0, .closed(atCall: call))
                    ends.source.recover(over: faulty)
                    while !faulty.hasBroken, !isOver() { usleep(100) }
                    if faulty.hasBroken { breaks.withLock { $0 += 1 } }
                }
            })
        isLost.withLock { $0 = outcome.destination == .undecided }
        #expect(tries.withLock { $0 } == 11 && breaks.withLock { $0 } == 10)
        try #require(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    /// Messages of the return path begin with their type: SHUT, type 1, is the destination's last.
    /// Source: docs/devel/migration/postcopy.rst
    private static func isLastWord(_ call: WatchedTransport.Call) -> Bool {
        if case .send(let start) = call { start.starts(with: [0, 1]) } else { false }
    }

    /// RAM's END, which the source sends when all pages were confirmed, in a call of its own.
    private static func isEnd(_ call: WatchedTransport.Call) -> Bool {
        if case .send(let start) = call { start.first == SectionKind.end.rawValue } else { false }
    }

    /// Until both wait for a channel; false when one of them is over.
    private static func awaitPause(_ ends: Rig.Ends) -> Bool {
        while ends.source.progress.status != .postcopyPaused || ends.destination.progress.status != .postcopyPaused {
            if ends.source.progress.outcome != nil || ends.destination.progress.outcome != nil { return false }
            usleep(300)
        }
        return true
    }

    private static func expectWhole(_ rig: Rig) throws {
        #expect(!rig.source.isRunning && rig.destination.isRunning)
        #expect(rig.destination.waitForWrites(20))
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test("broken off when all pages have come and before the destination says so, the source knows enough and is done")
    func brokenOffWhileSettling() throws {
        let rig = try Rig(script: Rig.script(threads: 1, rate: 2000), pages: [300])
        defer { rig.end() }
        try rig.source.resume()
        let last = HoldPoint()
        let ends = try rig.postcopyEnds(
            Rig.postcopy(),
            wrap: { near, far in
                (
                    near,
                    WatchedTransport(far) { call in
                        if Self.isLastWord(call) { last.reach() }
                        return true
                    }
                )
            })
        let whileHeld = Mutex<MigrationOutcome?>(nil)
        let outcome = try Rig.run(
            ends,
            beside: {
                last.waitUntilReached()
                ends.source.breakChannel()
                for _ in 0..<60_000 where ends.source.progress.outcome == nil { usleep(1000) }
                whileHeld.withLock { $0 = ends.source.progress.outcome }
                last.open()
                ends.source.abandon()
            })
        #expect(whileHeld.withLock { $0 } == .guestMoved)
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(ends.source.progress.status == .completed && ends.source.progress.error == nil)
        #expect(ends.source.progress.notices.contains { $0.contains("its last word did not come") })
        try Self.expectWhole(rig)
    }

    @Test(
        "a destination that is done, and whose last word is lost, leaves no source that waits",
        arguments: [
            Rig.postcopy(), Rig.postcopy(.postcopy, [.releaseRAM]), Rig.postcopy(.postcopy, [.unixPageFlipping]),
        ])
    func lastWordLost(configuration: MigrationConfiguration) throws {
        let rig = try Rig(script: Rig.script(threads: 1, rate: 2000), pages: [300])
        defer { rig.end() }
        try rig.source.resume()
        let ends = try rig.postcopyEnds(
            configuration, wrap: { near, far in (near, WatchedTransport(far) { !Self.isLastWord($0) }) })
        let hasWaited = Mutex(false)
        let outcome = try Rig.run(
            ends,
            beside: {
                while ends.source.progress.outcome == nil {
                    if ends.source.progress.status == .postcopyPaused {
                        hasWaited.withLock { $0 = true }
                        ends.source.abandon()
                    }
                    usleep(300)
                }
            })
        #expect(!hasWaited.withLock { $0 })
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(ends.source.progress.status == .completed && ends.source.progress.error == nil)
        try Self.expectWhole(rig)
    }

    @Test("a destination that says it failed when it had everything is no end of the source's choosing")
    func failsWithEverything() throws {
        let rig = try Rig(script: Rig.script(threads: 1, rate: 2000), pages: [300])
        defer { rig.end() }
        try rig.source.resume()
        let ends = try rig.postcopyEnds(
            Rig.postcopy(),
            wrap: { near, far in
                (
                    near,
                    WatchedTransport(far) { call in
                        guard Self.isLastWord(call) else { return true }
                        let writer = StreamWriter()
                        ReturnPathMessage.shut(status: 1).encode(to: writer)
                        try? (far as? DescriptorTransport)?.send(writer.bytes, descriptors: [])
                        return false
                    }
                )
            })
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .undecided && !rig.source.isRunning)
        #expect(ends.source.progress.error?.message.contains("the destination reports that it failed") == true)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test(
        "broken when only the end was to be said, both wait and are recovered, or told to stop waiting: nothing is lost",
        arguments: [true, false])
    func endLost(isRecovered: Bool) throws {
        let rig = try Rig(script: Rig.script(threads: 1, rate: 2000), pages: [300])
        defer { rig.end() }
        try rig.source.resume()
        let ends = try rig.postcopyEnds(
            Rig.postcopy(), wrap: { near, far in (WatchedTransport(near) { !Self.isEnd($0) }, far) })
        let messages = Mutex<[String]>([])
        let outcome = try Rig.run(
            ends,
            beside: {
                guard Self.awaitPause(ends) else { return }
                messages.withLock {
                    $0 = [ends.source.progress.error, ends.destination.progress.error].compactMap { $0?.message }
                }
                if isRecovered, let pair = try? Rig.pair() {
                    ends.destination.recover(over: pair.1)
                    ends.source.recover(over: pair.0)
                } else {
                    ends.destination.abandon()
                    ends.source.abandon()
                }
            })
        let said = messages.withLock { $0 }
        #expect(said.count == 2 && said.allSatisfy { $0.contains("all of its memory") }, "\(said)")
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(ends.source.progress.error == nil && ends.destination.progress.error == nil)
        try Self.expectWhole(rig)
    }
}
