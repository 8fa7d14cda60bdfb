import Glibc
import LinuxCalls

/// A directory of the test's own, removed with all that is in it when the test lets go of it.
package final class TemporaryDirectory: Sendable {
    package let path: String

    package init() throws {
        // Short: paths of unix sockets are limited to 107 bytes.
        var template = Array("\(Environment.all["TMPDIR"] ?? "/tmp")/sidestep.XXXXXX".utf8CString)
        guard unsafe mkdtemp(&template) != nil else { throw SystemCallError.last("mkdtemp") }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit { _ = try? HostTools.run("rm", ["-rf", path]) }

    package func file(_ name: String) -> String { "\(path)/\(name)" }

    /// Writes a whole file.
    @discardableResult
    package func write(_ bytes: [UInt8], to name: String) throws -> String {
        let file = try OwnedDescriptor.open(file(name), flags: O_WRONLY | O_CREAT | O_TRUNC)
        try file.writeAll(bytes)
        return self.file(name)
    }

    /// A file of random bytes, and its MD5 as `md5sum` writes it.
    package func randomFile(kiB: Int) throws -> (path: String, hash: String) {
        let path = file("payload")
        try HostTools.need("sh", ["-ec", "dd if=/dev/urandom of=\(path) bs=1k count=\(kiB) 2>/dev/null"])
        return (path, String(try HostTools.need("md5sum", [path]).prefix(32)))
    }
}
