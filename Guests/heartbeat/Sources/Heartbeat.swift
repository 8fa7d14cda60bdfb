import Bare

// The heartbeat guest: it prints a tick with a counter and the time, rewrites memory and checks all of it, and says BAD when
// a byte is wrong. See README.md beside this for its settings, its commands and its lines.

/// Hart 0: ticks and commands besides the work that all harts do.
@_cdecl("heartbeat_main")
func heartbeatMain(deviceTree: UInt64) {
    let tree = DeviceTree(at: deviceTree)
    let shared = Shared(at: bare_image_end())
    for offset: UInt64 in 0..<Shared.byteCount / 8 { bare_store64(bare_image_end() &+ offset &* 8, 0) }
    shared[.ticksPerSecond] = tree.argument("ticks=") ?? 10
    shared[.dirtyPagesPerSecond] = tree.argument("dirty=") ?? 100
    shared[.roundsPerSecond] = tree.argument("rounds=") ?? 2
    shared[.pageCount] = tree.argument("pages=") ?? 256
    shared[.spin] = tree.argument("spin=") ?? 0
    shared[.hartCount] = UInt64(min(max(tree.hartCount, 1), Platform.hartsMax))
    shared[.usableEnd] = tree.usableEnd
    let console = Console(lock: shared.consoleLock)
    console.exclusively {
        console.put("heartbeat harts=", shared[.hartCount])
        console.put(" ram=", tree.ramByteCount)
        console.put(" pages=", shared[.pageCount])
        console.put(" dirty=", shared[.dirtyPagesPerSecond])
        console.endLine()
    }
    bare_enable_timer()
    bare_release_harts()

    var worker = Worker(hart: 0, shared: shared)
    var ticks: UInt64 = 0
    var nextTick = worker.now
    var typedNumber: UInt64?
    while true {
        worker.step(until: nextTick)
        if worker.now >= nextTick {
            tell(tick: ticks, at: worker.now, on: console)
            ticks &+= 1
            let interval = Platform.ticksPerSecond / max(1, min(shared[.ticksPerSecond], 10_000))
            nextTick &+= interval
            if nextTick < worker.now { nextTick = worker.now &+ interval }  // ticks missed in a pause stay missed
        }
        guard let byte = console.get() else { continue }
        if byte >= 48, byte <= 57 {
            typedNumber = (typedNumber ?? 0) &* 10 &+ UInt64(byte &- 48)
        } else {
            obey(byte, typedNumber, shared: shared, console: console)
            typedNumber = nil
        }
    }
}

/// The other harts.
@_cdecl("heartbeat_worker")
func heartbeatWorker(hart: UInt64) {
    let shared = Shared(at: bare_image_end())
    guard hart < shared[.hartCount] else { return }
    bare_enable_timer()
    var worker = Worker(hart: Int(hart), shared: shared)
    while true { worker.step(until: UInt64.max) }
}

/// Nothing here should trap; a trap is told and ends the guest with status 1.
@_cdecl("heartbeat_trapped")
func heartbeatTrapped(cause: UInt64, address: UInt64, value: UInt64, hart: UInt64) {
    let console = Console(lock: 0)
    console.put("BAD trap ", cause)
    console.put(" at ")
    console.put(hexadecimal: address)
    console.put(" value ")
    console.put(hexadecimal: value)
    console.put(" hart ", hart)
    console.endLine()
    Platform.powerOff(status: 1)
}

func tell(tick: UInt64, at time: UInt64, on console: Console) {
    console.exclusively {
        console.put("tick ", tick)
        console.put(" ", time &* Platform.nanosecondsPerTick)
        console.endLine()
    }
}

func tellStatistics(_ shared: Shared, on console: Console) {
    console.exclusively {
        console.put("stats rounds=", shared.sum(.rounds))
        console.put(" writes=", shared.sum(.writes))
        console.put(" bad=", shared.sum(.bad))
        console.put(" pause_ns=", shared.largest(.pauseTicks) &* Platform.nanosecondsPerTick)
        console.put(" wall_pause_ns=", shared.largest(.wallPauseNanoseconds))
        console.put(" harts=", shared[.hartCount])
        console.put(" pages=", shared[.pageCount])
        console.put(" dirty=", shared[.dirtyPagesPerSecond])
        console.endLine()
    }
}

/// A command is one letter, with a number before it where it takes one.
func obey(_ command: UInt8, _ number: UInt64?, shared: Shared, console: Console) {
    switch command {
    case UInt8(ascii: "q"): Platform.powerOff(status: number ?? 0)
    case UInt8(ascii: "r"): Platform.reset()
    case UInt8(ascii: "p"): tellStatistics(shared, on: console)
    case UInt8(ascii: "z"): shared[.epoch] &+= 1
    case UInt8(ascii: "t"): shared[.ticksPerSecond] = number ?? 10
    case UInt8(ascii: "d"): shared[.dirtyPagesPerSecond] = number ?? 100
    case UInt8(ascii: "v"): shared[.roundsPerSecond] = number ?? 2
    case UInt8(ascii: "m"): shared[.pageCount] = number ?? 256
    case UInt8(ascii: "s"): shared[.spin] = number ?? 1
    case 10, 13, 32: break
    default:
        console.exclusively {
            console.put("unknown command ", UInt64(command))
            console.endLine()
        }
    }
}
