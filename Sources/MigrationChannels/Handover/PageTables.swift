import CLinuxShims
import Glibc
package import LinuxCalls
import Synchronization

/// A process's page tables for memory that another process had before, or has from now on.
///
/// For 8 GiB there are two million entries: a second's work to make, a tenth of that to clear, and a host's scheduler lets whoever
/// has a processor keep it for milliseconds. So all of it goes in pieces, and between them the guest comes first.
package enum PageTables {
    /// Fills this process's page tables for the parts of a mapping that hold data, so that the guest meets no page fault;
    /// holes stay holes, so that no memory is allocated.
    ///
    /// Pages are asked for as if to be read: the kernel then maps those around each as well, several times faster, and in
    /// a shared mapping of a memory file they can be written at once. The corresponding calls are `cachestat` and
    /// `lseek(SEEK_DATA)`, which tell where data are, and `madvise(MADV_POPULATE_READ)`; a kernel without the last (before 5.14)
    /// is no error, the guest then takes the faults itself. The guest may be running elsewhere on this host: between any two pieces
    /// it gets the processor if it waits for it.
    /// - Parameters:
    ///   - start: Where to begin, in bytes.
    ///   - deadline: When to stop, CLOCK_MONOTONIC in nanoseconds.
    ///   - yieldedNanosecondsMax: Longest that others may have the processor in between; then it stops as well.
    /// - Returns: Where to go on; nil when all of it is done.
    @discardableResult
    package static func populate(
        _ mapping: OwnedMapping, of file: OwnedDescriptor, from start: Int = 0, until deadline: Int64 = .max,
        yieldedNanosecondsMax: Int64 = .max
    ) -> Int? {
        var position = start
        var yielded: Int64 = 0
        while position < mapping.byteCount {
            if yielded > yieldedNanosecondsMax || monotonicNanoseconds() >= deadline { return position }
            let end = min(mapping.byteCount, (position / pieceByteCount + 1) * pieceByteCount)
            guard let next = populate(mapping, of: file, piece: position..<end) else { return nil }
            position = next
            let before = monotonicNanoseconds()
            sched_yield()
            yielded += monotonicNanoseconds() - before
        }
        return nil
    }

    /// Fills one piece. Looking for the end of data, the kernel walks over every page of them, far beyond this piece; so it is asked only when the
    /// data end in here.
    /// - Returns: Where to go on; nil when there is no data behind the piece, or nothing can be done.
    private static func populate(_ mapping: OwnedMapping, of file: OwnedDescriptor, piece: Range<Int>) -> Int? {
        var position = piece.lowerBound
        var residentCount = file.residentPageCount(in: piece) ?? 0
        while position < piece.upperBound {
            var next = piece.upperBound
            if residentCount < (next - position) / hostPageSize {
                let found = Int(lseek(file.rawValue, off_t(position), SHIM_SEEK_DATA))
                if found < 0 { return nil }  // ENXIO: no data behind this point
                let data = found / hostPageSize * hostPageSize
                if data >= next { return data }
                if data > position {
                    position = data
                    // What was stepped over may have been allotted and never written: it is no data, and it was counted.
                    residentCount = file.residentPageCount(in: position..<next) ?? 0
                    continue
                }
                let end = Int(lseek(file.rawValue, off_t(position), SHIM_SEEK_HOLE))
                next = min(next, max(end, position + hostPageSize))
            }
            let byteCount = next - position
            guard (try? mapping.advise(offset: position, byteCount: byteCount, SHIM_MADV_POPULATE_READ)) != nil else {
                return nil
            }
            residentCount -= byteCount / hostPageSize
            position = next
        }
        return position
    }

    /// Fills page tables for a moment, and what is left then on a thread beside.
    package static func populateSoon(
        _ mapping: OwnedMapping, of file: OwnedDescriptor, until deadline: Int64 = monotonicNanoseconds() + 20_000_000
    ) {
        guard let rest = populate(mapping, of: file, until: deadline) else { return }
        BackgroundPopulation.start([(mapping, file, start: rest)])
    }

    /// Clears this process's page tables for memory that it has no more use for, and frees what only it had. A process that ends
    /// would do it all at once, on whichever thread ends last. What touches the memory all the same finds it mapped.
    /// The corresponding C function is `madvise` with `MADV_DONTNEED`.
    /// - Parameter deadline: When to leave the rest to the end of the process, CLOCK_MONOTONIC in nanoseconds.
    package static func clear(_ mapping: OwnedMapping, until deadline: Int64) {
        var position = 0
        while position < mapping.byteCount, monotonicNanoseconds() < deadline {
            let byteCount = min(clearedByteCount, mapping.byteCount - position)
            guard (try? mapping.advise(offset: position, byteCount: byteCount, MADV_DONTNEED)) != nil else { return }
            position += byteCount
            sched_yield()
        }
    }

    /// What is filled at a time: about a tenth of a millisecond's work, in which nobody else can change the process's mappings.
    private static let pieceByteCount = 512 << 10
    /// What is cleared at a time, for as long.
    private static let clearedByteCount = 8 << 20
}

