package import ComponentState
package import Synchronization

/// A component with a state of any size, which can be told to fail.
package final class ScriptedComponent: StatefulComponent {
    package let sectionName: String
    package let instance: UInt32
    private let versions: [StateLayout: UInt32]
    package let readableVersions: ClosedRange<UInt32>
    package let canGoAhead: Bool
    package let bytes: Mutex<[UInt8]>
    /// What the next encoding or decoding throws.
    package let fault = Mutex<StateError?>(nil)
    package let decodeCount = Atomic<Int>(0)

    /// - Parameter versions: Section version per layout; layouts that are missing do not have the section.
    package init(
        _ name: String, instance: UInt32 = 0, byteCount: Int = 64, fill: UInt8 = 0,
        versions: [StateLayout: UInt32] = [.native: 1, .qemu7_2: 1, .qemu10_0: 1, .qemu11_1: 1],
        readable: ClosedRange<UInt32> = 1...1, canGoAhead: Bool = false
    ) {
        sectionName = name
        self.instance = instance
        self.versions = versions
        readableVersions = readable
        self.canGoAhead = canGoAhead
        bytes = Mutex([UInt8](repeating: fill, count: byteCount))
    }

    package func sectionVersion(for layout: StateLayout) -> UInt32? { versions[layout] }

    package func codeState(with coder: inout any StateCoder) throws(StateError) {
        var copy = bytes.withLock { $0 }
        try coder.buffer("bytes", &copy)
        if let fault = fault.withLock({ $0.take() }) { throw fault }
        guard coder.isDecoding else { return }
        bytes.withLock { $0 = copy }
        decodeCount.wrappingAdd(1, ordering: .relaxed)
    }
}
