import Glibc
package import LinuxCalls

/// Where a running guest keeps its sockets: `$XDG_RUNTIME_DIR/sidestep/NAME/`, readable by its user only. The guest's
/// process holds a lock on the file `lock` in it as long as it runs; whoever finds a directory whose lock is free has
/// found the remains of a process that died, and may clean up.
package final class RunDirectory: Sendable {
    package let name: String
    package let path: String
    /// The open, locked file. The lock belongs to the open file and travels with the descriptor.
    package let lock: OwnedDescriptor

    private init(name: String, path: String, lock: OwnedDescriptor) {
        self.name = name
        self.path = path
        self.lock = lock
    }

    package var qmpSocketPath: String { path + "/qmp.sock" }
    package var consoleSocketPath: String { path + "/console.sock" }
    package var processFilePath: String { path + "/pid" }
    package var logPath: String { path + "/log" }

    /// The directory of all guests of this user, made if it is missing: under `XDG_RUNTIME_DIR`, else `/run/user/UID`,
    /// else `/tmp/sidestep-UID`. One that belongs to somebody else, or that others can enter, is refused.
    package static func base() throws(Refusal) -> String {
        let user = getuid()
        if let value = unsafe getenv("XDG_RUNTIME_DIR"), let directory = unsafe String(validatingCString: value),
            directory.hasPrefix("/")
        {
            return try makePrivate(directory + "/sidestep")
        }
        var status = stat()
        let session = "/run/user/\(user)"
        if unsafe stat(session, &status) == 0, status.st_mode & S_IFMT == S_IFDIR, status.st_uid == user {
            return try makePrivate(session + "/sidestep")
        }
        return try makePrivate("/tmp/sidestep-\(user)")
    }

    private static func makePrivate(_ path: String) throws(Refusal) -> String {
        if unsafe mkdir(path, 0o700) != 0, errno != EEXIST {
            throw Refusal("cannot make the directory \(path): \(errorText(errno))")
        }
        var status = stat()
        guard unsafe lstat(path, &status) == 0 else {
            throw Refusal("cannot use the directory \(path): \(errorText(errno))")
        }
        guard status.st_mode & S_IFMT == S_IFDIR, status.st_uid == getuid(), status.st_mode & 0o077 == 0 else {
            throw Refusal("\(path) is not a directory of this user's with mode 0700; refusing to put sockets there")
        }
        return path
    }

    /// Makes the directory of a guest and locks it. Remains of a dead process are cleaned first.
    package static func claim(name: String) throws(Refusal) -> RunDirectory {
        try GuestName.validate(name)
        let path = try base() + "/" + name
        for _ in 0..<16 {
            _ = try makePrivate(path)
            guard let lock = try? OwnedDescriptor.open(path + "/lock", flags: O_RDWR | O_CREAT) else {
                if errno == ENOENT { continue }  // somebody cleaned up just now
                throw Refusal("cannot make \(path)/lock: \(errorText(errno))")
            }
            guard (try? FileLock.take(.exclusive, on: lock)) == true else {
                let process = processIdentifier(in: path).map { " (process \($0))" } ?? ""
                throw Refusal("a guest named '\(name)' runs already\(process)")
            }
            // Still the file that the name leads to? Else the former owner removed it before we locked it.
            guard isSameFile(lock, path + "/lock") else { continue }
            let directory = RunDirectory(name: name, path: path, lock: lock)
            directory.removeFiles(keepingLock: true)
            return directory
        }
        throw Refusal("\(path) changes under our hands")
    }

    /// Goes on in a directory that a predecessor claimed.
    package static func adopt(name: String, path: String, lock: OwnedDescriptor) throws(Refusal) -> RunDirectory {
        try GuestName.validate(name)
        guard isSameFile(lock, path + "/lock") else {
            throw Refusal("\(path)/lock is not the lock that was handed over")
        }
        return RunDirectory(name: name, path: path, lock: lock)
    }

    private static func isSameFile(_ descriptor: OwnedDescriptor, _ path: String) -> Bool {
        var status = stat()
        guard unsafe stat(path, &status) == 0, let own = try? descriptor.status() else { return false }
        return own.inode == UInt64(status.st_ino) && own.device == UInt64(status.st_dev)
    }

    /// Says which process runs the guest now.
    package func writeProcessIdentifier() throws(SystemCallError) {
        let file = try OwnedDescriptor.open(processFilePath + ".new", flags: O_WRONLY | O_CREAT | O_TRUNC)
        try file.writeAll(Array("\(getpid())\n".utf8))
        _ = try retrying("rename", subject: processFilePath) {
            unsafe rename(processFilePath + ".new", processFilePath)
        }
    }

    /// The process that runs the guest in a directory, as it wrote it.
    package static func processIdentifier(in path: String) -> Int32? {
        guard let file = try? OwnedDescriptor.open(path + "/pid", flags: O_RDONLY) else { return nil }
        var bytes = [UInt8](repeating: 0, count: 32)
        let count = unsafe bytes.withUnsafeMutableBytes { unsafe (try? file.read(into: $0)) ?? 0 }
        return Int32(String(decoding: bytes[..<count], as: UTF8.self).prefix { $0.isNumber })
    }

    /// Removes everything. Call last; the lock ends with this object.
    package func remove() {
        removeFiles(keepingLock: false)
        unsafe rmdir(path)
    }

    private static let files = ["qmp.sock", "console.sock", "pid", "pid.new", "log"]

    private func removeFiles(keepingLock: Bool) {
        for file in Self.files { unsafe unlink(path + "/" + file) }
        if !keepingLock { unsafe unlink(path + "/lock") }
    }

    /// A guest that runs now.
    package struct Entry: Hashable, Sendable {
        package var name: String
        package var path: String
        package var process: Int32?
        package var qmpSocketPath: String { path + "/qmp.sock" }
        package var consoleSocketPath: String { path + "/console.sock" }
    }

    /// Guests that run now, by name. Remains of dead ones are removed on the way.
    package static func list() throws(Refusal) -> [Entry] {
        let base = try base()
        guard let directory = unsafe opendir(base) else { return [] }
        defer { unsafe closedir(directory) }
        var names: [String] = []
        while let entry = unsafe readdir(directory) {
            let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) {
                unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if !name.hasPrefix(".") { names.append(name) }
        }
        return names.sorted().compactMap { name in
            let path = base + "/" + name
            guard let lock = try? OwnedDescriptor.open(path + "/lock", flags: O_RDWR) else { return nil }
            if (try? FileLock.take(.exclusive, on: lock)) == true {
                if isSameFile(lock, path + "/lock") { RunDirectory(name: name, path: path, lock: lock).remove() }
                return nil
            }
            return Entry(name: name, path: path, process: processIdentifier(in: path))
        }
    }

    /// A guest that runs now.
    package static func find(_ name: String) throws(Refusal) -> Entry {
        try GuestName.validate(name)
        guard let entry = try list().first(where: { $0.name == name }) else {
            throw Refusal(.noSuchGuest, "no guest named '\(name)' runs ('sidestep list' shows those that do)")
        }
        return entry
    }
}

/// strerror(3).
package func errorText(_ number: Int32) -> String { unsafe String(cString: strerror(number)) }
