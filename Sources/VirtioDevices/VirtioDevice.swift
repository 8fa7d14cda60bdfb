package import ComponentState

/// What a kind of virtio device is called and how it is made, as QEMU has it.
package struct VirtioIdentity: Sendable {
    /// Device id of the register file (virtio 1.2, section 5): 1 network, 2 block, 3 console, 4 entropy.
    package let deviceID: UInt32
    /// As in the section name: `virtio-blk`.
    package let name: String
    /// Version of the section in the migration stream.
    package let stateVersion: UInt32
    /// Entries of each queue unless the driver chooses fewer.
    package let queueSizes: [UInt16]
    /// Features of this kind of device; the transport adds its own.
    package let features: UInt64
    /// Features offered only by the legacy interface.
    package let legacyFeatures: UInt64
    /// Names for messages, by bit number.
    package let featureNames: [UInt64: String]

    package init(
        deviceID: UInt32, name: String, stateVersion: UInt32, queueSizes: [UInt16], features: UInt64,
        legacyFeatures: UInt64 = 0, featureNames: [UInt64: String]
    ) {
        precondition(queueSizes.count <= 64, "pending queues are kept in a 64-bit word")
        self.deviceID = deviceID
        self.name = name
        self.stateVersion = stateVersion
        self.queueSizes = queueSizes
        self.features = features
        self.legacyFeatures = legacyFeatures
        self.featureNames = featureNames
    }
}

/// A device behind a virtio transport. The transport owns registers, rings and the lock; the device owns what its
/// requests mean.
///
/// Locks: methods that take `inout VirtioState` are called with the core's lock held; the device may take a lock of its
/// own inside, and may call its backend (which never calls back on the same thread). The others are called without.
package protocol VirtioDevice: AnyObject, Sendable {
    var identity: VirtioIdentity { get }
    /// Configuration space as the driver reads it. The count never changes.
    func configuration(_ state: borrowing VirtioState) -> [UInt8]
    /// The driver wrote into the configuration space, inside its bounds.
    func storeConfiguration(_ state: inout VirtioState, offset: Int, _ bytes: [UInt8])
    /// The features the driver chose are final.
    func acceptFeatures(_ features: UInt64)
    /// Back to the state after power-on.
    func resetDevice(_ state: inout VirtioState)
    /// Connects to the backend. Called once, before anything else.
    func attach(to core: VirtioCore)
    /// Takes what is in a queue. Called on the device's worker thread, never on a processor's.
    func service(queue: Int, of core: VirtioCore)
    /// Stops the backend's callbacks and returns when none is running.
    func quiesceBackend()
    /// Gives back a request that is under way, so that the queues say it was never taken. Nothing is under way that
    /// set ``VirtioState/mustFinish``.
    func park(_ state: inout VirtioState)
    /// Serves, without waiting for anything, queues that a receiver would not look at before the next notification.
    /// Called while pausing: the processors have stopped, so nothing is added.
    func drain(_ state: inout VirtioState, _ core: VirtioCore)
    /// Lets the backend call again.
    func resumeBackend()
    /// Last changes to what is saved, such as requests that a receiver would otherwise overlook.
    func prepareToSave(
        _ saved: inout VirtioSavedState, _ state: inout VirtioState, _ core: VirtioCore, layout: StateLayout)
    /// The device's own part of the state, after the queues.
    /// - Parameter saved: What is being written, or what was read so far.
    /// - Returns: When decoding, what puts the judged values into effect.
    func codeDeviceState(with coder: inout any StateCoder, saved: VirtioSavedState) throws(StateError)
        -> @Sendable (inout VirtioState) -> Void
}

extension VirtioDevice {
    package func configuration(_ state: borrowing VirtioState) -> [UInt8] { [] }
    package func storeConfiguration(_ state: inout VirtioState, offset: Int, _ bytes: [UInt8]) {}
    package func acceptFeatures(_ features: UInt64) {}
    package func resetDevice(_ state: inout VirtioState) {}
    package func attach(to core: VirtioCore) {}
    package func quiesceBackend() {}
    package func park(_ state: inout VirtioState) {}
    package func drain(_ state: inout VirtioState, _ core: VirtioCore) {}
    package func resumeBackend() {}
    package func prepareToSave(
        _ saved: inout VirtioSavedState, _ state: inout VirtioState, _ core: VirtioCore, layout: StateLayout
    ) {}
}
