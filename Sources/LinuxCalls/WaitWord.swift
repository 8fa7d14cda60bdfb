import CLinuxShims
import Glibc
import Synchronization
import SystemPackage

/// A 32-bit word that threads, and processes that share the memory it lies in, can change and sleep on.
/// Source: futex(2).
@safe package final class WaitWord: Sendable {
    // SAFETY: the word stays where it is while this object lives; every access is atomic.
    nonisolated(unsafe) private let word: UnsafeMutablePointer<Atomic<UInt32>>
    private let mapping: OwnedMapping?
    private let isShared: Bool

    /// A word of this process alone.
    package init(_ value: UInt32 = 0) {
        unsafe word = .allocate(capacity: 1)
        unsafe word.initialize(to: Atomic(value))
        mapping = nil
        isShared = false
    }

    /// A word inside shared memory, as it stands there.
    package init(in mapping: OwnedMapping, offset: Int) {
        precondition(offset >= 0 && offset % 4 == 0 && offset + 4 <= mapping.byteCount)
        unsafe word = (mapping.base + offset).assumingMemoryBound(to: Atomic<UInt32>.self)
        self.mapping = mapping
        isShared = true
    }

    deinit { if mapping == nil { unsafe word.deallocate() } }

    package func load() -> UInt32 { unsafe word.pointee.load(ordering: .acquiring) }

    /// Stores and wakes every sleeper.
    package func store(_ value: UInt32) {
        unsafe word.pointee.store(value, ordering: .sequentiallyConsistent)
        wakeAll()
    }

    package func add(_ value: UInt32) {
        unsafe word.pointee.wrappingAdd(value, ordering: .sequentiallyConsistent)
        wakeAll()
    }

    /// Swaps `expected` for `desired` and wakes every sleeper; false when something else stood there.
    package func compareExchange(_ expected: UInt32, _ desired: UInt32) -> Bool {
        let swapped = unsafe word.pointee.compareExchange(
            expected: expected, desired: desired, ordering: .sequentiallyConsistent
        ).exchanged
        if swapped { wakeAll() }
        return swapped
    }

    /// Sleeps while the word is `value`; may return early for no reason.
    package func wait(while value: UInt32, timeoutNanoseconds: Int64? = nil) {
        let operation: CInt = 0 | (isShared ? 0 : 128)  // FUTEX_WAIT, FUTEX_PRIVATE_FLAG
        let pointer = unsafe UnsafeMutableRawPointer(word).assumingMemoryBound(to: UInt32.self)
        if let timeoutNanoseconds {
            var timeout = timespec(
                tv_sec: Int(timeoutNanoseconds / 1_000_000_000), tv_nsec: Int(timeoutNanoseconds % 1_000_000_000))
            unsafe _ = shim_futex(pointer, operation, value, &timeout)
        } else {
            unsafe _ = shim_futex(pointer, operation, value, nil)
        }
    }

    /// Sleeps while the word is `value`, at most so long.
    package func sleep(while value: UInt32, nanoseconds: Int64) {
        let end = monotonicNanoseconds() + nanoseconds
        while load() == value {
            let left = end - monotonicNanoseconds()
            guard left > 0 else { return }
            wait(while: value, timeoutNanoseconds: left)
        }
    }

    package func wakeAll() { wake(.max) }

    private func wake(_ count: Int32) {
        let pointer = unsafe UnsafeMutableRawPointer(word).assumingMemoryBound(to: UInt32.self)
        unsafe _ = shim_futex(pointer, 1 | (isShared ? 0 : 128), UInt32(count), nil)  // FUTEX_WAKE
    }
}
