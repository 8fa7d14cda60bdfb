import ComponentState

/// The `cpu` section as it is on the wire, between reading and taking effect.
///
/// Field order and widths of versions 5 (QEMU 7.2), 10 (10.0) and 12 (11.1); names are QEMU's.
final class HartImage {
    let version: UInt32
    let layout: StateLayout

    var gpr = [UInt64](repeating: 0, count: 32)
    var fpr = [UInt64](repeating: 0, count: 32)
    var pc: UInt64 = 0
    var frm: UInt64 = 0
    var misaMXL: UInt32 = 2
    var misa: UInt64 = 0
    var priv: UInt64 = 3
    var virt: UInt64 = 0
    var resetvec: UInt64 = 0
    var mhartid: UInt64 = 0
    var mstatus: UInt64 = 0
    var mip: UInt64 = 0
    var mie: UInt64 = 0
    var mvien: UInt64 = 0
    var mvip: UInt64 = 0
    var mideleg: UInt64 = 0
    var satp: UInt64 = 0
    var stval: UInt64 = 0
    var medeleg: UInt64 = 0
    var stvec: UInt64 = 0
    var sepc: UInt64 = 0
    var scause: UInt64 = 0
    var mtvec: UInt64 = 0
    var mepc: UInt64 = 0
    var mcause: UInt64 = 0
    var mtval: UInt64 = 0
    var scounteren: UInt64 = 0
    var mcounteren: UInt64 = 0
    var mcountinhibit: UInt64 = 0
    var mcycle: UInt64 = 0
    var minstret: UInt64 = 0
    var sscratch: UInt64 = 0
    var mscratch: UInt64 = 0
    var stimecmp: UInt64 = 0

    // Subsections.
    var pmpAddress = [UInt64](repeating: 0, count: 64)
    var pmpConfiguration = [UInt8](repeating: 0, count: 64)
    var hasEnvironment = false
    var menvcfg: UInt64 = 0
    var senvcfg: UInt64 = 0
    var hasTimer = false
    var supervisorTimer: Int64?
    /// Of a processor with the hypervisor extension.
    var hypervisor: HypervisorRegisters?
    var hasTriggers = false
    // Our own.
    var fflags: UInt8 = 0
    var retired: UInt64 = 0
    /// Of `mip`, what software set.
    var softwarePending: UInt64 = 0

    init(version: UInt32, layout: StateLayout) {
        self.version = version
        self.layout = layout
    }

    /// What QEMU has in `miprio` on every machine without the advanced interrupt architecture: default priorities.
    private static let machinePriorities: [UInt8] = [
        0xff, 0x14, 0x18, 0x11, 0xff, 0x15, 0x19, 0x12, 0xff, 0x13, 0x17, 0x00, 0x16, 0xff, 0xff, 0xff,
        0x24, 0x21, 0x1e, 0x1b, 0x0e, 0x0b, 0x08, 0x05, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0x25, 0x23, 0x22, 0x20, 0x1f, 0x1d, 0x1c, 0x1a, 0x0f, 0x0d, 0x0c, 0x0a, 0x09, 0x07, 0x06, 0x04,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ]
    /// The same in `siprio`.
    private static let supervisorPriorities: [UInt8] = {
        var result = machinePriorities
        result[9] = 0x00
        result[11] = 0x10
        return result
    }()

    /// A field that has 8 bytes in one version and fewer in another. A value too large for its field is cut.
    private func narrow(
        _ coder: inout any StateCoder, _ name: String, _ value: inout UInt64, _ byteCount: Int
    ) throws(StateError) {
        switch byteCount {
        case 1:
            var field = UInt8(truncatingIfNeeded: value)
            try coder.uint8(name, &field)
            value = UInt64(field)
        case 2:
            var field = UInt16(truncatingIfNeeded: value)
            try coder.uint16(name, &field)
            value = UInt64(field)
        case 4:
            var field = UInt32(truncatingIfNeeded: value)
            try coder.uint32(name, &field)
            value = UInt64(field)
        default: try coder.uint64(name, &value)
        }
    }

    /// A field that means nothing to this hart.
    private func skip(
        _ coder: inout any StateCoder, _ name: String, _ byteCount: Int, _ value: UInt64 = 0
    ) throws(StateError) {
        var value = value
        try narrow(&coder, name, &value, byteCount)
    }

