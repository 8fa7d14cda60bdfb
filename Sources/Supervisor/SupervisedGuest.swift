package import ComponentState
package import GuestMemory
package import MigrationEngine

/// What the supervisor needs of a machine. ``VirtGuest`` implements it over the `virt` board; tests script it.
///
/// `pause`, `resume` and `reset` block until done and are never called on the monitor's thread.
package protocol SupervisedGuest: MigratableGuest {
    /// Guest-physical memory.
    var memory: GuestMemory { get }
    var processors: [GuestProcessorInformation] { get }
    /// Power-on state, with the boot images loaded again. Called while paused.
    func reset() throws
    /// Registers of all processors as text. Called while paused.
    func registerDump() -> String
    /// Ends all threads of the machine; called once, after `pause`. Nothing runs afterwards.
    func shutDown()
    /// Tells what the guest does to itself, and in the same order what is done to it. Called from any thread, also while `pause`
    /// waits; must not block.
    func setEventHandler(_ handler: @escaping @Sendable (GuestEvent) -> Void)
    /// Tells the network where the guest is, once for each card; nil is all of them, else those of these names.
    func announceNetworks(_ names: [String]?)
    /// Makes sure that nobody else uses the guest's disk images; called before it runs. Idempotent.
    func claimImages() throws
    /// Lets another process have the disk images; called while paused.
    func releaseImages() throws
    /// Why the guest cannot go on under a release that writes `layout`, as far as is known.
    func obstacle(to layout: StateLayout) -> String?
    /// What a destination that writes `layout` may have to be started with, should it refuse.
    func startHints(for layout: StateLayout) -> [String]
}

extension SupervisedGuest {
    /// After a page flip that failed half way some of the memory lies in the files of a successor that is no more. A block's
    /// own file must hold all of it before it is handed over. Not on the monitor's thread.
    func makeMemoryWhole() throws {
        guard ramBlocks.contains(where: { !$0.isWhole }) else { return }
        let wasRunning = isRunning
        try pause()
        defer { if wasRunning { try? resume() } }
        for block in ramBlocks { try block.makeWhole() }
    }

    package func announceNetworks(_ names: [String]?) {}
    package func claimImages() throws {}
    package func releaseImages() throws {}
    package func obstacle(to layout: StateLayout) -> String? { nil }
    package func startHints(for layout: StateLayout) -> [String] { [] }
}

/// What the monitor can tell of one processor of the guest.
package struct GuestProcessorInformation: Hashable, Sendable {
    package var index: Int
    /// The host's thread, 0 while there is none.
    package var threadIdentifier: Int32
    /// Instructions retired since power-on.
    package var retiredInstructions: UInt64

    package init(index: Int, threadIdentifier: Int32, retiredInstructions: UInt64) {
        self.index = index
        self.threadIdentifier = threadIdentifier
        self.retiredInstructions = retiredInstructions
    }
}

/// What a guest does by itself, and what others did to it that it may have answered before they could say so.
package enum GuestEvent: Hashable, Sendable {
    /// The guest switched the machine off; the code is what it gave to the test finisher, 0 for a plain power-off.
    case poweredOff(code: Int32)
    /// The guest started itself anew; it runs.
    case reset
    /// A processor cannot go on.
    case failed(String)
    /// `resume` let it run.
    case resumed
    /// `reset` has started it anew.
    case wasReset
}
