import ComponentState
import GuestMemory

/// The state of a transport and its queues as it is on the wire: a copy, judged before it takes effect.
///
/// Layout: QEMU's `virtio_save` for the mmio transport, which is one run of fields without a description of its own,
/// followed by the device's part and the subsections.
package struct VirtioSavedState: Sendable {
    struct Queue: Sendable {
        var size: UInt32
        var alignment: UInt32
        var lastAvailableIndex: UInt16
        /// Live rings; only the descriptor address is among the fields, the others are in a subsection.
        var rings: Virtqueue.RingAddresses
        var sizeRegister: UInt16
        var isReady: Bool
        var registers: Virtqueue.RingAddresses
        var defaultSize: UInt32
    }

    var deviceFeaturesSelect: UInt32
    var driverFeaturesSelect: UInt32
    var guestPageShift: UInt32
    var status: UInt8
    var interruptStatus: UInt8
    var queueSelect: UInt16
    /// While the device's part is read only the low half is known, as in QEMU.
    var features: UInt64
    var configuration: [UInt8]
    var driverFeatureWords: [UInt32]
    var isBroken: Bool
    var queues: [Queue]
    /// Requests that the device counts as taken and not finished; it writes them in its own part.
    var takenRequests: [DescriptorChain] = []
    /// How much of the first of them is done (console output).
    var sentByteCount = 0
    /// Frames wait to be sent (network).
    var hasTransmitWaiting = false

    init(_ state: borrowing VirtioState, configuration: [UInt8]) {
        deviceFeaturesSelect = state.deviceFeaturesSelect
        driverFeaturesSelect = state.driverFeaturesSelect
        guestPageShift = state.guestPageShift
        status = state.status
        interruptStatus = state.interruptStatus
        queueSelect = state.queueSelect
        features = state.features
        self.configuration = configuration
        driverFeatureWords = state.driverFeatureWords
        isBroken = state.isBroken
        queues = state.queues.map { queue in
            Queue(
                size: UInt32(queue.size), alignment: queue.alignment, lastAvailableIndex: queue.lastAvailableIndex,
                rings: queue.rings, sizeRegister: queue.sizeRegister, isReady: queue.isReady,
                registers: queue.registers, defaultSize: UInt32(queue.defaultSize))
        }
    }

    var isStarted: Bool { status & VirtioStatus.driverOK != 0 || queues.contains { $0.isReady } }
}

extension VirtioSavedState {
    /// The fields before the device's part.
    mutating func codeFields(with coder: inout any StateCoder) throws(StateError) {
        try coder.uint32("host_features_sel", &deviceFeaturesSelect)
        try coder.uint32("guest_features_sel", &driverFeaturesSelect)
        try coder.uint32("guest_page_shift", &guestPageShift)
        try coder.uint8("status", &status)
        try coder.uint8("isr", &interruptStatus)
        try coder.uint16("queue_sel", &queueSelect)
        var low = UInt32(truncatingIfNeeded: features)
        try coder.uint32("guest_features", &low)
        if coder.isDecoding { features = UInt64(low) }
        try codeConfiguration(with: &coder)

        var count = UInt32(queues.count)
        try coder.uint32("queue_count", &count)
        guard count == queues.count else {
            throw .unsupported(component: coder.component, reason: "\(count) queues, here are \(queues.count)")
        }
        for index in queues.indices {
            try coder.uint32("vring.num", &queues[index].size)
            try coder.uint32("vring.align", &queues[index].alignment)
            try coder.uint64("vring.desc", &queues[index].rings.descriptors)
            try coder.uint16("last_avail_idx", &queues[index].lastAvailableIndex)
        }
    }

    private mutating func codeConfiguration(with coder: inout any StateCoder) throws(StateError) {
        var count = UInt32(configuration.count)
        try coder.uint32("config_len", &count)
        guard count <= 4096 else {
            throw .invalid(component: coder.component, field: "config_len", value: "\(count)")
        }
        if coder.isDecoding { configuration = [UInt8](repeating: 0, count: Int(count)) }
        if count > 0 { try coder.buffer("config", &configuration) }
    }

