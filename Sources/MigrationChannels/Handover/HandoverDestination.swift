package import LinuxCalls

/// What the destination's driver needs of the process that takes a guest over.
package protocol HandoverReceiver: AnyObject {
    /// Builds everything: memory mapped and populated, devices made, descriptors adopted, threads parked. Nothing the
    /// descriptors stand for may be touched yet: the source still uses it.
    func prepare(_ description: HandoverDescription) throws
    /// Takes the state of the paused guest. Still nothing outside this process may be touched.
    func load(_ state: HandoverState) throws
    /// The guest is ours: run it.
    func run() throws
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

/// The destination's end of a hand-over.
package struct HandoverDestination {
    let socket: OwnedDescriptor
    /// What this program calls itself, for the source's messages.
    let program: String
    let atStep: (HandoverPhase) -> Void

    package init(
        socket: OwnedDescriptor, program: String, atStep: @escaping (HandoverPhase) -> Void = { _ in }
    ) {
        self.socket = socket
        self.program = program
        self.atStep = atStep
    }

    /// Longest wait for the source, which has limits of its own and closes the socket when it gives up or dies.
    private var patient: Int64 { monotonicNanoseconds() + 3_600 * 1_000_000_000 }

    package func run(_ receiver: any HandoverReceiver) -> TakeoverOutcome {
        var times = HandoverTimes()
        times.begun = monotonicNanoseconds()
        var phase = HandoverPhase.greeting
        var offered: OwnershipWord?
        do throws(HandoverError) {
            atStep(phase)
            var hello = ContentsWriter()
            hello.integer(HandoverSource.protocolVersion)
            hello.text(program)
            try HandoverFrame(.hello, payload: hello.bytes).send(to: socket, deadline: patient)

            phase = .describing
            let (description, word) = try HandoverDescription.take(try receive(.description))
            offered = word
            phase = .preparing
            atStep(phase)
            try asMachineError { try receiver.prepare(description) }
            try HandoverFrame(.ready).send(to: socket, deadline: patient)

            phase = .sending
            atStep(phase)
            let state = try HandoverState.take(try receive(.state))
            times.received = monotonicNanoseconds()
            phase = .loading
            atStep(phase)
            try asMachineError { try receiver.load(state) }
            times.loaded = monotonicNanoseconds()

            // An offer, or the end of a source that may have offered before it died: the word tells.
            phase = .claiming
            atStep(phase)
            do throws(HandoverError) { _ = try receive(.offer) } catch {
                guard error.code == .peerGone else { throw error }
            }
            guard word.claim() else {
                return .notOurs(
                    HandoverError(.cancelled, "the source keeps the guest", phase: phase), owner: word.owner)
            }
            times.claimed = monotonicNanoseconds()
            atStep(.running)
            do { try receiver.run() } catch {
                return .lost(HandoverError(.machine, "the guest could not be started", phase: .running, cause: error))
            }
            times.resumed = monotonicNanoseconds()
            // The source may be gone, which changes nothing.
            try? HandoverFrame(.running, payload: times.destinationPart).send(
                to: socket, deadline: monotonicNanoseconds() + 1_000_000_000)
            return .running(times)
        } catch {
            var failure = error
            if failure.phase == nil { failure.phase = phase }
            if failure.code != .peerGone {
                try? HandoverFrame(.refused, payload: Array("\(failure)".utf8)).send(
                    to: socket, deadline: monotonicNanoseconds() + 1_000_000_000)
            }
            return .notOurs(failure, owner: offered?.owner)
        }
    }

    private func receive(_ kind: HandoverFrame.Kind) throws(HandoverError) -> HandoverFrame {
        let frame = try HandoverFrame.receive(from: socket, deadline: patient)
        guard frame.kind == kind else { throw HandoverError(.malformed, "\(kind) was expected, \(frame.kind) came") }
        return frame
    }
}