/// Fills page tables on a thread of its own, which others hardly notice: where they want its processor it takes a sixteenth of it.
///
/// The thread has no lower priority than others: without a privilege nobody can raise it again, and a thread of the lowest priority
/// (SCHED_IDLE) on a busy host lets its process end seconds later than it might.
package enum BackgroundPopulation {
    private struct Running: Sendable {
        let isToEnd: WaitWord
        let thread: HostThread
    }

    private static let all = Mutex<[Running]>([])

    /// Without a thread for it, whoever touches the memory takes the faults.
    /// - Parameters:
    ///   - rest: For each mapping where ``PageTables/populate(_:of:from:until:)`` stopped.
    ///   - processors: Those of the host that it keeps away from, if it may run elsewhere.
    package static func start(
        _ rest: [(mapping: OwnedMapping, file: OwnedDescriptor, start: Int)],
        avoiding processors: @autoclosure () -> [CInt] = []
    ) {
        guard !rest.isEmpty else { return }
        let isToEnd = WaitWord(0)
        let avoided = processors()
        all.withLock { all in
            let thread = try? HostThread(name: "populate") {
                HostThread.avoiding(avoided) { run(rest, unless: isToEnd) }
                Self.all.withLock { $0.removeAll { $0.isToEnd === isToEnd } }
            }
            if let thread { all.append(Running(isToEnd: isToEnd, thread: thread)) }
        }
    }

    /// Leaves what is not filled to page faults. Returns when nobody fills page tables of this process any more, in about a
    /// millisecond.
    package static func endAll() {
        let ending = all.withLock { all in
            defer { all = [] }
            return all
        }
        for population in ending { population.isToEnd.store(1) }
        for population in ending { population.thread.join() }
    }

    private static func run(
        _ rest: [(mapping: OwnedMapping, file: OwnedDescriptor, start: Int)], unless isToEnd: WaitWord
    ) {
        // What wakes it is about to stop the guest, and should not wait for a turn to end.
        HostThread.inShortTurns {
            for (mapping, file, start) in rest {
                var next: Int? = start
                while let position = next, isToEnd.load() == 0 {
                    let (time, used) = (monotonicNanoseconds(), HostThread.currentProcessorNanoseconds)
                    next = PageTables.populate(mapping, of: file, from: position, until: time + turnNanoseconds)
                    let spent = HostThread.currentProcessorNanoseconds - used
                    let othersHad = monotonicNanoseconds() - time - spent
                    // A processor takes a thread that waits for another one only when it becomes idle.
                    isToEnd.wait(
                        while: 0,
                        timeoutNanoseconds: othersHad > othersNanosecondsMax ? 15 * spent : restNanoseconds)
                }
            }
        }
    }

    /// How long it fills at a time.
    private static let turnNanoseconds: Int64 = 200_000
    private static let restNanoseconds: Int64 = 50_000
    /// Longest that others may have had the processor in a turn for it not to count as wanted.
    private static let othersNanosecondsMax: Int64 = 50_000
}
