import Glibc
import LinuxCalls
package import QMPProtocol

/// What this host allows, for `sidestep check`.
package enum HostFacts {
    /// `MemAvailable` of proc(5) in bytes.
    package static var availableMemoryByteCount: UInt64? {
        guard let file = try? OwnedDescriptor.open("/proc/meminfo", flags: O_RDONLY),
            let bytes = try? WholeFile.read(file, byteCountMax: 1 << 16)
        else { return nil }
        for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") where line.hasPrefix("MemAvailable:")
        {
            return line.split(separator: " ").dropFirst().first.flatMap { UInt64($0) }.map { $0 << 10 }
        }
        return nil
    }

    /// Whether a process may see to page faults of its own, as a destination of postcopy does.
    package static var allowsUserFaults: Bool { UserFaultProbe.isAllowed }

    /// Whether a page of ours can be put into a pipe by reference.
    package static var allowsVMSplice: Bool {
        guard let pipe = try? OwnedDescriptor.pipe(), let page = try? OwnedMapping(byteCount: hostPageSize) else {
            return false
        }
        return PipeProbe.splices(page, into: pipe.writeEnd)
    }
}

extension RunConfiguration {
    /// Bytes of RAM in a configuration as `inspect` tells it.
    package static func memory(in configuration: JSONValue) -> UInt64 {
        configuration["memory"]?.stringValue.flatMap(SizeText.parse) ?? 0
    }
}
