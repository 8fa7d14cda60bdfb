import DeviceModel
import Glibc
package import LinuxCalls
import Synchronization

/// The process's own standard input and output as a console. A terminal is put into raw mode and always restored; Ctrl-A
/// begins a command to us: X ends the guest, H helps, Ctrl-A sends a Ctrl-A.
package final class StdioConsole: ConsoleBackend {
    private struct State {
        var input: (@Sendable ([UInt8]) -> Int)?
        var writable: (@Sendable () -> Void)?
        /// Read from the host and not yet taken by the device.
        var waiting: [UInt8] = []
        var afterEscape = false
        var isQuiesced = false
        var hasEnded = false
        var inputToken: EventLoop.Token?
        var outputToken: EventLoop.Token?
        var isBroken = false
    }

    private static let escape: UInt8 = 0x01
    private static let help = """
        \r\n\
        Ctrl-A H  this help\r\n\
        Ctrl-A X  end the guest\r\n\
        Ctrl-A Ctrl-A  send a Ctrl-A\r\n
        """

    private let loop: EventLoop
    private let inputFile: OwnedDescriptor
    private let outputFile: OwnedDescriptor
    private let quit: @Sendable () -> Void
    private let isTerminal: Bool
    private let state = Mutex(State())
    private let terminal: TerminalMode?

    /// - Parameter quit: The user asked for the end with Ctrl-A X.
    package init(loop: EventLoop, quit: @escaping @Sendable () -> Void) throws(SystemCallError) {
        self.loop = loop
        self.quit = quit
        isTerminal = isatty(0) == 1
        inputFile = try Self.reopen(0, O_RDONLY)
        outputFile = try Self.reopen(1, O_WRONLY)
        terminal = isTerminal ? TerminalMode(makingRaw: 0) : nil
    }

    /// An open file of our own for the same terminal or pipe, so that not blocking is our business alone. Anything else is
    /// duplicated: files never block and share their offset, sockets cannot be opened anew.
    private static func reopen(_ number: CInt, _ mode: CInt) throws(SystemCallError) -> OwnedDescriptor {
        let copy = OwnedDescriptor(
            adopting: try retrying("dup") { fcntl(number, F_DUPFD_CLOEXEC, 3) })
        switch try copy.status().type {
        case .characterDevice, .pipe:
            let path = "/proc/self/fd/\(number)"
            return (try? OwnedDescriptor.open(path, flags: mode | O_NONBLOCK | O_NOCTTY)) ?? copy
        default: return copy
        }
    }

    /// Puts the terminal back as it was. Idempotent.
    package func restoreTerminal() { terminal?.restore() }

    // MARK: ConsoleBackend

    package func connect(input: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {
        state.withLock {
            $0.input = input
            $0.writable = writable
        }
        loop.perform { [weak self] in self?.beginReading() }
    }

    package func write(_ bytes: [UInt8]) -> Int {
        guard !state.withLock({ $0.isBroken }) else { return bytes.count }
        var done = 0
        while done < bytes.count {
            let result = unsafe bytes.withUnsafeBytes { buffer -> (Int, SystemCallError?) in
                do throws(SystemCallError) {
                    return (try unsafe outputFile.write(UnsafeRawBufferPointer(rebasing: buffer[done...])), nil)
                } catch { return (0, error) }
            }
            if let error = result.1 {
                if error.errno == .wouldBlock {
                    loop.perform { [weak self] in self?.waitForRoom() }
                    return done
                }
                if !state.withLock({ state in
                    defer { state.isBroken = true }
                    return state.isBroken
                }) {
                    Diagnostics.write("nobody reads the console any more (\(error.errno)); its output is dropped")
                }
                return bytes.count
            }
            done += result.0
        }
        return done
    }

    package func inputIsWanted() { loop.perform { [weak self] in self?.deliver() } }

    package func quiesce() {
        state.withLock { $0.isQuiesced = true }
        loop.barrier()
    }

    package func resume() {
        state.withLock { $0.isQuiesced = false }
        loop.perform { [weak self] in self?.deliver() }
    }

    // MARK: On the loop

    private func beginReading() {
        guard state.withLock({ $0.inputToken == nil && !$0.hasEnded }) else { return }
        if let token = try? loop.watch(inputFile, for: .readable, { [weak self] _ in self?.read() }) {
            state.withLock { $0.inputToken = token }
        } else {
            // epoll(7) takes no regular files; they are always ready.
            while !state.withLock({ $0.hasEnded }) && state.withLock({ $0.waiting.count < 65_536 }) { read() }
        }
    }

    private func read() {
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = unsafe bytes.withUnsafeMutableBytes { buffer -> Int? in
            do throws(SystemCallError) { return try unsafe inputFile.read(into: buffer) } catch {
                return error.errno == .wouldBlock ? nil : 0
            }
        }
        guard let count else { return }
        guard count > 0 else { return endReading() }
        accept(bytes[..<count])
        deliver()
    }

    private func endReading() {
        let token = state.withLock { state in
            state.hasEnded = true
            defer { state.inputToken = nil }
            return state.inputToken
        }
        if let token { loop.remove(token) }
    }

    /// Takes out what is meant for us.
    private func accept(_ bytes: ArraySlice<UInt8>) {
        guard isTerminal else { return state.withLock { $0.waiting += bytes } }
        for byte in bytes {
            let isCommand = state.withLock { state in
                if state.afterEscape {
                    state.afterEscape = false
                    if byte != Self.escape { return true }
                } else if byte == Self.escape {
                    state.afterEscape = true
                    return false
                }
                state.waiting.append(byte)
                return false
            }
            guard isCommand else { continue }
            switch byte {
            case UInt8(ascii: "x"), UInt8(ascii: "X"): quit()
            case UInt8(ascii: "h"), UInt8(ascii: "H"), UInt8(ascii: "?"): _ = write(Array(Self.help.utf8))
            default: break
            }
        }
    }

    private func deliver() {
        while true {
            let (input, bytes) = state.withLock { state in
                (state.isQuiesced ? nil : state.input, state.waiting)
            }
            guard let input, !bytes.isEmpty else { break }
            let taken = input(bytes)
            state.withLock { $0.waiting.removeFirst(min(taken, bytes.count)) }
            if taken < bytes.count { break }
        }
        // What the device does not take stays with us, up to a limit; then the host keeps it.
        let (token, isFull) = state.withLock { ($0.inputToken, $0.waiting.count >= 65_536) }
        if let token { try? loop.change(token, to: isFull ? [] : .readable) }
    }

    private func waitForRoom() {
        if let token = state.withLock({ $0.outputToken }) {
            try? loop.change(token, to: .writable)
        } else if let token = try? loop.watch(outputFile, for: .writable, { [weak self] _ in self?.hasRoom() }) {
            state.withLock { $0.outputToken = token }
        } else {
            hasRoom()
        }
    }

    private func hasRoom() {
        let (token, writable) = state.withLock { ($0.outputToken, $0.writable) }
        if let token {
            loop.remove(token)
            state.withLock { $0.outputToken = nil }
        }
        writable?()
    }
}

/// A terminal in raw mode, and how it was before.
package final class TerminalMode: Sendable {
    private let descriptor: CInt
    private let saved: termios
    private let isRaw = Mutex(true)

    /// Nil when the descriptor is no terminal.
    package init?(makingRaw descriptor: CInt) {
        var mode = termios()
        guard unsafe tcgetattr(descriptor, &mode) == 0 else { return nil }
        self.descriptor = descriptor
        saved = mode
        unsafe cfmakeraw(&mode)
        mode.c_oflag |= tcflag_t(OPOST)  // messages of ours keep their lines
        unsafe tcsetattr(descriptor, TCSANOW, &mode)
    }

    package func restore() {
        isRaw.withLock { isRaw in
            guard isRaw else { return }
            isRaw = false
            var mode = saved
            unsafe tcsetattr(descriptor, TCSANOW, &mode)
        }
    }

    deinit { restore() }
}
