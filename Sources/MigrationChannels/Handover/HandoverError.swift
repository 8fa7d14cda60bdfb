/// The steps of a hand-over, in order. The raw value is the step number that fault tests count.
package enum HandoverPhase: Int, Sendable, CaseIterable, Comparable {
    case greeting = 1, describing, preparing, pausing, saving, sending, offering, loading, claiming, running, releasing

    package static func < (left: HandoverPhase, right: HandoverPhase) -> Bool { left.rawValue < right.rawValue }
}

/// Why a hand-over did not happen, or what went wrong on the way.
package struct HandoverError: Error, Sendable, CustomStringConvertible {
    package enum Code: String, Sendable {
        /// The peer is gone: end of stream, or its process ended.
        case peerGone
        /// The peer said no; the text is its reason.
        case refused
        /// The peer took longer than the limit.
        case timeout
        /// The peer sent something that is not in the protocol.
        case malformed
        /// Versions, devices or blocks that do not fit together.
        case incompatible
        case systemCall
        case cancelled
        /// The guest's own machine could not be paused, saved, built or loaded.
        case machine
    }

    package var code: Code
    package var text: String
    package var phase: HandoverPhase?
    package var cause: (any Error)?

    package init(_ code: Code, _ text: String, phase: HandoverPhase? = nil, cause: (any Error)? = nil) {
        self.code = code
        self.text = text
        self.phase = phase
        self.cause = cause
    }

    package var description: String {
        var message = text
        if let cause { message += ": \(cause)" }
        if let phase { message = "\(phase): \(message)" }
        return message
    }
}
