package import ComponentState

extension RISCVHart {
    /// `cpu_common`, then `cpu`.
    package var components: [any StatefulComponent] { [self] }
    package var sectionName: String { "cpu" }
    package var instance: UInt32 { UInt32(index) }
    package func sectionVersion(for layout: StateLayout) -> UInt32? {
        switch layout {
        case .native, .qemu10_0: 10
        case .qemu7_2: 5
        case .qemu11_1: 12
        }
    }
    package var readableVersions: ClosedRange<UInt32> { 5...12 }
    package func codeState(with coder: inout any StateCoder) throws(StateError) {}
}
