import Glibc
package import LinuxCalls
package import QMPProtocol

/// Reads `--config FILE`.
package enum ConfigurationFile {
    package static let byteCountMax = 1 << 20

    package static func read(_ path: String) throws(Refusal) -> JSONValue {
        let bytes: [UInt8]
        do {
            let file = try OwnedDescriptor.open(path, flags: O_RDONLY)
            bytes = try WholeFile.read(file, byteCountMax: byteCountMax)
        } catch {
            throw Refusal("--config: cannot read \(path): \(error.errno)")
        }
        do { return try JSONValue.parse(bytes) } catch {
            throw Refusal(.usage, "--config: \(path): \(error)")
        }
    }
}

/// Files that are read at once, up to a limit.
package enum WholeFile {
    /// Everything that is left in `file`; more than the limit is `EFBIG`.
    package static func read(_ file: OwnedDescriptor, byteCountMax: Int) throws(SystemCallError) -> [UInt8] {
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            var failure: SystemCallError?
            let count = unsafe piece.withUnsafeMutableBytes { buffer -> Int in
                do throws(SystemCallError) { return try unsafe file.read(into: buffer) } catch {
                    failure = error
                    return 0
                }
            }
            if let failure { throw failure }
            if count == 0 { return bytes }
            bytes += piece[..<count]
            if bytes.count > byteCountMax { throw SystemCallError("read", .fileTooLarge) }
        }
    }
}
