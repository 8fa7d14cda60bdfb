import CLinuxShims
import Glibc
package import LinuxCalls

/// Memory files that a peer sent, judged before anybody maps them.
package enum ReceivedMemory {
    /// Refuses what could hurt later: not a regular memory file, another size than announced, or one that its maker could
    /// shrink under us (reading past the end of a shrunken mapping is SIGBUS).
    /// - Parameter needsSeal: False for a file with a name, which cannot be sealed: only its kind and its size are looked at.
    package static func judge(
        _ file: OwnedDescriptor, byteCount: Int, name: String, needsSeal: Bool = true
    ) throws(HandoverError) {
        guard needsSeal else {
            guard let status = try? file.status(), status.type == .regular, status.byteCount == byteCount else {
                throw HandoverError(.incompatible, "\(name): what came is no file of \(byteCount) bytes")
            }
            return
        }
        let judgement = try judge(file, name: name)
        guard judgement.byteCount == byteCount else {
            throw HandoverError(
                .incompatible, "\(name): \(byteCount) bytes were announced, the file has \(judgement.byteCount)")
        }
        guard judgement.isSealed else {
            throw HandoverError(.malformed, "\(name): the memory file is not sealed against shrinking")
        }
    }

    /// Refuses what is not a regular memory file, and seals what can be sealed.
    /// - Returns: Its size, and whether nobody can shrink it any more.
    package static func judge(_ file: OwnedDescriptor, name: String) throws(HandoverError) -> (
        byteCount: Int, isSealed: Bool
    ) {
        let status: FileStatus
        var seals: CInt
        do throws(SystemCallError) {
            status = try file.status()
            seals = try MemoryFile.seals(of: file)  // EINVAL for anything but a memfd or tmpfs file
            if seals & SHIM_F_SEAL_SHRINK == 0, (try? MemoryFile.seal(file)) != nil {
                seals = try MemoryFile.seals(of: file)
            }
        } catch { throw HandoverError(.malformed, "\(name): what came is not a memory file", cause: error) }
        guard status.type == .regular else {
            throw HandoverError(.malformed, "\(name): what came is not a memory file")
        }
        return (Int(status.byteCount), seals & SHIM_F_SEAL_SHRINK != 0)
    }

    /// Fills this process's page tables for the parts of a mapping that hold data, so that the guest meets no page fault;
    /// holes stay holes, so that no memory is allocated.
    ///
    /// Pages are asked for as if to be read: the kernel then maps those around each as well, several times faster, and in
    /// a shared mapping of a memory file they can be written at once. The corresponding calls are `lseek(SEEK_DATA)` and
    /// `madvise(MADV_POPULATE_READ)`; a kernel without the latter (before 5.14) is no error, the guest then takes the
    /// faults itself.
    /// - Parameters:
    ///   - start: Where to begin, in bytes.
    ///   - deadline: When to stop, CLOCK_MONOTONIC in nanoseconds.
    /// - Returns: Where to go on; nil when all of it is done.
    @discardableResult
    package static func populate(
        _ mapping: OwnedMapping, of file: OwnedDescriptor, from start: Int = 0, until deadline: Int64 = .max
    ) -> Int? {
        var position = start
        while position < mapping.byteCount {
            let start = lseek(file.rawValue, off_t(position), SHIM_SEEK_DATA)
            if start < 0 { return nil }  // ENXIO: no data behind this point
            let end = lseek(file.rawValue, start, SHIM_SEEK_HOLE)
            var from = Int(start) / hostPageSize * hostPageSize
            let to = min(mapping.byteCount, (Int(max(end, start)) + hostPageSize - 1) / hostPageSize * hostPageSize)
            guard to > from else { return nil }
            while from < to {
                if monotonicNanoseconds() >= deadline { return from }
                let count = min(to - from, pieceByteCount)
                do {
                    try mapping.advise(offset: from, byteCount: count, SHIM_MADV_POPULATE_READ)
                } catch { return nil }
                from += count
            }
            position = to
        }
        return nil
    }

    /// Fills page tables for a moment, and what is left then on a thread beside.
    package static func populateSoon(
        _ mapping: OwnedMapping, of file: OwnedDescriptor, until deadline: Int64 = monotonicNanoseconds() + 20_000_000
    ) {
        guard let rest = populate(mapping, of: file, until: deadline) else { return }
        _ = try? HostThread(name: "populate") { populate(mapping, of: file, from: rest) }
    }

    /// Between looks at the clock: about a millisecond's work.
    private static let pieceByteCount = 4 << 20
}
