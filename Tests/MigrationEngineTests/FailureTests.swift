import ComponentState
import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit
import Synchronization
import Testing

struct Scripted: Error, Sendable {}

@Suite("After a failure the guest runs on at the source and the next attempt works") struct FailureTests {
    /// The guest is at the source, unharmed, and moves at the next attempt.
    static func expectUnharmed(_ rig: Rig) throws {
        #expect(rig.source.isRunning && !rig.destination.isRunning)
        #expect(rig.source.waitForWrites(200))
        try rig.source.pause()
        #expect(rig.source.flaws() == [])
        try rig.source.resume()
        let ends = try rig.ends()
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(ends.source.progress.error == nil)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test("a component that cannot be written")
    func cannotSave() throws {
        let rig = try Rig { [ScriptedComponent("late")] }
        defer { rig.end() }
        try rig.source.resume()
        (rig.source.extraComponents[0] as! ScriptedComponent).fault.withLock {
            $0 = .unsupported(component: "late", reason: "scripted")
        }
        let ends = try rig.ends()
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestStayed && outcome.destination == .guestStayed)
        #expect(ends.source.progress.error?.code == .stateRejected)
        #expect(ends.source.progress.error?.phase == .switchover)
        #expect(ends.source.progress.status == .failed)
        try Self.expectUnharmed(rig)
    }

