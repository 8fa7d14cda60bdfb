import LinuxCalls
import MigrationEngine
import Synchronization

/// Threads that read or write places of a file, so that several calls are on their way at once; with none, whoever asks
/// does it. Not more jobs are taken than there are threads, so nothing grows.
final class FileWorkers: Sendable {
    typealias Job = @Sendable () throws(TransportError) -> Void

    private struct Item: Sendable { let job: Job }
    private struct State: Sendable {
        var waiting: [Item] = []
        var running = 0
        var failure: TransportError?
        var isEnding = false
    }

    private let count: Int
    private let name: String
    private let state = Gate(State())
    private let threads = Mutex<[HostThread]>([])

    init(count: Int, name: String) {
        self.count = count
        self.name = name
    }

    /// - Throws: when the host gives no more threads; those that were started end with ``end()``.
    func start() throws(MigrationError) {
        do throws(TransportError) { try startIfNeeded() } catch {
            throw error.migrationError(in: .setup, "starting threads")
        }
    }

    func startIfNeeded() throws(TransportError) {
        guard threads.withLock({ $0.isEmpty }) else { return }
        for _ in 0..<count {
            do throws(SystemCallError) {
                let thread = try HostThread(name: name) { [state] in Self.work(state) }
                threads.withLock { $0.append(thread) }
            } catch { throw .failed(error) }
        }
    }

    private static func work(_ state: Gate<State>) {
        while true {
            state.wait { !$0.waiting.isEmpty || $0.isEnding }
            let item = state.update { state -> Item? in
                guard !state.isEnding, !state.waiting.isEmpty else { return nil }
                state.running += 1
                return state.waiting.removeFirst()
            }
            guard let item else {
                if state.read({ $0.isEnding }) { return }
                continue
            }
            var failure: TransportError?
            do throws(TransportError) { try item.job() } catch { failure = error }
            state.update { state in
                state.running -= 1
                if state.failure == nil { state.failure = failure }
            }
        }
    }

    /// Does a job, now or beside what follows.
    /// - Throws: what this or an earlier job threw.
    func perform(_ job: @escaping Job) throws(TransportError) {
        guard count > 0 else { return try job() }
        state.wait { $0.waiting.count + $0.running < count || $0.failure != nil }
        try state.update { state -> Result<Void, TransportError> in
            if let failure = state.failure { return .failure(failure) }
            state.waiting.append(Item(job: job))
            return .success(())
        }.get()
    }

    /// Waits until nothing is left to do.
    func settle() throws(TransportError) {
        state.wait { $0.waiting.isEmpty && $0.running == 0 || $0.failure != nil && $0.running == 0 }
        if let failure = state.read({ $0.failure }) { throw failure }
    }

    /// Ends the threads; what was not begun is dropped.
    func end() {
        state.update { $0.isEnding = true }
        for thread in threads.withLock({ $0 }) { thread.join() }
        threads.withLock { $0 = [] }
    }
}
