import Glibc
package import LinuxCalls
package import QMPProtocol

/// Reads `--config FILE`: TOML, or JSON if the file is named so or begins with a brace.
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
        do { return try isJSON(path, bytes) ? JSONValue.parse(bytes) : TOMLText.parse(bytes) } catch {
            throw Refusal(.usage, "--config: \(path): \(error)")
        }
    }

    private static func isJSON(_ path: String, _ bytes: [UInt8]) -> Bool {
        if path.hasSuffix(".toml") { return false }
        return path.hasSuffix(".json") || bytes.first { ![0x09, 0x0A, 0x0D, 0x20].contains($0) } == UInt8(ascii: "{")
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
