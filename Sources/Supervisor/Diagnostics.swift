import Glibc
package import LinuxCalls
import Synchronization

/// Lines for people: on standard error, or in a log file once there is one.
package enum Diagnostics {
    private static let target = Mutex<OwnedDescriptor?>(nil)

    /// From now on lines go to `file`.
    package static func redirect(to file: OwnedDescriptor) { target.withLock { $0 = file } }

    /// One line, prefixed with the program's name. The carriage return keeps it straight on a terminal in raw mode.
    package static func write(_ line: String) {
        let isTerminal = isatty(2) == 1
        let bytes = Array("\(Product.name): \(line)\(isTerminal ? "\r" : "")\n".utf8)
        let file = target.withLock { $0 }
        unsafe bytes.withUnsafeBytes { buffer in
            if let file {
                _ = try? unsafe file.write(buffer)
            } else {
                _ = unsafe Glibc.write(2, buffer.baseAddress, buffer.count)
            }
        }
    }
}

/// Facts about files of the host.
enum FileInformation {
    static func remove(_ path: String) { _ = unsafe unlink(path) }

    static func byteCount(of path: String) -> Int64? {
        var status = stat()
        return unsafe stat(path, &status) == 0 ? Int64(status.st_size) : nil
    }
}
