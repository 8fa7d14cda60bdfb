package import ComponentState
package import GuestMemory
package import GuestTime
package import ProcessorModel

/// One RV64 hart in software.
package final class RISCVHart: Processor, @unchecked Sendable {
    package let index: Int

    init(index: Int) { self.index = index }

    /// Makes the harts of one machine; they share `memory` and know of each other.
    /// Interrupt inputs are low, and each hart begins at ``resetVector`` in machine mode.
    package static func makeHarts(
        count: Int, configuration: RISCVConfiguration, memory: GuestMemory, bus: any ProcessorBus, clock: VirtualClock
    ) -> [RISCVHart] {
        (0..<count).map { RISCVHart(index: $0) }
    }

    /// Where the hart begins after ``reset()``.
    package var resetVector: UInt64 = 0x1000
    package var pc: UInt64 = 0x1000

    package func run() -> ProcessorExit { .failed("not there yet") }
    package func kick() {}
    package func setInterrupt(_ interrupt: ProcessorInterrupt, _ level: Bool) {}
    package var hasPendingInterrupt: Bool { false }
    package func setWakeUp(_ wake: @escaping @Sendable () -> Void) {}
    package func restartDirtyTracking() {}
    package func setThrottle(percent: Int) {}
    package func reset() {}
    package func registerDump() -> String { "" }
    package var retiredInstructions: UInt64 { 0 }

    /// `cpu_common`, then `cpu`.
    package var components: [any StatefulComponent] { [self] }
    package var sectionName: String { "cpu" }
    package var instance: UInt32 { UInt32(index) }
    package func sectionVersion(for layout: StateLayout) -> UInt32? { nil }
    package var readableVersions: ClosedRange<UInt32> { 5...12 }
    package func codeState(with coder: inout any StateCoder) throws(StateError) {}
}
