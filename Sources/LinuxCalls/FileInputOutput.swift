import CLinuxShims
import Glibc
import SystemPackage

/// Reading, writing and giving back space at places of a file.
extension OwnedDescriptor {
    /// Reads at most `buffer.count` bytes from `offset`; 0 is the end of the file. The corresponding C function is `pread`.
    package func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(SystemCallError) -> Int {
        try retrying("pread") { unsafe pread(rawValue, buffer.baseAddress, buffer.count, off_t(offset)) }
    }

    /// Writes at most `bytes.count` bytes at `offset`. The corresponding C function is `pwrite`.
    package func write(at offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(SystemCallError) -> Int {
        try retrying("pwrite") { unsafe pwrite(rawValue, bytes.baseAddress, bytes.count, off_t(offset)) }
    }

    /// Returns when the file's contents are on stable storage. The corresponding C function is `fdatasync`.
    package func synchronizeData() throws(SystemCallError) {
        _ = try retrying("fdatasync") { fdatasync(rawValue) }
    }

    /// Gives space back; it reads as zero. The corresponding C function is `fallocate`.
    package func punchHole(offset: UInt64, byteCount: UInt64) throws(SystemCallError) {
        try allocate(SHIM_FALLOC_FL_PUNCH_HOLE | SHIM_FALLOC_FL_KEEP_SIZE, offset, byteCount)
    }

    /// Makes a range read as zero and keeps its space. The corresponding C function is `fallocate`.
    package func zeroRange(offset: UInt64, byteCount: UInt64) throws(SystemCallError) {
        try allocate(SHIM_FALLOC_FL_ZERO_RANGE | SHIM_FALLOC_FL_KEEP_SIZE, offset, byteCount)
    }

    private func allocate(_ mode: CInt, _ offset: UInt64, _ byteCount: UInt64) throws(SystemCallError) {
        guard byteCount > 0 else { return }
        _ = try retrying("fallocate") { shim_fallocate(rawValue, mode, Int64(offset), Int64(byteCount)) }
    }

    /// Size of a file or a block device in bytes. The corresponding C function is `lseek` to the end.
    package func seekToEnd() throws(SystemCallError) -> UInt64 {
        UInt64(try retrying("lseek") { lseek(rawValue, 0, SEEK_END) })
    }

    /// How many pages of a part of a file are in memory, whether written or only allotted; nil where nobody can tell (before Linux
    /// 6.5). Its cost grows with `range` alone. The corresponding system call is `cachestat`.
    package func residentPageCount(in range: Range<Int>) -> Int? {
        let count = shim_resident_pages(rawValue, UInt64(range.lowerBound), UInt64(range.count))
        return count < 0 ? nil : Int(count)
    }

    /// The same file opened anew, with file status flags of its own: making this one non-blocking disturbs nobody who
    /// shares the first. Works for terminals, pipes and files, not for sockets. Source: proc(5), `/proc/self/fd`.
    package func reopened(flags: CInt) throws(SystemCallError) -> OwnedDescriptor {
        try .open("/proc/self/fd/\(rawValue)", flags: flags | O_NOCTTY)
    }
}

extension OwnedDescriptor {
    /// The parts of a file that hold data, in order; holes read as zero. The corresponding C function is `lseek` with
    /// `SEEK_DATA` and `SEEK_HOLE`.
    package func forEachData(
        byteCount: Int, _ body: (Range<Int>) throws(SystemCallError) -> Void
    ) throws(SystemCallError) {
        var position = 0
        while position < byteCount {
            let start = lseek(rawValue, off_t(position), SHIM_SEEK_DATA)
            if start < 0 {
                if errno == ENXIO { return }  // no data behind this point
                throw .last("lseek")
            }
            let end = min(byteCount, Int(try retrying("lseek") { lseek(rawValue, start, SHIM_SEEK_HOLE) }))
            guard Int(start) < end else { return }
            try body(Int(start)..<end)
            position = end
        }
    }
}
