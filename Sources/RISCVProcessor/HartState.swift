package import ComponentState
package import ProcessorModel
import Synchronization

extension RISCVHart {
    /// What of the hart travels: `cpu_common`, then `cpu`.
    package var components: [any StatefulComponent] { [HartCommonState(self), self] }
    package var sectionName: String { "cpu" }
    package var instance: UInt32 { UInt32(index) }

    package func sectionVersion(for layout: StateLayout) -> UInt32? {
        switch layout {
        case .qemu7_2: 5
        case .native, .qemu10_0: 10
        case .qemu11_1: 12
        }
    }

    package var readableVersions: ClosedRange<UInt32> { 5...12 }

    /// Level of an interrupt input: as last set, or, after a state was loaded, as it was saved. Stopped hart only.
    package func interruptLevel(_ interrupt: ProcessorInterrupt) -> Bool {
        lines.load(ordering: .relaxed) >> UInt64(interrupt.rawValue) & 1 != 0
    }

    package func codeState(with coder: inout any StateCoder) throws(StateError) {
        guard [5, 10, 12].contains(coder.version) else {
            throw .version(component: coder.component, found: coder.version, supported: readableVersions)
        }
        let image = HartImage(version: coder.version, layout: coder.layout)
        if !coder.isDecoding { save(into: image) }
        try image.code(with: &coder)
        guard coder.isDecoding else { return }
        try judge(image, coder.component)
        load(from: image)
    }

    private func save(into image: HartImage) {
        updateTimer()
        for number in 0..<32 {
            image.gpr[number] = x[number]
            image.fpr[number] = x[Word.float + number]
        }
        image.pc = pc
        image.frm = x[Word.frm]
        image.misa = misa & 0x3ff_ffff | (hypervisorWasOffered ? 1 << 7 : 0)
        image.hypervisor = hypervisor
        image.priv = privilege
        image.resetvec = resetVector
        image.mhartid = UInt64(index)
        image.mstatus = statusValue
        image.mip = pendingValue
        if !isRearmedAtDestination(image.layout) {
            image.mip |= hasSupervisorTimer ? Interrupt.supervisorTimer : Interrupt.machineTimer
        }
        image.mie = mie
        image.mideleg = mideleg
        image.medeleg = medeleg
        image.satp = satp
        image.stval = stval
        image.stvec = stvec
        image.sepc = sepc
        image.scause = scause
        image.mtvec = mtvec
        image.mepc = mepc
        image.mcause = mcause
        image.mtval = mtval
        image.scounteren = scounteren
        image.mcounteren = mcounteren
        image.mcountinhibit = mcountinhibit
        image.mcycle = mcountinhibit & 1 != 0 ? cycleOffset : retired &+ cycleOffset
        image.minstret = mcountinhibit & 4 != 0 ? instretOffset : retired &+ instretOffset
        image.sscratch = sscratch
        image.mscratch = mscratch
        image.stimecmp = stimecmp
        for index in 0..<PhysicalMemoryProtection.count {
            image.pmpAddress[index] = pmp.address(index)
            image.pmpConfiguration[index] = pmp.configuration(index)
        }
        // Page table entries of the guest carry memory types: whoever takes it next must not refuse them.
        image.menvcfg = menvcfg | (ignoresMemoryTypes ? EnvironmentConfiguration.pbmte : 0)
        image.senvcfg = senvcfg
        image.hasTimer = configuration.extensions.contains(.sstc)
        image.supervisorTimer = timerExpiry
        image.fflags = UInt8(truncatingIfNeeded: x[Word.fflags])
        image.retired = retired
        image.softwarePending = softwarePending
    }

    /// When `stimecmp` will be reached, for a timer that is still to fire.
    private var timerExpiry: Int64? {
        guard hasSupervisorTimer, !isTimerDue else { return nil }
        return clock.deadlineNanoseconds(forTick: stimecmp)
    }

    /// QEMU 7.2 arms no timer again that it finds in a state, nor do the first releases of 10.0; later ones do it from a
    /// subsection that the first refuse. A guest sent there would wait for ever; it is sent with the timer's interrupt
    /// pending instead, which it takes for an early one.
    func isRearmedAtDestination(_ layout: StateLayout) -> Bool {
        switch layout {
        case .qemu7_2, .qemu10_0: false
        case .native, .qemu11_1: true
        }
    }

    /// Refuses what this hart could not have been in.
    private func judge(_ image: HartImage, _ component: String) throws(StateError) {
        func require(_ condition: Bool, _ field: String, _ value: UInt64) throws(StateError) {
            if !condition {
                throw .invalid(component: component, field: field, value: "0x" + String(value, radix: 16))
            }
        }
        func refuse(_ condition: Bool, _ reason: String) throws(StateError) {
            if condition { throw .unsupported(component: component, reason: reason) }
        }
        try require(image.gpr[0] == 0, "env.gpr[0]", image.gpr[0])
        try require(image.pc & 1 == 0, "env.pc", image.pc)
        try require(image.frm < 8, "env.frm", image.frm)
        try require(image.misaMXL == 2, "env.misa_mxl", UInt64(image.misaMXL))
        try require(image.priv < 4 && image.priv != 2, "env.priv", image.priv)
        try require(image.mhartid == UInt64(index), "env.mhartid", image.mhartid)
        try require(image.mstatus >> 11 & 3 != 2, "env.mstatus", image.mstatus)
        try refuse(image.virt != 0 || image.mstatus >> 39 & 1 != 0, "the guest runs in virtualized mode")
        try refuse(image.mstatus >> 9 & 3 != 0, "the guest uses vectors")
        try refuse(image.hypervisor?.areInUse == true, "the guest uses the hypervisor extension")
        try refuse(image.hasTriggers, "the guest uses debug triggers")
        try refuse(image.mvien != 0 || image.mvip != 0, "the guest uses the advanced interrupt architecture")
        let needed: UInt64 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 12  // A, C, D, F, M
        let missing = image.misa & needed & ~configuration.misaExtensions
        try refuse(missing != 0, "the guest's processor has extensions that this one lacks (misa)")
        let mode = image.satp >> 60
        try require(mode == 0 || (mode >= 8 && mode <= 10), "env.satp", image.satp)
        try refuse(mode > configuration.translation.largestMode, "the guest uses wider addresses (satp)")
        try refuse(
            image.menvcfg & EnvironmentConfiguration.stce != 0 && !configuration.extensions.contains(.sstc),
            "the guest uses sstc")
        try refuse(
            (PhysicalMemoryProtection.count..<64).contains { image.pmpConfiguration[$0] & 0x18 != 0 },
            "the guest uses more than \(PhysicalMemoryProtection.count) PMP entries")
    }

