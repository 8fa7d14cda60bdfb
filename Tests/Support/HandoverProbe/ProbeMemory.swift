import Glibc
import LinuxCalls
import Synchronization

/// Shared memory that the test and every process of the probe map: what the scripted guest writes, and what the
/// processes report. Offsets are in 8-byte words.
@safe final class ProbeMemory: Sendable {
    enum Word: Int, CaseIterable {
        /// Steps the guest has made; grows while somebody runs it.
        case steps
        /// Times a process found somebody else running the guest when it was to run it: must stay 0.
        case doubleRuns
        /// Times the state that arrived was not what the memory says: must stay 0.
        case staleStates
        /// Process that runs the guest, 0 while it is paused.
        case runner
        /// Hand-overs that moved.
        case moves
        /// Source's last outcome: 1 moved, 2 stayed, 3 stayed paused.
        case sourceOutcome
        /// Destination's last outcome: 1 running, 2 not ours, 3 lost.
        case destinationOutcome
        /// What the word said when a destination was not given the guest.
        case finalOwner
        /// Process that is the source, and the destination, of the hand-over under way.
        case sourceProcess, destinationProcess
        /// Longest pause in nanoseconds, and the last one.
        case longestPause, lastPause
    }

    static let byteCount = 1 << 20
    private let mapping: OwnedMapping

    init(_ file: OwnedDescriptor) throws(SystemCallError) {
        mapping = try OwnedMapping(byteCount: Self.byteCount, descriptor: file)
    }

    private func atomic(_ word: Word) -> UnsafeMutablePointer<Atomic<UInt64>> {
        unsafe (mapping.base + word.rawValue * 8).assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    subscript(_ word: Word) -> UInt64 {
        get { unsafe atomic(word).pointee.load(ordering: .sequentiallyConsistent) }
        set { unsafe atomic(word).pointee.store(newValue, ordering: .sequentiallyConsistent) }
    }

    func add(_ word: Word, _ value: UInt64 = 1) {
        unsafe _ = atomic(word).pointee.wrappingAdd(value, ordering: .sequentiallyConsistent)
    }
}
