/// Feature bits and register values of virtio 1.2 that are common to all devices.
enum VirtioFeature {
    /// Interrupt when the available ring runs empty even if interrupts are off (legacy, section 6.3 of 1.0).
    static let notifyOnEmpty: UInt64 = 1 << 24
    /// The driver may cut requests into descriptors as it likes.
    static let anyLayout: UInt64 = 1 << 27
    static let indirectDescriptors: UInt64 = 1 << 28
    static let eventIndex: UInt64 = 1 << 29
    static let version1: UInt64 = 1 << 32

    /// What the transport offers for every device, as QEMU does.
    static let core = notifyOnEmpty | anyLayout | indirectDescriptors | eventIndex

    private static let coreNames: [UInt64: String] = [
        24: "NOTIFY_ON_EMPTY", 27: "ANY_LAYOUT", 28: "RING_INDIRECT_DESC", 29: "RING_EVENT_IDX", 32: "VERSION_1",
        33: "ACCESS_PLATFORM", 34: "RING_PACKED", 35: "IN_ORDER", 36: "ORDER_PLATFORM", 37: "SR_IOV",
        38: "NOTIFICATION_DATA", 40: "RING_RESET",
    ]

    /// Names for an error message: `MQ, RING_PACKED, bit 60`.
    static func names(of features: UInt64, deviceNames: [UInt64: String]) -> String {
        (UInt64(0)..<64).filter { features & (1 << $0) != 0 }
            .map { deviceNames[$0] ?? coreNames[$0] ?? "bit \($0)" }.joined(separator: ", ")
    }
}

/// Device status bits (section 2.1).
enum VirtioStatus {
    static let acknowledge: UInt8 = 1
    static let driver: UInt8 = 2
    static let driverOK: UInt8 = 4
    static let featuresOK: UInt8 = 8
    static let needsReset: UInt8 = 0x40
    static let failed: UInt8 = 0x80
}

/// Bits of InterruptStatus (section 4.2.2).
enum VirtioInterrupt {
    static let usedBuffer: UInt8 = 1
    static let configurationChange: UInt8 = 2
}

/// The most descriptors a ring or a chain may have here; QEMU's limit, hence the largest ring a guest received from it has.
package let virtqueueSizeMaximum: UInt16 = 1024
