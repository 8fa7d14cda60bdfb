package import Glibc

/// Why bytes did not cross.
package enum TransportError: Error, Sendable, CustomStringConvertible {
    /// The other end is gone, or has closed its side.
    case closed
    /// ``MigrationTransport/interrupt()`` was called.
    case interrupted
    /// The other end took or gave nothing for longer than allowed.
    case stalled
    /// A system call failed.
    case failed(any Error)

    package var description: String {
        switch self {
        case .closed: "the other end closed the channel"
        case .interrupted: "interrupted"
        case .stalled: "the other end does nothing"
        case .failed(let error): "\(error)"
        }
    }
}

/// A channel's bytes: what a socket, a pipe or a file does for the engine. One thread sends and receives; any thread
/// interrupts.
package protocol MigrationTransport: AnyObject, Sendable {
    /// For messages: `unix:/run/guest.sock`.
    var name: String { get }
    /// The other direction carries messages.
    var hasReturnPath: Bool { get }
    /// When the other end is gone, everything it sent before has been received by the time the end is: true of two
    /// processes on one host, and of no network.
    var deliversBeforeEnd: Bool { get }
    /// Sends every byte of all pieces, waiting as long as it takes. The pieces' entries may be changed.
    func send(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError)
    /// As ``send(_:)``. What is not within `records` is guest memory: a channel may let the other end have it as it will be when it is
    /// received, which matters to nobody, as what is written later is marked and sent again.
    func send(
        _ pieces: UnsafeMutableBufferPointer<iovec>, records: UnsafeRawBufferPointer
    ) throws(TransportError)
    /// Receives into the pieces, in order: at least one byte, as many as there are. 0 is the end.
    func receive(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) -> Int
    /// As ``receive(_:)``, but answers nil after `timeoutMilliseconds` without a byte; 0 does not wait.
    func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, timeoutMilliseconds: Int
    ) throws(TransportError) -> Int?
    /// No more will be sent; the other end sees the end once it has read everything. Throws when what was sent is known
    /// not to have arrived: a command that failed, a file that cannot be written out.
    func finishSending() throws(TransportError)
    /// Whatever waits now or later in this transport throws ``TransportError/interrupted``.
    func interrupt()
    /// How long the other end may do nothing; 0 is for ever.
    func setStallLimit(milliseconds: UInt64)
    /// Gives the channel up. Idempotent.
    func close()
}

extension MigrationTransport {
    package var deliversBeforeEnd: Bool { false }

    package func send(
        _ pieces: UnsafeMutableBufferPointer<iovec>, records: UnsafeRawBufferPointer
    ) throws(TransportError) { try unsafe send(pieces) }
}

extension TransportError {
    /// As an error of the migration.
    package func migrationError(in phase: MigrationPhase, _ doing: String) -> MigrationError {
        switch self {
        case .closed: MigrationError(.channelClosed, in: phase, "the other end closed the channel while \(doing)")
        case .interrupted: MigrationError(.cancelled, in: phase, "cancelled while \(doing)")
        case .stalled: MigrationError(.timedOut, in: phase, "the other end did nothing for too long while \(doing)")
        case .failed(let cause as MigrationError): cause
        case .failed(let cause):
            MigrationError(.channelFailed, in: phase, "the channel failed while \(doing)", cause: cause)
        }
    }
}
