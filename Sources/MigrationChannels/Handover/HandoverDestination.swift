import ComponentState
import Glibc
package import LinuxCalls

/// What the destination's driver needs of the process that takes a guest over.
package protocol HandoverReceiver: AnyObject {
    /// Builds everything: memory mapped and populated, devices made, descriptors adopted, threads parked. Nothing the
    /// descriptors stand for may be touched yet: the source still uses it.
    func prepare(_ description: HandoverDescription) throws
    /// Takes over what the source suspended while the guest runs on there. Nothing outside may be touched.
    func adopt(_ control: HandoverState) throws
    /// Whether the guest will stand still for no more than its state takes: its memory need not be received.
    var isBrief: Bool { get }
    /// The source is about to pause the guest, and waits until this has returned. The calling thread is where it stays until the guest runs.
    /// - Parameter processor: The processor of the host that all of the pause happens on, and that the guest is to go on on; nil where
    ///   that is not known.
    func expect(on processor: CInt?)
    /// Takes a part of the state of the paused guest, before the rest comes by ``load(_:)``; as that.
    func load(part: HandoverPart) throws
    /// Takes the state of the paused guest. Still nothing outside this process may be touched.
    func load(_ state: HandoverState) throws
    /// The guest is ours: run it. The times are those up to the claim.
    func run(_ times: HandoverTimes) throws
    /// After ``run(_:)``: when the guest's first instruction ran, CLOCK_MONOTONIC in nanoseconds; nil is now.
    var timeOfFirstInstruction: Int64? { get }
}

extension HandoverReceiver {
    /// Nothing but the guest itself.
    package func adopt(_ control: HandoverState) throws {}
    package var isBrief: Bool { false }
    /// For a receiver whose version of the state has no parts.
    package func expect(on processor: CInt?) {}
    package func load(part: HandoverPart) throws { try HandoverDestination.refusePart(part) }
    package var timeOfFirstInstruction: Int64? { nil }
}

/// How a hand-over ended, seen from the destination.
package enum TakeoverOutcome: Sendable {
    /// The guest runs here.
    case running(HandoverTimes)
    /// It is not ours: the source kept it or took it back, or it died with the source. This process should exit.
    /// `owner` is what the word said at the end, if there was one.
    case notOurs(HandoverError, owner: GuestOwner?)
    /// It is ours, and could not be started.
    case lost(HandoverError)
}

