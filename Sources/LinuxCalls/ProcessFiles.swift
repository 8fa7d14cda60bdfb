import CLinuxShims
import Glibc
import SystemPackage

/// What `/proc` tells of another process. Source: proc(5).
package struct ProcessFiles: Sendable {
    /// An open file of the process.
    package struct Descriptor: Hashable, Sendable {
        package let number: CInt
        /// What the link says: a path, `socket:[123]`, `/memfd:name (deleted)`.
        package let target: String
        package let device: UInt64
        package let inode: UInt64
        package let byteCount: Int
    }

    /// A mapped range of its addresses.
    package struct Mapping: Hashable, Sendable {
        package let addresses: Range<UInt64>
        package let isShared: Bool
        /// Offset in the file, in bytes.
        package let offset: UInt64
        /// As `st_dev` has it.
        package let device: UInt64
        package let inode: UInt64
    }

    package let identifier: CInt
    private var directory: String { "/proc/\(identifier)" }

    package init(_ identifier: CInt) { self.identifier = identifier }

    /// Arguments, the program's name first.
    package func commandLine() throws(SystemCallError) -> [String] { try words(of: "cmdline") }

    /// `KEY=value`.
    package func environment() throws(SystemCallError) -> [String] { try words(of: "environ") }

    package func workingDirectory() throws(SystemCallError) -> String { try FileNames.target(of: "\(directory)/cwd") }

    package func program() throws(SystemCallError) -> String { try FileNames.target(of: "\(directory)/exe") }

    /// The state of its first thread, as proc_pid_stat(5) names it: `R`, `S`, `T` for stopped.
    package func state() throws(SystemCallError) -> Character {
        let line = try text(of: "stat")
        return line.lastIndex(of: ")").flatMap { line[$0...].dropFirst(2).first } ?? "?"
    }

    /// The file of ``state()``, for ``isStopped(_:)``.
    package func openState() throws(SystemCallError) -> OwnedDescriptor {
        try .open("\(directory)/stat", flags: O_RDONLY)
    }

    /// Whether the first thread stands still because of a signal, asked in a hurry, by the file that ``openState()`` opened.
    package static func isStopped(_ state: OwnedDescriptor) -> Bool {
        unsafe withUnsafeTemporaryAllocation(byteCount: 128, alignment: 1) { buffer in
            guard let count = try? unsafe state.read(at: 0, into: buffer),
                let end = unsafe buffer[..<count].lastIndex(of: UInt8(ascii: ")")), end + 2 < count
            else { return false }
            return unsafe buffer[end + 2] == UInt8(ascii: "T")
        }
    }

    /// The processor on which one of its threads runs, or ran last: proc_pid_stat(5).
    package func processor(ofThread thread: CInt) throws(SystemCallError) -> CInt? {
        let line = try text(of: "task/\(thread)/stat")
        // The 39th field; the one behind the name is the third.
        let fields = line[(line.lastIndex(of: ")") ?? line.startIndex)...].split(separator: " ")
        return fields.count > 37 ? CInt(fields[37]) : nil
    }

    /// The kernel's numbers of its threads.
    package func threads() throws(SystemCallError) -> [CInt] {
        try FileNames.entries(of: "\(directory)/task").compactMap { CInt($0) }
    }

    /// The processors on which those threads of it run, or ran last; without those that are gone.
    package func processors(ofThreads threads: [CInt]) -> [CInt] { threads.compactMap { try? processor(ofThread: $0) } }

    /// Whether every thread of it stands still because of a signal: none of them runs an instruction before SIGCONT.
    package func isStopped() throws(SystemCallError) -> Bool {
        for task in try FileNames.entries(of: "\(directory)/task") {
            // A thread that ended in the meantime runs nothing either.
            guard let line = try? text(of: "task/\(task)/stat"), let end = line.lastIndex(of: ")") else { continue }
            guard let state = line[end...].dropFirst(2).first, "TZX".contains(state) else { return false }
        }
        return true
    }

    /// What names one of its namespaces: `net`, `mnt` and so on. Source: namespaces(7).
    package func namespace(_ kind: String) throws(SystemCallError) -> String {
        try FileNames.target(of: "\(directory)/ns/\(kind)")
    }

    /// The user it runs as.
    package func owner() throws(SystemCallError) -> UInt32 { try FileNames.status(of: directory).owner }

    /// The control groups it is in, a line for each hierarchy.
    package func controlGroups() throws(SystemCallError) -> [String] {
        try text(of: "cgroup").split(separator: "\n").map(String.init)
    }

    private func words(of name: String) throws(SystemCallError) -> [String] {
        let bytes = try FileNames.contents(of: "\(directory)/\(name)")
        var words = bytes.split(separator: 0, omittingEmptySubsequences: false).map {
            String(decoding: $0, as: UTF8.self)
        }
        if words.last == "" { words.removeLast() }
        return words
    }

    private func text(of name: String) throws(SystemCallError) -> String {
        String(decoding: try FileNames.contents(of: "\(directory)/\(name)"), as: UTF8.self)
    }

    /// Its open files, by number.
    package func descriptors() throws(SystemCallError) -> [Descriptor] {
        var found: [Descriptor] = []
        for name in try FileNames.entries(of: "\(directory)/fd") {
            // One that was closed in the meantime is not there any more.
            guard let number = CInt(name), let target = try? FileNames.target(of: "\(directory)/fd/\(name)"),
                let status = try? FileNames.status(of: "\(directory)/fd/\(name)")
            else { continue }
            found.append(
                Descriptor(
                    number: number, target: target, device: status.device, inode: status.inode,
                    byteCount: status.byteCount))
        }
        return found.sorted { $0.number < $1.number }
    }

    /// The lines `key:\tvalue` of an open file's `fdinfo`.
    package func information(on descriptor: CInt) throws(SystemCallError) -> [String: String] {
        var values: [String: String] = [:]
        for line in try text(of: "fdinfo/\(descriptor)").split(separator: "\n") {
            let parts = line.split(separator: ":", maxSplits: 1)
            if parts.count == 2 { values[String(parts[0])] = String(parts[1].drop { $0 == " " || $0 == "\t" }) }
        }
        return values
    }

    /// Its mapped ranges.
    package func mappings() throws(SystemCallError) -> [Mapping] {
        try text(of: "maps").split(separator: "\n").compactMap { line in
            let fields = line.split(separator: " ", omittingEmptySubsequences: true)
            guard fields.count >= 5 else { return nil }
            let ends = fields[0].split(separator: "-").compactMap { UInt64($0, radix: 16) }
            let device = fields[3].split(separator: ":").compactMap { UInt64($0, radix: 16) }
            guard ends.count == 2, ends[0] < ends[1], let offset = UInt64(fields[2], radix: 16), device.count == 2,
                let inode = UInt64(fields[4])
            else { return nil }
            return Mapping(
                addresses: ends[0]..<ends[1], isShared: fields[1].hasSuffix("s"), offset: offset,
                device: Self.device(major: device[0], minor: device[1]), inode: inode)
        }
    }

    /// The number that stat(2) gives a device. Source: makedev(3).
    private static func device(major: UInt64, minor: UInt64) -> UInt64 {
        (major & 0xffff_f000) << 32 | (major & 0xfff) << 8 | (minor & 0xffff_ff00) << 12 | minor & 0xff
    }

    /// A descriptor of our own for an open file of the process. Where the kernel does not let us take it (ptrace(2), access
    /// mode "attach"), files and memory files are opened anew by their name under `/proc`.
    package func take(_ descriptor: CInt, from process: OwnedDescriptor) throws(SystemCallError) -> OwnedDescriptor {
        do {
            return OwnedDescriptor(
                adopting: try retrying("pidfd_getfd", subject: "\(descriptor) of process \(identifier)") {
                    shim_pidfd_getfd(process.rawValue, descriptor)
                })
        } catch {
            do { return try .open("\(directory)/fd/\(descriptor)", flags: O_RDWR) } catch _ { throw error }
        }
    }
}

