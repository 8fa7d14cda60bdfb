package import DeviceModel
package import GuestMemory

/// The virtio register file in a page of guest-physical memory (virtio 1.2, section 4.2), modern (version 2) or legacy
/// (version 1), with a device behind it or empty.
package final class VirtioMMIOTransport: BusDevice {
    package let slotAddress: UInt64
    package let isLegacy: Bool
    /// What QueueNumMax answers at most; nil is each queue's default. A machine that must look like QEMU 7.2 says 1024.
    package let queueSizeLimit: UInt16?
    let core: VirtioCore?

    /// - Parameters:
    ///   - slotAddress: Guest-physical address of the slot; part of the section name.
    ///   - device: Nil is an empty slot: it answers magic, version and vendor, and has no state.
    ///   - isLegacy: Whether the register file is version 1, QEMU's default.
    ///   - queueSizeLimit: A power of two up to 1024, for all queues.
    package init(
        slotAddress: UInt64, device: (any VirtioDevice)?, memory: GuestMemory, interrupt: InterruptLine, isLegacy: Bool,
        queueSizeLimit: UInt16? = nil
    ) {
        if let limit = queueSizeLimit { precondition(Virtqueue.isPermittedSize(UInt32(limit))) }
        self.slotAddress = slotAddress
        self.isLegacy = isLegacy
        self.queueSizeLimit = queueSizeLimit
        core = device.map { VirtioCore(device: $0, memory: memory, interrupt: interrupt, isLegacy: isLegacy) }
        if let core {
            core.device.attach(to: core)
            core.startWorker()
        }
    }

    deinit { core?.stop() }

    /// A device is in the slot.
    package var isOccupied: Bool { core != nil }

    /// The most entries that one of its queues has; 0 in an empty slot.
    package var largestQueueSize: Int {
        guard let core else { return 0 }
        return core.monitor.withLock { state in
            var largest = 0
            for index in state.queues.indices { largest = max(largest, Int(state.queues[index].size)) }
            return largest
        }
    }

    package var name: String { core?.device.identity.name ?? "virtio-mmio" }

    /// Bytes of guest-physical space that the register file takes.
    package static let byteCount: UInt64 = 0x200

    package func reset() {
        guard let core else { return }
        core.monitor.withLock { state in
            core.reset(&state)
            state.guestPageShift = 0
        }
    }

    package func quiesce() { core?.quiesce() }
    package func resume() { core?.resume() }

    // MARK: Registers

    private enum Register: UInt64 {
        case magic = 0x000, version = 0x004, deviceID = 0x008, vendorID = 0x00c
        case deviceFeatures = 0x010, deviceFeaturesSelect = 0x014, driverFeatures = 0x020, driverFeaturesSelect = 0x024
        case guestPageSize = 0x028  // legacy
        case queueSelect = 0x030, queueSizeMaximum = 0x034, queueSize = 0x038
        case queueAlignment = 0x03c, queuePage = 0x040  // legacy
        case queueReady = 0x044  // modern
        case queueNotify = 0x050, interruptStatus = 0x060, interruptAcknowledge = 0x064, status = 0x070
        case descriptorsLow = 0x080, descriptorsHigh = 0x084, availableLow = 0x090, availableHigh = 0x094
        case usedLow = 0x0a0, usedHigh = 0x0a4, sharedMemoryLengthLow = 0x0b0, sharedMemoryLengthHigh = 0x0b4
        case configurationGeneration = 0x0fc
    }

    private static let configurationOffset: UInt64 = 0x100
    private static let magic: UInt64 = 0x7472_6976  // "virt"
    private static let vendor: UInt64 = 0x554d_4551  // "QEMU"

    package func load(offset: UInt64, width: AccessWidth) -> UInt64 {
        if offset >= Self.configurationOffset { return loadConfiguration(offset - Self.configurationOffset, width) }
        guard width == .four, let register = Register(rawValue: offset) else { return 0 }
        switch register {
        case .magic: return Self.magic
        case .version: return isLegacy ? 1 : 2
        case .vendorID: return Self.vendor
        default: break
        }
        guard let core else { return 0 }
        return core.monitor.withLock { UInt64(load(register, $0, core)) }
    }

    private func load(_ register: Register, _ state: borrowing VirtioState, _ core: VirtioCore) -> UInt32 {
        let selected = Int(state.queueSelect)
        let queue = selected < state.queues.count ? state.queues[selected] : nil
        switch register {
        case .deviceID: return core.device.identity.deviceID
        case .deviceFeatures:
            switch (state.deviceFeaturesSelect, isLegacy) {
            case (0, _): return UInt32(truncatingIfNeeded: core.offeredFeatures)
            case (1, false): return UInt32(truncatingIfNeeded: core.offeredFeatures >> 32)
            default: return 0
            }
        case .queueSizeMaximum: return queue.map { UInt32(queueSizeLimit ?? $0.defaultSize) } ?? 0
        case .queuePage:
            guard isLegacy, let queue else { return 0 }
            return UInt32(truncatingIfNeeded: queue.rings.descriptors >> UInt64(state.guestPageShift))
        case .queueReady: return !isLegacy && queue?.isReady == true ? 1 : 0
        case .interruptStatus: return UInt32(state.interruptStatus)
        case .status: return UInt32(state.status)
        // A region that does not exist has a length of all ones.
        case .sharedMemoryLengthLow, .sharedMemoryLengthHigh: return isLegacy ? 0 : .max
        case .configurationGeneration: return isLegacy ? 0 : state.configurationGeneration
        default: return 0
        }
    }

    private func loadConfiguration(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        guard let core else { return 0 }
        let bytes = core.monitor.withLock { core.device.configuration($0) }
        var value: UInt64 = 0
        for index in 0..<UInt64(width.rawValue) where offset + index < UInt64(bytes.count) {
            value |= UInt64(bytes[Int(offset + index)]) << (8 * index)
        }
        return value
    }

    package func store(offset: UInt64, width: AccessWidth, value: UInt64) {
        guard let core else { return }
        core.monitor.withLock { state in
            if offset >= Self.configurationOffset {
                storeConfiguration(offset - Self.configurationOffset, width, value, &state, core)
            } else if width == .four, let register = Register(rawValue: offset) {
                store(register, UInt32(truncatingIfNeeded: value), &state, core)
            }
        }
    }

    private func storeConfiguration(
        _ offset: UInt64, _ width: AccessWidth, _ value: UInt64, _ state: inout VirtioState, _ core: VirtioCore
    ) {
        let room = core.device.configuration(state).count
        guard offset + UInt64(width.rawValue) <= UInt64(room) else { return }
        let bytes = (0..<UInt64(width.rawValue)).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
        core.device.storeConfiguration(&state, offset: Int(offset), bytes)
    }

    private func store(_ register: Register, _ value: UInt32, _ state: inout VirtioState, _ core: VirtioCore) {
        switch register {
        case .deviceFeaturesSelect: state.deviceFeaturesSelect = value
        case .driverFeaturesSelect: state.driverFeaturesSelect = value
        case .driverFeatures: storeFeatures(value, &state, core)
        case .queueSelect: if value < UInt32(virtqueueSizeMaximum) { state.queueSelect = UInt16(value) }
        case .queueNotify: if value < UInt32(state.queues.count) { core.requestService(&state, queue: Int(value)) }
        case .interruptAcknowledge:
            state.interruptStatus &= ~UInt8(truncatingIfNeeded: value)
            core.updateLine(state)
        case .status: storeStatus(UInt8(truncatingIfNeeded: value), &state, core)
        case .guestPageSize where isLegacy:
            state.guestPageShift = value.nonzeroBitCount == 1 ? UInt32(value.trailingZeroBitCount) : 0
        default:
            let selected = Int(state.queueSelect)
            guard selected < state.queues.count else { return }
            if isLegacy {
                storeLegacyQueue(register, value, selected, &state, core)
            } else {
                storeQueue(register, value, selected, &state, core)
            }
        }
    }

    private func storeFeatures(_ value: UInt32, _ state: inout VirtioState, _ core: VirtioCore) {
        guard state.driverFeaturesSelect < 2 else { return }
        if isLegacy {
            guard state.driverFeaturesSelect == 0, state.status & VirtioStatus.driverOK == 0 else { return }
            state.features = UInt64(value) & core.offeredFeatures
            core.device.acceptFeatures(state.features)
        } else {
            state.driverFeatureWords[Int(state.driverFeaturesSelect)] = value
        }
    }

    private func storeStatus(_ value: UInt8, _ state: inout VirtioState, _ core: VirtioCore) {
        if value == 0 { return core.reset(&state) }
        var value = value & ~VirtioStatus.needsReset | state.status & VirtioStatus.needsReset
        if !isLegacy, value & VirtioStatus.featuresOK != 0, state.status & VirtioStatus.featuresOK == 0 {
            let chosen = UInt64(state.driverFeatureWords[0]) | UInt64(state.driverFeatureWords[1]) << 32
            if chosen & ~core.offeredFeatures == 0, chosen & VirtioFeature.version1 != 0 {
                state.features = chosen
                core.device.acceptFeatures(chosen)
            } else {
                value &= ~VirtioStatus.featuresOK  // the driver sees that its choice was not accepted
            }
        }
        let begins = value & VirtioStatus.driverOK != 0 && state.status & VirtioStatus.driverOK == 0
        state.status = value
        if begins { core.requestServiceOfAll(&state) }
    }

    private func storeQueue(
        _ register: Register, _ value: UInt32, _ index: Int, _ state: inout VirtioState, _ core: VirtioCore
    ) {
        if register == .queueReady {
            if value & 1 == 0 {
                core.device.park(&state)  // what is under way in this queue has nowhere to go any more
                state.queues[index].stop()
                state.epoch &+= 1
            } else if !state.queues[index].isReady {
                startQueue(index, state.queues[index].registers, &state, core)
            }
            return
        }
        guard !state.queues[index].isReady else { return }  // section 4.2.2.2: only while QueueReady is 0
        func setLow(_ field: WritableKeyPath<Virtqueue.RingAddresses, UInt64>) {
            state.queues[index].registers[keyPath: field] =
                state.queues[index].registers[keyPath: field] & ~0xffff_ffff | UInt64(value)
        }
        func setHigh(_ field: WritableKeyPath<Virtqueue.RingAddresses, UInt64>) {
            state.queues[index].registers[keyPath: field] =
                state.queues[index].registers[keyPath: field] & 0xffff_ffff | UInt64(value) << 32
        }
        switch register {
        case .queueSize: storeQueueSize(value, index, &state)
        case .descriptorsLow: setLow(\.descriptors)
        case .descriptorsHigh: setHigh(\.descriptors)
        case .availableLow: setLow(\.available)
        case .availableHigh: setHigh(\.available)
        case .usedLow: setLow(\.used)
        case .usedHigh: setHigh(\.used)
        default: break
        }
    }

    private func storeLegacyQueue(
        _ register: Register, _ value: UInt32, _ index: Int, _ state: inout VirtioState, _ core: VirtioCore
    ) {
        switch register {
        case .queueSize where !state.queues[index].isReady: storeQueueSize(value, index, &state)
        case .queueAlignment where !state.queues[index].isReady:
            if value.nonzeroBitCount == 1, value >= 4 { state.queues[index].alignment = value }
        case .queuePage:
            // Page 0 takes the queue away; QEMU resets the whole device, which a driver does next in any case.
            guard value != 0 else { return core.reset(&state) }
            guard !state.queues[index].isReady else { return }
            let address = UInt64(value) << UInt64(state.guestPageShift)
            let rings = Virtqueue.legacyRings(
                at: address, size: state.queues[index].size, alignment: state.queues[index].alignment)
            startQueue(index, rings, &state, core)
        default: break
        }
    }

    private func storeQueueSize(_ value: UInt32, _ index: Int, _ state: inout VirtioState) {
        guard Virtqueue.isPermittedSize(value), value <= UInt32(queueSizeLimit ?? virtqueueSizeMaximum) else { return }
        state.queues[index].size = UInt16(value)
        if !isLegacy { state.queues[index].sizeRegister = UInt16(value) }
    }

    private func startQueue(
        _ index: Int, _ rings: Virtqueue.RingAddresses, _ state: inout VirtioState, _ core: VirtioCore
    ) {
        do throws(VirtqueueError) {
            try state.queues[index].start(rings, memory: core.memory)
            core.requestService(&state, queue: index)
        } catch { core.fail(&state, error) }
    }
}
