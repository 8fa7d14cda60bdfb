package import LinuxCalls
import Synchronization

/// One thread that does what blocks, in order, beside the monitor: stopping processors, writing files.
package final class SerialWorker: Sendable {
    private struct State {
        var tasks: [@Sendable () -> Void] = []
        var isEnding = false
    }

    private let state = Mutex(State())
    private let pending = HostSemaphore()
    private let thread = Mutex<HostThread?>(nil)

    package init(name: String) throws(SystemCallError) {
        let started = try HostThread(name: name) { [state = WorkerBox(self)] in state.worker.run() }
        thread.withLock { $0 = started }
    }

    /// Runs `task` on the worker's thread after everything queued before.
    package func perform(_ task: @escaping @Sendable () -> Void) {
        state.withLock { $0.tasks.append(task) }
        pending.signal()
    }

    /// Ends the thread after what is queued; returns when it has ended.
    package func stop() {
        state.withLock { $0.isEnding = true }
        pending.signal()
        thread.withLock { $0.take() }?.join()
    }

    private func run() {
        while true {
            pending.wait()
            let (task, isEnding) = state.withLock { state in
                (state.tasks.isEmpty ? nil : state.tasks.removeFirst(), state.isEnding)
            }
            if let task { task() } else if isEnding { return }
        }
    }

    /// Keeps the worker alive while its thread runs.
    private struct WorkerBox: Sendable {
        let worker: SerialWorker; init(_ worker: SerialWorker) { self.worker = worker }
    }
}
