import Synchronization

/// Traps, returns from them, and interrupts.
extension RISCVHart {
    /// An exception of the operation at `ip`: takes the trap. Answers where the engine goes.
    @inline(never) func raise(_ cause: UInt64, _ value: UInt64, _ ip: OperationPointer) -> OperationPointer {
        x[Word.pc] = x[Word.vbase] &+ ip.pcoff
        x[Word.retiredInBlock] = UInt64(ip.pointee.idx) &- 1
        trap(cause, value)
        return leaveOperation
    }

    @inline(never) func raiseIllegal(_ ip: OperationPointer) -> OperationPointer {
        raise(Cause.illegal, instruction(at: x[Word.vbase] &+ ip.pcoff), ip)
    }

    /// Leaves the engine after the operation at `ip`; the next instruction follows it in memory.
    func leaveAfter(_ ip: OperationPointer, length: UInt64 = 4) -> OperationPointer {
        x[Word.pc] = x[Word.vbase] &+ ip.pcoff &+ length
        x[Word.retiredInBlock] = UInt64(ip.pointee.idx)
        return leaveOperation
    }

    /// Takes a trap at ``Word/pc``.
    ///
    /// Source: RISC-V Privileged Architecture 1.12, sections 3.1.6 and 3.1.8.
    func trap(_ cause: UInt64, _ value: UInt64) {
        let isInterrupt = cause & Cause.interrupt != 0
        let number = cause & 63
        let delegated = (isInterrupt ? mideleg : medeleg) >> number & 1 != 0
        if privilege < 3 && delegated {
            scause = cause
            sepc = x[Word.pc]
            stval = value
            var new = status & ~(Status.spie | Status.sie | Status.spp)
            if status & Status.sie != 0 { new |= Status.spie }
            if privilege != 0 { new |= Status.spp }
            status = new
            privilege = 1
            x[Word.pc] = (stvec & ~3) &+ (isInterrupt && stvec & 1 != 0 ? 4 &* number : 0)
        } else {
            mcause = cause
            mepc = x[Word.pc]
            mtval = value
            var new = status & ~(Status.mpie | Status.mie | Status.mpp)
            if status & Status.mie != 0 { new |= Status.mpie }
            new |= privilege << 11
            status = new
            privilege = 3
            x[Word.pc] = (mtvec & ~3) &+ (isInterrupt && mtvec & 1 != 0 ? 4 &* number : 0)
        }
        updateRegime()
    }

    func returnFromMachine() {
        let previous = status >> 11 & 3
        var new = status & ~(Status.mie | Status.mpp) | Status.mpie
        if status & Status.mpie != 0 { new |= Status.mie }
        if previous != 3 { new &= ~Status.mprv }
        status = new
        privilege = previous
        x[Word.pc] = mepc
        reservedAddress = 0
        updateRegime()
    }

    func returnFromSupervisor() {
        let previous: UInt64 = status & Status.spp != 0 ? 1 : 0
        var new = status & ~(Status.sie | Status.spp | Status.mprv) | Status.spie
        if status & Status.spie != 0 { new |= Status.sie }
        status = new
        privilege = previous
        x[Word.pc] = sepc
        reservedAddress = 0
        updateRegime()
    }

    // MARK: Interrupts

    var timeValue: UInt64 { clock.ticks }

    @inline(__always) var hasSupervisorTimer: Bool { menvcfg & EnvironmentConfiguration.stce != 0 }

    func updateTimer() {
        isTimerDue = hasSupervisorTimer && stimecmp != .max && timeValue >= stimecmp
    }

    /// `mip`
    var pendingValue: UInt64 {
        var value = lines.load(ordering: .acquiring) | softwarePending
        if hasSupervisorTimer {
            value &= ~Interrupt.supervisorTimer
            if isTimerDue { value |= Interrupt.supervisorTimer }
        }
        return value
    }

    /// The interrupt to take now, or 0 for none; answers its bit.
    var deliverableInterrupt: UInt64 {
        let pending = pendingValue & mie
        if pending == 0 { return 0 }
        var candidates: UInt64 = 0
        if privilege < 3 || status & Status.mie != 0 { candidates = pending & ~mideleg }
        if candidates == 0, privilege == 0 || (privilege == 1 && status & Status.sie != 0) {
            candidates = pending & mideleg
        }
        if candidates == 0 { return 0 }
        if candidates & Interrupt.machineExternal != 0 { return Interrupt.machineExternal }
        if candidates & Interrupt.machineSoftware != 0 { return Interrupt.machineSoftware }
        if candidates & Interrupt.machineTimer != 0 { return Interrupt.machineTimer }
        if candidates & Interrupt.supervisorExternal != 0 { return Interrupt.supervisorExternal }
        if candidates & Interrupt.supervisorSoftware != 0 { return Interrupt.supervisorSoftware }
        return candidates & Interrupt.supervisorTimer
    }

    /// Whether something happened that ``run()`` must see to before the next instruction.
    @inline(__always) var mustLeave: Bool {
        requests.load(ordering: .relaxed) != 0 || deliverableInterrupt != 0
    }

    /// When `stimecmp` is reached, in virtual nanoseconds; nil when it is not in use or too far away to be told.
    var timerDeadlineNanoseconds: Int64? {
        guard hasSupervisorTimer, mie & Interrupt.supervisorTimer != 0 else { return nil }
        return clock.deadlineNanoseconds(forTick: stimecmp)
    }
}
