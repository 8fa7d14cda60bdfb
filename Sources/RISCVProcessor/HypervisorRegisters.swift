import ComponentState

/// The registers of the hypervisor extension, as a guest that was offered it left them. This hart has not the extension and
/// refuses a guest that uses it; what firmware set is kept, so that the guest finds it where it goes next.
///
/// Section `cpu/hyper` of QEMU: versions 2 (7.2), 4 (10.0) and 5 (11.1).
struct HypervisorRegisters: Sendable, Equatable {
    /// One register: QEMU's name, and its bytes in the `cpu` sections 5, 10 and 12; zero where it has none.
    private struct Field: Sendable {
        let name: String
        let byteCounts: (old: Int, middle: Int, new: Int)
        /// Not zero once a guest of the guest has been prepared.
        var tellsOfUse = false

        init(_ name: String, _ old: Int = 8, _ middle: Int = 8, _ new: Int = 8, tellsOfUse: Bool = false) {
            self.name = name
            byteCounts = (old, middle, new)
            self.tellsOfUse = tellsOfUse
        }

        func byteCount(version: UInt32) -> Int {
            version == 5 ? byteCounts.old : version == 10 ? byteCounts.middle : byteCounts.new
        }
    }

    private static let beforePriorities = [
        Field("hstatus"), Field("hedeleg"), Field("hideleg"), Field("hcounteren", 8, 4, 4), Field("htval"),
        Field("htinst"),
        Field("hgatp", tellsOfUse: true), Field("hgeie", tellsOfUse: true), Field("hgeip", tellsOfUse: true),
        Field("hvien", 0, 8, 8), Field("hvip", 0, 8, 8), Field("htimedelta"), Field("vstimecmp"),
        Field("hvictl", 8, 8, 4),
    ]
    private static let afterPriorities = [
        Field("vsstatus"), Field("vstvec"), Field("vsscratch"), Field("vsepc"), Field("vscause"), Field("vstval"),
        Field("vsatp", tellsOfUse: true), Field("vsiselect", 8, 8, 2), Field("vsie", 0, 8, 8), Field("mtval2"),
        Field("mtinst"), Field("stvec_hs"), Field("sscratch_hs"), Field("sepc_hs"), Field("scause_hs"),
        Field("stval_hs"),
        Field("satp_hs"), Field("mstatus_hs"),
    ]
    private static let fields = beforePriorities + afterPriorities

    private var values = [UInt64](repeating: 0, count: Self.fields.count)
    private var priorities = [UInt8](repeating: 0, count: 64)

    /// A guest of the guest has been prepared, or interrupts for one.
    var areInUse: Bool { zip(Self.fields, values).contains { $0.tellsOfUse && $1 != 0 } }

    mutating func code(
        with coder: inout any StateCoder, version: UInt32,
        narrow: (inout any StateCoder, String, inout UInt64, Int) throws(StateError) -> Void
    ) throws(StateError) {
        for (index, field) in Self.fields.enumerated() {
            if index == Self.beforePriorities.count { try coder.uint8Array("env.hviprio", &priorities) }
            let byteCount = field.byteCount(version: version)
            if byteCount > 0 { try narrow(&coder, "env.\(field.name)", &values[index], byteCount) }
        }
    }
}
