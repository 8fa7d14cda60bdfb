import ComponentState

/// Section `slirp`: the user network of a stock monitor. It is nothing of the guest's: what the guest's card is connected to
/// is chosen anew on each side. Its connections end with its process on stock monitors too, but for forwarded ones,
/// which are refused.
final class SlirpSection: StatefulComponent {
    let sectionName = "slirp"
    let instance: UInt32 = 0
    let readableVersions: ClosedRange<UInt32> = 4...4
    private static let leaseCount = 16

    func sectionVersion(for layout: StateLayout) -> UInt32? { nil }
    var surplus: String? { "addresses that the source's user network gave out; this side has a network of its own" }

    func codeState(with coder: inout any StateCoder) throws(StateError) {
        var mark: UInt8 = 0
        try coder.uint8("connection", &mark)
        guard mark == 0 else {
            throw .unsupported(
                component: coder.component,
                reason: "a connection that the source's user network forwards (guestfwd) is open; close it")
        }
        var identifier: UInt16 = 0
        try coder.uint16("ip_id", &identifier)
        for _ in 0..<Self.leaseCount {
            var isAllocated: UInt16 = 0
            var address = [UInt8](repeating: 0, count: 6)
            try coder.uint16("allocated", &isAllocated)
            try coder.buffer("macaddr", &address)
        }
    }
}

/// Section `virt_acpi_build`: whether a UEFI firmware has taken the machine's ACPI tables. The tables are the source's own;
/// a stock destination makes them anew, and a guest that has booted by device tree never looks.
final class ACPIBuildSection: StatefulComponent {
    let sectionName = "virt_acpi_build"
    let instance: UInt32 = 0
    let readableVersions: ClosedRange<UInt32> = 1...1

    func sectionVersion(for layout: StateLayout) -> UInt32? { nil }
    var surplus: String? { "ACPI tables, which a guest that booted by device tree does not use" }

    func codeState(with coder: inout any StateCoder) throws(StateError) {
        var isPatched = false
        try coder.bool("patched", &isPatched)
        guard !isPatched else {
            throw .unsupported(
                component: coder.component, reason: "the guest's firmware uses ACPI; start it with -M virt,acpi=off")
        }
    }
}

extension VirtMachine {
    /// RAM blocks of stock machines with ACPI: name, and how many bytes they may have.
    package static let surplusBlocks: [String: Int] = [
        "/rom@etc/acpi/tables": 2 << 20, "/rom@etc/table-loader": 64 << 10, "/rom@etc/acpi/rsdp": 4096,
    ]
}