extension ProcessFiles {
    /// Processes that were started with this variable in their environment and that we may look into.
    package static func all(withVariable variable: String) -> [ProcessFiles] {
        ((try? FileNames.entries(of: "/proc")) ?? []).compactMap { CInt($0) }.map { ProcessFiles($0) }.filter {
            (try? $0.environment().contains(variable)) ?? false
        }
    }

    /// Ourselves.
    package static var own: ProcessFiles { ProcessFiles(getpid()) }

    /// Puts another process of ours into the control groups this one is in. What is there already is left.
    /// - Returns: The hierarchies that did not take it, each as `path: reason`.
    package func shareControlGroups(with other: CInt) -> [String] {
        var failures: [String] = []
        let present = Set((try? ProcessFiles(other).controlGroups()) ?? [])
        for line in (try? controlGroups()) ?? [] where !present.contains(line) {
            guard let file = Self.membersFile(of: line) else { continue }
            do {
                try OwnedDescriptor.open(file, flags: O_WRONLY).writeAll(Array("\(other)".utf8))
            } catch { failures.append("\(error)") }
        }
        return failures
    }

    /// Where processes are written to that join the group of a line of `/proc/PID/cgroup`: `0::/path` is in the unified hierarchy,
    /// `5:cpu:/path` and `1:name=systemd:/path` are in others. Source: cgroups(7).
    static func membersFile(of line: String) -> String? {
        let parts = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
        guard parts.count == 3 else { return nil }
        let name = parts[1].hasPrefix("name=") ? parts[1].dropFirst(5) : parts[1]
        let roots = name.isEmpty ? ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"] : ["/sys/fs/cgroup/\(name)"]
        return roots.map { "\($0)\(parts[2])/cgroup.procs" }.first { (try? FileNames.status(of: $0)) != nil }
    }
}

