import ComponentState
import DeviceModel
import GuestMemory
import PlatformDevices
import VirtioDevices

/// The eight virtio-mmio slots; configured devices take the highest free one.
struct VirtioSlots {
    /// Slots with a device behind them.
    let used: [Int]
    let windows: [Bus.Window]
    let components: [any StatefulComponent]

    init(
        configuration: MachineConfiguration, backends: MachineBackends, memory: GuestMemory, plic: PLIC
    ) throws(MachineError) {
        used = []
        windows = []
        components = []
    }
}
