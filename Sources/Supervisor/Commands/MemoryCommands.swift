import GuestMemory
import Glibc
import LinuxCalls
import QMPProtocol

extension CommandTable {
    static let memory: [CommandEntry] = [
        CommandEntry(
            "pmemsave", [.required("val", .integer), .required("size", .integer), .required("filename", .string)]
        ) { (supervisor, invocation) throws(QMPError) in
            guard let start = invocation.arguments["val"]?.unsignedValue else {
                throw .invalidValue(parameter: "val", expected: "a guest-physical address")
            }
            guard let byteCount = invocation.arguments["size"]?.unsignedValue else {
                throw .invalidValue(parameter: "size", expected: "a number of bytes")
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

    private static func save(_ memory: GuestMemory, from start: UInt64, byteCount: UInt64, to path: String)
        throws(QMPError)
    {
        do {
            let (end, overflow) = start.addingReportingOverflow(byteCount)
            guard !overflow else { throw GuestMemoryError(address: start, byteCount: Int(clamping: byteCount)) }
            let file = try OwnedDescriptor.open(path, flags: O_WRONLY | O_CREAT | O_TRUNC, mode: 0o600)
            var address = start
            while address < end {
                let bytes = try memory.bytes(at: address, count: Int(min(end - address, 1 << 20)))
                try file.writeAll(bytes)
                address += UInt64(bytes.count)
            }
        } catch {
            throw QMPError("\(error)")
        }
    }
}
