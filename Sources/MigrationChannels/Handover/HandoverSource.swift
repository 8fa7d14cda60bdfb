import ComponentState
package import LinuxCalls

/// What the source's driver needs of the guest it gives away.
package protocol HandoverSubject: AnyObject {
    /// The destination has said what it is.
    func meet(_ peer: HandoverPeer) throws
    /// What the destination must build. The guest runs on.
    func describe() throws -> HandoverDescription
    /// Suspends what the guest does not see, its monitor's clients, and writes that down. The guest runs on.
    func suspend() throws -> HandoverState
    /// Whether the guest will stand still for no more than its state takes: its memory need not be sent.
    var isBrief: Bool { get }
    /// Does what will have to be done while the guest stands still, with something else; the guest runs on. What a processor has just
    /// done it does faster.
    func rehearse()
    /// ``pause()`` comes next, at once.
    func expectPause()
    /// Stops the guest: afterwards nothing of it runs or is in flight, and memory that does not cross by descriptor has
    /// crossed. What of that can be done while the guest runs is done before it is stopped.
    func pause() throws
    /// When ``pause()`` began to stop the guest, if that was later than its call; CLOCK_MONOTONIC, nanoseconds.
    var pauseBegan: Int64? { get }
    /// Longest pause in milliseconds; nil is ``HandoverSource/Limits/takingOverMilliseconds``.
    var pauseLimitMilliseconds: Int? { get }
    /// Writes down the state of the paused guest.
    /// - Parameter sendPart: Sends what is written so far ahead of the answer, for the destination to load meanwhile. Only where
    ///   the destination's version of the state has parts.
    func save(sendPart: (HandoverPart) throws(HandoverError) -> Void) throws -> HandoverState
    /// Lets everything go on here that was suspended or paused; the destination will not. The guest may not have been paused
    /// yet.
    func resume() throws
    /// The guest is the destination's: let go of its memory and descriptors without touching what they stand for.
    func release()
}

extension HandoverSubject {
    package func meet(_ peer: HandoverPeer) throws {}
    package var isBrief: Bool { false }
    package func rehearse() {}
    package func expectPause() {}
    /// Nothing but the guest itself.
    package func suspend() throws -> HandoverState { HandoverState(bytes: []) }
    package var pauseBegan: Int64? { nil }
    package var pauseLimitMilliseconds: Int? { nil }
}

/// What a destination says of itself.
package struct HandoverPeer: Sendable {
    package var program: String
    /// Ways in which it takes memory: `memfd`, `page-flip`, `socket`.
    package var channels: [String]
    /// Forms of the state that it reads.
    package var stateVersions: ClosedRange<Int>
}

/// Times of one hand-over, CLOCK_MONOTONIC in nanoseconds; both processes read the same clock.
package struct HandoverTimes: Sendable {
    package var begun: Int64 = 0
    /// The destination is complete.
    package var ready: Int64 = 0
    package var pauseBegun: Int64 = 0
    package var paused: Int64 = 0
    package var saved: Int64 = 0
    package var offered: Int64 = 0
    /// Destination: it has the state; loading begins.
    package var received: Int64 = 0
    package var loaded: Int64 = 0
    package var claimed: Int64 = 0
    package var resumed: Int64 = 0
    package var ended: Int64 = 0

    /// What the source has measured when it sends the state.
    var sourcePart: [Int64] {
        get { [begun, ready, pauseBegun, paused, saved] }
        set {
            begun = newValue[0]
            ready = newValue[1]
            pauseBegun = newValue[2]
            paused = newValue[3]
            saved = newValue[4]
        }
    }

    /// Nanoseconds in which the guest ran nowhere.
    package var pauseNanoseconds: Int64 { resumed - pauseBegun }
}

/// How a hand-over ended, seen from the source.
package enum HandoverOutcome: Sendable {
    /// The destination runs the guest.
    case moved(HandoverTimes)
    /// The guest runs here, unharmed.
    case stayed(HandoverError)
    /// The guest is here and whole but could not be resumed; it stays paused.
    case stayedPaused(HandoverError)
}

