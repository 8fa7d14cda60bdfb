/// Bits of `mstatus`.
enum Status {
    static let sie: UInt64 = 1 << 1
    static let mie: UInt64 = 1 << 3
    static let spie: UInt64 = 1 << 5
    static let mpie: UInt64 = 1 << 7
    static let spp: UInt64 = 1 << 8
    static let mpp: UInt64 = 3 << 11
    static let fs: UInt64 = 3 << 13
    static let mprv: UInt64 = 1 << 17
    static let sum: UInt64 = 1 << 18
    static let mxr: UInt64 = 1 << 19
    static let tvm: UInt64 = 1 << 20
    static let tw: UInt64 = 1 << 21
    static let tsr: UInt64 = 1 << 22
    static let uxl: UInt64 = 3 << 32
    static let sxl: UInt64 = 3 << 34
    static let sd: UInt64 = 1 << 63
    /// What software can change, FS aside.
    static let writable = sie | mie | spie | mpie | spp | mpp | mprv | sum | mxr | tvm | tw | tsr
    /// What `sstatus` can change, FS aside.
    static let supervisorWritable = sie | spie | spp | sum | mxr
    static let supervisorVisible = supervisorWritable | fs | uxl | sd
}

/// Bits of `mip`, `mie` and `mideleg`.
enum Interrupt {
    static let supervisorSoftware: UInt64 = 1 << 1
    static let machineSoftware: UInt64 = 1 << 3
    static let supervisorTimer: UInt64 = 1 << 5
    static let machineTimer: UInt64 = 1 << 7
    static let supervisorExternal: UInt64 = 1 << 9
    static let machineExternal: UInt64 = 1 << 11
    static let supervisor = supervisorSoftware | supervisorTimer | supervisorExternal
    static let all = supervisor | machineSoftware | machineTimer | machineExternal
}

/// Values of `mcause` and `scause`.
enum Cause {
    static let misalignedFetch: UInt64 = 0
    static let fetchAccess: UInt64 = 1
    static let illegal: UInt64 = 2
    static let breakpoint: UInt64 = 3
    static let misalignedLoad: UInt64 = 4
    static let loadAccess: UInt64 = 5
    static let misalignedStore: UInt64 = 6
    static let storeAccess: UInt64 = 7
    static let callFromUser: UInt64 = 8
    static let fetchPage: UInt64 = 12
    static let loadPage: UInt64 = 13
    static let storePage: UInt64 = 15
    static let interrupt: UInt64 = 1 << 63
    /// What `medeleg` can delegate.
    static let delegable: UInt64 = 0xb3ff
}

/// Bits of `menvcfg` and `senvcfg`.
enum EnvironmentConfiguration {
    static let fiom: UInt64 = 1
    static let cbie: UInt64 = 3 << 4
    static let cbcfe: UInt64 = 1 << 6
    static let cbze: UInt64 = 1 << 7
    static let adue: UInt64 = 1 << 61
    static let pbmte: UInt64 = 1 << 62
    static let stce: UInt64 = 1 << 63
}

/// What a memory access is for.
enum AccessKind {
    static let load = 0
    static let store = 1
    static let fetch = 2
}
