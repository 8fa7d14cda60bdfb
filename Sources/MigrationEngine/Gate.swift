import Glibc

/// A value under a lock that threads can wait on: orders from any thread to the one that drives a migration.
@safe package final class Gate<Value: Sendable>: Sendable {
    @unsafe private struct Storage {
        var mutex = unsafe pthread_mutex_t()
        var condition = pthread_cond_t()
    }

    // SAFETY: allocated once, never moves, freed in deinit; `value` is only touched with the mutex held.
    nonisolated(unsafe) private let storage: UnsafeMutablePointer<Storage>
    nonisolated(unsafe) private let value: UnsafeMutablePointer<Value>

    package init(_ initial: Value) {
        unsafe storage = .allocate(capacity: 1)
        unsafe storage.initialize(to: Storage())
        unsafe value = .allocate(capacity: 1)
        unsafe value.initialize(to: initial)
        unsafe pthread_mutex_init(&storage.pointee.mutex, nil)
        var attributes = pthread_condattr_t()
        unsafe pthread_condattr_init(&attributes)
        unsafe pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        unsafe pthread_cond_init(&storage.pointee.condition, &attributes)
        unsafe pthread_condattr_destroy(&attributes)
    }

    deinit {
        unsafe pthread_cond_destroy(&storage.pointee.condition)
        unsafe pthread_mutex_destroy(&storage.pointee.mutex)
        unsafe storage.deinitialize(count: 1)
        unsafe storage.deallocate()
        unsafe value.deinitialize(count: 1)
        unsafe value.deallocate()
    }

    /// Changes the value and wakes everybody who waits.
    @discardableResult package func update<Result>(_ body: (inout Value) -> Result) -> Result {
        unsafe pthread_mutex_lock(&storage.pointee.mutex)
        defer {
            unsafe pthread_cond_broadcast(&storage.pointee.condition)
            unsafe pthread_mutex_unlock(&storage.pointee.mutex)
        }
        return unsafe body(&value.pointee)
    }

    package func read<Result>(_ body: (Value) -> Result) -> Result {
        unsafe pthread_mutex_lock(&storage.pointee.mutex)
        defer { unsafe pthread_mutex_unlock(&storage.pointee.mutex) }
        return unsafe body(value.pointee)
    }

    /// Waits until `condition` holds, or the time is over; answers whether it holds.
    @discardableResult
    package func wait(timeoutNanoseconds: UInt64? = nil, until condition: (Value) -> Bool) -> Bool {
        unsafe pthread_mutex_lock(&storage.pointee.mutex)
        defer { unsafe pthread_mutex_unlock(&storage.pointee.mutex) }
        var deadline = timespec()
        if let timeoutNanoseconds {
            unsafe clock_gettime(CLOCK_MONOTONIC, &deadline)
            let nanoseconds = UInt64(deadline.tv_nsec) + timeoutNanoseconds % 1_000_000_000
            deadline.tv_sec += Int(timeoutNanoseconds / 1_000_000_000) + Int(nanoseconds / 1_000_000_000)
            deadline.tv_nsec = Int(nanoseconds % 1_000_000_000)
        }
        while true {
            if unsafe condition(value.pointee) { return true }
            if timeoutNanoseconds != nil {
                let status = unsafe pthread_cond_timedwait(
                    &storage.pointee.condition, &storage.pointee.mutex, &deadline)
                if status == ETIMEDOUT { return unsafe condition(value.pointee) }
            } else {
                unsafe pthread_cond_wait(&storage.pointee.condition, &storage.pointee.mutex)
            }
        }
    }
}
