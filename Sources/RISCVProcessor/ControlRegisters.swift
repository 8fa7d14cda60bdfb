/// The control and status registers.
///
/// Source: RISC-V Privileged Architecture 1.12, chapter 2; Unprivileged ISA, chapter "Zicsr".
extension RISCVHart {
    private enum Access { case absent, done, leave }

    /// Runs one of `csrrw`, `csrrs`, `csrrc` and their immediate forms. ``Word/quantum`` holds what is left of it.
    @inline(never) func accessControlRegister(_ ip: OperationPointer) -> OperationPointer {
        let instruction = ip.imm
        let number = Int(truncatingIfNeeded: instruction >> 20 & 0xfff)
        let form = instruction >> 12 & 7
        let source = instruction >> 15 & 31
        let isWrite = form & 3 == 1 || source != 0
        let isRead = form & 3 != 1 || ip.pointee.rd != UInt8(Word.sink)
        if UInt64(number >> 8 & 3) > privilege || (isWrite && number >> 10 == 3) { return raiseIllegal(ip) }
        let operand = form & 4 != 0 ? source : x[Int(source)]
        // A read that nobody sees must still find the register there.
        guard readControlRegister(number, ip) else { return raiseIllegal(ip) }
        let old = csrValue
        if isWrite {
            var base = old
            if form & 3 != 1 {
                // Set and clear work on what software wrote, not on the input from outside.
                if number == 0x344 {
                    base = base & ~Interrupt.supervisorExternal | softwarePending & Interrupt.supervisorExternal
                }
            }
            let new: UInt64
            switch form & 3 {
            case 1: new = operand
            case 2: new = base | operand
            default: new = base & ~operand
            }
            switch writeControlRegister(number, new, ip) {
            case .absent: return raiseIllegal(ip)
            case .done: break
            case .leave:
                if isRead { ip.set(x, old) }
                return leaveAfter(ip)
            }
        }
        if isRead { ip.set(x, old) }
        return ip + 1
    }

    /// `mstatus`
    var statusValue: UInt64 {
        let fs = x[Word.fs]
        return status | fs << 13 | (fs == 3 ? Status.sd : 0)
    }

    private var hasFloat: Bool { configuration.extensions.contains(.f) }

    /// Retired instructions before the one at `ip`.
    private func retiredNow(_ ip: OperationPointer) -> UInt64 {
        retired &+ (UInt64(bitPattern: Int64(budgetAtEntry)) &- x[Word.quantum]) &+ UInt64(ip.pointee.idx) &- 1
    }

    private func mayReadCounter(_ number: Int) -> Bool {
        let bit = UInt64(1) << UInt64(number & 31)
        if privilege < 3 && mcounteren & bit == 0 { return false }
        if privilege < 1 && scounteren & bit == 0 { return false }
        return true
    }

    /// Whether `stimecmp` is there for the privilege that asks.
    private var hasCompareRegister: Bool {
        guard configuration.extensions.contains(.sstc) else { return false }
        return privilege == 3 || (mcounteren & 2 != 0 && hasSupervisorTimer)
    }

    /// Puts the value into ``csrValue``; false when there is no such register.
    private func readControlRegister(_ number: Int, _ ip: OperationPointer) -> Bool {
        switch number {
        case 0x001, 0x002, 0x003:
            guard hasFloat, x[Word.fs] != 0 else { return false }
            switch number {
            case 1: csrValue = x[Word.fflags]
            case 2: csrValue = x[Word.frm]
            default: csrValue = x[Word.frm] << 5 | x[Word.fflags]
            }
        case 0x100: csrValue = statusValue & Status.supervisorVisible
        case 0x104: csrValue = mie & mideleg
        case 0x105: csrValue = stvec
        case 0x106: csrValue = scounteren
        case 0x10a: csrValue = senvcfg
        case 0x140: csrValue = sscratch
        case 0x141: csrValue = sepc
        case 0x142: csrValue = scause
        case 0x143: csrValue = stval
        case 0x144:
            updateTimer()
            csrValue = pendingValue & mideleg
        case 0x14d:
            guard hasCompareRegister else { return false }
            csrValue = stimecmp
        case 0x180:
            if privilege == 1 && status & Status.tvm != 0 { return false }
            csrValue = satp
        case 0x300: csrValue = statusValue
        case 0x301: csrValue = misa
        case 0x302: csrValue = medeleg
        case 0x303: csrValue = mideleg
        case 0x304: csrValue = mie
        case 0x305: csrValue = mtvec
        case 0x306: csrValue = mcounteren
        case 0x30a: csrValue = menvcfg
        case 0x320: csrValue = mcountinhibit
        case 0x323...0x33f: csrValue = 0
        case 0x340: csrValue = mscratch
        case 0x341: csrValue = mepc
        case 0x342: csrValue = mcause
        case 0x343: csrValue = mtval
        case 0x344:
            updateTimer()
            csrValue = pendingValue
        case 0x34a, 0x34b:
            guard hypervisorWasOffered else { return false }
            csrValue = 0
        case 0x3a0, 0x3a2:
            let first = (number - 0x3a0) * 4
            csrValue = 0
            for index in (0..<8).reversed() { csrValue = csrValue << 8 | UInt64(pmp.configuration(first + index)) }
        case 0x3b0...0x3bf: csrValue = pmp.address(number - 0x3b0)
        // No triggers: number 0 is selected and its type is 0 (Debug specification 1.0, chapter "Sdtrig").
        case 0x7a0...0x7a3: csrValue = 0
        case 0xb00: csrValue = mcountinhibit & 1 != 0 ? cycleOffset : retiredNow(ip) &+ cycleOffset
        case 0xb02: csrValue = mcountinhibit & 4 != 0 ? instretOffset : retiredNow(ip) &+ instretOffset
        case 0xb03...0xb1f: csrValue = 0
        case 0xc00:
            guard configuration.extensions.contains(.zicntr), mayReadCounter(0) else { return false }
            csrValue = mcountinhibit & 1 != 0 ? cycleOffset : retiredNow(ip) &+ cycleOffset
        case 0xc01:
            guard configuration.extensions.contains(.zicntr), mayReadCounter(1) else { return false }
            csrValue = timeValue
        case 0xc02:
            guard configuration.extensions.contains(.zicntr), mayReadCounter(2) else { return false }
            csrValue = mcountinhibit & 4 != 0 ? instretOffset : retiredNow(ip) &+ instretOffset
        case 0xc03...0xc1f:
            guard configuration.extensions.contains(.zihpm), mayReadCounter(number) else { return false }
            csrValue = 0
        case 0xf11...0xf13, 0xf15: csrValue = 0
        case 0xf14: csrValue = UInt64(index)
        default: return false
        }
        return true
    }