    @Test("a component that is refused")
    func cannotLoad() throws {
        let rig = try Rig { [ScriptedComponent("late")] }
        defer { rig.end() }
        try rig.source.resume()
        (rig.destination.extraComponents[0] as! ScriptedComponent).fault.withLock {
            $0 = .invalid(component: "late", field: "bytes", value: "scripted")
        }
        let ends = try rig.ends()
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestStayed && outcome.destination == .guestStayed)
        #expect(ends.source.progress.error?.code == .peerRefused)
        #expect(ends.destination.progress.error?.code == .stateRejected)
        try Self.expectUnharmed(rig)
    }

    @Test("a guest that cannot be paused, tracked, or put together")
    func guestFaults() throws {
        for fault in 0..<4 {
            let rig = try Rig()
            defer { rig.end() }
            try rig.source.resume()
            switch fault {
            case 0: rig.source.faults.withLock { $0.pause = Scripted() }
            case 1: rig.source.faults.withLock { $0.restartDirtyTracking = Scripted() }
            case 2: rig.destination.faults.withLock { $0.finishLoading = Scripted() }
            default: rig.destination.faults.withLock { $0.resume = Scripted() }
            }
            let ends = try rig.ends()
            let outcome = try Rig.run(ends)
            #expect(outcome.source == .guestStayed && outcome.destination == .guestStayed)
            #expect(ends.source.progress.error?.code == (fault < 2 ? .guestFailed : .peerRefused))
            try Self.expectUnharmed(rig)
        }
    }

    /// Moves a guest to a machine that may be of another make; answers why it stayed.
    private static func move(_ source: ScriptedGuest, to destination: ScriptedGuest) throws -> MigrationError? {
        defer {
            source.end()
            destination.end()
        }
        try source.resume()
        let (left, right) = try Rig.pair()
        let ends = Rig.Ends(
            source: MigrationSource(guest: source, transport: left, configuration: Rig.configuration),
            destination: MigrationDestination(
                guest: destination, transport: right, configuration: Rig.configuration))
        let outcome = try Rig.run(ends)
        let error = ends.destination.progress.error
        #expect(outcome.source == outcome.destination)
        #expect((outcome.source == .guestStayed) == (error != nil))
        #expect(source.isRunning == (error != nil) && destination.isRunning == (error == nil))
        return error
    }

    private static func ram(_ name: String = "ram0", pages: Int = 100) throws -> [RAMBlock] {
        [try RAMBlock(name: name, byteCount: pages * guestPageSize, backend: .memfd)]
    }

    @Test("sections the destination does not know, or misses, or gets twice")
    func sections() throws {
        for (sourceHas, destinationHas, code) in [
            (["extra"], [], MigrationError.Code.unknownSection), ([], ["extra"], .missingSection),
        ] as [([String], [String], MigrationError.Code)] {
            let script = Rig.script()
            let error = try Self.move(
                ScriptedGuest(
                    script: script, blocks: try Self.ram(), components: sourceHas.map { ScriptedComponent($0) }),
                to: ScriptedGuest(
                    script: script, blocks: try Self.ram(), fills: false,
                    components: destinationHas.map { ScriptedComponent($0) }))
            #expect(error?.code == code && error?.message.contains("extra") == true)
        }
    }

    @Test("another machine, other RAM, another version of a section")
    func mismatches() throws {
        func outcome(
            name: String = "scripted", block: String = "ram0", pages: Int = 100, version: UInt32 = 1
        ) throws -> MigrationError.Code? {
            let script = Rig.script()
            return try Self.move(
                ScriptedGuest(
                    script: script, machineName: "scripted", blocks: try Self.ram(),
                    components: [ScriptedComponent("late", versions: [.native: version])]),
                to: ScriptedGuest(
                    script: script, machineName: name, blocks: try Self.ram(block, pages: pages), fills: false,
                    components: [ScriptedComponent("late")]))?.code
        }
        #expect(try outcome() == nil)
        #expect(try outcome(name: "script") == .machineMismatch)
        #expect(try outcome(name: "scripted2") == .machineMismatch)
        #expect(try outcome(block: "ram1") == .ramMismatch)
        #expect(try outcome(pages: 101) != nil)
        #expect(try outcome(version: 2) == .stateRejected)
    }

    @Test("cancelled before it begins, in a round, and while it waits for the order to switch over")
    func cancelled() throws {
        for place in 0..<3 {
            let rig = try Rig()
            defer { rig.end() }
            try rig.source.resume()
            var configuration = Rig.configuration
            configuration.parameters.downtimeLimitMilliseconds = 0
            configuration.parameters.roundLimit = place == 1 ? 0 : 2
            if place == 2 { configuration.capabilities.insert(.pauseBeforeSwitchover) }
            let reached = Gate(false)
            let wanted: MigrationStatus = place == 1 ? .active : .preSwitchover
            let ends = try rig.ends(
                configuration,
                observer: { progress in
                    rig.writesInEachRound(progress)
                    if progress.status == wanted { reached.update { $0 = true } }
                })
            if place == 0 { ends.source.cancel() }
            let outcome = try Rig.run(ends) {
                guard place > 0 else { return }
                reached.wait { $0 }
                ends.source.cancel()
            }
            #expect(outcome.source == .guestStayed && outcome.destination == .guestStayed)
            #expect(ends.source.progress.error?.code == .cancelled)
            #expect(ends.source.progress.status == .cancelled)
            try Self.expectUnharmed(rig)
        }
    }

    @Test("pause-before-switchover holds the guest until it is told to go on")
    func continued() throws {
        let rig = try Rig()
        defer { rig.end() }
        try rig.source.resume()
        var configuration = Rig.configuration
        configuration.capabilities.insert(.pauseBeforeSwitchover)
        let reached = Gate(false)
        let ends = try rig.ends(
            configuration, observer: { if $0.status == .preSwitchover { reached.update { $0 = true } } })
        let outcome = try Rig.run(ends) {
            reached.wait { $0 }
            #expect(!rig.source.isRunning && !rig.destination.isRunning)
            ends.source.continueSwitchover()
        }
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test("a destination that hangs is given up after the stall limit, and a cancel breaks any wait")
    func hanging() throws {
        for byLimit in [true, false] {
            let rig = try Rig(pages: [8000])
            defer { rig.end() }
            try rig.source.resume()
            var configuration = Rig.configuration
            configuration.parameters.stallLimitMilliseconds = byLimit ? 50 : 0
            let (left, right) = try Rig.pair()  // nobody reads the right end
            let source = MigrationSource(guest: rig.source, transport: left, configuration: configuration)
            try Self.expectGivenUp(source, of: rig, byLimit: byLimit)
            withExtendedLifetime(right) {}
        }
    }

    /// A source that nobody reads from comes to its stall limit, or is cancelled while it waits; its guest is unharmed.
    static func expectGivenUp(_ source: MigrationSource, of rig: Rig, byLimit: Bool) throws {
        let canceller =
            byLimit
            ? nil
            : try HostThread(name: "cancel") {
                while source.progress.status != .active { sched_yield() }
                source.cancel()
            }
        #expect(source.run() == .guestStayed)
        canceller?.join()
        #expect(source.progress.error?.code == (byLimit ? .timedOut : .cancelled))
        #expect(rig.source.isRunning)
        try expectUnharmed(rig)
    }

    @Test("a cancel that comes when everything was sent is too late: the verdict is waited for as if nothing had been")
    func cancelledTooLate() throws {
        let rig = try Rig(pages: [20])
        defer { rig.end() }
        try rig.source.resume()
        var configuration = Rig.configuration
        configuration.strategy = .stopAndCopy
        configuration.verdictLimitMilliseconds = 200
        let (left, right) = try Rig.pair()  // everything fits into the socket, and nobody answers
        let source = MigrationSource(guest: rig.source, transport: left, configuration: configuration)
        let canceller = try HostThread(name: "cancel") {
            while source.progress.timing.sendNanoseconds == nil { sched_yield() }
            source.cancel()
        }
        #expect(source.run() == .undecided, "\(String(describing: source.progress.error))")
        canceller.join()
        source.settle(.guestStayed)
        #expect(rig.source.isRunning)
        withExtendedLifetime(right) {}
        try Self.expectUnharmed(rig)
    }

    @Test("marks that were taken are put back")
    func marks() throws {
        let rig = try Rig(pages: [200])
        defer { rig.end() }
        let block = rig.source.ramBlocks[0]
        block.dirty.clearAll()
        for page in [3, 77, 199] { block.dirty.mark(page: page) }
        rig.destination.faults.withLock { $0.finishLoading = Scripted() }
        #expect(try Rig.run(try rig.ends()).source == .guestStayed)
        for page in [3, 77, 199] { #expect(block.dirty.isMarked(page: page)) }
        #expect(block.dirty.count == 3)
    }

    @Test("auto-converge slows the guest, and full speed returns")
    func throttle() throws {
        let rig = try Rig(script: Rig.script(rate: 0), pages: [300])
        defer { rig.end() }
        try rig.source.resume()
        var configuration = Rig.configuration
        configuration.capabilities.insert(.autoConverge)
        configuration.parameters.downtimeLimitMilliseconds = 0
        configuration.parameters.throttleTriggerThresholdPercent = 1
        configuration.parameters.roundLimit = 12
        let ends = try rig.ends(configuration, observer: rig.writesInEachRound)
        #expect(try Rig.run(ends).source == .guestMoved)
        #expect(rig.source.throttleMax.load(ordering: .relaxed) >= 20)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test("shared blocks are listed, not sent")
    func ignoreShared() throws {
        let script = Rig.script()
        let shared = try RAMBlock(name: "ram0", byteCount: 500 * guestPageSize, backend: .memfd)
        let same = try RAMBlock(name: "ram0", byteCount: 500 * guestPageSize, adopting: shared.file!)
        let source = ScriptedGuest(
            script: script,
            blocks: [shared, try RAMBlock(name: "rom", byteCount: 4 * guestPageSize, backend: .memfd)])
        let destination = ScriptedGuest(
            script: script, blocks: [same, try RAMBlock(name: "rom", byteCount: 4 * guestPageSize, backend: .memfd)],
            fills: false)
        defer {
            source.end()
            destination.end()
        }
        try source.resume()
        var configuration = Rig.configuration
        configuration.capabilities.insert(.ignoreShared)
        configuration.sharedBlocks = ["ram0"]
        let (left, right) = try Rig.pair()
        let ends = Rig.Ends(
            source: MigrationSource(guest: source, transport: left, configuration: configuration),
            destination: MigrationDestination(guest: destination, transport: right, configuration: configuration))
        #expect(try Rig.run(ends).source == .guestMoved)
        #expect(ends.source.progress.error == nil && ends.destination.progress.error == nil)
        #expect(ends.source.progress.ram.totalByteCount == UInt64(4 * guestPageSize))
        try destination.pause()
        #expect(destination.flaws() == [])
    }
}
