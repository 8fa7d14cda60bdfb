import GuestMemory
import Synchronization

/// Loads and stores that the caches do not answer.
extension RISCVHart {
    /// `kind` is `funct3` of the load. The value goes to the operation's destination.
    @inline(never) func slowLoad(_ ip: OperationPointer, _ address: UInt64, _ kind: UInt8) -> OperationPointer {
        guard let raw = readMemory(address, width: 1 << UInt64(kind & 3)) else {
            return raise(faultCause, address &+ faultOffset, ip)
        }
        let value: UInt64
        switch kind {
        case 0: value = UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: raw)))
        case 1: value = UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: raw)))
        case 2: value = raw.word
        default: value = raw
        }
        ip.set(x, value)
        return ip + 1
    }

    @inline(never) func slowLoadFloat(_ ip: OperationPointer, _ address: UInt64, _ kind: UInt8) -> OperationPointer {
        guard let raw = readMemory(address, width: 1 << UInt64(kind & 3)) else {
            return raise(faultCause, address &+ faultOffset, ip)
        }
        ip.set(x, kind == 2 ? raw | 0xffff_ffff_0000_0000 : raw)
        x[Word.fs] = 3
        return ip + 1
    }

    @inline(never) func slowStore(_ ip: OperationPointer, _ address: UInt64, _ value: UInt64, _ kind: UInt8)
        -> OperationPointer
    {
        switch writeMemory(address, width: 1 << UInt64(kind & 3), value) {
        case .done: return ip + 1
        case .device:
            if !mustLeave { return ip + 1 }
            return leaveAfter(ip, length: lengthOfInstruction(ip))
        case .fault: return raise(faultCause, address &+ faultOffset, ip)
        }
    }

    /// Bytes of the instruction at `ip`, which was just executed.
    func lengthOfInstruction(_ ip: OperationPointer) -> UInt64 {
        instruction(at: x[Word.vbase] &+ ip.pcoff) & 3 == 3 ? 4 : 2
    }

    enum Written { case done, device, fault }

    /// Nil with ``faultCause``. `width` is 1, 2, 4 or 8.
    private func readMemory(_ address: UInt64, width: UInt64) -> UInt64? {
        faultOffset = 0
        if (address & 0xfff) + width <= 4096 {
            guard let host = hostAddress(address, width, AccessKind.load) else {
                if faultCause != 0 { return nil }
                let physical = csrValue
                guard physical & (width - 1) == 0 else {
                    faultCause = Cause.misalignedLoad
                    return nil
                }
                if let value = bus.load(address: physical, width: Int(width)) {
                    return width == 8 ? value : value & ((1 << (width * 8)) - 1)
                }
                faultCause = Cause.loadAccess
                return nil
            }
            return load(host, width)
        }
        // Across pages: byte by byte, after both pages were found.
        let first = 4096 - (address & 0xfff)
        guard let low = hostAddress(address, first, AccessKind.load) else {
            if faultCause == 0 { faultCause = Cause.misalignedLoad }
            return nil
        }
        guard let high = hostAddress(address &+ first, width - first, AccessKind.load) else {
            if faultCause == 0 { faultCause = Cause.misalignedLoad } else { faultOffset = first }
            return nil
        }
        var value: UInt64 = 0
        for index in 0..<width {
            let byte =
                index < first
                ? low.load(fromByteOffset: Int(index), as: UInt8.self)
                : high.load(fromByteOffset: Int(index - first), as: UInt8.self)
            value |= UInt64(byte) << (index * 8)
        }
        return value
    }

    @inline(__always) private func load(_ host: UnsafeMutableRawPointer, _ width: UInt64) -> UInt64 {
        switch width {
        case 1: UInt64(host.load(as: UInt8.self))
        case 2: UInt64(host.loadUnaligned(as: UInt16.self))
        case 4: UInt64(host.loadUnaligned(as: UInt32.self))
        default: host.loadUnaligned(as: UInt64.self)
        }
    }

    private func writeMemory(_ address: UInt64, width: UInt64, _ value: UInt64) -> Written {
        faultOffset = 0
        if (address & 0xfff) + width <= 4096 {
            guard let host = hostAddress(address, width, AccessKind.store) else {
                if faultCause != 0 { return .fault }
                let physical = csrValue
                guard physical & (width - 1) == 0 else {
                    faultCause = Cause.misalignedStore
                    return .fault
                }
                let masked = width == 8 ? value : value & ((1 << (width * 8)) - 1)
                if bus.store(address: physical, width: Int(width), value: masked) { return .device }
                faultCause = Cause.storeAccess
                return .fault
            }
            switch width {
            case 1: host.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
            case 2: host.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
            case 4: host.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
            default: host.storeBytes(of: value, as: UInt64.self)
            }
            return .done
        }
        let first = 4096 - (address & 0xfff)
        guard let low = hostAddress(address, first, AccessKind.store) else {
            if faultCause == 0 { faultCause = Cause.misalignedStore }
            return .fault
        }
        guard let high = hostAddress(address &+ first, width - first, AccessKind.store) else {
            if faultCause == 0 { faultCause = Cause.misalignedStore } else { faultOffset = first }
            return .fault
        }
        for index in 0..<width {
            let byte = UInt8(truncatingIfNeeded: value >> (index * 8))
            if index < first {
                low.storeBytes(of: byte, toByteOffset: Int(index), as: UInt8.self)
            } else {
                high.storeBytes(of: byte, toByteOffset: Int(index - first), as: UInt8.self)
            }
        }
        return .done
    }

    // MARK: Atomics

    /// `lr`, `sc` and the read-modify-writes.
    @inline(never) func atomic(_ ip: OperationPointer) -> OperationPointer {
        let instruction = UInt32(truncatingIfNeeded: ip.imm)
        let isDouble = instruction >> 12 & 1 != 0
        let width: UInt64 = isDouble ? 8 : 4
        let address = ip.a(x)
        let operation = instruction >> 27
        let isLoad = operation == 2
        if address & (width - 1) != 0 {
            return raise(isLoad ? Cause.misalignedLoad : Cause.misalignedStore, address, ip)
        }
        // The cache first, then the tables.
        let kind = isLoad ? AccessKind.load : AccessKind.store
        let entry =
            Words(bitPattern: UInt(x[Word.tlb])).unsafelyUnwrapped
            + (isLoad ? 0 : Word.storeTLB) + Int(truncatingIfNeeded: address >> 12 & 255) * 2
        let host: UnsafeMutableRawPointer
        if entry[0] == address & ~0xfff {
            host = UnsafeMutableRawPointer(bitPattern: UInt(entry[1] &+ address)).unsafelyUnwrapped
        } else if let found = hostAddress(address, width, kind) {
            host = found
        } else {
            if faultCause == 0 {
                if operation == 2 || operation == 3 {
                    faultCause = isLoad ? Cause.loadAccess : Cause.storeAccess
                } else {
                    return atomicOnDevice(ip, operation, width)
                }
            }
            return raise(faultCause, address, ip)
        }
        let operand = ip.b(x)
        let place = OpaquePointer(host)
        if isDouble {
            let value = UnsafeMutablePointer<Atomic<UInt64>>(place)
            let signed = UnsafeMutablePointer<Atomic<Int64>>(place)
            let result: UInt64
            switch operation {
            case 2:
                result = value.pointee.load(ordering: .sequentiallyConsistent)
                reservedAddress = UInt(bitPattern: host)
                reservedValue = result
            case 3:
                var done = false
                if reservedAddress == UInt(bitPattern: host) {
                    done =
                        value.pointee.compareExchange(
                            expected: reservedValue, desired: operand, ordering: .sequentiallyConsistent
                        ).exchanged
                }
                reservedAddress = 0
                result = done ? 0 : 1
            case 1: result = value.pointee.exchange(operand, ordering: .sequentiallyConsistent)
            case 0: result = value.pointee.wrappingAdd(operand, ordering: .sequentiallyConsistent).oldValue
            case 4: result = value.pointee.bitwiseXor(operand, ordering: .sequentiallyConsistent).oldValue
            case 8: result = value.pointee.bitwiseOr(operand, ordering: .sequentiallyConsistent).oldValue
            case 12: result = value.pointee.bitwiseAnd(operand, ordering: .sequentiallyConsistent).oldValue
            case 16:
                result = UInt64(
                    bitPattern: signed.pointee.min(operand.signed, ordering: .sequentiallyConsistent).oldValue)
            case 20:
                result = UInt64(
                    bitPattern: signed.pointee.max(operand.signed, ordering: .sequentiallyConsistent).oldValue)
            case 24: result = unsignedExtreme(value, operand, isMaximum: false)
            default: result = unsignedExtreme(value, operand, isMaximum: true)
            }
            ip.set(x, result)
        } else {
            let value = UnsafeMutablePointer<Atomic<UInt32>>(place)
            let signed = UnsafeMutablePointer<Atomic<Int32>>(place)
            let operand = operand.low
            let result: UInt32
            switch operation {
            case 2:
                result = value.pointee.load(ordering: .sequentiallyConsistent)
                reservedAddress = UInt(bitPattern: host)
                reservedValue = UInt64(result)
            case 3:
                var done = false
                if reservedAddress == UInt(bitPattern: host) {
                    done =
                        value.pointee.compareExchange(
                            expected: reservedValue.low, desired: operand, ordering: .sequentiallyConsistent
                        ).exchanged
                }
                reservedAddress = 0
                result = done ? 0 : 1
            case 1: result = value.pointee.exchange(operand, ordering: .sequentiallyConsistent)
            case 0: result = value.pointee.wrappingAdd(operand, ordering: .sequentiallyConsistent).oldValue
            case 4: result = value.pointee.bitwiseXor(operand, ordering: .sequentiallyConsistent).oldValue
            case 8: result = value.pointee.bitwiseOr(operand, ordering: .sequentiallyConsistent).oldValue
            case 12: result = value.pointee.bitwiseAnd(operand, ordering: .sequentiallyConsistent).oldValue
            case 16:
                result = UInt32(
                    bitPattern: signed.pointee.min(Int32(bitPattern: operand), ordering: .sequentiallyConsistent)
                        .oldValue)
            case 20:
                result = UInt32(
                    bitPattern: signed.pointee.max(Int32(bitPattern: operand), ordering: .sequentiallyConsistent)
                        .oldValue)
            case 24: result = unsignedExtreme(value, operand, isMaximum: false)
            default: result = unsignedExtreme(value, operand, isMaximum: true)
            }
            ip.setWord(x, result)
        }
        return ip + 1
    }

    /// `amominu`, `amomaxu`: the standard library's unsigned `min` and `max` of an atomic compare as signed numbers.
    @inline(__always) private func unsignedExtreme(
        _ place: UnsafeMutablePointer<Atomic<UInt32>>, _ operand: UInt32, isMaximum: Bool
    ) -> UInt32 {
        var old = place.pointee.load(ordering: .relaxed)
        while true {
            let (exchanged, found) = place.pointee.compareExchange(
                expected: old, desired: isMaximum ? max(old, operand) : min(old, operand),
                ordering: .sequentiallyConsistent)
            if exchanged { return old }
            old = found
        }
    }
    @inline(__always) private func unsignedExtreme(
        _ place: UnsafeMutablePointer<Atomic<UInt64>>, _ operand: UInt64, isMaximum: Bool
    ) -> UInt64 {
        var old = place.pointee.load(ordering: .relaxed)
        while true {
            let (exchanged, found) = place.pointee.compareExchange(
                expected: old, desired: isMaximum ? max(old, operand) : min(old, operand),
                ordering: .sequentiallyConsistent)
            if exchanged { return old }
            old = found
        }
    }

    /// A read-modify-write of a device register: a load and a store, not atomic against other harts.
    private func atomicOnDevice(_ ip: OperationPointer, _ operation: UInt32, _ width: UInt64) -> OperationPointer {
        let physical = csrValue
        let address = ip.a(x)
        guard let raw = bus.load(address: physical, width: Int(width)) else {
            return raise(Cause.storeAccess, address, ip)
        }
        let old = width == 8 ? raw : raw.word
        let operand = width == 8 ? ip.b(x) : ip.b(x).word
        let new: UInt64
        switch operation {
        case 1: new = operand
        case 0: new = old &+ operand
        case 4: new = old ^ operand
        case 8: new = old | operand
        case 12: new = old & operand
        case 16: new = old.signed < operand.signed ? old : operand
        case 20: new = old.signed > operand.signed ? old : operand
        case 24: new = min(old, operand)
        default: new = max(old, operand)
        }
        guard bus.store(address: physical, width: Int(width), value: width == 8 ? new : UInt64(new.low)) else {
            return raise(Cause.storeAccess, address, ip)
        }
        ip.set(x, old)
        return mustLeave ? leaveAfter(ip) : ip + 1
    }

    // MARK: Cache blocks

    static let cacheBlockByteCount: UInt64 = 64

    /// `cbo.inval`, `cbo.clean`, `cbo.flush`, `cbo.zero`. Guest memory is coherent, so the first three only judge.
    ///
    /// Source: RISC-V Base Cache Management Operation ISA Extensions 1.0.
    @inline(never) func cacheBlock(_ ip: OperationPointer) -> OperationPointer {
        let operation = ip.imm >> 20
        let address = ip.a(x) & ~(Self.cacheBlockByteCount - 1)
        let enable: UInt64
        switch operation {
        case 0: enable = EnvironmentConfiguration.cbie
        case 4: enable = EnvironmentConfiguration.cbze
        default: enable = EnvironmentConfiguration.cbcfe
        }
        if privilege < 3 && menvcfg & enable == 0 { return raiseIllegal(ip) }
        if privilege < 1 && senvcfg & enable == 0 { return raiseIllegal(ip) }
        if operation == 4 {
            guard let host = hostAddress(address, Self.cacheBlockByteCount, AccessKind.store) else {
                if faultCause == 0 { faultCause = Cause.storeAccess }
                return raise(faultCause, ip.a(x), ip)
            }
            host.initializeMemory(as: UInt64.self, repeating: 0, count: Int(Self.cacheBlockByteCount / 8))
            return ip + 1
        }
        // Allowed where a load or a store is.
        if hostAddress(address, Self.cacheBlockByteCount, AccessKind.load) == nil && faultCause != 0 {
            let isPageFault = faultCause == Cause.loadPage
            if hostAddress(address, Self.cacheBlockByteCount, AccessKind.store) == nil && faultCause != 0 {
                return raise(isPageFault ? Cause.storePage : Cause.storeAccess, ip.a(x), ip)
            }
        }
        return ip + 1
    }
}