    /// What the engine does after an interrupt may have become deliverable.
    private func afterInterruptChange() -> Access { deliverableInterrupt != 0 ? .leave : .done }

    private func writeControlRegister(_ number: Int, _ value: UInt64, _ ip: OperationPointer) -> Access {
        switch number {
        case 0x001, 0x002, 0x003:
            switch number {
            case 1: x[Word.fflags] = value & 31
            case 2: x[Word.frm] = value & 7
            default:
                x[Word.fflags] = value & 31
                x[Word.frm] = value >> 5 & 7
            }
            x[Word.fs] = 3
        case 0x100: return writeStatus(status & ~Status.supervisorWritable | value & Status.supervisorWritable, value)
        case 0x104:
            mie = mie & ~mideleg | value & mideleg & Interrupt.all
            return afterInterruptChange()
        case 0x105: stvec = trapVector(stvec, value)
        case 0x106: scounteren = value & 0xffff_ffff
        case 0x10a: senvcfg = environment(value, EnvironmentConfiguration.fiom)
        case 0x140: sscratch = value
        case 0x141: sepc = value & pcMask
        case 0x142: scause = value
        case 0x143: stval = value
        case 0x144:
            let writable = mideleg & Interrupt.supervisorSoftware
            softwarePending = softwarePending & ~writable | value & writable
            return afterInterruptChange()
        case 0x14d:
            stimecmp = value
            updateTimer()
            return afterInterruptChange()
        case 0x180: return writeTranslation(value)
        case 0x300: return writeStatus(status & ~Status.writable | value & Status.writable, value)
        case 0x301: break
        case 0x302: medeleg = value & Cause.delegable
        case 0x303:
            mideleg = value & Interrupt.supervisor
            return afterInterruptChange()
        case 0x304:
            mie = value & Interrupt.all
            return afterInterruptChange()
        case 0x305: mtvec = trapVector(mtvec, value)
        case 0x306: mcounteren = value & 0xffff_ffff
        case 0x30a:
            var switches = EnvironmentConfiguration.fiom
            if configuration.extensions.contains(.sstc) { switches |= EnvironmentConfiguration.stce }
            if configuration.extensions.contains(.svadu) { switches |= EnvironmentConfiguration.adue }
            let old = menvcfg
            menvcfg = environment(value, switches)
            if (old ^ menvcfg) & EnvironmentConfiguration.adue != 0 { flushPagedTranslations() }
            updateTimer()
            return .leave
        case 0x320:
            let now = retiredNow(ip)
            let changed = mcountinhibit ^ value
            if changed & 1 != 0 { cycleOffset = value & 1 != 0 ? cycleOffset &+ now : cycleOffset &- now }
            if changed & 4 != 0 { instretOffset = value & 4 != 0 ? instretOffset &+ now : instretOffset &- now }
            mcountinhibit = value & 0xffff_fffd
        case 0x323...0x33f, 0x7a0...0x7a3, 0xb03...0xb1f: break
        case 0x340: mscratch = value
        case 0x341: mepc = value & pcMask
        case 0x342: mcause = value
        case 0x343: mtval = value
        case 0x344:
            var writable = Interrupt.supervisor
            if hasSupervisorTimer { writable &= ~Interrupt.supervisorTimer }
            softwarePending = softwarePending & ~writable | value & writable
            return afterInterruptChange()
        case 0x34a, 0x34b: return hypervisorWasOffered ? .done : .absent
        case 0x3a0, 0x3a2:
            let first = (number - 0x3a0) * 4
            for index in 0..<8 {
                pmp.setConfiguration(first + index, UInt8(truncatingIfNeeded: value >> UInt64(index * 8)))
            }
            pmp.update()
            flushTranslations()
            return .leave
        case 0x3b0...0x3bf:
            pmp.setAddress(number - 0x3b0, value)
            pmp.update()
            flushTranslations()
            return .leave
        // The instruction that writes a counter does not count.
        case 0xb00: cycleOffset = mcountinhibit & 1 != 0 ? value : value &- retiredNow(ip) &- 1
        case 0xb02: instretOffset = mcountinhibit & 4 != 0 ? value : value &- retiredNow(ip) &- 1
        default: return .absent
        }
        return .done
    }

