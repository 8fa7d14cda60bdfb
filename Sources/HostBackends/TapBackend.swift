package import DeviceModel
import Glibc
package import LinuxCalls
import Synchronization
import SystemPackage

/// A tap interface of the host: whole Ethernet frames by read(2) and write(2). Source: the kernel's
/// `Documentation/networking/tuntap.rst`.
package final class TapBackend: NetworkBackend, TransferableBackend {
    static let kind = "tap"

    @safe private struct Input {
        /// A frame that was read and that the device had no buffer for.
        var pending: [UInt8]?
        var receive: (@Sendable (UnsafeRawBufferPointer) -> Bool)?
        var isQuiesced: Bool
        var buffer = [UInt8](repeating: 0, count: TapBackend.frameByteCountMaximum + TapBackend.virtioHeaderByteCount)
    }

    private struct Output {
        var writable: (@Sendable () -> Void)?
        var isAwaited = false
    }

    /// Name of the interface.
    package let interface: String
    /// Bytes of `struct virtio_net_hdr` before each frame: 10 for an interface made with IFF_VNET_HDR, else 0.
    private let headerByteCount: Int
    private let loop: EventLoop
    private let input: Mutex<Input>
    private let output = Mutex(Output())
    private let watch: WatchedDescriptor

    private static let virtioHeaderByteCount = 10
    private static let frameByteCountMaximum = 65_535 + 22
    private static let readsPerWakeMaximum = 64

    /// Attaches to an existing interface.
    package convenience init(interface: String, loop: EventLoop) throws(BackendError) {
        guard !interface.isEmpty, interface.utf8.count < InterfaceRequest.nameByteCount, !interface.contains("/") else {
            throw BackendError(errorNumber: EINVAL, "\"\(interface)\" cannot be the name of an interface")
        }
        // TUNSETIFF would make a new, unconfigured interface for a name that does not exist.
        guard unsafe access("/sys/class/net/\(interface)", F_OK) == 0 else {
            throw BackendError(
                errorNumber: ENODEV,
                "there is no interface \(interface); make one with: ip tuntap add dev \(interface) mode tap user $USER")
        }
        guard unsafe access("/sys/class/net/\(interface)/tun_flags", F_OK) == 0 else {
            throw BackendError(errorNumber: EINVAL, "\(interface) is not a tap interface")
        }
        let tap = try backendCall("tap \(interface)") { () throws(SystemCallError) in
            try OwnedDescriptor.open("/dev/net/tun", flags: O_RDWR)
        }
        var request = InterfaceRequest(
            name: interface, flags: InterfaceRequest.tap | InterfaceRequest.noPacketInformation)
        do throws(SystemCallError) { try request.attach(tap) } catch {
            let reason =
                switch error.errno {
                case .notPermitted: "no permission to use it; its owner is set with: ip tuntap add ... user NAME"
                case .resourceBusy: "another process uses it"
                case .invalidArgument: "it is not a tap interface, or one with several queues"
                default: "\(error)"
                }
            throw BackendError(errorNumber: error.errno.rawValue, "tap \(interface): \(reason)")
        }
        try self.init(descriptor: tap, loop: loop)
    }

    /// Takes a tap that somebody else opened.
    package convenience init(descriptor: OwnedDescriptor, loop: EventLoop) throws(BackendError) {
        try self.init(descriptor, loop: loop, pending: nil, isQuiesced: false)
    }

    package convenience init(adopting handover: BackendHandover, loop: EventLoop) throws(BackendError) {
        try handover.check(kind: Self.kind)
        var state = try handover.stateReader()
        let hasPending = try state.flag()
        let pending = try state.blob()
        try state.finish()
        guard pending.count <= Self.frameByteCountMaximum else {
            throw BackendError(errorNumber: 0, "hand-over state of a tap backend is too long")
        }
        try self.init(
            try handover.descriptor(named: "tap"), loop: loop, pending: hasPending ? pending : nil, isQuiesced: true)
    }

    private init(_ tap: OwnedDescriptor, loop: EventLoop, pending: [UInt8]?, isQuiesced: Bool) throws(BackendError) {
        let request = try backendCall("tap") { () throws(SystemCallError) in try InterfaceRequest(of: tap) }
        guard request.flags & InterfaceRequest.tap != 0, request.flags & InterfaceRequest.noPacketInformation != 0
        else {
            throw BackendError(
                errorNumber: EINVAL, "\(request.name) must be a tap interface opened with IFF_TAP and IFF_NO_PI")
        }
        interface = request.name
        let hasHeader = request.flags & InterfaceRequest.virtioHeader != 0
        headerByteCount = hasHeader ? Self.virtioHeaderByteCount : 0
        try backendCall("tap \(request.name)") { () throws(SystemCallError) in
            if hasHeader { try InterfaceRequest.useSmallHeader(tap, byteCount: Self.virtioHeaderByteCount) }
            try tap.setNonBlocking(true)
        }
        self.loop = loop
        input = unsafe Mutex(Input(pending: pending, isQuiesced: isQuiesced))
        let owner = WeakOwner<TapBackend>()
        watch = WatchedDescriptor(tap, loop: loop) { events in owner.value?.ready(events) }
        owner.value = self
        if isQuiesced { watch.hold() }
        watch.want(.readable)
    }

    package func connect(
        receive: @escaping @Sendable (UnsafeRawBufferPointer) -> Bool, writable: @escaping @Sendable () -> Void
    ) {
        input.withLock { unsafe $0.receive = receive }
        output.withLock { $0.writable = writable }
    }

    // MARK: Receiving

    private func ready(_ events: ReadyEvents) {
        if events.contains(.writable) {
            watch.unwant(.writable)
            let writable = output.withLock { output in
                defer { output.isAwaited = false }
                return output.isAwaited ? output.writable : nil
            }
            writable?()
        }
        if events.contains(.closed), !events.contains(.readable) {
            watch.end()  // the interface is gone
        } else if events.contains(.readable) {
            receive()
        }
    }

    /// On the loop's thread.
    private func receive() {
        let isStalled = input.withLock { input in
            guard !input.isQuiesced else { return false }
            if let pending = input.pending {
                let isTaken = unsafe pending.withUnsafeBytes { unsafe input.receive?($0) ?? true }
                guard isTaken else { return true }
                input.pending = nil
            }
            for _ in 0..<Self.readsPerWakeMaximum {
                let count = unsafe input.buffer.withUnsafeMutableBytes {
                    unsafe (try? watch.descriptor.read(into: $0)) ?? 0
                }
                guard count > headerByteCount else { return false }
                let isTaken = unsafe input.buffer.withUnsafeBytes {
                    unsafe input.receive?(UnsafeRawBufferPointer(rebasing: $0[headerByteCount..<count])) ?? true
                }
                guard isTaken else {
                    input.pending = Array(input.buffer[headerByteCount..<count])
                    return true
                }
            }
            return false
        }
        if isStalled { watch.unwant(.readable) }
    }

    package func receiveIsWanted() {
        loop.perform { [weak self] in
            guard let self else { return }
            self.watch.want(.readable)
            self.receive()
        }
    }

    // MARK: Sending

    package func send(_ frame: UnsafeRawBufferPointer) -> Bool {
        do throws(SystemCallError) {
            if headerByteCount == 0 {
                _ = unsafe try watch.descriptor.write(frame)
            } else {
                let bytes = unsafe [UInt8](repeating: 0, count: headerByteCount) + Array(frame)
                var failure: SystemCallError?
                unsafe bytes.withUnsafeBytes { buffer in
                    do throws(SystemCallError) { _ = unsafe try watch.descriptor.write(buffer) } catch {
                        failure = error
                    }
                }
                if let failure { throw failure }
            }
            return true
        } catch {
            // Anything else than a full queue (EIO: the interface is down) loses the frame, as a cable does.
            guard error.errno == .wouldBlock else { return true }
            output.withLock { $0.isAwaited = true }
            watch.want(.writable)
            return false
        }
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
        let pending = input.withLock { $0.pending }
        state.flag(pending != nil)
        state.blob(pending ?? [])
        return BackendHandover(kind: Self.kind, descriptors: [("tap", watch.descriptor)], state: state.bytes)
    }
}
