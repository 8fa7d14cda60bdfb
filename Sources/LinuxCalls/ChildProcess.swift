import CLinuxShims
import Glibc
import Synchronization
import SystemPackage

/// How a process ended.
package enum ProcessEnd: Hashable, Sendable, CustomStringConvertible {
    case exited(status: Int32)
    case signaled(signal: Int32)

    package var description: String {
        switch self {
        case .exited(let status): "exit status \(status)"
        case .signaled(let signal): "signal \(signal)"
        }
    }
}

/// A child process, started by posix_spawn(3) with exactly the descriptors it is given, watched by pidfd.
package final class ChildProcess: Sendable {
    package let processIdentifier: CInt
    /// Readable when the process has ended.
    package let processDescriptor: OwnedDescriptor
    private let end = Mutex<ProcessEnd?>(nil)

    /// Starts `path`.
    /// - Parameters:
    ///   - arguments: Without the program's own name, which is `name` or else `path`.
    ///   - environment: `KEY=value`; nil passes ours on.
    ///   - descriptors: Number in the child to descriptor here. 0, 1 and 2 are inherited unless named; all others of ours
    ///     are close-on-exec and do not reach the child.
    ///   - newSession: A session of its own: no terminal's signals reach it.
    ///   - directory: Its working directory; nil keeps ours.
    ///   - outOfMemoryPriority: What it is to the kernel when memory runs out, from before its first instruction on; nil is
    ///     what we are. Not with a group of its own.
    ///   - isOrphan: Not our child but of whoever takes orphans (init, a subreaper), who learns how it ended. Not with a group of
    ///     its own.
    package init(
        path: String, name: String? = nil, arguments: [String], environment: [String]? = nil,
        descriptors: [CInt: OwnedDescriptor] = [:], newProcessGroup: Bool = false, newSession: Bool = false,
        directory: String? = nil, outOfMemoryPriority: Int? = nil, isOrphan: Bool = false
    ) throws(SystemCallError) {
        precondition(!newProcessGroup || outOfMemoryPriority == nil && !isOrphan)
        var actions = unsafe posix_spawn_file_actions_t()
        unsafe posix_spawn_file_actions_init(&actions)
        defer { unsafe posix_spawn_file_actions_destroy(&actions) }
        // A target number may be the source number of another entry: move every source out of the way first.
        let floor = (descriptors.keys.max() ?? 2) + 1
        var staged: [(source: OwnedDescriptor, target: CInt)] = []
        for (target, source) in descriptors.sorted(by: { $0.key < $1.key }) {
            let copy = OwnedDescriptor(
                adopting: try retrying("fcntl(F_DUPFD_CLOEXEC)") {
                    shim_fcntl_int(source.rawValue, F_DUPFD_CLOEXEC, max(floor, 3))
                })
            staged.append((copy, target))
        }
        for (source, target) in staged {
            unsafe posix_spawn_file_actions_adddup2(&actions, source.rawValue, target)
        }
        if let directory {
            let status = unsafe shim_spawn_change_directory(&actions, directory)
            guard status == 0 else { throw SystemCallError("posix_spawn", Errno(rawValue: status), subject: directory) }
        }
        var attributes = posix_spawnattr_t()
        unsafe posix_spawnattr_init(&attributes)
        defer { unsafe posix_spawnattr_destroy(&attributes) }
        var mask = sigset_t()
        unsafe sigemptyset(&mask)
        unsafe posix_spawnattr_setsigmask(&attributes, &mask)
        var flags = Int16(POSIX_SPAWN_SETSIGMASK)
        if newProcessGroup { flags |= Int16(POSIX_SPAWN_SETPGROUP) }
        if newSession { flags |= Int16(SHIM_POSIX_SPAWN_SETSID) }
        unsafe posix_spawnattr_setflags(&attributes, flags)
        var words = unsafe ([name ?? path] + arguments).map { unsafe strdup($0) }
        unsafe words.append(nil)
        let variables = UnsafeMutableBufferPointer<UnsafeMutablePointer<CChar>?>.allocate(
            capacity: (environment?.count ?? 0) + 1)
        for (index, variable) in (environment ?? []).enumerated() { unsafe variables[index] = strdup(variable) }
        unsafe variables[variables.count - 1] = nil
        defer {
            for index in unsafe words.indices { unsafe free(words[index]) }
            for index in variables.indices { unsafe free(variables[index]) }
            unsafe variables.deallocate()
        }
        var child: pid_t = 0
        let block = unsafe environment == nil ? environ : variables.baseAddress!
        if outOfMemoryPriority != nil || isOrphan {
            let pairs = staged.flatMap { [$0.source.rawValue, $0.target] }
            let priority = outOfMemoryPriority.map { "\($0)" }
            child = unsafe shim_spawn_successor(
                path, words, block, pairs, CInt(staged.count), priority, directory,
                newSession ? 1 : 0, isOrphan ? 1 : 0)
            guard child > 0 else { throw SystemCallError("clone", Errno(rawValue: errno), subject: path) }
        } else {
            let status = unsafe posix_spawn(&child, path, &actions, &attributes, words, block)
            guard status == 0 else { throw SystemCallError("posix_spawn", Errno(rawValue: status), subject: path) }
        }
        processIdentifier = child
        do {
            processDescriptor = try .process(child)
        } catch {
            _ = Glibc.kill(child, SIGKILL)
            var ignored: CInt = 0
            unsafe waitpid(child, &ignored, 0)
            throw error
        }
        withExtendedLifetime(staged) {}
    }

    /// Sends a signal; an ended process is no error.
    package func signal(_ signal: CInt) {
        _ = shim_pidfd_send_signal(processDescriptor.rawValue, signal)
    }

    package func kill() { signal(SIGKILL) }

    /// How it ended, or nil while it runs, when the time is over, or when it was no child of ours.
    package func wait(timeoutMilliseconds: CInt = -1) -> ProcessEnd? {
        if let known = end.withLock({ $0 }) { return known }
        guard
            let ready = try? processDescriptor.waitUntilReady(
                for: Int16(POLLIN), timeoutMilliseconds: timeoutMilliseconds),
            ready != 0
        else { return nil }
        return end.withLock { end in
            if let end { return end }
            var status: CInt = 0
            guard unsafe waitpid(processIdentifier, &status, 0) == processIdentifier else { return nil }
            end =
                shim_wait_exited(status) != 0
                ? .exited(status: shim_wait_exit_status(status)) : .signaled(signal: shim_wait_signal(status))
            return end
        }
    }
}
