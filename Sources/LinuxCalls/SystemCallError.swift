import Glibc
package import SystemPackage

/// A system call that failed: which one, on what, and the kernel's reason.
package struct SystemCallError: Error, Hashable, Sendable, CustomStringConvertible {
    /// Name of the call as the man page has it: `mmap`, `sendmsg`.
    package var call: String
    package var errno: Errno
    /// What it was about (a path, a name), or empty.
    package var subject: String

    package init(_ call: String, _ errno: Errno, subject: String = "") {
        self.call = call
        self.errno = errno
        self.subject = subject
    }

    /// The error of the call that just failed on this thread.
    package static func last(_ call: String, subject: String = "") -> SystemCallError {
        SystemCallError(call, Errno(rawValue: Glibc.errno), subject: subject)
    }

    package var description: String {
        subject.isEmpty ? "\(call): \(errno)" : "\(call) \(subject): \(errno)"
    }
}

/// Runs a call that answers -1 on failure; `EINTR` is retried here and seen by nobody.
package func retrying<Result: FixedWidthInteger & SignedInteger>(
    _ call: String, subject: @autoclosure () -> String = "", _ body: () -> Result
) throws(SystemCallError) -> Result {
    while true {
        let result = body()
        if result != -1 { return result }
        let error = Errno(rawValue: Glibc.errno)  // read at once: the next call may change it
        if error != .interrupted { throw SystemCallError(call, error, subject: subject()) }
    }
}
