import CLinuxShims
import Glibc
import Synchronization
import SystemPackage

/// A thread of the host with a name, for work that blocks.
///
/// Started at once; ``join()`` waits for its end. A thread that nobody joins ends with its body.
package final class HostThread: Sendable {
    private let thread: pthread_t
    private let joined = Atomic<Bool>(false)

    private final class Start {
        let name: String
        let body: @Sendable () -> Void
        init(name: String, body: @escaping @Sendable () -> Void) {
            self.name = name
            self.body = body
        }
    }

    /// - Parameters:
    ///   - name: Shown by `ps -L`; cut to 15 bytes.
    ///   - stackByteCount: Size of the stack.
    /// - Throws: `pthread_create` with the kernel's reason (`EAGAIN`: too many threads).
    package init(name: String, stackByteCount: Int = 512 << 10, _ body: @escaping @Sendable () -> Void)
        throws(SystemCallError)
    {
        var attributes = pthread_attr_t()
        unsafe pthread_attr_init(&attributes)
        defer { unsafe pthread_attr_destroy(&attributes) }
        unsafe pthread_attr_setstacksize(&attributes, stackByteCount)
        var created = pthread_t()
        let start = unsafe Unmanaged.passRetained(Start(name: name, body: body))
        let status = unsafe pthread_create(
            &created, &attributes,
            { argument in
                let start = unsafe Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue()
                unsafe _ = shim_set_thread_name(String(start.name.prefix(15)))
                start.body()
                return nil
            }, start.toOpaque())
        guard status == 0 else {
            unsafe start.release()
            throw SystemCallError("pthread_create", Errno(rawValue: status), subject: name)
        }
        thread = created
    }

    deinit {
        if !joined.load(ordering: .relaxed) { pthread_detach(thread) }
    }

    /// Waits until the body has returned. At most once.
    package func join() {
        guard !joined.exchange(true, ordering: .relaxed) else { return }
        pthread_join(thread, nil)
    }

    /// The kernel's number of the calling thread. The corresponding C function is `gettid`.
    package static var currentIdentifier: CInt { shim_thread_id() }

    /// How many processors of the host the caller may run on. The corresponding C function is `sched_getaffinity`.
    package static var processorCount: Int { Int(shim_processor_count()) }

    /// The processor of the host that runs the caller. The corresponding C function is `sched_getcpu`.
    package static var currentProcessor: CInt { shim_current_processor() }

    /// The time that processors of the host have spent on the calling thread. The corresponding C function is `clock_gettime` with
    /// `CLOCK_THREAD_CPUTIME_ID`.
    package static var currentProcessorNanoseconds: Int64 {
        var time = timespec()
        unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }

    /// Runs `body` on another processor of the host than that one, if the calling thread is there and may leave; afterwards it may run
    /// where it might before. The corresponding C function is `sched_setaffinity`.
    package static func away<Result, Failure: Error>(
        from processor: CInt, _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        try avoiding(currentProcessor == processor ? [processor] : [], body)
    }

    /// Runs `body`, and the processes that it starts, on other processors of the host than those, if the calling thread may; afterwards
    /// the thread may run where it might before, and the processes stay. The corresponding C function is `sched_setaffinity`.
    package static func avoiding<Result, Failure: Error>(
        _ processors: [CInt], _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let detour = Detour(around: processors)
        defer { detour.end() }
        return try body()
    }

    /// Runs `body` on that processor of the host alone, if the calling thread may run there; afterwards it may run where it might
    /// before. The corresponding C function is `sched_setaffinity`.
    package static func keeping<Result, Failure: Error>(
        to processor: CInt, _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let detour = Detour(to: processor)
        defer { detour.end() }
        return try body()
    }

    /// A thread of this or of another process may run where the caller may. The corresponding C function is `sched_setaffinity`.
    package static func shareProcessors(withThread thread: CInt) { shim_share_processors(thread) }

    /// How a thread gets a processor of the host while others want it. Threads and processes that it makes meanwhile do not have that
    /// from it.
    package enum Haste: Sendable {
        /// As it did.
        case none
        /// In the shortest turns that the kernel gives. Among threads that want one processor, one with short turns gets it sooner when it
        /// wakes up, and gives up less when it yields: a whole turn, which else is of a millisecond or more. Its share stays the same, and
        /// no privilege is needed. A kernel before 6.12 has turns of one length only. The corresponding C function is `sched_setattr`
        /// with a `sched_runtime`.
        case shortTurns
        /// Before all threads of ordinary priority, which wait until it sleeps or is no longer preferred. Where that is not permitted it
        /// is as ``urgent`` is then.
        case preferred
        /// Before these too, and before all threads of ordinary priority; those that are urgent too get their
        /// turns when it yields. In ``shortTurns`` where that is not permitted: it takes CAP_SYS_NICE or a RLIMIT_RTPRIO. The
        /// corresponding C function is `sched_setattr` with `SCHED_RR`.
        case urgent
        /// Before these too.
        case mostUrgent

        /// Among threads with `SCHED_RR`; nil is none of them.
        fileprivate var priority: UInt32? {
            switch self {
            case .none, .shortTurns: nil
            case .preferred: 1
            case .urgent: 2
            case .mostUrgent: 3
            }
        }

        /// Nobody is urgent where the calling thread may run on one processor only, and would take it from whoever it waits for.
        package var whereOthersHaveRoom: Haste { processorCount > 1 || self == .none ? self : .shortTurns }
    }

    /// Runs `body` in the shortest turns on a processor that the kernel gives: ``Haste/shortTurns``.
    package static func inShortTurns<Result, Failure: Error>(
        _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let detour = Detour(haste: .shortTurns)
        defer { detour.end() }
        return try body()
    }

    /// A thread's other way of running for a while, which another thread may end when this one has better things to do.
    package struct Detour: Sendable {
        /// The kernel's number of the thread.
        package let thread: CInt
        private var processors = shim_processors()
        /// It runs on fewer processors of the host than it might.
        package let isMoved: Bool
        private var scheduling = shim_scheduling()
        private let haste: Haste

        /// The calling thread keeps away from those processors of the host, if it may run elsewhere. None are none.
        package init(around avoided: [CInt] = [], haste: Haste = .none) {
            thread = currentIdentifier
            isMoved = unsafe shim_avoid_processors(avoided, CInt(avoided.count), &processors) != 0
            self.haste = Self.hasten(thread, haste, before: &scheduling)
        }

        /// A thread of this process, by the kernel's number, keeps to that processor of the host, if it may; nil is the calling one.
        package init(of thread: CInt? = nil, to processor: CInt, haste: Haste = .none) {
            self.thread = thread ?? currentIdentifier
            isMoved = unsafe shim_keep_to_processor(self.thread, processor, &processors) != 0
            self.haste = Self.hasten(self.thread, haste, before: &scheduling)
        }

        /// Another thread of this process, by the kernel's number, is ``Haste/preferred`` or ``Haste/urgent``; nil where it cannot be.
        package init?(hastening thread: CInt, _ haste: Haste) {
            self.thread = thread
            self.haste = haste
            isMoved = false
            guard let priority = haste.priority, unsafe shim_set_urgent(thread, priority, &scheduling) != 0 else {
                return nil
            }
        }

        private static func hasten(_ thread: CInt, _ haste: Haste, before: inout shim_scheduling) -> Haste {
            if let priority = haste.priority, unsafe shim_set_urgent(thread, priority, &before) != 0 { return haste }
            guard haste != .none else { return .none }
            return unsafe shim_set_turn(thread, shortTurnNanoseconds, &before) != 0 ? .shortTurns : .none
        }

        /// The thread may run where it might before, and as before.
        package func end() {
            if isMoved { unsafe withUnsafePointer(to: processors) { unsafe shim_allow_processors(thread, $0) } }
            if haste != .none { unsafe withUnsafePointer(to: scheduling) { unsafe shim_set_scheduling(thread, $0) } }
        }
    }

    /// What the kernel allows at least.
    private static let shortTurnNanoseconds: UInt64 = 100_000
}
