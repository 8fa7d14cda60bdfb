/// Where things are in the guest-physical address space of `virt`, and their PLIC inputs. The same in every QEMU.
package enum VirtMemoryMap {
    package static let mrom: UInt64 = 0x1000
    package static let mromByteCount = 0xf000
    package static let testFinisher: UInt64 = 0x10_0000
    package static let rtc: UInt64 = 0x10_1000
    package static let aclint: UInt64 = 0x200_0000
    package static let plic: UInt64 = 0xc00_0000
    package static let serial: UInt64 = 0x1000_0000
    package static let virtio: UInt64 = 0x1000_1000
    package static let virtioStride: UInt64 = 0x1000
    package static let virtioSlotCount = 8
    package static let firmwareConfiguration: UInt64 = 0x1010_0000
    package static let flash: UInt64 = 0x2000_0000
    package static let flashByteCount = 32 << 20
    package static let flashCount = 2
    package static let pciConfiguration: UInt64 = 0x3000_0000
    package static let ram: UInt64 = 0x8000_0000

    package static let serialInterrupt = 10
    package static let rtcInterrupt = 11
    /// Input of slot 0; slot n has the n-th after it.
    package static let firstVirtioInterrupt = 1

    /// Where reset begins: the first word of MROM.
    package static let resetVector = mrom
    /// Frequency of the time counter in Hz.
    package static let timebaseFrequency: UInt32 = 10_000_000

    package static func virtioAddress(slot: Int) -> UInt64 { virtio + UInt64(slot) * virtioStride }
}
