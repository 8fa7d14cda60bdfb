import ComponentState
import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit
import Synchronization
import SystemPackage
import Testing

extension Rig {
    /// Postcopy at both ends.
    static func postcopy(
        _ strategy: MigrationStrategy = .postcopy, _ more: Set<MigrationCapability> = []
    ) -> MigrationConfiguration {
        var configuration = Rig.configuration
        configuration.capabilities.formUnion(more)
        configuration.capabilities.insert(.postcopyRAM)
        configuration.strategy = strategy
        return configuration
    }

    /// Both ends of a postcopy; over a page-flip pipe if that is on.
    func postcopyEnds(
        _ configuration: MigrationConfiguration, faults: UserFaultOpener = .kernel, to guest: ScriptedGuest? = nil,
        transports: (DescriptorTransport, DescriptorTransport)? = nil,
        wrap: (_ source: any MigrationTransport, _ destination: any MigrationTransport)
            -> (any MigrationTransport, any MigrationTransport) = { ($0, $1) },
        observer: (@Sendable (MigrationProgress) -> Void)? = nil,
        destinationObserver: (@Sendable (MigrationProgress) -> Void)? = nil
    ) throws -> Ends {
        let (left, right) = try transports ?? Rig.pair()
        let flips = configuration.has(.unixPageFlipping)
        let (near, far) = wrap(left, right)
        return Ends(
            source: MigrationSource(
                guest: source, transport: near, configuration: configuration,
                hooks: flips ? PageFlipSource(transport: left, guest: source, configuration: configuration) : nil,
                observer: observer),
            destination: MigrationDestination(
                guest: guest ?? destination, transport: far, configuration: configuration,
                hooks: flips ? PageFlipDestination(transport: right, configuration: configuration) : nil,
                faults: faults, observer: destinationObserver))
    }

    /// Pages of the source's blocks that the host still holds for it.
    var residentPageCount: Int {
        source.ramBlocks.reduce(0) { sum, block in
            var status = stat()
            fstat(block.file!.rawValue, &status)
            return sum + Int(status.st_blocks) / 8
        }
    }
}

/// Holds a migration at a point until it is let on.
final class HoldPoint: Sendable {
    private let gate = Gate((isReached: false, isOpen: false))

    func reach() {
        gate.update { $0.isReached = true }
        gate.wait { $0.isOpen }
    }
    func waitUntilReached() { gate.wait { $0.isReached } }
    func open() { gate.update { $0.isOpen = true } }
}

@Suite("Postcopy") struct PostcopyTests {
    enum Way: CaseIterable, Sendable {
        case socket, socketAnonymous, flip

        var configuration: MigrationConfiguration {
            self == .flip ? Rig.postcopy(.postcopy, [.unixPageFlipping]) : Rig.postcopy(.postcopy, [])
        }
        var backend: MemoryBackend { self == .socketAnonymous ? .anonymous : .memfd }
    }