    /// `new` without FS; `value` as written, for FS.
    private func writeStatus(_ new: UInt64, _ value: UInt64) -> Access {
        if hasFloat { x[Word.fs] = value >> 13 & 3 }
        var new = new
        if new >> 11 & 3 == 2 { new = new & ~Status.mpp | status & Status.mpp }
        let changed = status ^ new
        status = new
        if changed & (Status.sum | Status.mxr | Status.mprv | Status.mpp) != 0 { updateRegime() }
        return changed & (Status.sie | Status.mie) != 0 ? afterInterruptChange() : .done
    }

    private func writeTranslation(_ value: UInt64) -> Access {
        if privilege == 1 && status & Status.tvm != 0 { return .absent }
        let mode = value >> 60
        guard mode == 0 || (mode >= 8 && mode <= configuration.translation.largestMode) else { return .done }
        let new = mode == 0 ? 0 : value
        if new == satp { return .done }
        satp = new
        flushPagedTranslations()
        return .leave
    }

    private func trapVector(_ old: UInt64, _ value: UInt64) -> UInt64 {
        value & 2 != 0 ? value & ~3 | old & 3 : value
    }

    private func environment(_ value: UInt64, _ switches: UInt64) -> UInt64 {
        var mask = switches
        if configuration.extensions.contains(.zicbom) {
            mask |= EnvironmentConfiguration.cbie | EnvironmentConfiguration.cbcfe
        }
        if configuration.extensions.contains(.zicboz) { mask |= EnvironmentConfiguration.cbze }
        var result = value & mask
        // CBIE 2 is reserved.
        if result & EnvironmentConfiguration.cbie == 2 << 4 { result &= ~EnvironmentConfiguration.cbie }
        return result
    }

    /// Which bits of a program counter can be set.
    private var pcMask: UInt64 { configuration.extensions.contains(.c) ? ~1 : ~3 }

    // MARK: The other system instructions

    @inline(never) func system(_ ip: OperationPointer) -> OperationPointer {
        let instruction = UInt32(truncatingIfNeeded: ip.imm)
        switch instruction {
        case 0x0000_0073: return raise(Cause.callFromUser + privilege, 0, ip)
        case 0x0010_0073: return raise(Cause.breakpoint, x[Word.vbase] &+ ip.pcoff, ip)
        case 0x3020_0073:
            if privilege < 3 { return raiseIllegal(ip) }
            x[Word.retiredInBlock] = UInt64(ip.pointee.idx)
            returnFromMachine()
            return leaveOperation
        case 0x1020_0073:
            if privilege < 1 || (privilege == 1 && status & Status.tsr != 0) { return raiseIllegal(ip) }
            x[Word.retiredInBlock] = UInt64(ip.pointee.idx)
            returnFromSupervisor()
            return leaveOperation
        case 0x1050_0073:
            if privilege == 0 || (privilege == 1 && status & Status.tw != 0) { return raiseIllegal(ip) }
            wantsToWait = true
            return leaveAfter(ip)
        case 0x00d0_0073, 0x01d0_0073:
            // They may end for any reason; whoever has the reservation needs the processor we run on.
            if instruction == 0x00d0_0073, privilege < 3, status & Status.tw != 0 { return raiseIllegal(ip) }
            pause()
            return ip + 1
        default: break
        }
        if instruction & 0xfe00_7fff == 0x1200_0073 {
            if privilege < 1 || (privilege == 1 && status & Status.tvm != 0) { return raiseIllegal(ip) }
            // An ASID narrows what must go; dropping more is always right.
            if instruction >> 15 & 31 == 0 {
                flushPagedTranslations()
                return leaveAfter(ip)
            }
            return flushPage(ip.a(x)) ? leaveAfter(ip) : ip + 1
        }
        return raiseIllegal(ip)
    }

    /// A jump whose target may be at an odd halfword, which only compressed instructions can be at.
    @inline(never) func checkJump(_ ip: OperationPointer) -> OperationPointer {
        let target = ip.pointee.rd == 1 ? x[Word.vbase] &+ ip.imm : (ip.a(x) &+ ip.imm) & ~1
        return target & 2 != 0 ? raise(Cause.misalignedFetch, target, ip) : ip + 1
    }

    @inline(never) func fenceInstructions(_ ip: OperationPointer) -> OperationPointer {
        synchronizeCode()
        return leaveAfter(ip)
    }
}
