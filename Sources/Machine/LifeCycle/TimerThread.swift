package import DeviceModel
package import GuestTime
package import LinuxCalls
import Synchronization

/// One thread that calls back at virtual times. While paused, no timer fires and times may be set.
package final class TimerThread: TimerScheduler {
    package let clock: VirtualClock

    private struct State {
        var deadlines: [Int64?] = []
        var actions: [@Sendable () -> Void] = []
        var isPaused = true
        var isEnding = false
        /// An action runs, outside the lock.
        var isFiring = false
        /// Virtual time at which the thread wakes by itself; the furthest future when it waits to be told.
        var wakeTime = Int64.max
    }

    private let state = Mutex(State())
    /// Changes when the thread has to look again.
    private let attention = WaitWord()
    /// Changes when the thread has stopped firing.
    private let rest = WaitWord()
    private let thread = Mutex<HostThread?>(nil)

    package init(clock: VirtualClock) { self.clock = clock }

    /// Starts the thread; timers fire from the first ``resume()`` on.
    package func start() throws(SystemCallError) {
        let thread = try HostThread(name: "timers") { [self] in run() }
        self.thread.withLock { $0 = thread }
    }

    private final class Timer: DeviceTimer {
        let index: Int
        unowned let owner: TimerThread

        init(index: Int, owner: TimerThread) {
            self.index = index
            self.owner = owner
        }

        func set(deadlineNanoseconds: Int64?) { owner.set(index, deadlineNanoseconds) }
    }

    package func makeTimer(_ action: @escaping @Sendable () -> Void) -> any DeviceTimer {
        state.withLock { state in
            state.deadlines.append(nil)
            state.actions.append(action)
            return Timer(index: state.deadlines.count - 1, owner: self)
        }
    }

    private func set(_ index: Int, _ deadline: Int64?) {
        let mustLook = state.withLock { state in
            state.deadlines[index] = deadline
            guard let deadline, !state.isPaused, deadline < state.wakeTime else { return false }
            state.wakeTime = deadline
            return true
        }
        if mustLook { attention.add(1) }
    }

    private enum Step {
        case fire([@Sendable () -> Void])
        case sleep(nanoseconds: Int64?)
        case end
    }

    private func run() {
        while true {
            let seen = attention.load()
            let step = state.withLock { state -> Step in
                if state.isEnding { return .end }
                state.isFiring = false
                state.wakeTime = .max
                if state.isPaused { return .sleep(nanoseconds: nil) }
                let now = clock.nanoseconds
                var due: [@Sendable () -> Void] = []
                for (index, deadline) in state.deadlines.enumerated() {
                    guard let deadline else { continue }
                    if deadline <= now {
                        state.deadlines[index] = nil
                        due.append(state.actions[index])
                    } else {
                        state.wakeTime = min(state.wakeTime, deadline)
                    }
                }
                if !due.isEmpty {
                    state.isFiring = true
                    return .fire(due)
                }
                return .sleep(nanoseconds: state.wakeTime == .max ? nil : state.wakeTime - now)
            }
            switch step {
            case .end:
                rest.add(1)
                return
            case .fire(let actions): for action in actions { action() }
            case .sleep(let nanoseconds):
                rest.add(1)
                attention.wait(while: seen, timeoutNanoseconds: nanoseconds)
            }
        }
    }

    /// Returns when no action runs; none does until ``resume()``. Not from an action.
    package func pause() {
        while true {
            let seen = rest.load()
            let isFiring = state.withLock { state in
                state.isPaused = true
                return state.isFiring
            }
            if !isFiring { return }
            rest.wait(while: seen)
        }
    }

    package func resume() {
        state.withLock { $0.isPaused = false }
        attention.add(1)
    }

    /// Sends the thread home.
    package func end() {
        state.withLock { $0.isEnding = true }
        attention.add(1)
    }

    /// Waits for its end.
    package func join() { thread.withLock { $0 }?.join() }
}
