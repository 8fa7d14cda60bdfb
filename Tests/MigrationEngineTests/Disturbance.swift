import GuestMemory
import MigrationChannels
import MigrationEngine
import MigrationTestKit
import Testing

/// The end of a migration that something is done to.
enum Side: CaseIterable, Sendable { case source, destination }

/// How a guest moves while something is done to it.
enum Way: CaseIterable, Sendable {
    case socket, socketByReference, flip, flipGivingAway, multifd, multifdChannel, postcopy, postcopyFlip

    var configuration: MigrationConfiguration {
        var configuration: MigrationConfiguration =
            switch self {
            case .socket, .socketByReference: Rig.configuration
            case .flip: Rig.flipping(.precopy)
            case .flipGivingAway: Rig.flipping(.stopAndCopy)
            case .multifd, .multifdChannel: MultiFDRig.configuration(channels: 2)
            case .postcopy: Rig.postcopy()
            case .postcopyFlip: Rig.postcopy(.postcopy, [.unixPageFlipping])
            }
        configuration.parameters.roundLimit = 2
        return configuration
    }

    /// Both ends, with something around one end of the stream; of `multifdChannel`, of the first channel beside it.
    func ends(
        _ rig: Rig, to guest: ScriptedGuest,
        wrap: @escaping (Side, DescriptorTransport) -> any MigrationTransport = { $1 }
    ) throws -> Rig.Ends {
        let configuration = configuration
        if configuration.has(.multifd) {
            let watched = self == .multifd ? 0 : 1
            func around(_ side: Side) -> (Int, DescriptorTransport) -> any MigrationTransport {
                { index, transport in index == watched ? wrap(side, transport) : transport }
            }
            return try MultiFDRig(
                rig, configuration, to: guest, wrapSource: around(.source), wrapDestination: around(.destination)
            ).ends
        }
        let (left, right) = try Rig.pair()
        if self == .socketByReference { left.sendByReference() }
        let flips = configuration.has(.unixPageFlipping)
        return try rig.ends(
            configuration, transports: (wrap(.source, left), wrap(.destination, right)),
            hooks: (
                flips ? PageFlipSource(transport: left, guest: rig.source, configuration: configuration) : nil,
                flips ? PageFlipDestination(transport: right, configuration: configuration) : nil
            ), to: guest)
    }
}

extension Rig {
    /// Does it to the first call, to the second, and so on, until a migration is over before it comes to that call.
    /// - Parameters:
    ///   - callCountMin: Fewer calls would show nothing.
    ///   - attempt: Answers whether it came to that.
    static func walk(callCountMin: Int, _ attempt: (_ call: Int) throws -> Bool) throws {
        var call = 1
        while try attempt(call) {
            call += 1
            guard call < 600 else {
                Issue.record("no end of calls")
                return
            }
        }
        #expect(call > callCountMin)
    }

    /// Exactly one end runs the guest, unless nobody can know; whoever has it has it whole, and one that stayed moves at the
    /// next attempt.
    /// - Parameters:
    ///   - isDisturbed: It was done; else the guest must have moved.
    ///   - place: Where it was done.
    ///   - again: Both ends of the next attempt, to that guest.
    func judge(
        _ ends: Ends, _ outcome: (source: MigrationOutcome, destination: MigrationOutcome), isDisturbed: Bool,
        place: String, again: (ScriptedGuest) throws -> Ends
    ) throws {
        let place = "\(place): \(outcome), \(String(describing: ends.source.progress.error))"
        switch outcome.source {
        case .guestMoved: #expect(!source.isRunning && destination.isRunning, "\(place)")
        case .guestStayed: #expect(source.isRunning && !destination.isRunning, "\(place)")
        case .undecided: #expect(!source.isRunning && isDisturbed, "\(place)")
        }
        #expect(outcome.destination == (destination.isRunning ? .guestMoved : .guestStayed), "\(place)")
        #expect(isDisturbed || outcome.source == .guestMoved, "\(place)")
        #expect(outcome.source == .guestMoved || ends.source.progress.error != nil, "\(place)")
        if outcome.source == .undecided && !destination.isRunning { ends.source.settle(.guestStayed) }
        let holder = destination.isRunning ? destination : source
        #expect(holder.isRunning && holder.waitForWrites(20), "\(place)")
        try holder.pause()
        #expect(holder.flaws() == [], "\(place)")
        guard outcome.source == .guestStayed else { return }
        try source.resume()
        let fresh = try Rig(script: script, pages: source.ramBlocks.map { $0.byteCount / guestPageSize })
        defer { fresh.end() }
        #expect(try Rig.run(again(fresh.destination)).source == .guestMoved, "\(place), second attempt")
        try fresh.destination.pause()
        #expect(fresh.destination.flaws() == [], "\(place), second attempt")
    }
}
