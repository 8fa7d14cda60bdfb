package import DeviceModel
import Glibc
package import LinuxCalls
import Synchronization
import SystemPackage

/// The console at the terminal the monitor was started from (standard input and output), or at whatever these are.
///
/// A terminal is put into raw mode while the console has it, and back when the monitor ends in any way that can be caught.
/// C-a x leaves, C-a h helps, C-a C-a types C-a.
package final class TerminalConsole: ConsoleBackend, TransferableBackend {
    static let kind = "terminal"

    private struct State {
        var parser: EscapeParser
        var isEnded = false
    }

    private struct Output {
        var writable: (@Sendable () -> Void)?
        var isAwaited = false
    }

    private let loop: EventLoop
    private let source: WatchedDescriptor
    private let sink: WatchedDescriptor
    /// The descriptor given for output; ``sink`` may be the same file opened anew.
    private let originalSink: OwnedDescriptor
    /// Modes to put back; nil when input is no terminal.
    private let modes: TerminalModes?
    private let input: ConsoleInput
    private let state: Mutex<State>
    private let output = Mutex(Output())
    private let quit: @Sendable () -> Void

    private static let help =
        "\r\nC-a x    leave: end the guest\r\nC-a h    this help\r\nC-a C-a  send C-a to the guest\r\n"

    /// - Parameter quit: Called on the loop's thread when somebody types C-a x.
    package convenience init(
        input: OwnedDescriptor, output: OwnedDescriptor, loop: EventLoop, quit: @escaping @Sendable () -> Void
    ) throws(BackendError) {
        let modes = try? TerminalModes(of: input)
        try self.init(
            input, output, loop: loop, quit: quit, modes: modes, parser: EscapeParser(), pending: [], isQuiesced: false)
        if let modes { try takeTerminal(modes) }
    }

    package convenience init(adopting handover: BackendHandover, loop: EventLoop, quit: @escaping @Sendable () -> Void)
        throws(BackendError)
    {
        try handover.check(kind: Self.kind)
        var state = try handover.stateReader()
        let modes = try state.blob()
        let isEscaped = try state.flag()
        let pending = try state.blob()
        try state.finish()
        try self.init(
            try handover.descriptor(named: "input"), try handover.descriptor(named: "output"), loop: loop, quit: quit,
            modes: TerminalModes(bytes: modes), parser: EscapeParser(isEscaped: isEscaped), pending: pending,
            isQuiesced: true)
    }

    private init(
        _ input: OwnedDescriptor, _ output: OwnedDescriptor, loop: EventLoop, quit: @escaping @Sendable () -> Void,
        modes: TerminalModes?, parser: EscapeParser, pending: [UInt8], isQuiesced: Bool
    ) throws(BackendError) {
        self.loop = loop
        self.modes = modes
        self.quit = quit
        originalSink = output
        state = Mutex(State(parser: parser))
        let owner = WeakOwner<TerminalConsole>()
        source = WatchedDescriptor(input, loop: loop) { _ in owner.value?.read() }
        sink = WatchedDescriptor(Self.nonBlocking(output), loop: loop) { _ in owner.value?.becameWritable() }
        self.input = ConsoleInput(loop: loop, pending: pending, isQuiesced: isQuiesced) { isReading in
            guard let source = owner.value?.source else { return }
            if isReading { source.want(.readable) } else { source.unwant(.readable) }
        }
        owner.value = self
        if isQuiesced {
            source.hold()
            sink.hold()
        }
        if pending.isEmpty { source.want(.readable) }
    }

    /// Writing must not block, and O_NONBLOCK on the shared file would surprise the shell: open the file anew. Where that
    /// is not possible (a socket, somebody else's terminal), ``write(_:)`` asks before it writes.
    private static func nonBlocking(_ output: OwnedDescriptor) -> OwnedDescriptor {
        guard let type = try? output.status().type, type == .characterDevice || type == .pipe else { return output }
        return (try? output.reopened(flags: O_WRONLY | O_NONBLOCK)) ?? output
    }

    private func takeTerminal(_ modes: TerminalModes) throws(BackendError) {
        try backendCall("terminal") { () throws(SystemCallError) in
            try TerminalGuard.watch(source.descriptor, modes: modes)
            try modes.raw(keepsOutput: true).set(on: source.descriptor)
        }
    }

    package func connect(input: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {
        self.input.connect(input)
        output.withLock { $0.writable = writable }
    }

    // MARK: Input

    /// On the loop's thread.
    private func read() {
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = unsafe bytes.withUnsafeMutableBytes { unsafe (try? source.descriptor.read(into: $0)) ?? 0 }
        guard count > 0 else { return source.end() }
        let (input, commands) = state.withLock { $0.parser.parse(Array(bytes[..<count])) }
        self.input.add(input)
        for command in commands {
            switch command {
            case .quit: quit()
            case .help: _ = write(Array(Self.help.utf8))
            }
        }
    }

    package func inputIsWanted() { input.inputIsWanted() }

    // MARK: Output

    package func write(_ bytes: [UInt8]) -> Int {
        guard !state.withLock({ $0.isEnded }) else { return bytes.count }
        return output.withLock { output in
            let isPrivate = sink.descriptor !== originalSink
            var count = bytes.count
            if !isPrivate {
                // What a pipe or terminal that is ready takes for sure without blocking.
                let events = (try? sink.descriptor.waitUntilReady(for: Int16(POLLOUT), timeoutMilliseconds: 0)) ?? 0
                count = events & Int16(POLLOUT) != 0 ? min(count, 256) : 0
            }
            var written = 0
            if count > 0 {
                do throws(SystemCallError) {
                    var failure: SystemCallError?
                    unsafe bytes.withUnsafeBytes { buffer in
                        do throws(SystemCallError) {
                            unsafe written = try sink.descriptor.write(
                                UnsafeRawBufferPointer(rebasing: buffer[..<count]))
                        } catch { failure = error }
                    }
                    if let failure { throw failure }
                } catch  where error.errno == .wouldBlock {
                } catch { return bytes.count }  // nobody listens any more
            }
            if written < bytes.count {
                output.isAwaited = true
                sink.want(.writable)
            }
            return written
        }
    }

    /// On the loop's thread.
    private func becameWritable() {
        sink.unwant(.writable)
        let writable = output.withLock { output in
            defer { output.isAwaited = false }
            return output.isAwaited ? output.writable : nil
        }
        writable?()
    }

    // MARK: Pausing and moving

    /// Typing is still looked at: C-a x must end a guest that stands still. What is for the guest waits.
    package func quiesce() {
        loop.sync {
            input.quiesce()
            sink.hold()
        }
    }

    /// Takes the terminal, if it was adopted and not taken yet: its modes are raw already, but putting them back is now
    /// our duty.
    package func resume() {
        if let modes { try? TerminalGuard.watch(source.descriptor, modes: modes) }
        source.release()
        sink.release()
        input.resume()
    }

    package func handOver() throws(BackendError) -> BackendHandover {
        // What is typed from here on is the successor's to read, unless we resume.
        loop.sync { source.hold() }
        var bytes = BackendHandover.stateWriter()
        bytes.blob(modes?.bytes ?? [])
        bytes.flag(state.withLock { $0.parser.isEscaped })
        bytes.blob(input.pending)
        return BackendHandover(
            kind: Self.kind, descriptors: [("input", source.descriptor), ("output", originalSink)], state: bytes.bytes)
    }

    package func relinquish() {
        state.withLock { $0.isEnded = true }
        if modes != nil { TerminalGuard.forget() }
        source.end()
        sink.end()
    }

    package func close() {
        state.withLock { $0.isEnded = true }
        if modes != nil { TerminalGuard.restore() }
        source.end()
        sink.end()
    }
}
