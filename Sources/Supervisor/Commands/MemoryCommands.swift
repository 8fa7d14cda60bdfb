import GuestMemory
import Glibc
import LinuxCalls
import QMPProtocol

extension CommandTable {
    /// Most bytes of one `pmemsave`: the machine's largest RAM.
    private static let savedByteCountMax = RunConfiguration.memoryByteCountMax

    static let memory: [CommandEntry] = [
        CommandEntry(
            "pmemsave",
            [
                .required("val", .unsigned(bits: 64)), .required("size", .unsigned(bits: 64)),
                .required("filename", .string),
            ]
        ) { (supervisor, invocation) throws(QMPError) in
            // QEMU takes an address that is written as a negative number.
            let start =
                invocation.arguments["val"]?.unsignedValue
                ?? UInt64(bitPattern: invocation.arguments["val"]?.integerValue ?? 0)
            guard let byteCount = invocation.arguments["size"]?.unsignedValue, byteCount <= savedByteCountMax,
                !start.addingReportingOverflow(byteCount).overflow
            else {
                throw .invalidValue(parameter: "size", expected: "at most \(savedByteCountMax) bytes of address space")
            }
            let path = invocation.arguments["filename"]?.stringValue ?? ""
            let memory = supervisor.guest.memory
            supervisor.worker.perform {
                invocation.reply(
                    Result { () throws(QMPError) in
                        try save(memory, from: start, byteCount: byteCount, to: path)
                        return [:]
                    })
            }
            return nil
        }
    ]

    /// RAM as it is; what is not RAM reads as zero, as in QEMU, and stays a hole in the file.
    private static func save(_ memory: GuestMemory, from start: UInt64, byteCount: UInt64, to path: String)
        throws(QMPError)
    {
        let file: OwnedDescriptor
        do { file = try OwnedDescriptor.open(path, flags: O_WRONLY | O_CREAT | O_TRUNC, mode: 0o600) } catch {
            throw QMPError("Could not open '\(path)': \(errorText(error.errno.rawValue))")
        }
        do {
            for region in memory.regions {
                var address = max(start, region.address)
                let end = min(start + byteCount, region.end)
                guard address < end else { continue }
                _ = try retrying("lseek", subject: path) { lseek(file.rawValue, off_t(address - start), SEEK_SET) }
                while address < end {
                    let bytes = try memory.bytes(at: address, count: Int(min(end - address, 1 << 20)))
                    try file.writeAll(bytes)
                    address += UInt64(bytes.count)
                }
            }
            _ = try retrying("ftruncate", subject: path) { ftruncate(file.rawValue, off_t(byteCount)) }
        } catch {
            throw QMPError("\(error)")
        }
    }
}
