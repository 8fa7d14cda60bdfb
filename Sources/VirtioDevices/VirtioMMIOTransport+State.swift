package import ComponentState
import GuestMemory

extension VirtioMMIOTransport: StatefulComponent {
    /// QEMU's: the bus path of the slot, then the device.
    package var sectionName: String {
        let digits = String(slotAddress, radix: 16)
        return "virtio-mmio@\(String(repeating: "0", count: 16 - digits.count))\(digits)/\(name)"
    }

    package var instance: UInt32 { 0 }

    package var canGoAhead: Bool { true }

    /// Nil for an empty slot, which has no section.
    package func sectionVersion(for layout: StateLayout) -> UInt32? { core?.device.identity.stateVersion }

    package var readableVersions: ClosedRange<UInt32> {
        let version = core?.device.identity.stateVersion ?? 0
        return version...version
    }

    package func codeState(with coder: inout any StateCoder) throws(StateError) {
        guard let core else {
            throw .unsupported(component: coder.component, reason: "there is no device in this slot")
        }
        let layout = coder.layout
        let isDecoding = coder.isDecoding
        var saved = core.monitor.withLock { state in
            var saved = VirtioSavedState(state, configuration: core.device.configuration(state))
            if !isDecoding { core.device.prepareToSave(&saved, &state, core, layout: layout) }
            return saved
        }
        let isLegacy = isLegacy
        var commitDevice: @Sendable (inout VirtioState) -> Void = { _ in }
        // QEMU's description shows one field without structure.
        try coder.opaque("virtio", type: "virtio") { coder throws(StateError) in
            try saved.codeFields(with: &coder)
            commitDevice = try core.device.codeDeviceState(with: &coder, saved: saved)
            try saved.codeSubsections(with: &coder, isLegacy: isLegacy)
        }
        guard isDecoding else { return }
        try judge(saved, core, component: coder.component)
        core.monitor.withLock { adopt(saved, &$0, core, commitDevice) }
    }

    private func judge(_ saved: VirtioSavedState, _ core: VirtioCore, component: String) throws(StateError) {
        let unknown = saved.features & ~core.offeredFeatures
        guard unknown == 0 else {
            let names = VirtioFeature.names(of: unknown, deviceNames: core.device.identity.featureNames)
            throw .unsupported(component: component, reason: "the driver uses features not offered here: \(names)")
        }
        if !isLegacy, saved.status & VirtioStatus.driverOK != 0, saved.features & VirtioFeature.version1 == 0 {
            throw .unsupported(component: component, reason: "the driver runs a modern transport without VERSION_1")
        }
        for (index, queue) in saved.queues.enumerated() where queue.isReady {
            do throws(VirtqueueError) {
                try Virtqueue.check(queue.rings, size: UInt16(queue.size), memory: core.memory)
            } catch {
                throw .invalid(component: component, field: "queue \(index) rings", value: error.description)
            }
        }
    }

    private func adopt(
        _ saved: VirtioSavedState, _ state: inout VirtioState, _ core: VirtioCore,
        _ commitDevice: @Sendable (inout VirtioState) -> Void
    ) {
        state.deviceFeaturesSelect = saved.deviceFeaturesSelect
        state.driverFeaturesSelect = saved.driverFeaturesSelect
        state.guestPageShift = saved.guestPageShift
        state.status = saved.status
        state.interruptStatus = saved.interruptStatus
        state.queueSelect = saved.queueSelect
        state.features = saved.features
        state.driverFeatureWords = saved.driverFeatureWords
        state.isBroken = saved.isBroken
        state.pendingQueues = 0
        // Nothing moves, whatever a backend brings, until resume(): the guest may yet stay with its source.
        state.isQuiesced = true
        state.epoch &+= 1
        for (index, queue) in saved.queues.enumerated() {
            state.queues[index].reset()
            state.queues[index].size = UInt16(queue.size)
            state.queues[index].alignment = queue.alignment
            state.queues[index].sizeRegister = queue.sizeRegister
            state.queues[index].registers = queue.registers
            if queue.isReady {
                state.queues[index].restore(queue.rings, lastAvailableIndex: queue.lastAvailableIndex)
            }
        }
        core.device.acceptFeatures(saved.features)
        commitDevice(&state)
    }
}