    func code(with coder: inout any StateCoder) throws(StateError) {
        let isOld = version == 5
        let isNew = version == 12
        try coder.uint64Array("env.gpr", &gpr)
        try coder.uint64Array("env.fpr", &fpr)
        var priorities = Self.machinePriorities
        try coder.uint8Array("env.miprio", &priorities)
        priorities = Self.supervisorPriorities
        try coder.uint8Array("env.siprio", &priorities)
        try coder.uint64("env.pc", &pc)
        try skip(&coder, "env.load_res", 8, .max)
        try skip(&coder, "env.load_val", 8)
        try narrow(&coder, "env.frm", &frm, isNew ? 1 : 8)
        try skip(&coder, "env.badaddr", 8)
        try skip(&coder, "env.guest_phys_fault_addr", 8)
        try skip(&coder, "env.priv_ver", isNew ? 4 : 8, 2)
        try skip(&coder, "env.vext_ver", isNew ? 4 : 8, isOld ? 0 : 0x10000)
        try coder.uint32("env.misa_mxl", &misaMXL)
        var mask = misa
        try narrow(&coder, "env.misa_ext", &misa, 4)
        if isOld { try skip(&coder, "env.misa_mxl_max", 4, 2) } else { try coder.unused(4) }
        try narrow(&coder, "env.misa_ext_mask", &mask, 4)
        // MMU, PMP, debug triggers.
        if isOld { try skip(&coder, "env.features", 4, 0x13) }
        try narrow(&coder, "env.priv", &priv, isNew ? 1 : 8)
        if isOld {
            try coder.uint64("env.virt", &virt)
        } else {
            var enabled = virt != 0
            try coder.bool("env.virt_enabled", &enabled)
            virt = enabled ? 1 : 0
        }
        try coder.uint64("env.resetvec", &resetvec)
        try coder.uint64("env.mhartid", &mhartid)
        try coder.uint64("env.mstatus", &mstatus)
        try coder.uint64("env.mip", &mip)
        // Interrupts that a device drives, for QEMU: the one from a hypervisor's guest.
        try skip(&coder, "env.miclaim", 8, 0x1000)
        try coder.uint64("env.mie", &mie)
        if !isOld {
            try coder.uint64("env.mvien", &mvien)
            try coder.uint64("env.mvip", &mvip)
            try skip(&coder, "env.sie", 8)
        }
        try coder.uint64("env.mideleg", &mideleg)
        try coder.uint64("env.satp", &satp)
        try coder.uint64("env.stval", &stval)
        try coder.uint64("env.medeleg", &medeleg)
        try coder.uint64("env.stvec", &stvec)
        try coder.uint64("env.sepc", &sepc)
        try coder.uint64("env.scause", &scause)
        try coder.uint64("env.mtvec", &mtvec)
        try coder.uint64("env.mepc", &mepc)
        try coder.uint64("env.mcause", &mcause)
        try coder.uint64("env.mtval", &mtval)
        try skip(&coder, "env.miselect", isNew ? 2 : 8)
        try skip(&coder, "env.siselect", isNew ? 2 : 8)
        try narrow(&coder, "env.scounteren", &scounteren, isOld ? 8 : 4)
        try narrow(&coder, "env.mcounteren", &mcounteren, isOld ? 8 : 4)
        if !isOld { try skip(&coder, "env.scountinhibit", 4) }
        try narrow(&coder, "env.mcountinhibit", &mcountinhibit, isOld ? 8 : 4)
        try codeCounters(with: &coder)
        var events = [UInt64](repeating: 0, count: 32)
        try coder.uint64Array("env.mhpmevent_val", &events)
        if !isNew {
            var high = [UInt64](repeating: 0, count: 32)
            try coder.uint64Array("env.mhpmeventh_val", &high)
        }
        try coder.uint64("env.sscratch", &sscratch)
        try coder.uint64("env.mscratch", &mscratch)
        if isOld {
            try skip(&coder, "env.mfromhost", 8)
            try skip(&coder, "env.mtohost", 8)
        }
        try coder.uint64("env.stimecmp", &stimecmp)
        try coder.subsections(subsections)
    }