/// The destination's end of a hand-over, step by step; ``run(_:)`` takes all of them.
package struct HandoverDestination {
    let socket: OwnedDescriptor
    /// What this program calls itself, for the source's messages.
    let program: String
    /// Ways in which it takes memory.
    let channels: [String]
    /// Forms of the state that it reads; the source picks one.
    let stateVersions: ClosedRange<Int>
    let atStep: (HandoverPhase) -> Void
    private var word: OwnershipWord?
    /// The frame that tells of the offer; the word itself may have been first.
    private var hasReadOffer = false
    private var phase = HandoverPhase.greeting
    /// Of the calling thread, from shortly before the pause on: it keeps to the source's processor of the host. Nil where it does not.
    private var beside: HostThread.Detour?
    package private(set) var times = HandoverTimes()

    package init(
        socket: OwnedDescriptor, program: String, channels: [String] = ["memfd"],
        stateVersions: ClosedRange<Int> = 1...1, atStep: @escaping (HandoverPhase) -> Void = { _ in }
    ) {
        self.socket = socket
        self.program = program
        self.channels = channels
        self.stateVersions = stateVersions
        self.atStep = atStep
    }

    /// What the word says of the guest's owner, once there is a word.
    package var owner: GuestOwner? { word?.owner }

    /// Longest wait for the source, which has limits of its own and closes the socket when it gives up or dies.
    private var patient: Int64 { monotonicNanoseconds() + 3_600 * 1_000_000_000 }

    /// Greets the source and learns what to build.
    package mutating func receiveDescription() throws(HandoverError) -> HandoverDescription {
        enter(.greeting)
        var hello = ByteWriter()
        hello.integer(HandoverSource.protocolVersion)
        hello.text(program)
        hello.integer(UInt64(channels.count))
        for channel in channels { hello.text(channel) }
        hello.integer(UInt64(stateVersions.lowerBound))
        hello.integer(UInt64(stateVersions.upperBound))
        try HandoverFrame(.hello, payload: hello.bytes).send(to: socket, deadline: patient)
        phase = .describing
        let (description, word) = try HandoverDescription.take(try receive(.description))
        self.word = word
        enter(.preparing)
        return description
    }

    /// Tells the source that everything is built, and waits for what it suspends before the pause.
    package mutating func receiveControl() throws(HandoverError) -> HandoverState {
        try HandoverFrame(.ready).send(to: socket, deadline: patient)
        return try HandoverState.take(try receive(.control), times: &times)
    }

    /// Tells the source that it may pause the guest, and waits for the guest's state.
    /// - Parameters:
    ///   - load: Gets what comes ahead of the state.
    ///   - expect: See ``HandoverReceiver/expect(on:)``.
    ///   - isBrief: See ``HandoverReceiver/isBrief``.
    package mutating func receiveState(
        part load: (HandoverPart) throws -> Void = refusePart, expect: (CInt?) -> Void = { _ in },
        isBrief: Bool = false
    ) throws(HandoverError) -> HandoverState {
        try HandoverFrame(.ready).send(to: socket, deadline: patient)
        enter(.sending)
        let haste = (isBrief ? HostThread.Haste.urgent : .none).whereOthersHaveRoom
        let place = awaitSource()
        if isBrief, let place { goBeside(place, haste) }
        let isBeside = beside != nil
        // Elsewhere than the source, this thread stays awake.
        let frame = try HostThread.away(from: isBeside ? -1 : place ?? -1) { () throws(HandoverError) in
            if let word {
                expect(isBeside ? place : nil)
                word.tellReadiness()
            }
            var frame = try receive(isImminent: !isBeside)
            while let part = try HandoverPart.take(frame) {
                try asMachineError { try load(part) }
                frame = try receive(isImminent: !isBeside)
            }
            return frame
        }
        let state = try HandoverState.take(try frame.expected(.state), times: &times)
        times.received = monotonicNanoseconds()
        enter(.loading)
        return state
    }

    /// Keeps the calling thread to the source's processor of the host, where it goes on when the source waits for it. So one processor
    /// does all of the pause, without a wait for another one to wake up, which takes tens of microseconds and, where the host of
    /// this host has others to serve, milliseconds.
    private mutating func goBeside(_ place: CInt, _ haste: HostThread.Haste) {
        let detour = HostThread.Detour(to: place, haste: haste)
        if detour.isMoved { beside = detour } else { detour.end() }
    }

    /// Waits until the source says which processor of the host it runs on, or sends something; not long. Nil when it did not say.
    private func awaitSource() -> CInt? {
        let end = monotonicNanoseconds() + OwnershipWord.placeNanosecondsMax
        while let word, word.sourceProcessor == nil, isNothingThere(before: end) {
            word.awaitSourceProcessor(nanoseconds: Self.lookingNanoseconds)
        }
        return word?.sourceProcessor
    }

    private func isNothingThere(before end: Int64) -> Bool {
        monotonicNanoseconds() < end
            && (try? socket.waitUntilReady(for: Int16(POLLIN), timeoutMilliseconds: 0)) == 0
    }

    /// How often who waits for the word looks whether something came.
    private static let lookingNanoseconds: Int64 = 200_000

    package static func refusePart(_: HandoverPart) throws {
        throw HandoverError(.malformed, "a part of a state came that has no parts")
    }

    /// Waits for the offer, or for the end of a source that may have offered before it died, and takes the guest.
    /// - Throws: `cancelled` when the source keeps it.
    package mutating func claim() throws(HandoverError) {
        times.loaded = monotonicNanoseconds()
        enter(.claiming)
        // The frame that tells of the offer comes after it, and whoever sends that may be behind the processor that the offer woke.
        let end = monotonicNanoseconds() + HandoverFrame.awakeNanoseconds
        while beside == nil, owner == .source, isNothingThere(before: end) { sched_yield() }
        if owner != .offered {
            do throws(HandoverError) { _ = try receive(.offer, isImminent: beside == nil) } catch {
                guard error.code == .peerGone else { throw error }
            }
            hasReadOffer = true
        }
        guard let word, word.claim() else { throw HandoverError(.cancelled, "the source keeps the guest") }
        times.claimed = monotonicNanoseconds()
        enter(.running)
    }

    /// Tells the source, which may be gone, that the guest runs here.
    /// - Parameter start: When its first instruction ran; nil is now.
    package mutating func announceRunning(since start: Int64? = nil) {
        times.resumed = start ?? monotonicNanoseconds()
        try? HandoverFrame(.running, payload: times.destinationPart).send(
            to: socket, deadline: monotonicNanoseconds() + 1_000_000_000)
        // What is left unread would look like a broken connection to the source; one that hangs is not waited for.
        if !hasReadOffer {
            _ = try? HandoverFrame.receive(from: socket, deadline: monotonicNanoseconds() + 100_000_000)
        }
    }

    /// Gives up: tells the source why, unless it is gone. Answers the error with the phase filled in.
    package func refuse(_ error: HandoverError) -> HandoverError {
        var failure = error
        if failure.phase == nil { failure.phase = phase }
        if failure.code != .peerGone, phase < .running {
            try? HandoverFrame(.refused, payload: Array("\(failure)".utf8)).send(
                to: socket, deadline: monotonicNanoseconds() + 1_000_000_000)
        }
        return failure
    }

    package mutating func run(_ receiver: any HandoverReceiver) -> TakeoverOutcome {
        do throws(HandoverError) {
            let description = try receiveDescription()
            try asMachineError { try receiver.prepare(description) }
            return try HostThread.inShortTurns { () throws(HandoverError) in try takeOver(receiver) }
        } catch {
            return .notOurs(refuse(error), owner: owner)
        }
    }

    /// From when all is prepared until the guest runs.
    private mutating func takeOver(_ receiver: any HandoverReceiver) throws(HandoverError) -> TakeoverOutcome {
        let control = try receiveControl()
        try asMachineError { try receiver.adopt(control) }
        defer { beside?.end() }
        let state = try receiveState(
            part: { try receiver.load(part: $0) }, expect: receiver.expect(on:), isBrief: receiver.isBrief)
        try asMachineError { try receiver.load(state) }
        try claim()
        do { try receiver.run(times) } catch {
            return .lost(HandoverError(.machine, "the guest could not be started", phase: .running, cause: error))
        }
        announceRunning(since: receiver.timeOfFirstInstruction)
        return .running(times)
    }

    private mutating func enter(_ next: HandoverPhase) {
        phase = next
        atStep(next)
    }

    private func receive(
        _ kind: HandoverFrame.Kind, isImminent: Bool = false
    ) throws(HandoverError) -> HandoverFrame {
        try receive(isImminent: isImminent).expected(kind)
    }

    private func receive(isImminent: Bool) throws(HandoverError) -> HandoverFrame {
        try HandoverFrame.receive(from: socket, isImminent: isImminent, deadline: patient)
    }
}
