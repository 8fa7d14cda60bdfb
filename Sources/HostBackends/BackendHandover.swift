import ComponentState
package import DeviceModel
package import LinuxCalls

/// Everything that another process needs to go on with a backend: its open files and what is in its buffers.
package struct BackendHandover: Sendable {
    /// Which backend it is: `file`, `tap`, `stream`, `terminal`, `socket`, `pty`, `log`, `null`.
    package var kind: String
    /// Open files by name; names are unique.
    package var descriptors: [(name: String, descriptor: OwnedDescriptor)]
    /// What only the backend itself can read; at most ``stateByteCountMaximum``.
    package var state: [UInt8]

    /// Bounds what a receiver accepts: buffers are bounded, and so is their sum.
    package static let stateByteCountMaximum = 16 << 20

    package init(kind: String, descriptors: [(name: String, descriptor: OwnedDescriptor)] = [], state: [UInt8] = []) {
        self.kind = kind
        self.descriptors = descriptors
        self.state = state
    }

    func descriptor(named name: String) throws(BackendError) -> OwnedDescriptor {
        guard let found = descriptors.first(where: { $0.name == name }) else {
            throw BackendError(errorNumber: 0, "hand-over of a \(kind) backend without its descriptor \(name)")
        }
        return found.descriptor
    }

    func check(kind expected: String) throws(BackendError) {
        guard kind == expected else {
            throw BackendError(errorNumber: 0, "hand-over of a \(kind) backend where \(expected) was expected")
        }
        guard state.count <= Self.stateByteCountMaximum else {
            throw BackendError(errorNumber: 0, "hand-over of a \(kind) backend with \(state.count) bytes of state")
        }
    }
}

/// What a backend remembers: the version of its form, then whatever it writes, in a fixed order.
extension BackendHandover {
    private static let stateVersion: UInt8 = 1

    static func stateWriter() -> ByteWriter {
        var writer = ByteWriter()
        writer.integer(stateVersion)
        return writer
    }

    /// The other process may be of another version, or broken: everything is judged.
    func stateReader() throws(BackendError) -> ByteReader<BackendError> {
        let kind = kind
        var reader = ByteReader(state) {
            BackendError(errorNumber: 0, "hand-over state of a \(kind) backend is damaged: \($0)")
        }
        guard try reader.integer() == Self.stateVersion else {
            throw BackendError(
                errorNumber: 0, "hand-over state of a \(kind) backend in a version that is not understood")
        }
        return reader
    }
}

/// A backend that can move to another process with nothing lost and nothing repeated.
///
/// The order is: ``handOver()`` after `quiesce()`; the other process builds its own from the answer (it is quiesced from
/// the beginning and touches nothing before `resume()`); then either the other process takes over, and here
/// ``relinquish()`` is called, or it does not, and here `resume()` goes on as if nothing had been.
package protocol TransferableBackend: AnyObject, Sendable {
    /// What the other process needs. The backend keeps its own references.
    func handOver() throws(BackendError) -> BackendHandover
    /// The guest runs elsewhere: lets go without touching what is shared (terminal modes, socket paths, locks).
    func relinquish()
    /// Ends for good: puts terminal modes back, removes socket paths.
    func close()
}

extension TransferableBackend {
    package func relinquish() {}
    package func close() {}
}

/// Builds backends from what another process handed over.
package enum AdoptedBackend {
    package static func block(_ handover: BackendHandover) throws(BackendError)
        -> any BlockBackend & TransferableBackend
    { try RawFileBackend(adopting: handover) }

    package static func network(_ handover: BackendHandover, loop: EventLoop) throws(BackendError)
        -> any NetworkBackend & TransferableBackend
    {
        switch handover.kind {
        case UnpluggedNetwork.kind: UnpluggedNetwork()
        case TapBackend.kind: try TapBackend(adopting: handover, loop: loop)
        default: try StreamSocketBackend(adopting: handover, loop: loop)
        }
    }

    /// - Parameter quit: Called when somebody types the escape to leave, on a terminal.
    package static func console(
        _ handover: BackendHandover, loop: EventLoop, quit: @escaping @Sendable () -> Void
    ) throws(BackendError) -> any ConsoleBackend & TransferableBackend {
        switch handover.kind {
        case NullConsole.kind: NullConsole()
        case FileConsole.kind: try FileConsole(adopting: handover)
        case TerminalConsole.kind: try TerminalConsole(adopting: handover, loop: loop, quit: quit)
        case PseudoTerminalConsole.kind: try PseudoTerminalConsole(adopting: handover, loop: loop)
        default: try SocketConsole(adopting: handover, loop: loop)
        }
    }
}

extension BackendError {
    init(_ error: SystemCallError, _ what: String = "") {
        self.init(errorNumber: error.errno.rawValue, what.isEmpty ? "\(error)" : "\(what): \(error)")
    }
}

/// Runs a system call whose failure is the backend's.
func backendCall<Result>(_ what: @autoclosure () -> String = "", _ body: () throws(SystemCallError) -> Result)
    throws(BackendError) -> Result
{
    do throws(SystemCallError) { return try body() } catch { throw BackendError(error, what()) }
}
