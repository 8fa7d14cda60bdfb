package import ComponentState
package import DeviceModel
import GuestMemory
import Synchronization

/// The console device (virtio 1.2, section 5.3): one port, number 0, a console, on a device that has room for 31 ports and
/// hence 64 queues, as QEMU's `virtio-serial-device` with one `virtconsole`.
package final class VirtioConsole: VirtioDevice {
    package let identity = VirtioIdentity(
        deviceID: 3, name: "virtio-console", stateVersion: 3,
        queueSizes: [128, 128, 32, 32] + [UInt16](repeating: 128, count: 60), features: Feature.all,
        featureNames: [0: "SIZE", 1: "MULTIPORT", 2: "EMERG_WRITE"])
    private let backend: any ConsoleBackend
    private let port = Mutex(Port())

    enum Feature {
        static let multiport: UInt64 = 1 << 1
        static let emergencyWrite: UInt64 = 1 << 2
        static let all = multiport | emergencyWrite
    }

    private enum Queue {
        static let receive = 0, transmit = 1, controlReceive = 2, controlTransmit = 3
    }

    /// Control messages (section 5.3.6.2).
    private enum ControlEvent {
        static let deviceReady: UInt16 = 0, deviceAdd: UInt16 = 1, portReady: UInt16 = 3
        static let consolePort: UInt16 = 4, portOpen: UInt16 = 6
    }

    private struct Port {
        var features: UInt64 = 0
        /// The driver has opened the port.
        var isGuestConnected = false
        /// Output that is under way: a request that was taken, and how much of it the backend has.
        var output: Output?
        /// Messages to the driver that found no buffer.
        var controlMessages: [[UInt8]] = []
    }

    private struct Output {
        var head: UInt16
        /// Nil after a load: read again from guest memory when it is first needed.
        var chain: DescriptorChain?
        var sentByteCount: Int
    }

    static let portCountMaximum: UInt32 = 31
    private static let pieceByteCount = 16 * 1024
    private static let controlMessagesMaximum = 64

    package init(backend: any ConsoleBackend) { self.backend = backend }

    package func attach(to core: VirtioCore) {
        backend.connect(
            input: { [weak self, weak core] bytes in
                guard let self, let core else { return bytes.count }
                return core.whileServing { self.receive(&$0, core, bytes) } ?? 0
            },
            writable: { [weak core] in core?.requestService(queue: Queue.transmit) })
    }

    // MARK: Configuration

    /// u16 columns, u16 rows (not offered), u32 max_nr_ports, u32 emerg_wr.
    package func configuration(_ state: borrowing VirtioState) -> [UInt8] {
        [0, 0, 0, 0, UInt8(Self.portCountMaximum), 0, 0, 0, 0, 0, 0, 0]
    }

    package func storeConfiguration(_ state: inout VirtioState, offset: Int, _ bytes: [UInt8]) {
        // The emergency write works before the driver has negotiated anything.
        if offset == 8, let byte = bytes.first { _ = backend.write([byte]) }
    }

    package func acceptFeatures(_ features: UInt64) { port.withLock { $0.features = features } }

    package func resetDevice(_ state: inout VirtioState) { port.withLock { $0 = Port() } }

    // MARK: Queues

    package func service(queue: Int, of core: VirtioCore) {
        switch queue {
        case Queue.receive: backend.inputIsWanted()
        case Queue.transmit: while core.whileServing({ self.transmit(&$0, core) }) != nil {}
        case Queue.controlReceive: _ = core.whileServing { self.sendControlMessages(&$0, core) }
        case Queue.controlTransmit:
            var isOpened = false
            while core.whileServing({ self.takeControlMessage(&$0, core, &isOpened) }) != nil {}
            if isOpened { backend.inputIsWanted() }
        default: break  // ports that do not exist
        }
    }

    /// Puts input into the driver's buffers; answers how many bytes went.
    private func receive(_ state: inout VirtioState, _ core: VirtioCore, _ bytes: [UInt8]) -> Int {
        let isOpen = port.withLock { $0.features & Feature.multiport == 0 || $0.isGuestConnected }
        guard isOpen else { return 0 }
        var done = 0
        while done < bytes.count, let chain = core.next(&state, queue: Queue.receive) {
            let count = min(chain.writableByteCount, bytes.count - done)
            let written = chain.write(core.memory, at: 0, Array(bytes[done..<done + count]))
            core.finish(&state, queue: Queue.receive, head: chain.head, byteCount: written)
            done += written
        }
        return done
    }

    /// Moves one piece of output to the backend. Nil: nothing left, or the backend is full and will call.
    private func transmit(_ state: inout VirtioState, _ core: VirtioCore) -> Void? {
        guard let output = currentOutput(&state, core), let chain = output.chain else { return nil }
        let bytes = chain.readBytes(core.memory, at: output.sentByteCount, count: Self.pieceByteCount)
        let taken = bytes.isEmpty ? 0 : min(max(backend.write(bytes), 0), bytes.count)
        let sent = output.sentByteCount + taken
        if sent >= chain.readableByteCount || bytes.isEmpty {
            port.withLock { $0.output = nil }
            core.finish(&state, queue: Queue.transmit, head: chain.head, byteCount: 0)
            return ()
        }
        port.withLock { $0.output = Output(head: chain.head, chain: chain, sentByteCount: sent) }
        return taken < bytes.count ? nil : ()
    }

    private func currentOutput(_ state: inout VirtioState, _ core: VirtioCore) -> Output? {
        guard var output = port.withLock({ $0.output }) else {
            return core.next(&state, queue: Queue.transmit).map { Output(head: $0.head, chain: $0, sentByteCount: 0) }
        }
        if output.chain == nil {
            do throws(VirtqueueError) {
                output.chain = try state.queues[Queue.transmit].chain(
                    at: output.head, memory: core.memory, features: state.features)
            } catch {
                core.fail(&state, error)
                return nil
            }
        }
        return output
    }

    // MARK: Control queues

    private func takeControlMessage(_ state: inout VirtioState, _ core: VirtioCore, _ isOpened: inout Bool) -> Void? {
        guard let chain = core.next(&state, queue: Queue.controlTransmit) else { return nil }
        let message = chain.readBytes(core.memory, at: 0, count: 8)
        core.finish(&state, queue: Queue.controlTransmit, head: chain.head, byteCount: 0)
        guard message.count == 8 else { return () }
        let id = littleEndian(message[0..<4])
        let event = UInt16(littleEndian(message[4..<6]))
        let value = UInt16(littleEndian(message[6..<8]))
        switch event {
        case ControlEvent.deviceReady where value == 1: queueControlMessage(ControlEvent.deviceAdd)
        case ControlEvent.portReady where value == 1 && id == 0:
            queueControlMessage(ControlEvent.consolePort)
            queueControlMessage(ControlEvent.portOpen)
        case ControlEvent.portOpen where id == 0:
            port.withLock { $0.isGuestConnected = value != 0 }
            isOpened = value != 0
        default: break
        }
        sendControlMessages(&state, core)
        return ()
    }

    /// u32 port, u16 event, u16 value: always port 0, value 1.
    private func queueControlMessage(_ event: UInt16) {
        port.withLock {
            guard $0.controlMessages.count < Self.controlMessagesMaximum else { return }
            $0.controlMessages.append([0, 0, 0, 0, UInt8(event), 0, 1, 0])
        }
    }

    private func sendControlMessages(_ state: inout VirtioState, _ core: VirtioCore) {
        while let message = port.withLock({ $0.controlMessages.first }),
            let chain = core.next(&state, queue: Queue.controlReceive)
        {
            let written = chain.write(core.memory, at: 0, message)
            core.finish(&state, queue: Queue.controlReceive, head: chain.head, byteCount: written)
            _ = port.withLock { $0.controlMessages.removeFirst() }
        }
    }

    // MARK: Pausing and state

    package func quiesceBackend() { backend.quiesce() }

    package func drain(_ state: inout VirtioState, _ core: VirtioCore) {
        var isOpened = false
        while takeControlMessage(&state, core, &isOpened) != nil {}
    }

    package func resumeBackend() {
        backend.resume()
        backend.inputIsWanted()
    }

    /// QEMU takes up output after a load only if a request counts as taken.
    package func prepareToSave(
        _ saved: inout VirtioSavedState, _ state: inout VirtioState, _ core: VirtioCore, layout: StateLayout
    ) {
        guard layout != .native || port.withLock({ $0.output != nil }), state.queues[Queue.transmit].isReady,
            !state.isBroken
        else { return }
        let index = state.queues[Queue.transmit].lastAvailableIndex
        guard let output = peekOutput(&state, core) else { return }
        saved.queues[Queue.transmit].lastAvailableIndex = index &+ (output.isNew ? 1 : 0)
        saved.takenRequests = [output.chain]
        saved.sentByteCount = output.sentByteCount
    }

    /// The output that is under way or would be next, without taking it.
    private func peekOutput(_ state: inout VirtioState, _ core: VirtioCore)
        -> (chain: DescriptorChain, sentByteCount: Int, isNew: Bool)?
    {
        if let output = port.withLock({ $0.output }) {
            let chain =
                output.chain
                ?? (try? state.queues[Queue.transmit].chain(
                    at: output.head, memory: core.memory, features: state.features))
            return (chain ?? DescriptorChain(head: output.head), output.sentByteCount, false)
        }
        var queue = state.queues[Queue.transmit]
        guard let chain = try? queue.pop(core.memory, features: state.features, isAsking: false) else { return nil }
        return (chain, 0, true)
    }

    /// u16 columns, u16 rows, u32 max_nr_ports, u32 map of ports, u32 count of ports; per port u32 id, u8 guest_connected,
    /// u8 host_connected, u32 whether a request was taken, and if so u32 buffer and u64 offset reached in it, and the
    /// request.
    package func codeDeviceState(with coder: inout any StateCoder, saved: VirtioSavedState) throws(StateError)
        -> @Sendable (inout VirtioState) -> Void
    {
        var columns: UInt16 = 0, rows: UInt16 = 0
        var portCountMaximum = Self.portCountMaximum
        var map: UInt32 = 1, count: UInt32 = 1, id: UInt32 = 0
        try coder.uint16("cols", &columns)
        try coder.uint16("rows", &rows)
        try coder.uint32("max_nr_ports", &portCountMaximum)
        try coder.uint32("ports_map", &map)
        try coder.uint32("nr_active_ports", &count)
        guard map == 1, count == 1 else {
            throw .unsupported(
                component: coder.component,
                reason: "the device has \(count) ports (map 0x\(String(map, radix: 16))), here is port 0 alone")
        }
        try coder.uint32("id", &id)
        guard id == 0 else { throw .invalid(component: coder.component, field: "id", value: "\(id)") }
        var guestConnected: UInt8 = port.withLock { $0.isGuestConnected } ? 1 : 0
        var hostConnected: UInt8 = 1
        try coder.uint8("guest_connected", &guestConnected)
        try coder.uint8("host_connected", &hostConnected)
        let output = try codeOutput(with: &coder, saved: saved)
        let isGuestConnected = guestConnected != 0
        return { _ in
            self.port.withLock {
                $0.isGuestConnected = isGuestConnected
                $0.output = output
                $0.controlMessages = []
            }
        }
    }

    private func codeOutput(with coder: inout any StateCoder, saved: VirtioSavedState) throws(StateError) -> Output? {
        let chain = saved.takenRequests.first
        var isTaken: UInt32 = chain == nil ? 0 : 1
        try coder.uint32("elem_popped", &isTaken)
        guard isTaken != 0 else { return nil }
        let isNative = coder.layout == .native
        var (buffer, offset) =
            chain.map { isNative ? (0, UInt64(saved.sentByteCount)) : Self.position(of: saved.sentByteCount, in: $0) }
            ?? (0, 0)
        try coder.uint32("iov_idx", &buffer)
        try coder.uint64("iov_offset", &offset)
        if let chain, !coder.isDecoding {
            try SavedElement.encode(chain, with: &coder)
            return nil
        }
        let (head, lengths) = try SavedElement.decode(with: &coder)
        guard buffer <= lengths.count else {
            throw .invalid(component: coder.component, field: "iov_idx", value: "\(buffer)")
        }
        var sent = offset
        for length in lengths[..<Int(buffer)] { sent = sent.addingReportingOverflow(length).partialValue }
        guard let sentByteCount = Int(exactly: sent) else {
            throw .invalid(component: coder.component, field: "iov_offset", value: "\(offset)")
        }
        return Output(head: head, chain: nil, sentByteCount: sentByteCount)
    }

    private static func position(of byteCount: Int, in chain: DescriptorChain) -> (buffer: UInt32, offset: UInt64) {
        var left = byteCount
        for (index, segment) in chain.readable.enumerated() {
            if left < segment.byteCount { return (UInt32(index), UInt64(left)) }
            left -= segment.byteCount
        }
        return (UInt32(chain.readable.count), 0)
    }
}
