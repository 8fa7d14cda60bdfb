import Glibc
import LinuxCalls
import MigrationChannels
import Synchronization

// A process with a scripted guest that hands it over to a successor, for HandoverTests.
//
//   handover-probe source          descriptors: 3 the shared memory, 4 a lock file's path is in PROBE_LOCK
//   handover-probe destination     descriptors: 3 the hand-over's socket
//
// PROBE_MOVES is how many hand-overs follow each other (each new process hands over in turn); PROBE_KILL=source:7 or
// destination:4 kills that side of the first hand-over at that step, PROBE_STOP stops it (SIGSTOP).

func environment(_ name: String) -> String? {
    guard let value = unsafe getenv(name) else { return nil }
    return unsafe String(cString: value)
}

/// The scripted guest: a thread that counts in shared memory, under a lock that only one process can hold.
final class ScriptedGuest: HandoverSubject, HandoverReceiver, @unchecked Sendable {
    // SAFETY: used by the driver's thread only, but for `isRunning`, which is atomic.
    private var memory: ProbeMemory?
    private var file: OwnedDescriptor?
    private var thread: HostThread?
    private let isRunning = Atomic<Bool>(false)
    private var lock: OwnedDescriptor?
    private var arrived: [UInt8] = []
    private var arrivedSteps: UInt64 = 0

    init(_ file: OwnedDescriptor?) throws {
        self.file = file
        memory = try file.map { file throws(SystemCallError) in try ProbeMemory(file) }
    }

    var shared: ProbeMemory { memory! }
    var hasMemory: Bool { memory != nil }
    let isBrief = true

    func start() throws {
        // A lock of this process's own: taken while the guest runs here, given back by the kernel if we die.
        let own = try OwnedDescriptor.open(environment("PROBE_LOCK")!, flags: O_RDWR)
        if try !FileLock.take(.exclusive, on: own) { shared.add(.doubleRuns) }
        lock = own
        shared[.runner] = UInt64(getpid())
        isRunning.store(true, ordering: .sequentiallyConsistent)
        thread = try HostThread(name: "guest") { [self] in
            while isRunning.load(ordering: .relaxed) {
                shared.add(.steps)
                usleep(20)
            }
        }
    }

    func describe() throws -> HandoverDescription {
        HandoverDescription(
            configuration: Array("probe".utf8),
            blocks: [.init(name: "ram", byteCount: ProbeMemory.byteCount, file: file!)],
            resources: [])
    }

    func pause() throws {
        isRunning.store(false, ordering: .sequentiallyConsistent)
        thread?.join()
        thread = nil
        shared[.runner] = 0
        lock = nil
    }

    func save(sendPart: (HandoverPart) throws(HandoverError) -> Void) throws -> HandoverState {
        let steps = shared[.steps]
        let bytes = (0..<8).map { UInt8(truncatingIfNeeded: steps >> UInt64($0 * 8)) }
        try sendPart(.plain(Array(bytes[..<3])))
        try sendPart(.plain(Array(bytes[3..<5])))
        return HandoverState(bytes: Array(bytes[5...]))
    }

    /// Also called when the hand-over failed before the pause.
    func resume() throws { if !isRunning.load(ordering: .sequentiallyConsistent) { try start() } }
    func release() {}

    func prepare(_ description: HandoverDescription) throws {
        guard let block = description.blocks.first, let file = block.file else {
            throw HandoverError(.incompatible, "no block")
        }
        self.file = file
        memory = try ProbeMemory(file)
        shared[.destinationProcess] = UInt64(getpid())
        PageTables.populate(try OwnedMapping(byteCount: block.byteCount, descriptor: file), of: file)
    }

    func load(part: HandoverPart) throws {
        guard case .plain(let bytes) = part else { throw HandoverError(.malformed, "descriptors came") }
        arrived += bytes
        if environment("PROBE_REFUSE") == "part" { throw HandoverError(.incompatible, "told to refuse a part") }
    }

    func load(_ state: HandoverState) throws {
        arrived += state.bytes
        guard arrived.count == 8 else { throw HandoverError(.malformed, "state of \(arrived.count) bytes") }
        arrivedSteps = (0..<8).reduce(0) { $0 | UInt64(arrived[$1]) << UInt64($1 * 8) }
        if environment("PROBE_REFUSE") != nil { throw HandoverError(.incompatible, "told to refuse") }
    }

