import DeviceModel
import GuestMemory
import GuestTime
import LinuxCalls
import PlatformDevices
import ProcessorModel
import Synchronization

/// An interrupt input whose other end is connected later: processors need the bus, the bus needs the devices, and the
/// devices need the processors' inputs.
final class LateLine: Sendable {
    private let target = Mutex(InterruptLine.unconnected)

    var line: InterruptLine { InterruptLine { [self] level in target.withLock { $0 }.set(level) } }

    func connect(_ target: InterruptLine) { self.target.withLock { $0 = target } }

    /// Leads nowhere again; processors, bus and devices would keep each other alive for ever.
    func disconnect() { target.withLock { $0 = .unconnected } }
}

/// The RAM blocks of `virt`, in the order of the block list on the wire.
struct VirtMemory {
    let ram: RAMBlock
    let flash: [RAMBlock]
    let mrom: RAMBlock
    let memory: GuestMemory

    var blocks: [RAMBlock] { [ram] + flash + [mrom] }

    /// - Parameter adopting: Descriptors of memory that another process made, by block name; judged by the caller.
    init(configuration: MachineConfiguration, adopting files: [String: OwnedDescriptor]) throws(SystemCallError) {
        func block(_ name: String, _ byteCount: Int) throws(SystemCallError) -> RAMBlock {
            var backend = configuration.memoryBackend
            // A file by name is RAM's; it has no room for anything else.
            if backend.isNamed, name != VirtMachine.ramName { backend = .memfd }
            if let file = files[name] {
                return try RAMBlock(name: name, byteCount: byteCount, adopting: file, isNamed: backend.isNamed)
            }
            return try RAMBlock(name: name, byteCount: byteCount, backend: backend)
        }
        ram = try block(VirtMachine.ramName, Int(configuration.memoryByteCount))
        var flash: [RAMBlock] = []
        for bank in 0..<VirtMemoryMap.flashCount {
            flash.append(try block("virt.flash\(bank)", VirtMemoryMap.flashByteCount))
        }
        self.flash = flash
        mrom = try block(VirtMachine.mromName, VirtMemoryMap.mromByteCount)
        memory = GuestMemory(regions: [
            MemoryRegion(address: VirtMemoryMap.mrom, block: mrom, isReadOnly: true),
            MemoryRegion(address: VirtMemoryMap.ram, block: ram),
        ])
    }
}

extension VirtMachine {
    /// QEMU's names for its RAM blocks.
    package static let ramName = "riscv_virt_board.ram"
    package static let mromName = "riscv_virt_board.mrom"

    /// Every block but RAM itself, and its bytes.
    package static let fixedBlocks: [String: Int] = Dictionary(
        uniqueKeysWithValues: (0..<VirtMemoryMap.flashCount).map { ("virt.flash\($0)", VirtMemoryMap.flashByteCount) }
            + [(mromName, VirtMemoryMap.mromByteCount)])
}
