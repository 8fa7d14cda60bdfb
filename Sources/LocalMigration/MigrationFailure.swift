import LinuxCalls
import MigrationChannels

/// Why a move did not happen.
public struct MigrationFailure: Error, CustomStringConvertible {
    public enum Code: String, Sendable {
        /// The other process ended, or closed the connection.
        case peerGone
        /// The other process said no.
        case refused
        /// The other process took longer than the limit.
        case timeout
        /// What came is not what was agreed.
        case malformed
        /// The two programs do not fit together.
        case incompatible
        /// The kernel refused.
        case systemCall
        /// The program itself threw while it paused, saved or loaded.
        case program
        /// The predecessor kept, or took back, what it had offered.
        case cancelled
    }

    public let code: Code
    /// One sentence for a person.
    public let text: String

    public var description: String { text }

    init(code: Code, text: String) {
        self.code = code
        self.text = text
    }

    init(_ error: HandoverError) {
        let code: Code =
            switch error.code {
            case .peerGone: .peerGone
            case .refused: .refused
            case .timeout: .timeout
            case .malformed: .malformed
            case .incompatible: .incompatible
            case .systemCall: .systemCall
            case .machine: .program
            case .cancelled: .cancelled
            }
        self.init(code: code, text: "\(error)")
    }

    static func wrapping<Result>(_ body: () throws -> Result) throws(MigrationFailure) -> Result {
        do { return try body() } catch { throw MigrationFailure(code: .systemCall, text: "\(error)") }
    }
}
