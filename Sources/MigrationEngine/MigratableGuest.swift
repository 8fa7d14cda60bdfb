package import ComponentState
package import GuestMemory

/// What the engine sees of a guest. An adapter in Supervisor implements it over a machine; the scripted guest of
/// MigrationTestKit implements it for tests. The engine knows no device.
package protocol MigratableGuest: AnyObject, Sendable {
    /// As in the CONFIGURATION record: `virt`.
    var machineName: String { get }
    /// RAM blocks in the order of the block list on the wire.
    var ramBlocks: [RAMBlock] { get }
    /// Guest-physical address of a block; on the wire with `x-ignore-shared`, 0 if it has none.
    func guestAddress(of block: RAMBlock) -> UInt64
    /// Starts marking written pages: clears the bitmaps is the caller's business, this drops every fast write path so
    /// that from the moment it returns each write is marked. Called at the start of each round, guest running or not.
    func restartDirtyTracking() throws
    /// Slows the processors (auto-converge); 0 is full speed.
    func setThrottle(percent: Int)
    /// Stops all processors and devices; returns when the guest touches nothing any more. Idempotent.
    func pause() throws
    /// Lets the guest run on from where it was paused.
    func resume() throws
    var isRunning: Bool { get }
    /// Every component in wire order, RAM excepted.
    var components: [any StatefulComponent] { get }
    /// Called at the destination when every component is loaded, before ``resume()``: derive what is not in the state.
    func finishLoading() throws
    /// Blocks that a source may have and this guest does without: name, and how many bytes one may have. What comes for
    /// them is dropped.
    var surplusBlocks: [String: Int] { get }
}

extension MigratableGuest {
    /// Guest-physical address of a block, for `x-ignore-shared`.
    package func guestAddress(of block: RAMBlock) -> UInt64 { 0 }
    package var surplusBlocks: [String: Int] { [:] }
}
