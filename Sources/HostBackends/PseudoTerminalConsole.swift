package import DeviceModel
import Glibc
package import LinuxCalls
import Synchronization
import SystemPackage

/// A console at a pseudo-terminal that people attach to by its path (`screen /dev/pts/7`).
///
/// While nobody has it open output is dropped, so that whoever attaches sees what happens now. We keep the other side open
/// ourselves, for otherwise each detaching would look like the end of the file.
package final class PseudoTerminalConsole: ConsoleBackend, TransferableBackend {
    static let kind = "pty"

    private struct Output {
        var writable: (@Sendable () -> Void)?
        var isAwaited = false
        /// How many others have it open.
        var userCount: Int
    }

    /// What to attach to.
    package let path: String
    private let loop: EventLoop
    private let master: WatchedDescriptor
    private let slave: OwnedDescriptor
    private let opens: OpenWatch
    private let users: WatchedDescriptor
    private let input: ConsoleInput
    private let output: Mutex<Output>

    package convenience init(loop: EventLoop) throws(BackendError) {
        let (master, slave, path) = try backendCall("pseudo-terminal") { () throws(SystemCallError) in
            let (master, slave, path) = try PseudoTerminal.open()
            try TerminalModes(of: slave).raw().set(on: slave)
            return (master, slave, path)
        }
        let opens = try backendCall("pseudo-terminal") { () throws(SystemCallError) in try OpenWatch(path: path) }
        try self.init(
            master, slave, opens, path: path, loop: loop, pending: [], userCount: 0, isQuiesced: false)
    }

    package convenience init(adopting handover: BackendHandover, loop: EventLoop) throws(BackendError) {
        try handover.check(kind: Self.kind)
        var state = try handover.stateReader()
        let path = try state.text()
        let userCount: UInt64 = try state.integer()
        let pending = try state.blob()
        try state.finish()
        try self.init(
            try handover.descriptor(named: "master"), try handover.descriptor(named: "slave"),
            OpenWatch(adopting: try handover.descriptor(named: "opens")), path: path, loop: loop, pending: pending,
            userCount: Int(clamping: userCount), isQuiesced: true)
    }

    private init(
        _ master: OwnedDescriptor, _ slave: OwnedDescriptor, _ opens: OpenWatch, path: String, loop: EventLoop,
        pending: [UInt8], userCount: Int, isQuiesced: Bool
    ) throws(BackendError) {
        try backendCall("pseudo-terminal \(path)") { () throws(SystemCallError) in try master.setNonBlocking(true) }
        self.path = path
        self.loop = loop
        self.slave = slave
        self.opens = opens
        output = Mutex(Output(userCount: userCount))
        let owner = WeakOwner<PseudoTerminalConsole>()
        self.master = WatchedDescriptor(master, loop: loop) { events in owner.value?.ready(events) }
        users = WatchedDescriptor(opens.descriptor, loop: loop) { _ in owner.value?.usersChanged() }
        input = ConsoleInput(loop: loop, pending: pending, isQuiesced: isQuiesced) { isReading in
            guard let master = owner.value?.master else { return }
            if isReading { master.want(.readable) } else { master.unwant(.readable) }
        }
        owner.value = self
        if isQuiesced {
            self.master.hold()
            users.hold()
        }
        users.want(.readable)
        if pending.isEmpty { self.master.want(.readable) }
    }

    package func connect(input: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {
        self.input.connect(input)
        output.withLock { $0.writable = writable }
    }

    /// On the loop's thread.
    private func ready(_ events: ReadyEvents) {
        if events.contains(.writable) {
            master.unwant(.writable)
            wakeWriter()
        }
        guard !events.subtracting(.writable).isEmpty else { return }
        var bytes = [UInt8](repeating: 0, count: 4096)
        do throws(SystemCallError) {
            var failure: SystemCallError?
            var count = 0
            unsafe bytes.withUnsafeMutableBytes { buffer in
                do throws(SystemCallError) { count = unsafe try master.descriptor.read(into: buffer) } catch {
                    failure = error
                }
            }
            if let failure { throw failure }
            input.add(Array(bytes[..<count]))
        } catch  where error.errno == .wouldBlock {
        } catch { master.end() }
    }

    /// On the loop's thread.
    private func usersChanged() {
        guard let (opened, closed) = try? opens.take() else { return }
        let isUnused = output.withLock { output in
            output.userCount = max(0, output.userCount + opened - closed)
            return output.userCount == 0
        }
        if isUnused { wakeWriter() }  // whoever waits for room need not any more
    }

    private func wakeWriter() {
        let writable = output.withLock { output in
            defer { output.isAwaited = false }
            return output.isAwaited ? output.writable : nil
        }
        writable?()
    }

    package func inputIsWanted() { input.inputIsWanted() }

    package func write(_ bytes: [UInt8]) -> Int {
        output.withLock { output in
            guard output.userCount > 0 else { return bytes.count }
            let written = unsafe bytes.withUnsafeBytes { buffer in
                do throws(SystemCallError) { return unsafe try master.descriptor.write(buffer) } catch {
                    return error.errno == .wouldBlock ? 0 : buffer.count
                }
            }
            if written < bytes.count {
                output.isAwaited = true
                master.want(.writable)
            }
            return written
        }
    }

    package func quiesce() {
        loop.sync {
            input.quiesce()
            master.hold()
            users.hold()
        }
    }

    package func resume() {
        master.release()
        users.release()
        input.resume()
    }

    package func handOver() throws(BackendError) -> BackendHandover {
        var state = BackendHandover.stateWriter()
        state.text(path)
        state.integer(UInt64(output.withLock { $0.userCount }))
        state.blob(input.pending)
        return BackendHandover(
            kind: Self.kind,
            descriptors: [("master", master.descriptor), ("slave", slave), ("opens", opens.descriptor)],
            state: state.bytes)
    }
}
