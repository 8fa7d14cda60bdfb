package import DeviceModel
import Glibc
import LinuxCalls
import SystemPackage

/// A console with nobody at it.
package final class NullConsole: ConsoleBackend, TransferableBackend {
    static let kind = "null"

    package init() {}

    package func write(_ bytes: [UInt8]) -> Int { bytes.count }
    package func connect(input: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {}
    package func inputIsWanted() {}
    package func quiesce() {}
    package func resume() {}
    package func handOver() throws(BackendError) -> BackendHandover { BackendHandover(kind: Self.kind) }
}

/// A console whose output is appended to a file. There is no input.
package final class FileConsole: ConsoleBackend, TransferableBackend {
    static let kind = "log"

    private let file: OwnedDescriptor

    /// Opens, or makes, the file; what is in it stays.
    package init(path: String) throws(BackendError) {
        file = try backendCall("console file \(path)") { () throws(SystemCallError) in
            try OwnedDescriptor.open(path, flags: O_WRONLY | O_CREAT | O_APPEND, mode: 0o644)
        }
    }

    package init(adopting handover: BackendHandover) throws(BackendError) {
        try handover.check(kind: Self.kind)
        file = try handover.descriptor(named: "file")
    }

    /// A full disk costs output, not the guest.
    package func write(_ bytes: [UInt8]) -> Int {
        try? file.writeAll(bytes)
        return bytes.count
    }

    package func connect(input: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {}
    package func inputIsWanted() {}
    package func quiesce() {}
    package func resume() {}

    package func handOver() throws(BackendError) -> BackendHandover {
        BackendHandover(kind: Self.kind, descriptors: [("file", file)])
    }
}