    private func codeCounters(with coder: inout any StateCoder) throws(StateError) {
        let described: UInt32 = version == 12 ? 3 : version == 10 ? 2 : 1
        try coder.structures("env.pmu_ctrs", type: "cpu/pmu", version: described, count: 32) {
            [self] (coder: inout any StateCoder, number: Int) throws(StateError) in
            var value: UInt64 = number == 0 ? mcycle : number == 2 ? minstret : 0
            try coder.uint64("mhpmcounter_val", &value)
            if number == 0 { mcycle = value }
            if number == 2 { minstret = value }
            if version != 12 { try skip(&coder, "mhpmcounterh_val", 8) }
            try skip(&coder, "mhpmcounter_prev", 8)
            if version != 12 { try skip(&coder, "mhpmcounterh_prev", 8) }
            if version == 5 { try skip(&coder, "started", 1) }
        }
    }

    // MARK: Subsections

    private var subsections: [Subsection] {
        let isNew = version == 12
        var list = [
            Subsection("cpu/pmp", version: isNew ? 2 : 1, isNeeded: true) {
                [self] (coder: inout any StateCoder) throws(StateError) in try codeProtection(with: &coder)
            },
            Subsection("cpu/hyper", version: isNew ? 5 : version == 10 ? 4 : 2, isNeeded: hypervisor != nil) {
                [self] (coder: inout any StateCoder) throws(StateError) in
                var registers = hypervisor ?? HypervisorRegisters()
                try registers.code(with: &coder, version: version, narrow: narrow)
                hypervisor = registers
            },
            Subsection("cpu/vector", version: 2, isNeeded: false) {
                (coder: inout any StateCoder) throws(StateError) in
                throw .unsupported(component: coder.component, reason: "the guest's processor has vectors")
            },
            Subsection("cpu/envcfg", version: isNew ? 2 : 1, isNeeded: true) {
                [self] (coder: inout any StateCoder) throws(StateError) in
                hasEnvironment = true
                // 7.2 knows no switch for setting A and D: it always does.
                var menvcfg = menvcfg
                if version == 5 { menvcfg &= ~EnvironmentConfiguration.adue }
                try coder.uint64("env.menvcfg", &menvcfg)
                if coder.isDecoding { self.menvcfg = menvcfg }
                try coder.uint64("env.senvcfg", &senvcfg)
                try skip(&coder, "env.henvcfg", 8)
            },
            Subsection("cpu/debug", version: isNew ? 4 : 2, isNeeded: false) {
                [self] (coder: inout any StateCoder) throws(StateError) in try codeTriggers(with: &coder)
            },
        ]
        if version != 5 {
            list.append(
                // Added within 10.0: 10.0.2 refuses it, 10.0.13 does without.
                Subsection("cpu/timer", isNeeded: hasTimer && layout != .qemu10_0) {
                    [self] (coder: inout any StateCoder) throws(StateError) in
                    try coder.timer("env.stimer", &supervisorTimer)
                    var unused: Int64?
                    try coder.timer("env.vstimer", &unused)
                })
        }
        if version == 10 {
            list.append(
                Subsection("cpu/sidestep", isNeeded: layout == .native) {
                    [self] (coder: inout any StateCoder) throws(StateError) in
                    try coder.uint8("fflags", &fflags)
                    try coder.uint64("instructions_retired", &retired)
                    try coder.uint64("software_interrupts", &softwarePending)
                })
        }
        return list
    }

    private func codeProtection(with coder: inout any StateCoder) throws(StateError) {
        let count = version == 12 ? 64 : 16
        try coder.structures("env.pmp_state.pmp", type: "cpu/pmp/entry", version: 1, count: count) {
            [self] (coder: inout any StateCoder, index: Int) throws(StateError) in
            try coder.uint64("addr_reg", &pmpAddress[index])
            try coder.uint8("cfg_reg", &pmpConfiguration[index])
        }
    }

    private func codeTriggers(with coder: inout any StateCoder) throws(StateError) {
        if version == 12 {
            try skip(&coder, "env.mcontext", 2)
            try skip(&coder, "env.trigger_cur", 1)
        } else {
            try skip(&coder, "env.trigger_cur", 8)
        }
        var data = [UInt64](repeating: 0, count: 2)
        try coder.uint64Array("env.tdata1", &data)
        // The type of a trigger stands in the top five bits; one that could fire has others set.
        hasTriggers = data.contains { $0 & 0x07ff_ffff_ffff_ffff != 0 }
        data = [0, 0]
        try coder.uint64Array("env.tdata2", &data)
        data = [0, 0]
        try coder.uint64Array("env.tdata3", &data)
    }
}