    private func load(from image: HartImage) {
        for number in 0..<32 {
            x[number] = image.gpr[number]
            x[Word.float + number] = image.fpr[number]
        }
        x[Word.pc] = image.pc
        x[Word.retiredInBlock] = 0
        x[Word.frm] = image.frm
        x[Word.fflags] = UInt64(image.fflags & 31)
        x[Word.fs] = configuration.extensions.contains(.f) ? image.mstatus >> 13 & 3 : 0
        privilege = image.priv
        status = 0xa_0000_0000 | image.mstatus & Status.writable
        medeleg = image.medeleg & Cause.delegable
        mideleg = image.mideleg & Interrupt.supervisor
        mie = image.mie & Interrupt.all
        mtvec = image.mtvec & ~2
        stvec = image.stvec & ~2
        let pcMask: UInt64 = configuration.extensions.contains(.c) ? ~1 : ~3
        mepc = image.mepc & pcMask
        sepc = image.sepc & pcMask
        mcause = image.mcause
        scause = image.scause
        mtval = image.mtval
        stval = image.stval
        mscratch = image.mscratch
        sscratch = image.sscratch
        scounteren = image.scounteren & 0xffff_ffff
        mcounteren = image.mcounteren & 0xffff_ffff
        mcountinhibit = image.mcountinhibit & 0xffff_fffd
        satp = image.satp >> 60 == 0 ? 0 : image.satp
        stimecmp = image.stimecmp
        for index in 0..<PhysicalMemoryProtection.count {
            pmp.load(index, configuration: image.pmpConfiguration[index], address: image.pmpAddress[index])
        }
        pmp.update()
        loadEnvironment(from: image)
        retired = image.retired
        publicRetired.store(retired, ordering: .relaxed)
        cycleOffset = mcountinhibit & 1 != 0 ? image.mcycle : image.mcycle &- retired
        instretOffset = mcountinhibit & 4 != 0 ? image.minstret : image.minstret &- retired

        // SEIP is what the PLIC says, apart from what software set, which only our own layout tells apart.
        let inputs = Interrupt.machineSoftware | Interrupt.machineTimer | Interrupt.machineExternal
        var software = Interrupt.supervisorSoftware
        if !hasSupervisorTimer { software |= Interrupt.supervisorTimer }
        softwarePending = image.mip & software
        lines.store(
            image.mip & (inputs | Interrupt.supervisorExternal) & ~image.softwarePending, ordering: .relaxed)
        softwarePending |= image.softwarePending & Interrupt.supervisorExternal
        wantsToWait = false
        budget = 0
        updateTimer()
        dropEverything()
    }

    private func loadEnvironment(from image: HartImage) {
        let supervisor =
            EnvironmentConfiguration.fiom | EnvironmentConfiguration.cbie
            | EnvironmentConfiguration.cbcfe | EnvironmentConfiguration.cbze
        hypervisorWasOffered = image.misa & 1 << 7 != 0
        hypervisor = hypervisorWasOffered ? image.hypervisor : nil
        ignoresMemoryTypes = image.menvcfg & EnvironmentConfiguration.pbmte != 0
        senvcfg = image.senvcfg & supervisor
        menvcfg = image.menvcfg & (supervisor | EnvironmentConfiguration.stce | EnvironmentConfiguration.adue)
        // QEMU 7.2 always sets A and D itself, and newer ones do so for a processor without this register.
        if image.version == 5 || !image.hasEnvironment { menvcfg |= EnvironmentConfiguration.adue }
    }
}

/// The `cpu_common` section of a hart.
private final class HartCommonState: StatefulComponent, Sendable {
    private let hart: RISCVHart

    init(_ hart: RISCVHart) { self.hart = hart }

    var sectionName: String { "cpu_common" }
    var instance: UInt32 { hart.instance }
    func sectionVersion(for layout: StateLayout) -> UInt32? { 1 }
    var readableVersions: ClosedRange<UInt32> { 1...1 }

    func codeState(with coder: inout any StateCoder) throws(StateError) {
        hart.updateTimer()
        var halted: UInt32 = hart.isWaiting ? 1 : 0
        var request: UInt32 = hart.pendingValue & hart.mie != 0 ? 2 : 0
        if !coder.isDecoding && !hart.isRearmedAtDestination(coder.layout) { request |= 2 }
        try coder.uint32("halted", &halted)
        try coder.uint32("interrupt_request", &request)
        guard coder.isDecoding else { return }
        guard halted < 2 else {
            throw .invalid(component: coder.component, field: "halted", value: "\(halted)")
        }
        hart.isWaiting = halted != 0
    }
}
