import CLinuxShims
import Glibc
package import LinuxCalls

/// Memory files that a peer sent, judged before anybody maps them.
package enum ReceivedMemory {
    /// Refuses what could hurt later: not a regular memory file, another size than announced, or one that its maker could
    /// shrink under us (reading past the end of a shrunken mapping is SIGBUS).
    /// - Parameter needsSeal: False for a file with a name, which cannot be sealed: only its kind and its size are looked at.
    package static func judge(
        _ file: OwnedDescriptor, byteCount: Int, name: String, needsSeal: Bool = true
    ) throws(HandoverError) {
        guard needsSeal else {
            guard let status = try? file.status(), status.type == .regular, status.byteCount == byteCount else {
                throw HandoverError(.incompatible, "\(name): what came is no file of \(byteCount) bytes")
            }
            return
        }
        let judgement = try judge(file, name: name)
        guard judgement.byteCount == byteCount else {
            throw HandoverError(
                .incompatible, "\(name): \(byteCount) bytes were announced, the file has \(judgement.byteCount)")
        }
        guard judgement.isSealed else {
            throw HandoverError(.malformed, "\(name): the memory file is not sealed against shrinking")
        }
    }

    /// Refuses what is not a regular memory file, and seals what can be sealed.
    /// - Returns: Its size, and whether nobody can shrink it any more.
    package static func judge(_ file: OwnedDescriptor, name: String) throws(HandoverError) -> (
        byteCount: Int, isSealed: Bool
    ) {
        let status: FileStatus
        var seals: CInt
        do throws(SystemCallError) {
            status = try file.status()
            seals = try MemoryFile.seals(of: file)  // EINVAL for anything but a memfd or tmpfs file
            if seals & SHIM_F_SEAL_SHRINK == 0, (try? MemoryFile.seal(file)) != nil {
                seals = try MemoryFile.seals(of: file)
            }
        } catch { throw HandoverError(.malformed, "\(name): what came is not a memory file", cause: error) }
        guard status.type == .regular else {
            throw HandoverError(.malformed, "\(name): what came is not a memory file")
        }
        return (Int(status.byteCount), seals & SHIM_F_SEAL_SHRINK != 0)
    }
}
