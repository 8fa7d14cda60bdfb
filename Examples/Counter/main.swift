import Glibc
import LocalMigration

/// Counts in memory that outlives the process. SIGUSR2 moves it to a new one, for example of a newer program.
final class Counter: Migratable {
    let memory: MemoryBlock
    init(_ memory: MemoryBlock) { self.memory = memory }

    var value: Int {
        get { memory.bytes.load(as: Int.self) }
        set { memory.bytes.storeBytes(of: newValue, as: Int.self) }
    }

    var blocks: [MemoryBlock] { [memory] }  // moved without a copy, however large
    var descriptors: [String: CInt] { [:] }  // listeners, clients, locked files
    func pause() -> [UInt8] { [] }  // stop all threads; what is in neither of the above
    func resume() {}  // the move failed: go on here
}

let arrival = try LocalMigration.arrival()  // from a predecessor, which still runs
let counter = Counter(try arrival?.blocks["counter"] ?? MemoryBlock(name: "counter", byteCount: 1 << 30))
try arrival?.complete { state, descriptors in }  // the predecessor stands still: take the rest, then it is ours

var signals = sigset_t()
sigemptyset(&signals)
sigaddset(&signals, SIGUSR2)
pthread_sigmask(SIG_BLOCK, &signals, nil)
while true {
    counter.value += 1
    print("\(counter.value) in process \(getpid())")
    fflush(nil)
    var pause = timespec(tv_sec: 0, tv_nsec: 10_000_000)
    guard sigtimedwait(&signals, nil, &pause) == SIGUSR2 else { continue }
    do {
        _ = try LocalMigration.handOver(counter, to: "/proc/self/exe")
        exit(0)
    } catch { print("still here: \(error)") }
}
