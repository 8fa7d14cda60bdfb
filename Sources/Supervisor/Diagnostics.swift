import Glibc

/// Lines for people, on standard error.
package enum Diagnostics {
    /// One line, prefixed with the program's name. The carriage return keeps it straight on a terminal in raw mode.
    package static func write(_ line: String) {
        let isTerminal = isatty(2) == 1
        let bytes = Array("\(Product.name): \(line)\(isTerminal ? "\r" : "")\n".utf8)
        _ = unsafe Glibc.write(2, bytes, bytes.count)
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