/// The source's end of a hand-over. After ``run(_:)`` the guest runs in exactly one place, or in none if the place
/// that had it died.
package struct HandoverSource {
    /// Limits on every wait, in milliseconds.
    package struct Limits: Sendable {
        /// For the destination's first word.
        package var greetingMilliseconds = 10_000
        /// For building the machine and populating its page tables.
        package var preparingMilliseconds = 120_000
        /// For taking the state, from the pause on; then the guest is taken back.
        package var takingOverMilliseconds = 5_000

        package init() {}
    }

    package static let protocolVersion: UInt64 = 1

    let socket: OwnedDescriptor
    /// Readable when the destination's process has ended.
    let destination: OwnedDescriptor
    let limits: Limits
    /// Fault tests stop or kill the process here.
    let atStep: (HandoverPhase) -> Void
    /// Answers true when somebody wants the hand-over called off.
    let isCancelled: () -> Bool

    package init(
        socket: OwnedDescriptor, destination: OwnedDescriptor, limits: Limits = Limits(),
        atStep: @escaping (HandoverPhase) -> Void = { _ in }, isCancelled: @escaping () -> Bool = { false }
    ) {
        self.socket = socket
        self.destination = destination
        self.limits = limits
        self.atStep = atStep
        self.isCancelled = isCancelled
    }

    /// Starts the program that becomes the destination, with one end of a socket pair that nobody else can reach.
    /// - Parameters:
    ///   - outOfMemoryPriority: What it is to the kernel when memory runs out; nil is what we are.
    ///   - isOrphan: See ``ChildProcess``.
    ///   - arguments: Gets the number of the descriptor at which the program finds its end.
    package static func start(
        path: String, name: String, environment: [String]? = nil, outOfMemoryPriority: Int? = nil,
        isOrphan: Bool = false, arguments: (CInt) -> [String]
    ) throws(SystemCallError) -> (socket: OwnedDescriptor, process: ChildProcess) {
        let (near, far) = try StreamSocket.pair()
        let number: CInt = 3
        let process = try ChildProcess(
            path: path, name: name, arguments: arguments(number), environment: environment, descriptors: [number: far],
            outOfMemoryPriority: outOfMemoryPriority, isOrphan: isOrphan)
        return (near, process)
    }

    package func run(_ subject: any HandoverSubject) -> HandoverOutcome {
        HostThread.inShortTurns { carryOut(subject) }
    }

    private func carryOut(_ subject: any HandoverSubject) -> HandoverOutcome {
        var times = HandoverTimes()
        times.begun = monotonicNanoseconds()
        // It would have its turn when the guest stands still, of all times.
        BackgroundPopulation.endAll()
        var phase = HandoverPhase.greeting
        var isStopped = false
        var urgency: HostThread.Detour?
        var place: HostThread.Detour?
        do throws(HandoverError) {
            let word = try OwnershipWord.made()
            try enter(.greeting, &phase)
            let peer = try greet()
            try asMachineError { try subject.meet(peer) }
            try enter(.describing, &phase)
            let deadline = after(limits.preparingMilliseconds)
            try describe(subject, word, deadline: deadline)
            try enter(.preparing, &phase)
            _ = try receive(.ready, deadline: deadline)
            isStopped = true
            let control = try asMachineError { try subject.suspend() }
            try control.frame(.control, times: times).send(to: socket, deadline: deadline)
            _ = try receive(.ready, deadline: deadline)
            times.ready = monotonicNanoseconds()

            try enter(.pausing, &phase)
            if subject.isBrief { urgency = HostThread.Detour(haste: .urgent.whereOthersHaveRoom) }
            // Before the destination does the same on another processor: one of the two may be the guest's.
            subject.rehearse()
            // Threads that are made to send memory would keep to it too.
            if subject.isBrief { place = HostThread.Detour(to: HostThread.currentProcessor) }
            word.tellProcessor()
            word.awaitReadiness()
            subject.expectPause()
            times.pauseBegun = monotonicNanoseconds()
            try asMachineError { try subject.pause() }
            times.paused = monotonicNanoseconds()
            times.pauseBegun = subject.pauseBegan ?? times.pauseBegun
            let limit = subject.pauseLimitMilliseconds ?? limits.takingOverMilliseconds
            let takeBack = times.pauseBegun + Int64(limit) * 1_000_000
            try enter(.saving, &phase)
            let state = try asMachineError {
                try subject.save { (part) throws(HandoverError) in
                    try send(part.frame(times: times), deadline: takeBack)
                }
            }
            times.saved = monotonicNanoseconds()
            try enter(.sending, &phase)
            try send(state.frame(.state, times: times), deadline: takeBack)
            try enter(.offering, &phase)

            // From here on only the word decides.
            guard word.offer() else {
                throw HandoverError(.malformed, "the ownership word was changed by the destination")
            }
            times.offered = monotonicNanoseconds()
            do throws(HandoverError) {
                try HandoverFrame(.offer).send(to: socket, deadline: takeBack)
                atStep(.claiming)
                let running = try receive(.running, deadline: takeBack)
                try times.adopt(running.payload)
            } catch {
                if word.takeBack() { throw error }
                // The destination was first: it runs the guest, whatever became of its answer.
                if times.resumed == 0 { times.resumed = monotonicNanoseconds() }
            }
            atStep(.releasing)
            urgency?.end()
            place?.end()
            subject.release()
            times.ended = monotonicNanoseconds()
            return .moved(times)
        } catch {
            urgency?.end()
            place?.end()
            var failure = error
            if failure.phase == nil { failure.phase = phase }
            guard isStopped else { return .stayed(failure) }
            do {
                try subject.resume()
                return .stayed(failure)
            } catch {
                return .stayedPaused(
                    HandoverError(
                        .machine, "\(failure); then the guest could not be resumed", phase: phase, cause: error))
            }
        }
    }

    private func enter(_ next: HandoverPhase, _ phase: inout HandoverPhase) throws(HandoverError) {
        phase = next
        atStep(next)
        if isCancelled() { throw HandoverError(.cancelled, "called off", phase: next) }
    }

    private func after(_ milliseconds: Int) -> Int64 { monotonicNanoseconds() + Int64(milliseconds) * 1_000_000 }

    /// Apart, so that descriptors which only the description holds are closed when it has been sent.
    private func describe(
        _ subject: any HandoverSubject, _ word: OwnershipWord, deadline: Int64
    ) throws(HandoverError) {
        let description = try asMachineError { try subject.describe() }
        try description.frame(word: word).send(to: socket, deadline: deadline)
    }

    private func greet() throws(HandoverError) -> HandoverPeer {
        let hello = try receive(.hello, deadline: after(limits.greetingMilliseconds))
        var reader = ByteReader(hello.payload)
        let version: UInt64 = try reader.integer()
        let program = try reader.text()
        guard version == Self.protocolVersion else {
            throw HandoverError(
                .incompatible,
                "\(program) speaks version \(version) of the hand-over protocol, this is version \(Self.protocolVersion)"
            )
        }
        // Early programs end behind their name, or behind their channels.
        var peer = HandoverPeer(program: program, channels: ["memfd"], stateVersions: 1...1)
        if reader.isAtEnd { return peer }
        peer.channels = []
        for _ in 0..<(try reader.count(of: 8)) { peer.channels.append(try reader.text()) }
        if reader.isAtEnd { return peer }
        let (first, last) = (
            Int(clamping: try reader.integer(as: UInt64.self)), Int(clamping: try reader.integer(as: UInt64.self))
        )
        guard first <= last else { throw HandoverError(.malformed, "\(program) knows versions \(first) to \(last)") }
        peer.stateVersions = first...last
        return peer
    }

    /// Sends a frame of the paused guest. A destination that has refused an earlier one is asked why.
    private func send(_ frame: HandoverFrame, deadline: Int64) throws(HandoverError) {
        do throws(HandoverError) { try frame.send(to: socket, deadline: deadline) } catch {
            guard error.code == .peerGone else { throw error }
            _ = try receive(.running, deadline: deadline)
            throw error
        }
    }

    /// The next frame, which must be `kind`. The destination's end is seen at once: its side of the socket closes with it.
    private func receive(_ kind: HandoverFrame.Kind, deadline: Int64) throws(HandoverError) -> HandoverFrame {
        let frame: HandoverFrame
        do throws(HandoverError) {
            frame = try HandoverFrame.receive(from: socket, peer: destination, deadline: deadline)
        } catch {
            if error.code == .peerGone { throw HandoverError(.peerGone, "the destination process ended") }
            throw error
        }
        if frame.kind == .refused {
            throw HandoverError(.refused, String(decoding: frame.payload.prefix(4096), as: UTF8.self))
        }
        return try frame.expected(kind)
    }
}

/// Gives whatever the machine throws a place in the hand-over's errors.
func asMachineError<Result>(_ body: () throws -> Result) throws(HandoverError) -> Result {
    do {
        return try body()
    } catch let error as HandoverError {
        throw error
    } catch { throw HandoverError(.machine, "the machine refused", cause: error) }
}

extension OwnershipWord {
    static func made() throws(HandoverError) -> OwnershipWord {
        do { return try OwnershipWord() } catch {
            throw HandoverError(.systemCall, "the ownership word cannot be made", cause: error)
        }
    }
}

extension HandoverTimes {
    /// Takes the destination's part.
    mutating func adopt(_ payload: [UInt8]) throws(HandoverError) {
        var reader = ByteReader(payload)
        received = try reader.integer()
        loaded = try reader.integer()
        claimed = try reader.integer()
        resumed = try reader.integer()
    }

    var destinationPart: [UInt8] {
        var writer = ByteWriter()
        for time in [received, loaded, claimed, resumed] { writer.integer(time) }
        return writer.bytes
    }
}
