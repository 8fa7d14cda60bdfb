import Glibc

/// Finds out who has a file locked, for the error message.
///
/// The kernel does not say who holds an open-file-description lock (F_OFD_GETLK answers pid -1, for it may be several
/// processes), but each holder's /proc/PID/fdinfo/FD has a `lock:` line. Source: proc(5), fcntl(2).
enum LockHolder {
    /// `qemu-system-ris (pid 4711)`, or nil when no process that we may look at holds one.
    static func describe(device: UInt64, inode: UInt64) -> String? {
        for process in numbers(in: "/proc") where process != getpid() {
            for descriptor in numbers(in: "/proc/\(process)/fd") {
                var status = stat()
                guard unsafe stat("/proc/\(process)/fd/\(descriptor)", &status) == 0,
                    UInt64(status.st_dev) == device, UInt64(status.st_ino) == inode,
                    contents(of: "/proc/\(process)/fdinfo/\(descriptor)").contains("\nlock:")
                else { continue }
                let name = contents(of: "/proc/\(process)/comm").split(separator: "\n").first ?? "process"
                return "\(name) (pid \(process))"
            }
        }
        return nil
    }

    private static func numbers(in directory: String) -> [Int32] {
        guard let stream = unsafe opendir(directory) else { return [] }
        defer { unsafe closedir(stream) }
        var found: [Int32] = []
        while let entry = unsafe readdir(stream) {
            let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                unsafe pointer.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
            }
            if let number = Int32(name) { found.append(number) }
        }
        return found
    }

    private static func contents(of path: String) -> String {
        let file = unsafe open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return "" }
        defer { _ = Glibc.close(file) }
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = unsafe read(file, &bytes, bytes.count)
        return count > 0 ? String(decoding: bytes[..<count], as: UTF8.self) : ""
    }
}