    /// The subsections after the device's part.
    /// - Returns: Whether the state came from a transport of the other kind or from none that is known.
    mutating func codeSubsections(with coder: inout any StateCoder, isLegacy: Bool) throws(StateError) {
        let isNative = coder.layout == .native
        let isDecoding = coder.isDecoding
        var found = Found()
        var work = self
        try coder.subsections([
            Subsection("virtio/64bit_features", isNeeded: true) { coder throws(StateError) in
                var features = work.features
                try coder.uint64("guest_features", &features)
                if isDecoding { work.features = features }
            },
            Subsection("virtio/virtqueues", isNeeded: !isNative && !isLegacy) { coder throws(StateError) in
                var words = work.wireArray { [$0.rings.available, $0.rings.used] }
                try coder.uint64Array("vq", &words)
                guard isDecoding else { return }
                for index in work.queues.indices {
                    work.queues[index].rings.available = words[2 * index]
                    work.queues[index].rings.used = words[2 * index + 1]
                }
                found.virtqueues = true
            },
            Subsection(
                "virtio/ringsize", isNeeded: !isNative && queues.contains { $0.size != $0.defaultSize }
            ) { coder throws(StateError) in
                var sizes = work.wireArray { [$0.defaultSize] }
                try coder.uint32Array("vring.num_default", &sizes)
            },
            Subsection("virtio/broken", isNeeded: isBroken) { coder throws(StateError) in
                try coder.bool("broken", &work.isBroken)
            },
            Subsection("virtio/extra_state", isNeeded: !isNative && !isLegacy) { coder throws(StateError) in
                try coder.structure("extra_state", type: "virtio_mmio", version: 1) { coder throws(StateError) in
                    try coder.subsections([
                        Subsection("virtio_mmio/state", isNeeded: true) { coder throws(StateError) in
                            try work.codeRegisters(with: &coder)
                            found.registers = true
                        }
                    ])
                }
            },
            Subsection("virtio/started", isNeeded: isStarted) { coder throws(StateError) in
                var isStarted = work.isStarted
                try coder.bool("started", &isStarted)
            },
            Subsection("virtio/disabled", isNeeded: false) { coder throws(StateError) in
                var isDisabled = false
                try coder.bool("disabled", &isDisabled)
                if isDisabled { throw .unsupported(component: coder.component, reason: "the device is disabled") }
            },
            Subsection("virtio/sidestep_queues", isNeeded: isNative) { coder throws(StateError) in
                try work.codeCompactQueues(with: &coder, isLegacy: isLegacy)
                found.compact = true
            },
        ])
        guard isDecoding else { return }
        self = work
        try judge(found, isLegacy: isLegacy, component: coder.component)
    }

    private struct Found {
        var virtqueues = false
        var registers = false
        var compact = false
    }

    /// QEMU writes its largest number of queues, whatever the device has.
    private func wireArray<Word: FixedWidthInteger>(_ words: (Queue) -> [Word]) -> [Word] {
        var array = queues.flatMap(words)
        let perQueue = queues.isEmpty ? 1 : array.count / queues.count
        array += [Word](repeating: 0, count: perQueue * (Int(virtqueueSizeMaximum) - queues.count))
        return array
    }

    /// Registers of the modern mmio transport: two feature words, then 27 bytes for each of 1024 queues.
    private mutating func codeRegisters(with coder: inout any StateCoder) throws(StateError) {
        try coder.uint32Array("guest_features", &driverFeatureWords)
        let byteCount = 27 * Int(virtqueueSizeMaximum)
        var writer = ByteWriter(capacity: byteCount)
        for queue in queues {
            writer.integer(queue.sizeRegister)
            writer.flag(queue.isReady)
            for address in [queue.registers.descriptors, queue.registers.available, queue.registers.used] {
                writer.integer(UInt32(truncatingIfNeeded: address))
                writer.integer(UInt32(truncatingIfNeeded: address >> 32))
            }
        }
        writer.pad(to: byteCount)
        var bytes = writer.bytes
        try coder.buffer("vqs", &bytes)
        guard coder.isDecoding else { return }
        let component = coder.component
        var reader = ByteReader(bytes) { StateError.invalid(component: component, field: "vqs", value: $0) }
        func address() throws(StateError) -> UInt64 {
            UInt64(try reader.integer(as: UInt32.self)) | UInt64(try reader.integer(as: UInt32.self)) << 32
        }
        for index in queues.indices {
            queues[index].sizeRegister = try reader.integer()
            queues[index].isReady = try reader.integer(as: UInt8.self) != 0
            queues[index].registers = .init(
                descriptors: try address(), available: try address(), used: try address())
        }
    }

