import ComponentState
import MigrationStream

/// Loads the state that came in one package, and lets the guest run, while pages come on the channel: a component that
/// looks at guest memory may need one of them.
// SAFETY: everything but `state` belongs to the thread that loads; the driver looks at it after that has ended.
final class PackageLoader: @unchecked Sendable {
    enum State: Hashable {
        case loading
        /// The state is whole and taken; the source is being told, which makes the guest ours.
        case answering
        /// The source was told. The guest is here, whatever becomes of the channel.
        case taken
        case running
        /// The driver gave up before the source was told: the guest must not run.
        case abandoned
        case failed
    }

    let state = Gate(State.loading)
    private(set) var error: MigrationError?
    private(set) var notices: [String] = []
    private(set) var loadNanoseconds: UInt64 = 0
    private(set) var resumeNanoseconds: UInt64 = 0

    private let owner: MigrationDestination
    private let configuration: MigrationConfiguration
    private var register: SectionRegister
    private let globalState: GlobalState
    private var reader: StreamReader
    private var cursor: StreamCursor
    private let writer: ReturnPathWriter
    private var isPrepared = false
    private var thread: EngineThread?

    /// - Parameters:
    ///   - package: The records behind POSTCOPY_LISTEN.
    ///   - reader: As it stood at the package.
    init(
        _ owner: MigrationDestination, register: SectionRegister, globalState: GlobalState, reader: StreamReader,
        package: StreamCursor, writer: ReturnPathWriter
    ) {
        self.owner = owner
        configuration = owner.configuration
        self.register = register
        self.globalState = globalState
        self.reader = reader
        cursor = package
        self.writer = writer
    }

    func start() throws(MigrationError) {
        thread = try EngineThread(in: .switchover) { [self] in
            do throws(MigrationError) { try load() } catch {
                self.error = error
                // The source keeps its guest if it was not told otherwise.
                try? writer.send(.shut(status: 1), in: .switchover)
                state.update { $0 = $0 == .abandoned ? .abandoned : .failed }
                // The driver may be waiting for pages that will not come.
                owner.orders.read { $0.transport }.interrupt()
            }
        }
    }

    func join() {
        thread?.join()
        thread = nil
    }

    private func load() throws(MigrationError) {
        let start = now()
        while true {
            let record = try decode { (cursor: inout StreamCursor, reader: inout StreamReader) throws(StreamError) in
                try reader.next(&cursor)
            }
            switch record {
            case .section(let header) where header.kind == .full && header.name != "ram": try loadComponent(header)
            case .command(.ping(let value)):
                try prepare(isLast: false)
                if isPrepared { try take(answering: value) } else { try writer.send(.pong(value), in: .switchover) }
            case .command(.postcopyRun):
                guard cursor.isAtEnd else { throw refused("something behind POSTCOPY_RUN") }
                try prepare(isLast: true)
                try take(answering: nil)
                loadNanoseconds = now() - start
                return try runGuest()
            default: throw refused("a record that may not come in a package")
            }
        }
    }

    private func refused(_ what: String) -> MigrationError {
        MigrationError(.streamMalformed, in: .switchover, "\(what), at \(cursor.offset)")
    }

    private func decode<Result>(
        _ body: (inout StreamCursor, inout StreamReader) throws(StreamError) -> Result
    ) throws(MigrationError) -> Result {
        do throws(StreamError) { return try body(&cursor, &reader) } catch {
            throw StreamInput.migrationError(error, in: .switchover, true)
        }
    }

    private func loadComponent(_ header: SectionHeader) throws(MigrationError) {
        let component = try register.begin(name: header.name, instance: header.instance, version: header.version)
        do throws(StreamError) {
            try SectionDecoder.decode(
                component, header: header, layout: register.layout, from: &cursor, limits: configuration.limits)
            try reader.endSection(&cursor)
        } catch {
            throw MigrationError(
                .stateRejected, in: .switchover, "section \(header.name) \(header.instance) was not taken",
                cause: error)
        }
    }

    /// Judges that the state is whole and fits together. Before the source is told: after that it is too late.
    private func prepare(isLast: Bool) throws(MigrationError) {
        guard !isPrepared else { return }
        do throws(MigrationError) { try register.requireAll() } catch {
            if isLast { throw error }
            return
        }
        notices = register.surplus
        do { try owner.guest.finishLoading() } catch {
            throw MigrationError(
                .stateRejected, in: .switchover, "the loaded state does not fit together", cause: error)
        }
        isPrepared = true
    }

    /// From here on the guest is ours. A source that waits for the answer lets go of it when it has the answer.
    private func take(answering value: UInt32?) throws(MigrationError) {
        let mayTake = state.update { state in
            guard state == .loading else { return false }
            state = .answering
            return true
        }
        guard mayTake else {
            if let value, state.read({ $0 == .taken }) { try writer.send(.pong(value), in: .switchover) }
            if state.read({ $0 == .abandoned }) {
                throw MigrationError(.channelClosed, in: .switchover, "the channel was lost before the guest could run")
            }
            return
        }
        if let ownership = owner.ownership, !ownership.claim() {
            throw MigrationError(.cancelled, in: .switchover, "the source took the guest back")
        }
        guard owner.orders.commit() else { throw MigrationError(.cancelled, in: .switchover, "cancelled") }
        if let value { try writer.send(.pong(value), in: .switchover) }
        state.update { $0 = .taken }
    }

    private func runGuest() throws(MigrationError) {
        let start = now()
        if globalState.isRunning && !configuration.staysPaused {
            do { try owner.guest.resume() } catch {
                throw MigrationError(.guestFailed, in: .postcopy, "the guest cannot be resumed", cause: error)
            }
        }
        resumeNanoseconds = now() - start
        state.update { $0 = .running }
    }
}
