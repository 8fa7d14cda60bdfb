import CLinuxShims
import Glibc
import SystemPackage

/// Modes of a terminal (termios(3)), as bytes that can cross to another process of the same build of libc.
package struct TerminalModes: Hashable, Sendable {
    package let bytes: [UInt8]

    /// Nil unless the count is that of `struct termios`.
    package init?(bytes: [UInt8]) {
        guard bytes.count == shim_termios_size() else { return nil }
        self.bytes = bytes
    }

    /// The modes of `terminal`. The corresponding C function is `tcgetattr`; `ENOTTY` when it is none.
    package init(of terminal: OwnedDescriptor) throws(SystemCallError) {
        var bytes = [UInt8](repeating: 0, count: shim_termios_size())
        _ = try retrying("tcgetattr") { unsafe shim_terminal_get_modes(terminal.rawValue, &bytes) }
        self.bytes = bytes
    }

    /// The same with every byte passed as it is. The corresponding C function is `cfmakeraw`.
    /// - Parameter keepsOutput: Newlines and the like are still translated on their way out.
    package func raw(keepsOutput: Bool = false) -> TerminalModes {
        var bytes = bytes
        unsafe shim_terminal_make_raw(&bytes, keepsOutput ? 1 : 0)
        return TerminalModes(bytes: bytes)!
    }

    /// Sets them at once. The corresponding C function is `tcsetattr`.
    package func set(on terminal: OwnedDescriptor) throws(SystemCallError) {
        _ = try retrying("tcsetattr") { unsafe shim_terminal_set_modes(terminal.rawValue, bytes) }
    }
}

/// How large a terminal is, in characters. The corresponding C function is `ioctl` with `TIOCGWINSZ`.
package struct TerminalSize: Hashable, Sendable {
    package let columns: Int
    package let rows: Int

    /// `ENOTTY` when it is no terminal.
    package init(of terminal: OwnedDescriptor) throws(SystemCallError) {
        var size = winsize()
        _ = try retrying("ioctl(TIOCGWINSZ)") {
            unsafe shim_ioctl_pointer(terminal.rawValue, UInt(TIOCGWINSZ), &size)
        }
        columns = Int(size.ws_col)
        rows = Int(size.ws_row)
    }
}

/// Puts a terminal's modes back when the process ends, whether it exits, is told to end or crashes.
///
/// One terminal per process. SIGHUP, SIGINT, SIGQUIT and SIGTERM are caught unless somebody else has arranged for them;
/// whoever does that ends the process by exit(3). Nothing helps against SIGKILL.
package enum TerminalGuard {
    /// The caller keeps `terminal` open until ``restore()`` or ``forget()``.
    package static func watch(_ terminal: OwnedDescriptor, modes: TerminalModes) throws(SystemCallError) {
        _ = try retrying("atexit") { unsafe shim_terminal_guard(terminal.rawValue, modes.bytes) }
    }

    /// Puts the modes back now; at most once.
    package static func restore() { shim_terminal_restore() }

    /// Leaves the terminal as it is: another process has it now.
    package static func forget() { shim_terminal_unguard() }
}

/// A pseudo-terminal (pty(7)).
package enum PseudoTerminal {
    /// Opens both sides, close-on-exec.
    package static func open() throws(SystemCallError)
        -> (master: OwnedDescriptor, slave: OwnedDescriptor, path: String)
    {
        var master: CInt = -1
        var slave: CInt = -1
        var path = [CChar](repeating: 0, count: 64)
        _ = try retrying("posix_openpt") { unsafe shim_pseudo_terminal_open(&master, &slave, &path, path.count) }
        let name = String(decoding: path.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return (OwnedDescriptor(adopting: master), OwnedDescriptor(adopting: slave), name)
    }
}

/// Tells how often a file was opened and closed, by anybody. Source: inotify(7).
package struct OpenWatch: Sendable {
    /// Readable when something happened.
    package let descriptor: OwnedDescriptor

    package init(path: String) throws(SystemCallError) {
        descriptor = OwnedDescriptor(
            adopting: try retrying("inotify_add_watch", subject: path) { unsafe shim_open_watch(path) })
    }

    /// A watch that another process made.
    package init(adopting descriptor: OwnedDescriptor) { self.descriptor = descriptor }

    /// Takes what happened since the last call.
    package func take() throws(SystemCallError) -> (opened: Int, closed: Int) {
        var opened: CInt = 0
        var closed: CInt = 0
        _ = try retrying("read") { unsafe shim_open_watch_read(descriptor.rawValue, &opened, &closed) }
        return (Int(opened), Int(closed))
    }
}