    /// What the three large subsections hold, for the queues that exist: between two Sidesteps, where 45 KB of zeros per
    /// device would be part of the guest's pause.
    private mutating func codeCompactQueues(with coder: inout any StateCoder, isLegacy: Bool) throws(StateError) {
        var wasLegacy = isLegacy
        try coder.bool("legacy", &wasLegacy)
        guard wasLegacy == isLegacy else { throw Self.transportMismatch(isLegacy: isLegacy, coder.component) }
        try coder.uint32Array("guest_features", &driverFeatureWords)
        var sizes = queues.map(\.sizeRegister)
        var ready = queues.map { UInt8($0.isReady ? 1 : 0) }
        var addresses = queues.flatMap {
            [$0.registers.descriptors, $0.registers.available, $0.registers.used, $0.rings.available, $0.rings.used]
        }
        try coder.uint16Array("num", &sizes)
        try coder.uint8Array("enabled", &ready)
        try coder.uint64Array("addresses", &addresses)
        for index in queues.indices {
            let at = 5 * index
            queues[index].sizeRegister = sizes[index]
            queues[index].isReady = ready[index] != 0
            queues[index].registers = .init(
                descriptors: addresses[at], available: addresses[at + 1], used: addresses[at + 2])
            queues[index].rings.available = addresses[at + 3]
            queues[index].rings.used = addresses[at + 4]
        }
    }

    private static func transportMismatch(isLegacy: Bool, _ component: String) -> StateError {
        .unsupported(
            component: component,
            reason: isLegacy
                ? "saved from a modern (version 2) transport, this one is legacy"
                : "saved from a legacy (version 1) transport, this one is modern")
    }

    /// Completes what a legacy state leaves out, and refuses what could not be.
    private mutating func judge(_ found: Found, isLegacy: Bool, component: String) throws(StateError) {
        if !found.compact {
            guard found.registers == !isLegacy, found.virtqueues == !isLegacy else {
                throw Self.transportMismatch(isLegacy: isLegacy, component)
            }
        }
        guard guestPageShift < 32 else {
            throw .invalid(component: component, field: "guest_page_shift", value: "\(guestPageShift)")
        }
        guard queueSelect < virtqueueSizeMaximum else {
            throw .invalid(component: component, field: "queue_sel", value: "\(queueSelect)")
        }
        for index in queues.indices {
            guard Virtqueue.isPermittedSize(queues[index].size) else {
                throw .invalid(component: component, field: "queue \(index) vring.num", value: "\(queues[index].size)")
            }
            guard queues[index].alignment.nonzeroBitCount == 1, queues[index].alignment >= 4 else {
                throw .invalid(
                    component: component, field: "queue \(index) vring.align", value: "\(queues[index].alignment)")
            }
            if isLegacy {
                queues[index].isReady = queues[index].rings.descriptors != 0
                queues[index].rings = Virtqueue.legacyRings(
                    at: queues[index].rings.descriptors, size: UInt16(queues[index].size),
                    alignment: queues[index].alignment)
            }
            guard queues[index].rings.descriptors != 0 || queues[index].lastAvailableIndex == 0 else {
                throw .invalid(
                    component: component, field: "queue \(index) last_avail_idx",
                    value: "\(queues[index].lastAvailableIndex) without a ring")
            }
        }
    }
}
