import CLinuxShims
import Glibc
import Synchronization
import SystemPackage

/// What a descriptor is watched for.
package struct ReadyEvents: OptionSet, Hashable, Sendable {
    package let rawValue: UInt32
    package init(rawValue: UInt32) { self.rawValue = rawValue }

    package static let readable = ReadyEvents(rawValue: 0x001)
    package static let writable = ReadyEvents(rawValue: 0x004)
    /// Error or hang-up; always watched.
    package static let closed = ReadyEvents(rawValue: 0x008 | 0x010 | 0x2000)
}

/// One thread that waits for many descriptors (epoll(7)) and calls back. Callbacks run one at a time and must not block.
///
/// They run in the loop's *turn*, which its thread takes when something is ready. Who must be sure that no callback runs, or
/// wants to be one, borrows the turn (``sync(_:)``) instead of waking a thread that is asleep: that takes longer than most
/// callbacks. "On the loop's thread" means in its turn.
package final class EventLoop: Sendable {
    private struct Watch {
        let descriptor: OwnedDescriptor
        let handler: @Sendable (ReadyEvents) -> Void
    }

    private struct State {
        var watches: [UInt64: Watch] = [:]
        var nextToken: UInt64 = 1
        var tasks: [@Sendable () -> Void] = []
        /// Tasks that wait for their time (CLOCK_MONOTONIC, nanoseconds), in no order.
        var timers: [(deadline: Int64, task: @Sendable () -> Void)] = []
        var isStopping = false
        /// Whoever leaves tasks wakes nobody: ``gathering(_:)`` does.
        var isGathering = false

        /// Moves what is due to the tasks, earliest first.
        mutating func takeDueTimers(now: Int64) {
            guard timers.contains(where: { $0.deadline <= now }) else { return }
            tasks += timers.filter { $0.deadline <= now }.sorted { $0.deadline < $1.deadline }.map(\.task)
            timers.removeAll { $0.deadline <= now }
        }
    }

    private let epoll: OwnedDescriptor
    private let wake: OwnedDescriptor
    private let state = Mutex(State())
    private let thread = Mutex<HostThread?>(nil)
    private let turn = Mutex<Void>(())
    /// The thread that has the turn; 0 when nobody has.
    private let turnHolder = Atomic<Int>(0)

    /// A watched descriptor; ends with ``EventLoop/remove(_:)``.
    package struct Token: Hashable, Sendable { fileprivate let value: UInt64 }

    /// Starts the thread.
    package init(name: String) throws(SystemCallError) {
        epoll = OwnedDescriptor(adopting: try retrying("epoll_create1") { shim_epoll_create() })
        wake = try .event()
        try control(1, wake, events: .readable, token: 0)
        let started = try HostThread(name: name) { [unowned self] in self.run() }
        thread.withLock { $0 = started }
    }

    /// Calls `handler` on the loop's thread whenever `descriptor` is ready (level-triggered).
    package func watch(
        _ descriptor: OwnedDescriptor, for events: ReadyEvents, _ handler: @escaping @Sendable (ReadyEvents) -> Void
    ) throws(SystemCallError) -> Token {
        let token = state.withLock { state in
            let token = state.nextToken
            state.nextToken += 1
            state.watches[token] = Watch(descriptor: descriptor, handler: handler)
            return token
        }
        do {
            try control(1, descriptor, events: events, token: token)
        } catch {
            _ = state.withLock { $0.watches.removeValue(forKey: token) }
            throw error
        }
        return Token(value: token)
    }

    /// Changes what a descriptor is watched for; an empty set still reports ``ReadyEvents/closed``.
    package func change(_ token: Token, to events: ReadyEvents) throws(SystemCallError) {
        guard let watch = state.withLock({ $0.watches[token.value] }) else { return }
        try control(3, watch.descriptor, events: events, token: token.value)
    }

    /// Stops watching. A callback that is running is waited for, unless it is the caller.
    package func remove(_ token: Token) {
        guard let watch = state.withLock({ $0.watches.removeValue(forKey: token.value) }) else { return }
        _ = shim_epoll_control(epoll.rawValue, 2, watch.descriptor.rawValue, 0, 0)
        barrier()
    }

    /// Runs `task` on the loop's thread soon.
    package func perform(_ task: @escaping @Sendable () -> Void) {
        let isFirst = state.withLock { state in
            state.tasks.append(task)
            return state.tasks.count == 1 && !state.isGathering
        }
        // Whoever was first has woken the thread, which takes all.
        if isFirst { wake.signal() }
    }

    /// While `body` runs, what is to be performed wakes the loop's thread up only if that is awake for something else; it does
    /// afterwards. For work that is to have the host's processors for itself.
    package func gathering<Failure>(_ body: () throws(Failure) -> Void) throws(Failure) {
        state.withLock { $0.isGathering = true }
        defer {
            let isLeft = state.withLock { state in
                state.isGathering = false
                return !state.tasks.isEmpty
            }
            if isLeft { wake.signal() }
        }
        try body()
    }

    /// Runs `task` on the loop's thread when the time has passed. A loop that stops before drops it.
    package func perform(afterMilliseconds milliseconds: Int64, _ task: @escaping @Sendable () -> Void) {
        let deadline = monotonicNanoseconds() &+ max(0, milliseconds) &* 1_000_000
        state.withLock { $0.timers.append((deadline, task)) }
        wake.signal()
    }

    /// Returns when every callback that had begun, and all that was to be performed, has ended. At once in the loop's turn.
    package func barrier() { sync {} }

    /// Runs `body` on the caller's thread in the loop's turn, behind all that was to be performed before. At once for who has
    /// the turn already.
    package func sync<Result, Failure>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
        if isLoopThread { return try body() }
        var result: Swift.Result<Result, Failure>?
        takeTurn {
            performTasks()
            result = Swift.Result { () throws(Failure) in try body() }
        }
        return try result!.get()
    }

    /// Whether the caller has the loop's turn.
    package var isLoopThread: Bool { turnHolder.load(ordering: .relaxed) == Int(shim_thread_id()) }

    private func takeTurn(_ body: () -> Void) {
        turn.withLock { _ in
            turnHolder.store(Int(shim_thread_id()), ordering: .relaxed)
            body()
            turnHolder.store(0, ordering: .relaxed)
        }
    }

    /// In the turn. Answers whether the loop is to stop.
    @discardableResult private func performTasks() -> Bool {
        let (tasks, isStopping) = state.withLock { state in
            state.takeDueTimers(now: monotonicNanoseconds())
            defer { state.tasks = [] }
            return (state.tasks, state.isStopping)
        }
        for task in tasks { task() }
        return isStopping
    }

    /// Ends the thread; pending tasks still run. Must be called before the last reference goes away.
    package func stop() {
        state.withLock { $0.isStopping = true }
        wake.signal()
        if !isLoopThread, let thread = thread.withLock({ $0.take() }) { thread.join() }
        state.withLock { $0.watches = [:] }
    }

    private func control(_ operation: CInt, _ descriptor: OwnedDescriptor, events: ReadyEvents, token: UInt64)
        throws(SystemCallError)
    {
        _ = try retrying("epoll_ctl") {
            shim_epoll_control(epoll.rawValue, operation, descriptor.rawValue, events.rawValue | 0x2000, token)
        }
    }

    /// Until the next timer; -1 without one. Rounded up: a timer is never early.
    private var timeoutMilliseconds: CInt {
        guard let next = state.withLock({ $0.timers.map(\.deadline).min() }) else { return -1 }
        return CInt(clamping: max(0, (next &- monotonicNanoseconds() &+ 999_999) / 1_000_000))
    }

    private func run() {
        var ready = [shim_ready](repeating: shim_ready(), count: 64)
        while true {
            let count = unsafe shim_epoll_wait(epoll.rawValue, &ready, 64, timeoutMilliseconds)
            if count < 0 { continue }  // EINTR: nothing else can fail here
            var isStopping = false
            takeTurn {
                for index in 0..<Int(count) {
                    let token = ready[index].token
                    if token == 0 {
                        wake.drain()
                        continue
                    }
                    let events = ReadyEvents(rawValue: ready[index].events)
                    state.withLock { $0.watches[token] }?.handler(events)
                }
                isStopping = performTasks()
            }
            if isStopping { return }
        }
    }
}

/// A counting semaphore over a futex-backed condition; for threads that may block.
package final class HostSemaphore: Sendable {
    private let word = WaitWord()

    package init() {}

    package func signal() { word.add(1) }

    /// Waits until signalled once more than waited for. False when the time is over.
    @discardableResult package func wait(timeoutNanoseconds: Int64? = nil) -> Bool {
        let deadline = timeoutNanoseconds.map { monotonicNanoseconds() &+ $0 }
        while true {
            let value = word.load()
            if value > 0 {
                if word.compareExchange(value, value - 1) { return true }
                continue
            }
            var left: Int64?
            if let deadline {
                left = deadline - monotonicNanoseconds()
                if left! <= 0 { return false }
            }
            word.wait(while: 0, timeoutNanoseconds: left)
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
package func monotonicNanoseconds() -> Int64 {
    var now = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC, &now)
    return Int64(now.tv_sec) &* 1_000_000_000 &+ Int64(now.tv_nsec)
}
