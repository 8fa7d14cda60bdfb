import Glibc

/// Whom the kernel ends first when memory runs out, -1000 to 1000. Source: proc(5), /proc/PID/oom_score_adj. Anybody may raise
/// the number, and lower it again to what it was when the process began.
package enum OutOfMemoryPriority {
    /// Before all others.
    package static let first = 1000
    /// Never; only the privileged may say so.
    package static let never = -1000

    /// Of this process; nil where the kernel does not tell.
    package static var current: Int? {
        guard let file = try? OwnedDescriptor.open("/proc/self/oom_score_adj", flags: O_RDONLY) else { return nil }
        var bytes = [UInt8](repeating: 0, count: 64)
        let count = try? unsafe bytes.withUnsafeMutableBytes { (buffer) throws(SystemCallError) in
            try unsafe file.read(at: 0, into: buffer)
        }
        return Int(String(decoding: bytes.prefix(count ?? 0), as: UTF8.self).filter { !$0.isWhitespace })
    }

    /// Of this process. What the kernel does not allow changes nothing: the order is then the kernel's.
    package static func set(_ value: Int) {
        try? OwnedDescriptor.open("/proc/self/oom_score_adj", flags: O_WRONLY).writeAll(Array("\(value)".utf8))
    }

    /// Puts this process behind as many others as it may.
    /// - Returns: What it was, for ``set(_:)``; nil where the kernel does not tell, and nothing was changed.
    package static func setLast() -> Int? {
        guard let before = current else { return nil }
        // Without privileges, back to what most are is all that may be allowed.
        for value in [never, 0] where value < before {
            set(value)
            if current == value { break }
        }
        return before
    }
}
