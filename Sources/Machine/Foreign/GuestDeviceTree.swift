package import GuestMemory
import PlatformDevices
import RISCVProcessor
package import ComponentState

/// What the guest was told of its processors: the device tree that its firmware was given, as it still lies in guest memory.
///
/// Read from memory that the guest may have overwritten: everything is judged, and nothing found is no error.
///
/// Source: Devicetree Specification, release 0.4, chapter 5 ("Flattened Devicetree (DTB) Format").
package struct GuestDeviceTree: Hashable, Sendable {
    /// Extensions of the first processor, lower case, one name each; empty when the tree does not say.
    package var extensions: [String] = []

    package static let magic: [UInt8] = [0xd0, 0x0d, 0xfe, 0xed]
    /// Bytes from the beginning that are looked at. QEMU's has a few thousand, whatever size it says.
    package static let byteCountMax = 64 << 10

    private enum Token {
        static let beginNode: UInt32 = 1
        static let endNode: UInt32 = 2
        static let property: UInt32 = 3
        static let nothing: UInt32 = 4
    }

    /// - Parameter blob: The tree, or at least the part of it that says something.
    /// - Returns: Nil when this is no device tree, or a damaged one.
    package init?(_ blob: [UInt8]) {
        func word(_ offset: Int) -> Int? {
            guard offset >= 0, offset + 4 <= blob.count else { return nil }
            return Int(blob[offset..<offset + 4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) })
        }
        func text(_ offset: Int, before end: Int) -> String? {
            guard offset >= 0, offset < end, end <= blob.count, let stop = blob[offset..<end].firstIndex(of: 0) else {
                return nil
            }
            return String(validating: blob[offset..<stop], as: UTF8.self)
        }
        guard blob.starts(with: Self.magic), let structure = word(8), let strings = word(12), structure < blob.count,
            strings < blob.count
        else { return nil }
        var offset = structure
        var path: [String] = []
        var isa: String?
        while true {
            guard let token = word(offset).map({ UInt32($0) }) else { return nil }
            offset += 4
            switch token {
            case Token.beginNode:
                guard let name = text(offset, before: min(blob.count, offset + 256)), path.count < 16 else {
                    return nil
                }
                path.append(name)
                offset += (name.utf8.count + 4) / 4 * 4
            case Token.endNode:
                guard path.popLast() != nil else { return nil }
                if path == ["", "cpus"], !extensions.isEmpty || isa != nil {
                    if extensions.isEmpty, let isa { extensions = RISCVConfiguration.extensionNames(ofISA: isa) }
                    return
                }
            case Token.property:
                guard let byteCount = word(offset), let name = word(offset + 4), byteCount <= blob.count - offset - 8,
                    let key = text(strings + name, before: min(blob.count, strings + name + 64))
                else { return nil }
                let value = blob[(offset + 8)..<(offset + 8 + byteCount)]
                if path.count == 3, path[1] == "cpus", path[2].hasPrefix("cpu@") {
                    let words = value.split(separator: 0).compactMap { String(validating: $0, as: UTF8.self) }
                    if key == "riscv,isa-extensions" { extensions = words.map { $0.lowercased() } }
                    if key == "riscv,isa" { isa = words.first }
                }
                offset += 8 + (byteCount + 3) / 4 * 4
            case Token.nothing: break
            default: return nil
            }
        }
    }

    /// Finds it by the address that the reset code has for the firmware.
    /// - Returns: Nil when there is none, or none any more.
    package static func find(ram: RAMBlock, mrom: RAMBlock) -> GuestDeviceTree? {
        let position = 0x20
        guard mrom.byteCount >= position + 8 else { return nil }
        let address = unsafe UInt64(
            littleEndian: (mrom.base + position).loadUnaligned(as: UInt64.self))
        guard address >= VirtMemoryMap.ram, address - VirtMemoryMap.ram < UInt64(ram.byteCount) else { return nil }
        let offset = Int(address - VirtMemoryMap.ram)
        let count = min(byteCountMax, ram.byteCount - offset)
        return GuestDeviceTree(
            unsafe [UInt8](UnsafeRawBufferPointer(start: ram.base + offset, count: count)))
    }
}

extension VirtMachine {
    /// Why a guest cannot go on where there is no other processor than that of a release; nil when it can, or when what
    /// it was offered is not known.
    package func obstacle(to layout: StateLayout) -> String? {
        guard let ram = ramBlocks.first, let mrom = ramBlocks.last,
            let tree = GuestDeviceTree.find(ram: ram, mrom: mrom)
        else { return nil }
        return Self.obstacle(offered: tree.extensions, to: layout)
    }

    /// The same for extensions that are known.
    package static func obstacle(offered: [String], to layout: StateLayout) -> String? {
        let missing = RISCVConfiguration.lacking(offered, in: layout)
        guard !missing.isEmpty else { return nil }
        let list = missing.joined(separator: ", ")
        let who = layout == .native ? "this processor does not have" : "no processor of \(layout.rawValue) has"
        return "the guest's device tree offers it \(list), which \(who)"
    }
}

extension VirtMachine {
    /// The processor that a guest is to have that can go to a stock release; nil is all there is.
    package static func isa(compatibleWith layout: StateLayout) -> String? {
        RISCVConfiguration.isa(compatibleWith: layout)
    }

    /// The processor for a guest that booted elsewhere.
    package static var isaForArrivals: String { RISCVConfiguration.isaForArrivals }

    /// Which virtio slot is at an address; nil for none.
    package static func virtioSlot(at address: UInt64) -> Int? {
        (0..<VirtMemoryMap.virtioSlotCount).first { VirtMemoryMap.virtioAddress(slot: $0) == address }
    }

    /// Virtio slots whose interrupt is enabled, by the section `riscv_sifive_plic`: a driver uses the device there.
    ///
    /// Its words: a priority for each source, a threshold for each context, pending and claimed bits, and enabled bits for each
    /// context.
    package static func virtioSlots(enabledIn section: [UInt8]) -> [Int] {
        let bitWords = PLIC.sourceCount / 32
        let fixed = PLIC.sourceCount + 2 * bitWords
        let words = section.count / 4
        guard words > fixed else { return [] }
        let contexts = (words - fixed) / (1 + bitWords)
        return (0..<VirtMemoryMap.virtioSlotCount).filter { slot in
            let source = VirtMemoryMap.firstVirtioInterrupt + slot
            return (0..<contexts).contains { context in
                let word = fixed + contexts + context * bitWords + source / 32
                let value = section[(word * 4)..<(word * 4 + 4)].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
                return value >> UInt32(source % 32) & 1 != 0
            }
        }
    }

    /// The devices in virtio slots, each with the most entries that one of its queues has.
    package var queueSizes: [(device: String, largest: Int)] {
        slots.transports.filter(\.isOccupied).map { ($0.name, $0.largestQueueSize) }
    }
}