    func run(_ times: HandoverTimes) throws {
        if shared[.steps] != arrivedSteps { shared.add(.staleStates) }
        try start()
    }
}

func fault(_ side: String) -> (HandoverPhase) -> Void {
    for (variable, signal) in [("PROBE_KILL", SIGKILL), ("PROBE_STOP", SIGSTOP)] {
        guard let order = environment(variable), order.hasPrefix(side + ":"),
            let step = Int(order.dropFirst(side.count + 1))
        else { continue }
        return { if $0.rawValue == step { kill(getpid(), signal) } }
    }
    return { _ in }
}

/// Hands over to a new process. True: this process is done.
func handOver(_ guest: ScriptedGuest, movesLeft: Int, faulty: Bool) throws -> Bool {
    var variables = ["PROBE_LOCK", "PROBE_REFUSE", "PROBE_KILL", "PROBE_STOP", "PROBE_LIMIT"].compactMap { name in
        environment(name).map { "\(name)=\($0)" }
    }
    variables.append("PROBE_MOVES=\(movesLeft)")
    if !faulty {
        variables.removeAll { $0.hasPrefix("PROBE_KILL") || $0.hasPrefix("PROBE_STOP") || $0.hasPrefix("PROBE_REFUSE") }
    }
    guest.shared[.sourceProcess] = UInt64(getpid())
    let (near, child) = try HandoverSource.start(
        path: "/proc/self/exe", name: "handover-probe", environment: variables, arguments: { ["destination", "\($0)"] })
    var limits = HandoverSource.Limits()
    if let limit = environment("PROBE_LIMIT").flatMap(Int.init) {
        limits.greetingMilliseconds = limit
        limits.preparingMilliseconds = limit
        limits.takingOverMilliseconds = limit
    }
    let outcome = HandoverSource(
        socket: near, destination: child.processDescriptor, limits: limits,
        atStep: faulty ? fault("source") : { _ in }
    ).run(guest)
    switch outcome {
    case .moved(let times):
        guest.shared.add(.moves)
        guest.shared[.lastPause] = UInt64(max(times.pauseNanoseconds, 0))
        if guest.shared[.lastPause] > guest.shared[.longestPause] {
            guest.shared[.longestPause] = guest.shared[.lastPause]
        }
        guest.shared[.sourceOutcome] = 1
        return true
    case .stayed(let error):
        report("stayed: \(error)\n")
        guest.shared[.sourceOutcome] = 2
        child.kill()
        _ = child.wait()
        return false
    case .stayedPaused(let error):
        report("stayed paused: \(error)\n")
        guest.shared[.sourceOutcome] = 3
        return false
    }
}

func report(_ text: String) {
    if environment("PROBE_VERBOSE") != nil { try? OwnedDescriptor(adopting: dup(2)).writeAll(Array(text.utf8)) }
}

signal(SIGPIPE, SIG_IGN)
signal(SIGHUP, SIG_IGN)  // the kernel hangs up on a stopped process whose group became orphaned
let arguments = CommandLine.arguments
let moves = environment("PROBE_MOVES").flatMap(Int.init) ?? 1
let guest: ScriptedGuest
var isFirst = false
if arguments.count > 1, arguments[1] == "source" {
    guest = try ScriptedGuest(OwnedDescriptor(adopting: 3))
    isFirst = true
    try guest.start()
} else {
    guest = try ScriptedGuest(nil)
    let socket = OwnedDescriptor(adopting: 3)
    try socket.setCloseOnExec(true)
    var destination = HandoverDestination(socket: socket, program: "probe", atStep: fault("destination"))
    switch destination.run(guest) {
    case .running: guest.shared[.destinationOutcome] = 1
    case .notOurs(let error, let owner):
        report("not ours: \(error)\n")
        if guest.hasMemory {
            guest.shared[.finalOwner] = UInt64(owner?.rawValue ?? 0)
            guest.shared[.destinationOutcome] = 2
        }
        exit(2)
    case .lost(let error):
        report("lost: \(error)\n")
        exit(3)
    }
}
var left = moves
var faulty = isFirst
while left > 0 {
    usleep(500)
    if try handOver(guest, movesLeft: left - 1, faulty: faulty) { exit(0) }
    left -= faulty ? 0 : 1  // after a fault the second attempt must work
    faulty = false
}
while true { pause() }
