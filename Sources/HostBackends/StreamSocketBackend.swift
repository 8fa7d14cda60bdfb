package import DeviceModel
import Glibc
package import LinuxCalls
import Synchronization
import SystemPackage

/// A network at the other end of a stream socket, as passt and QEMU's `-netdev stream` speak it: Ethernet frames, each
/// after its length in four bytes.
///
/// When the peer goes away the link stays and is silent; there is no reconnecting.
package final class StreamSocketBackend: NetworkBackend, TransferableBackend {
    static let kind = "stream"

    /// Owned by the loop's thread, and by whoever has quiesced it.
    @safe private struct Input {
        var frames: FrameStream
        var receive: (@Sendable (UnsafeRawBufferPointer) -> Bool)?
        /// The device had no buffer for the next frame.
        var isStalled = false
        var isQuiesced: Bool
    }

    private struct Output {
        /// The rest of a frame of which the socket took a part.
        var rest: [UInt8]
        var writable: (@Sendable () -> Void)?
        /// A frame was refused; the device waits to be told.
        var isAwaited = false
    }

    private let loop: EventLoop
    private let input: Mutex<Input>
    private let output: Mutex<Output>
    private let watch: WatchedDescriptor
    private let hasEnded = Atomic<Bool>(false)

    /// Receives per wake-up, so that one busy network does not keep the loop to itself.
    private static let receivesPerWakeMaximum = 16

    /// Connects to a unix socket.
    package convenience init(path: String, loop: EventLoop) throws(BackendError) {
        let socket = try backendCall("network socket \(path)") { () throws(SystemCallError) in
            try StreamSocket.connect(to: .unix(path: path))
        }
        self.init(socket: socket, loop: loop)
    }

    /// Takes a connected socket.
    package convenience init(socket: OwnedDescriptor, loop: EventLoop) {
        self.init(socket, loop: loop, leftOver: [], rest: [], isQuiesced: false)
    }

    /// A network without anybody: to rehearse a hand-over with.
    package static func unreachable(loop: EventLoop) throws(BackendError) -> StreamSocketBackend {
        let (near, _) = try backendCall { () throws(SystemCallError) in try StreamSocket.pair() }
        return StreamSocketBackend(near, loop: loop, leftOver: [], rest: [], isQuiesced: true)
    }

    package convenience init(adopting handover: BackendHandover, loop: EventLoop) throws(BackendError) {
        try handover.check(kind: Self.kind)
        var state = try handover.stateReader()
        let leftOver = try state.blob()
        let rest = try state.blob()
        try state.finish()
        guard leftOver.count <= 2 * FrameStream.frameByteCountMaximum,
            rest.count <= FrameStream.frameByteCountMaximum + FrameStream.headerByteCount
        else { throw BackendError(errorNumber: 0, "hand-over state of a stream backend is too long") }
        self.init(
            try handover.descriptor(named: "socket"), loop: loop, leftOver: leftOver, rest: rest, isQuiesced: true)
    }

    private init(_ socket: OwnedDescriptor, loop: EventLoop, leftOver: [UInt8], rest: [UInt8], isQuiesced: Bool) {
        self.loop = loop
        input = unsafe Mutex(Input(frames: FrameStream(leftOver: leftOver), isQuiesced: isQuiesced))
        output = Mutex(Output(rest: rest))
        let owner = WeakOwner<StreamSocketBackend>()
        watch = WatchedDescriptor(socket, loop: loop) { events in owner.value?.ready(events) }
        owner.value = self
        if isQuiesced { watch.hold() }
        if !rest.isEmpty { watch.want(.writable) }
        watch.want(.readable)
    }

    /// Whether the peer has gone.
    package var isClosed: Bool { hasEnded.load(ordering: .relaxed) }

    package func connect(
        receive: @escaping @Sendable (UnsafeRawBufferPointer) -> Bool, writable: @escaping @Sendable () -> Void
    ) {
        input.withLock { unsafe $0.receive = receive }
        output.withLock { $0.writable = writable }
    }

    // MARK: Receiving

    private func ready(_ events: ReadyEvents) {
        if events.contains(.writable) { flush() }
        if !events.subtracting(.writable).isEmpty { receive() }
    }

    /// On the loop's thread.
    private func receive() {
        let isBroken = input.withLock { input in
            guard !input.isQuiesced else { return false }
            var receives = 0
            while true {
                switch input.frames.next {
                case .frame(let range):
                    let isTaken = unsafe input.frames.withFrame(range) { unsafe input.receive?($0) ?? true }
                    input.isStalled = !isTaken
                    if !isTaken { return false }
                    input.frames.consume()
                case .broken: return true
                case .incomplete:
                    guard receives < Self.receivesPerWakeMaximum else { return false }
                    receives += 1
                    switch fill(&input.frames) {
                    case .bytes: break
                    case .nothing: return false
                    case .end: return true
                    }
                }
            }
        }
        if isBroken { end() } else if input.withLock({ $0.isStalled }) { watch.unwant(.readable) }
    }

    private enum Filled { case bytes, nothing, end }

    private func fill(_ frames: inout FrameStream) -> Filled {
        var result = Filled.nothing
        _ = unsafe frames.fill { room in
            do throws(SystemCallError) {
                let message = unsafe try StreamSocket.receive(
                    into: room, descriptorsMax: 0, from: watch.descriptor, nonBlocking: true)
                result = message.byteCount == 0 ? .end : .bytes
                return message.byteCount
            } catch {
                result = error.errno == .wouldBlock ? .nothing : .end
                return nil
            }
        }
        return result
    }

    private func end() {
        hasEnded.store(true, ordering: .relaxed)
        watch.end()
        // Frames that waited for room are dropped with the link.
        let writable = output.withLock { output in
            output.rest = []
            return output.writable
        }
        writable?()
    }

    package func receiveIsWanted() {
        loop.perform { [weak self] in
            guard let self else { return }
            self.input.withLock { $0.isStalled = false }
            self.receive()
            if !self.input.withLock({ $0.isStalled }) { self.watch.want(.readable) }
        }
    }

    // MARK: Sending

    package func send(_ frame: UnsafeRawBufferPointer) -> Bool {
        guard !isClosed, frame.count > 0, frame.count <= FrameStream.frameByteCountMaximum else { return true }
        return output.withLock { output in
            guard output.rest.isEmpty else {
                output.isAwaited = true
                return false
            }
            let length = UInt32(frame.count)
            var bytes: [UInt8] = []
            bytes.reserveCapacity(FrameStream.headerByteCount + frame.count)
            for shift in [24, 16, 8, 0] { bytes.append(UInt8(truncatingIfNeeded: length >> UInt32(shift))) }
            unsafe bytes.append(contentsOf: frame)
            let sent = Self.send(bytes, to: watch.descriptor)
            if sent == 0 {
                output.isAwaited = true
                watch.want(.writable)
                return false
            }
            if sent < bytes.count {
                output.rest = Array(bytes[sent...])
                watch.want(.writable)
            }
            return true
        }
    }

    /// How many bytes the socket took; a broken one takes them all, and receiving finds out.
    private static func send(_ bytes: [UInt8], to socket: OwnedDescriptor) -> Int {
        unsafe bytes.withUnsafeBytes { buffer in
            do throws(SystemCallError) {
                return unsafe try StreamSocket.send(buffer, to: socket, nonBlocking: true)
            } catch { return error.errno == .wouldBlock ? 0 : buffer.count }
        }
    }

    /// On the loop's thread.
    private func flush() {
        let writable = output.withLock { output -> (@Sendable () -> Void)? in
            if !output.rest.isEmpty {
                output.rest.removeFirst(Self.send(output.rest, to: watch.descriptor))
            }
            guard output.rest.isEmpty else { return nil }
            watch.unwant(.writable)
            defer { output.isAwaited = false }
            return output.isAwaited ? output.writable : nil
        }
        writable?()
    }

    // MARK: Pausing and moving

    package func quiesce() {
        loop.sync {
            input.withLock { $0.isQuiesced = true }
            watch.hold()
        }
    }

    package func resume() {
        input.withLock { $0.isQuiesced = false }
        watch.release()
        receiveIsWanted()
    }

    package func handOver() throws(BackendError) -> BackendHandover {
        var state = BackendHandover.stateWriter()
        state.blob(input.withLock { $0.frames.leftOver })
        state.blob(output.withLock { $0.rest })
        return BackendHandover(kind: Self.kind, descriptors: [("socket", watch.descriptor)], state: state.bytes)
    }
}

/// Refers to an object that is not made yet, without keeping it alive.
final class WeakOwner<Owner: AnyObject & Sendable>: Sendable {
    private struct Reference: Sendable { weak var value: Owner? }
    private let reference = Mutex(Reference())

    var value: Owner? {
        get { reference.withLock { $0.value } }
        set { reference.withLock { $0.value = newValue } }
    }
}
