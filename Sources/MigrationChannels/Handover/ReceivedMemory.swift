import CLinuxShims
import Glibc
package import LinuxCalls

/// Memory files that a peer sent, judged before anybody maps them.
package enum ReceivedMemory {
    /// Refuses what could hurt later: not a regular memory file, another size than announced, or one that its maker could
    /// shrink under us (reading past the end of a shrunken mapping is SIGBUS).
    package static func judge(_ file: OwnedDescriptor, byteCount: Int, name: String) throws(HandoverError) {
        let status: FileStatus
        let seals: CInt
        do throws(SystemCallError) {
            status = try file.status()
            seals = try MemoryFile.seals(of: file)  // EINVAL for anything but a memfd or tmpfs file
        } catch { throw HandoverError(.malformed, "\(name): what came is not a memory file", cause: error) }
        guard status.type == .regular else {
            throw HandoverError(.malformed, "\(name): what came is not a memory file")
        }
        guard status.byteCount == byteCount else {
            throw HandoverError(
                .incompatible, "\(name): \(byteCount) bytes were announced, the file has \(status.byteCount)")
        }
        guard seals & SHIM_F_SEAL_SHRINK != 0 else {
            throw HandoverError(.malformed, "\(name): the memory file is not sealed against shrinking")
        }
    }

    /// Fills this process's page tables for the parts of a mapping that hold data, so that the guest meets no page fault;
    /// holes stay holes, so that no memory is allocated. Answers the number of bytes populated.
    ///
    /// The corresponding calls are `lseek(SEEK_DATA)` and `madvise(MADV_POPULATE_WRITE)`; a kernel without the latter (before 5.14) is
    /// no error, the guest then takes the faults itself.
    @discardableResult
    package static func populate(_ mapping: OwnedMapping, of file: OwnedDescriptor) -> Int {
        var total = 0
        var position = 0
        while position < mapping.byteCount {
            let start = lseek(file.rawValue, off_t(position), SHIM_SEEK_DATA)
            if start < 0 { break }  // ENXIO: no data behind this point
            let end = lseek(file.rawValue, start, SHIM_SEEK_HOLE)
            let from = Int(start) / hostPageSize * hostPageSize
            let to = min(mapping.byteCount, (Int(max(end, start)) + hostPageSize - 1) / hostPageSize * hostPageSize)
            guard to > from else { break }
            do {
                try mapping.advise(offset: from, byteCount: to - from, SHIM_MADV_POPULATE_WRITE)
            } catch { break }
            total += to - from
            position = to
        }
        return total
    }
}