/// Names of the file system.
package enum FileNames {
    /// stat(2).
    package static func status(of path: String) throws(SystemCallError) -> FileStatus {
        var status = stat()
        _ = try retrying("stat", subject: path) { unsafe stat(path, &status) }
        return FileStatus(
            type: FileStatus.FileType(mode: status.st_mode & S_IFMT), byteCount: Int(status.st_size),
            device: UInt64(status.st_dev), inode: UInt64(status.st_ino), owner: status.st_uid)
    }

    /// Gives `path` the owner and the permissions that `model` has.
    package static func copyAccess(of model: String, to path: String) throws(SystemCallError) {
        var status = stat()
        _ = try retrying("stat", subject: model) { unsafe stat(model, &status) }
        _ = try retrying("chmod", subject: path) { unsafe chmod(path, status.st_mode & 0o7777) }
        var now = stat()
        _ = try retrying("stat", subject: path) { unsafe stat(path, &now) }
        if now.st_uid != status.st_uid || now.st_gid != status.st_gid {
            _ = try retrying("chown", subject: path) { unsafe chown(path, status.st_uid, status.st_gid) }
        }
    }

    /// readlink(2).
    package static func target(of path: String) throws(SystemCallError) -> String {
        var bytes = [CChar](repeating: 0, count: 4096)
        let count = try retrying("readlink", subject: path) { unsafe readlink(path, &bytes, bytes.count) }
        return String(decoding: bytes[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// The names in a directory, without `.` and `..`, sorted.
    package static func entries(of path: String) throws(SystemCallError) -> [String] {
        guard let directory = unsafe opendir(path) else { throw .last("opendir", subject: path) }
        defer { unsafe _ = closedir(directory) }
        var names: [String] = []
        while let entry = unsafe readdir(directory) {
            let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    /// All of a file; for small ones, such as those of `/proc`.
    package static func contents(of path: String) throws(SystemCallError) -> [UInt8] {
        let file = try OwnedDescriptor.open(path, flags: O_RDONLY)
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 64 << 10)
        while bytes.count < 64 << 20 {
            var count = 0
            var failure: SystemCallError?
            unsafe piece.withUnsafeMutableBytes { buffer in
                do throws(SystemCallError) { count = try unsafe file.read(into: buffer) } catch { failure = error }
            }
            if let failure { throw failure }
            if count == 0 { break }
            bytes += piece[..<count]
        }
        return bytes
    }

    /// mkdir(2) with mode 0700; fails where something is.
    package static func makeDirectory(_ path: String) throws(SystemCallError) {
        _ = try retrying("mkdir", subject: path) { unsafe mkdir(path, 0o700) }
    }

    /// unlink(2); nothing there is no error.
    package static func remove(_ path: String) { _ = unsafe unlink(path) }

    /// rmdir(2); nothing there is no error.
    package static func removeDirectory(_ path: String) { _ = unsafe rmdir(path) }

    /// Two names change places in one step. The corresponding system call is `renameat2` with `RENAME_EXCHANGE`.
    package static func exchange(_ one: String, _ other: String) throws(SystemCallError) {
        _ = try retrying("renameat2", subject: "\(one), \(other)") { unsafe shim_exchange_names(one, other) }
    }
}

/// The user we are.
package enum HostUser {
    /// The user whose rights we have.
    package static var effective: UInt32 { geteuid() }
}

/// How much memory the host has.
package enum HostMemory {
    /// Bytes that can be had without swapping, as `/proc/meminfo` has it. Source: proc(5), MemAvailable.
    package static var availableByteCount: UInt64? {
        guard let bytes = try? FileNames.contents(of: "/proc/meminfo") else { return nil }
        for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") where line.hasPrefix("MemAvailable:")
        {
            return UInt64(line.split(separator: " ").dropFirst().first ?? "").map { $0 << 10 }
        }
        return nil
    }
}

/// Signals by pidfd, which reach the process that was meant or nobody.
package enum ProcessSignal {
    /// SIGKILL; an ended process is no error.
    package static func kill(_ process: OwnedDescriptor) { _ = shim_pidfd_send_signal(process.rawValue, SIGKILL) }

    /// SIGSTOP: it stands still until ``resume(_:)``.
    package static func stop(_ process: OwnedDescriptor) { _ = shim_pidfd_send_signal(process.rawValue, SIGSTOP) }

    /// Stops a process and waits until none of its threads runs: at most as long as that, and not when it has ended.
    package static func stop(_ process: OwnedDescriptor, awaitMilliseconds limit: Int64) {
        stop(process)
        // Its number stands in the descriptor's `fdinfo`: proc(5), pidfd_open(2).
        guard let text = try? ProcessFiles.own.information(on: process.rawValue)["Pid"], let number = CInt(text),
            number > 0
        else { return }
        let files = ProcessFiles(number)
        let deadline = monotonicNanoseconds() + limit * 1_000_000
        while (try? files.isStopped()) == false, monotonicNanoseconds() < deadline { yield() }
    }

    /// SIGCONT; one that does not stand still goes on as it was.
    package static func resume(_ process: OwnedDescriptor) { _ = shim_pidfd_send_signal(process.rawValue, SIGCONT) }

    /// SIGSTOP to ourselves, for tests that look at what is half done.
    package static func stopSelf() { _ = Glibc.kill(getpid(), SIGSTOP) }

    /// Lets others run.
    package static func yield() { _ = sched_yield() }

    /// Waits.
    package static func sleep(milliseconds: UInt32) { _ = usleep(milliseconds * 1000) }
}

/// Waiting for several descriptors.
package enum Readiness {
    /// Returns when one of them is readable, or its time is over.
    package static func awaitAny(_ descriptors: [OwnedDescriptor], timeoutMilliseconds: CInt) {
        var entries = descriptors.map { pollfd(fd: $0.rawValue, events: Int16(POLLIN), revents: 0) }
        _ = unsafe poll(&entries, nfds_t(entries.count), timeoutMilliseconds)
    }
}