    @Test(
        "the guest runs at the destination while pages are missing, and has every one of them in the end",
        arguments: Way.allCases)
    func moves(way: Way) throws {
        let rig = try Rig(script: Rig.script(threads: 3, rate: 20_000), pages: [6000, 3, 400], backend: way.backend)
        defer { rig.end() }
        try rig.source.resume()
        let made = Mutex<Rig.Ends?>(nil)
        defer { made.withLock { $0 = nil } }
        let remaining = Mutex<UInt64?>(nil)
        let hasAsked = Gate(false)
        let ends = try rig.postcopyEnds(
            way.configuration,
            wrap: { near, far in
                // The first call after the guest has left waits until it runs there and misses a page.
                let watched = WatchedTransport(near) { _ in
                    guard let source = made.withLock({ $0?.source }), source.progress.hasLeft,
                        remaining.withLock({ $0 }) == nil
                    else { return true }
                    hasAsked.wait { $0 }
                    #expect(rig.destination.isRunning)
                    remaining.withLock { $0 = source.progress.ram.remainingByteCount }
                    return true
                }
                // Page requests are types 3 and 4 of the return path. Source: docs/devel/migration/postcopy.rst
                let asking = WatchedTransport(far) { call in
                    if case .send(let start) = call, start.starts(with: [0, 3]) || start.starts(with: [0, 4]) {
                        hasAsked.update { $0 = true }
                    }
                    return true
                }
                return (watched, asking)
            },
            observer: { progress in
                // More than is on its way when the guest leaves has to come again.
                if progress.status == .active { _ = rig.source.waitForWrites(1500) }
            })
        made.withLock { $0 = ends }
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(ends.source.progress.error == nil && ends.destination.progress.error == nil)
        #expect(!rig.source.isRunning && rig.destination.isRunning)
        #expect(try #require(remaining.withLock { $0 }) > 0, "it did not run before its memory was there")
        #expect(ends.source.progress.ram.postcopyRequests > 0)
        #expect(ends.source.progress.ram.postcopyByteCount > 0)
        #expect(rig.destination.waitForWrites(300))
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test("it starts in the middle of a pass when it is asked to")
    func startsWhenAsked() throws {
        let rig = try Rig(script: Rig.script(threads: 2, rate: 0), pages: [8000])
        defer { rig.end() }
        try rig.source.resume()
        var configuration = Rig.postcopy(.precopy)
        configuration.parameters.maxBandwidthBytesPerSecond = 4 << 20  // the first pass would take seconds
        configuration.parameters.roundLimit = 0
        let ends = try rig.postcopyEnds(configuration)
        let outcome = try Rig.run(
            ends,
            beside: {
                while ends.source.progress.status != .active, ends.source.progress.outcome == nil { usleep(500) }
                _ = rig.source.waitForWrites(200)
                ends.source.startPostcopy()
            })
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(ends.source.progress.timing.roundNanoseconds.count == 1)
        #expect(ends.source.progress.ram.postcopyByteCount > 0)
        #expect(rig.destination.waitForWrites(300))
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test("with the capability on and nobody asking it is a precopy")
    func neverAsked() throws {
        let rig = try Rig()
        defer { rig.end() }
        try rig.source.resume()
        let ends = try rig.postcopyEnds(Rig.postcopy(.precopy), observer: rig.writesInEachRound)
        #expect(try Rig.run(ends).source == .guestMoved)
        #expect(ends.source.progress.ram.postcopyByteCount == 0)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test(
        "release-ram and the page flip leave nothing at the source, and little of it exists twice",
        arguments: [true, false])
    func releases(flips: Bool) throws {
        let rig = try Rig(script: Rig.script(threads: 1, rate: 4000), pages: [12_000])
        defer { rig.end() }
        try rig.source.resume()
        let configuration =
            flips ? Rig.postcopy(.postcopy, [.unixPageFlipping]) : Rig.postcopy(.postcopy, [.releaseRAM])
        let before = rig.residentPageCount
        let most = Mutex(0)
        let ends = try rig.postcopyEnds(
            configuration,
            destinationObserver: nil)
        let outcome = try Rig.run(
            ends,
            beside: {
                while ends.source.progress.outcome == nil {
                    let there = rig.destination.ramBlocks.reduce(0) { sum, block in
                        var status = stat()
                        fstat(block.file!.rawValue, &status)
                        return sum + Int(status.st_blocks) / 8
                    }
                    let both = rig.residentPageCount + there
                    most.withLock { $0 = max($0, both) }
                    usleep(300)
                }
            })
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(rig.residentPageCount == 0, "\(rig.residentPageCount) pages are left at the source")
        #expect(rig.destination.waitForWrites(100))
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
        // With a round before it there is a second copy of everything for a while; without, pieces on their way.
        if flips {
            #expect(most.withLock { $0 } < before + 3000, "\(most.withLock { $0 }) pages, \(before) before")
        }
    }

    @Test(
        "a host that refuses userfaultfd refuses the postcopy before a page moves",
        arguments: [Errno.notPermitted, .noFunction])
    func refused(errno: Errno) throws {
        let rig = try Rig()
        defer { rig.end() }
        try rig.source.resume()
        let refusing = UserFaultOpener { () throws(SystemCallError) in throw SystemCallError("userfaultfd", errno) }
        let ends = try rig.postcopyEnds(Rig.postcopy(), faults: refusing)
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestStayed && outcome.destination == .guestStayed)
        #expect(ends.destination.progress.error?.message.contains("userfaultfd") == true)
        #expect(ends.source.progress.error?.code == .peerRefused)
        #expect(ends.source.progress.ram.postcopyByteCount == 0)
        #expect(rig.source.isRunning && !rig.destination.isRunning)
        try rig.source.pause()
        #expect(rig.source.flaws() == [])
    }

    @Test("a destination that does not take the state leaves the guest at the source, and the next attempt works")
    func stateRefused() throws {
        let rig = try Rig { [ScriptedComponent("late", byteCount: 32)] }
        defer { rig.end() }
        (rig.destination.extraComponents[0] as! ScriptedComponent).fault.withLock {
            $0 = .invalid(component: "late", field: "bytes", value: "scripted")
        }
        try rig.source.resume()
        for way in [Rig.postcopy(), Rig.postcopy(.postcopy, [.unixPageFlipping])] {
            let fresh = try Rig { [ScriptedComponent("late", byteCount: 32)] }
            defer { fresh.end() }
            (fresh.destination.extraComponents[0] as! ScriptedComponent).fault.withLock {
                $0 = .invalid(component: "late", field: "bytes", value: "scripted")
            }
            let ends = try rig.postcopyEnds(way, to: fresh.destination)
            let outcome = try Rig.run(ends)
            #expect(outcome.source == .guestStayed && outcome.destination == .guestStayed)
            #expect(ends.source.progress.error?.code == .peerRefused)
            #expect(ends.destination.progress.error?.code == .stateRejected)
            #expect(rig.source.isRunning && !fresh.destination.isRunning)
            #expect(rig.source.waitForWrites(100))
        }
        (rig.destination.extraComponents[0] as! ScriptedComponent).fault.withLock { $0 = nil }
        #expect(try Rig.run(rig.postcopyEnds(Rig.postcopy())).source == .guestMoved)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test("a guest that stood still at the source stands still at the destination")
    func paused() throws {
        let rig = try Rig()
        defer { rig.end() }
        let ends = try rig.postcopyEnds(Rig.postcopy())
        #expect(try Rig.run(ends).destination == .guestMoved)
        #expect(!rig.destination.isRunning)
        #expect(rig.destination.flaws() == [])
    }

    @Test("a cancel before the switch leaves the guest running here; afterwards it changes nothing")
    func cancel() throws {
        for isLate in [false, true] {
            let rig = try Rig(script: Rig.script(threads: 1, rate: 2000), pages: [4000])
            defer { rig.end() }
            try rig.source.resume()
            var configuration = Rig.postcopy(isLate ? .postcopy : .precopy)
            if !isLate { configuration.parameters.maxBandwidthBytesPerSecond = 1 << 20 }
            configuration.parameters.maxPostcopyBandwidthBytesPerSecond = 64 << 20
            let wanted: MigrationStatus = isLate ? .postcopyActive : .active
            let ends = try rig.postcopyEnds(configuration)
            let outcome = try Rig.run(
                ends,
                beside: {
                    while ends.source.progress.status != wanted, ends.source.progress.outcome == nil { usleep(200) }
                    ends.source.cancel()
                    ends.destination.cancel()
                })
            #expect(outcome.source == (isLate ? .guestMoved : .guestStayed))
            let holder = isLate ? rig.destination : rig.source
            #expect(holder.isRunning)
            try holder.pause()
            #expect(holder.flaws() == [])
        }
    }
}
