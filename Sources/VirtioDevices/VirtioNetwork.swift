package import ComponentState
package import DeviceModel
import GuestMemory
import Synchronization

/// The network device (virtio 1.2, section 5.1): one pair of queues and the control queue, no offloads.
package final class VirtioNetwork: VirtioDevice {
    package let identity = VirtioIdentity(
        deviceID: 1, name: "virtio-net", stateVersion: 11, queueSizes: [256, 256, 64], features: Feature.all,
        legacyFeatures: Feature.genericSegmentation, featureNames: Feature.names)
    private let backend: any NetworkBackend
    private let originalAddress: [UInt8]
    private let settings: Mutex<Settings>
    private let frameBuffer = WorkBuffer(byteCount: frameByteCountMaximum)

    enum Feature {
        static let controlGuestOffloads: UInt64 = 1 << 2
        static let macAddress: UInt64 = 1 << 5
        /// Only in the legacy interface, where drivers accept it without asking for the checksums it needs.
        static let genericSegmentation: UInt64 = 1 << 6
        static let mergeableBuffers: UInt64 = 1 << 15
        static let status: UInt64 = 1 << 16
        static let controlQueue: UInt64 = 1 << 17
        static let controlReceive: UInt64 = 1 << 18
        static let controlVLAN: UInt64 = 1 << 19
        static let controlReceiveExtra: UInt64 = 1 << 20
        static let guestAnnounce: UInt64 = 1 << 21
        static let controlMACAddress: UInt64 = 1 << 23
        static let all =
            controlGuestOffloads | macAddress | mergeableBuffers | status | controlQueue | controlReceive | controlVLAN
            | controlReceiveExtra | guestAnnounce | controlMACAddress
        static let names: [UInt64: String] = [
            0: "CSUM", 1: "GUEST_CSUM", 2: "CTRL_GUEST_OFFLOADS", 3: "MTU", 5: "MAC", 6: "GSO", 7: "GUEST_TSO4",
            8: "GUEST_TSO6", 9: "GUEST_ECN", 10: "GUEST_UFO", 11: "HOST_TSO4", 12: "HOST_TSO6", 13: "HOST_ECN",
            14: "HOST_UFO", 15: "MRG_RXBUF", 16: "STATUS", 17: "CTRL_VQ", 18: "CTRL_RX", 19: "CTRL_VLAN",
            20: "CTRL_RX_EXTRA", 21: "GUEST_ANNOUNCE", 22: "MQ", 23: "CTRL_MAC_ADDR", 54: "GUEST_USO4",
            55: "GUEST_USO6", 56: "HOST_USO", 57: "HASH_REPORT", 60: "RSS", 61: "RSC_EXT", 62: "STANDBY",
            63: "SPEED_DUPLEX",
        ]
    }

    private enum Queue {
        static let receive = 0, transmit = 1, control = 2
    }

    private enum Link {
        static let isUp: UInt16 = 1, announce: UInt16 = 2
    }

    private struct Settings {
        var features: UInt64 = 0
        var status: UInt16 = Link.isUp
        var filter: NetworkFilter
    }

    /// The longest frame that is sent; longer ones are dropped.
    static let frameByteCountMaximum = 65_535 + 18
    /// Buffers that one frame may be spread over.
    private static let buffersPerFrameMaximum = 64
    private static let ethernetHeaderByteCount = 14

    /// - Parameter macAddress: Six bytes.
    package init(backend: any NetworkBackend, macAddress: [UInt8]) {
        precondition(macAddress.count == 6, "a MAC address has six bytes")
        self.backend = backend
        originalAddress = macAddress
        settings = Mutex(Settings(filter: NetworkFilter(address: macAddress)))
    }

    package func attach(to core: VirtioCore) {
        unsafe backend.connect(
            receive: { [weak self, weak core] frame in
                guard let self, let core else { return true }
                let isWanted = self.settings.withLock { unsafe $0.filter.accepts(frame) }
                return isWanted ? core.whileServing { unsafe self.receive(&$0, core, frame) } ?? false : true
            },
            writable: { [weak core] in core?.requestService(queue: Queue.transmit) })
    }

    /// Tells the network where the card is now, as after a move: a RARP request goes out on the card's behalf, and a
    /// driver that can is asked to announce its own addresses (section 5.1.6.5.4). Both are what QEMU does, also while
    /// the guest stands still.
    package func announce(on transport: VirtioMMIOTransport) {
        guard let core = transport.core, core.device === self else { return }
        core.monitor.withLock { state in
            let (address, asksDriver) = settings.withLock { settings in
                let needed = Feature.guestAnnounce | Feature.controlQueue | Feature.status
                let isPossible = settings.features & needed == needed
                if isPossible { settings.status |= Link.announce }
                return (settings.filter.address, isPossible)
            }
            let frame = Self.announcement(of: address)
            _ = unsafe frame.withUnsafeBytes { unsafe backend.send($0) }
            if asksDriver { core.configurationChanged(&state) }
        }
    }

    /// A RARP request (RFC 903) by which switches learn where an address is: to all, about itself, no protocol address;
    /// padded to the shortest frame that Ethernet allows.
    static func announcement(of address: [UInt8]) -> [UInt8] {
        var frame = [UInt8](repeating: 0xff, count: 6) + address + [0x80, 0x35]
        frame += [0, 1, 8, 0, 6, 4, 0, 3]  // Ethernet, IPv4, lengths of addresses, "request reverse"
        frame += address + [0, 0, 0, 0] + address + [0, 0, 0, 0]
        return frame + [UInt8](repeating: 0, count: 60 - frame.count)
    }

    // MARK: Configuration

    /// u8 mac[6], u16 status.
    package func configuration(_ state: borrowing VirtioState) -> [UInt8] {
        settings.withLock {
            $0.filter.address + [UInt8(truncatingIfNeeded: $0.status), UInt8(truncatingIfNeeded: $0.status >> 8)]
        }
    }

    /// Legacy drivers without the control queue set the address here.
    package func storeConfiguration(_ state: inout VirtioState, offset: Int, _ bytes: [UInt8]) {
        guard state.features & (VirtioFeature.version1 | Feature.controlMACAddress) == 0 else { return }
        settings.withLock { settings in
            for (index, byte) in bytes.enumerated() where offset + index < 6 {
                settings.filter.address[offset + index] = byte
            }
        }
    }

    package func acceptFeatures(_ features: UInt64) {
        settings.withLock {
            $0.features = features
            let isFiltering = features & Feature.controlVLAN != 0
            $0.filter.vlans = [UInt8](repeating: isFiltering ? 0 : 0xff, count: NetworkFilter.vlanByteCount)
        }
    }

    package func resetDevice(_ state: inout VirtioState) {
        settings.withLock { $0 = Settings(filter: NetworkFilter(address: originalAddress)) }
    }

    // MARK: Queues

    package func service(queue: Int, of core: VirtioCore) {
        switch queue {
        case Queue.receive: backend.receiveIsWanted()
        case Queue.transmit:
            let buffer = unsafe frameBuffer.bytes
            while core.whileServing({ unsafe self.transmit(&$0, core, buffer) }) != nil {}
        default: while core.whileServing({ self.control(&$0, core) }) != nil {}
        }
    }

    /// Bytes of `struct virtio_net_hdr` before each frame.
    private static func headerByteCount(_ features: UInt64) -> Int {
        features & (VirtioFeature.version1 | Feature.mergeableBuffers) != 0 ? 12 : 10
    }

    /// Puts a frame into the driver's buffers. False: there are too few; the driver has been asked to notify.
    private func receive(_ state: inout VirtioState, _ core: VirtioCore, _ frame: UnsafeRawBufferPointer) -> Bool {
        let headerByteCount = Self.headerByteCount(state.features)
        let isMergeable = state.features & Feature.mergeableBuffers != 0
        let needed = headerByteCount + frame.count
        var chains: [DescriptorChain] = []
        var room = 0
        while room < needed {
            guard let chain = core.next(&state, queue: Queue.receive) else {
                state.queues[Queue.receive].unpop(chains.count)
                return state.isBroken  // nobody will ever take it
            }
            chains.append(chain)
            room += chain.writableByteCount
            if !isMergeable { break }
            guard chains.count <= Self.buffersPerFrameMaximum else {
                core.fail(
                    &state, VirtqueueError("a frame of \(frame.count) bytes does not fit into 64 receive buffers"))
                return true
            }
        }
        guard room >= needed, chains[0].writableByteCount >= headerByteCount else {
            state.queues[Queue.receive].unpop(chains.count)
            return true  // dropped: it will not fit into this buffer later either
        }
        var header = [UInt8](repeating: 0, count: headerByteCount)
        if headerByteCount == 12 { header[10] = UInt8(chains.count) }
        var done = 0
        for (position, chain) in chains.enumerated() {
            let start = position == 0 ? chain.write(core.memory, at: 0, header) : 0
            let count = min(chain.writableByteCount - start, frame.count - done)
            let piece = unsafe UnsafeRawBufferPointer(rebasing: frame[done..<done + count])
            done += unsafe chain.write(core.memory, at: start, piece)
            do throws(VirtqueueError) {
                try state.queues[Queue.receive].fill(
                    core.memory, position: position, head: chain.head, byteCount: start + count)
            } catch {
                core.fail(&state, error)
                return true
            }
        }
        core.publish(&state, queue: Queue.receive, count: chains.count)
        return true
    }

    /// Sends one frame. Nil: nothing to send, or the backend is full and will call.
    private func transmit(_ state: inout VirtioState, _ core: VirtioCore, _ buffer: UnsafeMutableRawBufferPointer)
        -> Void?
    {
        guard let chain = core.next(&state, queue: Queue.transmit) else { return nil }
        let headerByteCount = Self.headerByteCount(state.features)
        let count = chain.readableByteCount - headerByteCount
        if count >= Self.ethernetHeaderByteCount, count <= buffer.count {
            let frame = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
            if unsafe chain.read(core.memory, at: headerByteCount, into: frame) == count,
                unsafe !backend.send(UnsafeRawBufferPointer(frame))
            {
                state.queues[Queue.transmit].unpop()
                return nil
            }
        }
        core.finish(&state, queue: Queue.transmit, head: chain.head, byteCount: 0)
        return ()
    }

    // MARK: Control queue

    private func control(_ state: inout VirtioState, _ core: VirtioCore) -> Void? {
        guard let chain = core.next(&state, queue: Queue.control) else { return nil }
        guard chain.readableByteCount >= 2, chain.writableByteCount >= 1 else {
            core.fail(&state, VirtqueueError("control request without command or answer"))
            return nil
        }
        let request = chain.readBytes(core.memory, at: 0, count: 16 * 1024)
        let isDone = request.count >= 2 && command(request[0], request[1], Array(request[2...]))
        let written = chain.write(core.memory, at: 0, [isDone ? 0 : 1])
        core.finish(&state, queue: Queue.control, head: chain.head, byteCount: written)
        return ()
    }

    /// Section 5.1.6.5. False is an error answer.
    private func command(_ group: UInt8, _ command: UInt8, _ data: [UInt8]) -> Bool {
        settings.withLock { settings in
            switch (group, command) {
            case (0, 0...5):  // receive mode
                guard data.count == 1 else { return false }
                let isOn = data[0] != 0
                switch command {
                case 0: settings.filter.isPromiscuous = isOn
                case 1: settings.filter.allowsAllMulticast = isOn
                case 2: settings.filter.allowsAllUnicast = isOn
                case 3: settings.filter.refusesMulticast = isOn
                case 4: settings.filter.refusesUnicast = isOn
                default: settings.filter.refusesBroadcast = isOn
                }
                return true
            case (1, 0):  // address tables: unicast, then multicast
                var rest = data[...]
                guard let unicast = Self.takeTable(&rest), let multicast = Self.takeTable(&rest), rest.isEmpty else {
                    return false
                }
                settings.filter.setTable(unicast: unicast, multicast: multicast)
                return true
            case (1, 1):
                guard data.count == 6 else { return false }
                settings.filter.address = data
                return true
            case (2, 0...1):  // add, remove a VLAN
                guard data.count == 2, littleEndian(data[...]) < 4096 else { return false }
                settings.filter.set(vlan: UInt16(littleEndian(data[...])), command == 0)
                return true
            case (3, 0):  // announcement made
                guard settings.status & Link.announce != 0 else { return false }
                settings.status &= ~Link.announce
                return true
            case (5, 0):  // offloads: there are none to switch on
                return data.count == 8 && littleEndian(data[...]) == 0
            default: return false
            }
        }
    }

    /// u32 count, then addresses.
    private static func takeTable(_ bytes: inout ArraySlice<UInt8>) -> [[UInt8]]? {
        guard bytes.count >= 4 else { return nil }
        let count = littleEndian(bytes.prefix(4))
        bytes = bytes.dropFirst(4)
        guard count <= UInt64(bytes.count / 6) else { return nil }
        let table = (0..<Int(count)).map { Array(bytes.dropFirst(6 * $0).prefix(6)) }
        bytes = bytes.dropFirst(6 * Int(count))
        return table
    }

    // MARK: Pausing and state

    package func quiesceBackend() { backend.quiesce() }

    package func drain(_ state: inout VirtioState, _ core: VirtioCore) { while control(&state, core) != nil {} }

    package func resumeBackend() {
        backend.resume()
        backend.receiveIsWanted()
    }

    /// QEMU takes up sending after a load only if it is told that something waits.
    package func prepareToSave(
        _ saved: inout VirtioSavedState, _ state: inout VirtioState, _ core: VirtioCore, layout: StateLayout
    ) { saved.hasTransmitWaiting = state.queues[Queue.transmit].hasAvailable(core.memory) }

    /// QEMU's `virtio-net-device`, one pair of queues.
    package func codeDeviceState(with coder: inout any StateCoder, saved: VirtioSavedState) throws(StateError)
        -> @Sendable (inout VirtioState) -> Void
    {
        let isDecoding = coder.isDecoding
        var (filter, status) = settings.withLock { ($0.filter, $0.status) }
        let hasOffloads = saved.features & Feature.controlGuestOffloads != 0
        let isMergeable = saved.features & Feature.mergeableBuffers != 0
        try coder.structure("vdev", type: "virtio-net-device", version: 11) { coder throws(StateError) in
            try coder.buffer("mac", &filter.address)
            var isWaiting: UInt32 = saved.hasTransmitWaiting ? 1 : 0
            try coder.uint32("tx_waiting", &isWaiting)
            var mergeable: UInt32 = isMergeable ? 1 : 0
            try coder.uint32("mergeable_rx_bufs", &mergeable)
            try coder.uint16("status", &status)
            try coder.flag("promisc", &filter.isPromiscuous)
            try coder.flag("allmulti", &filter.allowsAllMulticast)
            try Self.codeTable(with: &coder, &filter)
            try coder.buffer("vlans", &filter.vlans)
            var hasVirtioHeader: UInt32 = 0
            try coder.uint32("has_vnet_hdr", &hasVirtioHeader)
            try coder.flag("mac_table.multi_overflow", &filter.hasMulticastOverflow)
            try coder.flag("mac_table.uni_overflow", &filter.hasUnicastOverflow)
            try coder.flag("alluni", &filter.allowsAllUnicast)
            try coder.flag("nomulti", &filter.refusesMulticast)
            try coder.flag("nouni", &filter.refusesUnicast)
            try coder.flag("nobcast", &filter.refusesBroadcast)
            var hasUFO = false
            try coder.flag("has_ufo", &hasUFO)
            if hasOffloads {
                var offloads: UInt64 = 0
                try coder.uint64("curr_guest_offloads", &offloads)
                if isDecoding, offloads != 0 {
                    throw .unsupported(
                        component: coder.component,
                        reason: "receive offloads 0x\(String(offloads, radix: 16)) are switched on")
                }
            }
        }
        return { [filter, status] _ in
            self.settings.withLock {
                $0.filter = filter
                $0.status = status & (Link.isUp | Link.announce)
            }
        }
    }

    /// u32 count, then the addresses, unicast first.
    private static func codeTable(with coder: inout any StateCoder, _ filter: inout NetworkFilter) throws(StateError) {
        let table = filter.unicast + filter.multicast
        var count = UInt32(table.count)
        try coder.uint32("mac_table.in_use", &count)
        guard count <= 16 * UInt32(NetworkFilter.tableMaximum) else {
            throw .invalid(component: coder.component, field: "mac_table.in_use", value: "\(count)")
        }
        guard count > 0 else {
            if coder.isDecoding { filter.setTable(unicast: [], multicast: []) }
            return
        }
        var bytes = coder.isDecoding ? [UInt8](repeating: 0, count: 6 * Int(count)) : table.flatMap { $0 }
        try coder.buffer("mac_table.macs", &bytes)
        guard coder.isDecoding else { return }
        let addresses = (0..<Int(count)).map { Array(bytes[6 * $0..<6 * $0 + 6]) }
        let firstMulticast = addresses.firstIndex { $0[0] & 1 != 0 } ?? addresses.count
        filter.setTable(
            unicast: Array(addresses[..<firstMulticast]), multicast: Array(addresses[firstMulticast...]))
    }
}

extension StateCoder {
    /// A byte that is 0 or 1.
    fileprivate mutating func flag(_ name: String, _ value: inout Bool) throws(StateError) {
        var byte: UInt8 = value ? 1 : 0
        try uint8(name, &byte)
        value = byte != 0
    }
}
