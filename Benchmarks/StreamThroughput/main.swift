import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import ComponentState

/// Throughput of the channels between two processes:
///     stream-throughput MIB RUNS [socket|socket-copy|pipe|flip|flip-give|multifd ...]
///     stream-throughput memory WAY MIB
/// Each run is a migration of a paused guest whose memory is full of data, in 4 KiB and in 2 MiB pages; the destination
/// is a process of its own, and afterwards compares every word. Prints GiB/s, and processor seconds per GiB of the source
/// and of the destination. 2 MiB pages are private memory, which the host's huge pages are for; what is given away must be
/// a memfd at the destination, and is one there.
///
/// `memory` prints how far both processes' memory together (Pss of smaps_rollup, sampled while both stand still) rose above what it
/// was before the first page, in MiB: the destination's RAM is then not touched beforehand.
final class FullGuest: MigratableGuest {
    let machineName = "full"
    let ramBlocks: [RAMBlock]
    var components: [any StatefulComponent] { [] }

    init(byteCount: Int, huge: Bool, fills: Bool, backend: MemoryBackend, touches: Bool = true) throws {
        let block = try RAMBlock(name: "ram", byteCount: byteCount, backend: backend)
        if huge { try block.mapping.advise(offset: 0, byteCount: byteCount, 14) }  // MADV_HUGEPAGE
        // Touched at both ends, so that the host's page supply is not what is measured.
        let words = block.base.assumingMemoryBound(to: UInt64.self)
        if fills {
            for index in 0..<(byteCount / 8) { words[index] = Self.word(index) }
        } else if touches {
            for offset in stride(from: 0, to: byteCount / 8, by: 512) { words[offset] = 1 }
        }
        ramBlocks = [block]
    }

    /// How many words are not what the source put there.
    var wrongWords: Int {
        let words = ramBlocks[0].base.assumingMemoryBound(to: UInt64.self)
        var count = 0
        for index in 0..<(ramBlocks[0].byteCount / 8) where words[index] != Self.word(index) { count += 1 }
        return count
    }
    private static func word(_ index: Int) -> UInt64 { UInt64(index) &* 0x9e37_79b9_7f4a_7c15 | 1 }

    func restartDirtyTracking() {}
    func setThrottle(percent: Int) {}
    func pause() {}
    func resume() {}
    var isRunning: Bool { false }
    func finishLoading() {}
}

enum Way: String, CaseIterable {
    case socket
    /// Contents copied into the socket, as where vmsplice or splice is refused.
    case socketCopy = "socket-copy"
    /// Contents written into the pipe, as where vmsplice is refused.
    case pipe
    case flip
    case flipGive = "flip-give"
    case multifd

    var flips: Bool { self == .pipe || self == .flip || self == .flipGive }
}

let multifdChannels = 2

/// A kernel without vmsplice.
let refusing = PageSplicer { (_, _) throws(SystemCallError) in
    throw SystemCallError("vmsplice", .notPermitted)
}

func configuration(_ way: Way) -> MigrationConfiguration {
    var configuration = MigrationConfiguration()
    configuration.capabilities = [.returnPath]
    if way.flips { configuration.capabilities.insert(.unixPageFlipping) }
    if way == .multifd { configuration.capabilities.insert(.multifd) }
    configuration.parameters.multifdChannels = UInt64(multifdChannels)
    configuration.strategy = way == .flipGive ? .stopAndCopy : .precopy
    configuration.parameters.maxBandwidthBytesPerSecond = 0
    return configuration
}

/// Processor seconds of this process so far.
func processorSeconds() -> Double {
    var usage = rusage()
    getrusage(__rusage_who_t(0), &usage)
    return Double(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
        + Double(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6
}

func backend(_ way: Way, huge: Bool, isDestination: Bool) -> MemoryBackend {
    huge && !(way == .flipGive && isDestination) ? .anonymous : .memfd
}

func destination(_ way: Way, _ byteCount: Int, huge: Bool, measuresMemory: Bool) throws {
    let transport = try DescriptorTransport(name: "socket", socket: OwnedDescriptor(adopting: 3))
    let report = OwnedDescriptor(adopting: 4)
    let guest = try FullGuest(
        byteCount: byteCount, huge: huge, fills: false, backend: backend(way, huge: huge, isDestination: true),
        touches: !measuresMemory)
    let configuration = configuration(way)
    var channel: any MigrationTransport = transport
    var hooks: (any DestinationRAMHooks)?
    if way.flips {
        hooks = PageFlipDestination(transport: transport, configuration: configuration)
    } else if way == .multifd {
        let multifd = MultiFDDestination(
            main: transport,
            channels: try (0..<multifdChannels).map {
                try DescriptorTransport(name: "multifd", socket: OwnedDescriptor(adopting: CInt(5 + $0)))
            }, configuration: configuration)
        channel = multifd.transport
        hooks = multifd
    }
    let end = MigrationDestination(guest: guest, transport: channel, configuration: configuration, hooks: hooks)
    let before = processorSeconds()
    send([before], to: report)
    guard end.run() == .guestMoved else {
        print("destination failed: \(String(describing: end.progress.error))")
        exit(1)
    }
    let used = processorSeconds() - before
    // Before the comparison, which fills what was never touched.
    send([used], to: report)
    _ = receive(1, from: report)
    send([Double(guest.wrongWords)], to: report)
}

func send(_ values: [Double], to file: OwnedDescriptor) {
    values.withUnsafeBytes { bytes in
        guard write(file.rawValue, bytes.baseAddress, bytes.count) == bytes.count else { exit(1) }
    }
}

func receive(_ count: Int, from file: OwnedDescriptor) -> [Double] {
    var values = [Double](repeating: 0, count: count)
    values.withUnsafeMutableBytes { bytes in
        var done = 0
        while done < bytes.count {
            let got = read(file.rawValue, bytes.baseAddress! + done, bytes.count - done)
            guard got > 0 else { exit(1) }
            done += got
        }
    }
    return values
}

/// Bytes of memory that a process accounts for, shared pages by their share. Source: proc(5), smaps_rollup.
func memoryByteCount(of process: String) -> Int {
    guard let bytes = try? FileNames.contents(of: "/proc/\(process)/smaps_rollup") else { return 0 }
    let line = String(decoding: bytes, as: UTF8.self).split(separator: "\n").first { $0.hasPrefix("Pss:") }
    return (line.flatMap { $0.split(separator: " ").dropFirst().first }.flatMap { Int($0) } ?? 0) << 10
}

/// How far both processes' memory together rises above what it is before the first page. Both stand still while it is looked at:
/// what is freed at one end while the other is read would count twice.
func mostExtraMemory(_ way: String, _ byteCount: Int, _ size: String) throws -> Int {
    let (near, far) = try StreamSocket.pair()
    let child = try ChildProcess(
        path: "/proc/self/exe", arguments: ["measured", way, "\(byteCount)", size], descriptors: [3: far])
    let processes = [child.processIdentifier, CInt(receive(1, from: near)[0])]
    func look() -> Int {
        for process in processes.reversed() { kill(process, SIGSTOP) }
        defer { for process in processes { kill(process, SIGCONT) } }
        for process in processes { awaitStop(process) }
        return processes.reduce(0) { $0 + memoryByteCount(of: "\($1)") }
    }
    let before = look()
    var most = before
    send([0], to: near)
    // A look takes as long as there are pages; between two, the move goes on for a fifth of that.
    var pauseMilliseconds: CInt = 1
    while try near.waitUntilReady(for: Int16(POLLIN), timeoutMilliseconds: pauseMilliseconds) == 0 {
        let start = monotonicNanoseconds()
        most = max(most, look())
        pauseMilliseconds = max(1, CInt(clamping: (monotonicNanoseconds() - start) / 5_000_000))
    }
    _ = receive(1, from: near)
    most = max(most, look())
    send([0], to: near)
    guard child.wait() == .exited(status: 0) else { exit(1) }
    return most - before
}

/// Until every thread has stopped. Source: proc(5), the state in /proc/PID/task/TID/stat.
func awaitStop(_ process: CInt) {
    for _ in 0..<1000 {
        let tasks = (try? FileNames.entries(of: "/proc/\(process)/task")) ?? []
        let areStopped = tasks.allSatisfy { task in
            guard let bytes = try? FileNames.contents(of: "/proc/\(process)/task/\(task)/stat") else { return true }
            let state = String(decoding: bytes, as: UTF8.self).split(separator: ")").last?.dropFirst().first
            return state == "T"
        }
        if areStopped { return }
        usleep(100)
    }
}

/// - Parameter observer: Somebody who measures memory before, meanwhile and after.
func source(_ way: Way, _ byteCount: Int, huge: Bool, observer: OwnedDescriptor? = nil) throws {
    let measuresMemory = observer != nil
    let guest = try FullGuest(
        byteCount: byteCount, huge: huge, fills: true, backend: backend(way, huge: huge, isDestination: false))
    let (near, far) = try StreamSocket.pair()
    let (reportNear, reportFar) = try StreamSocket.pair()
    let extra = try (0..<(way == .multifd ? multifdChannels : 0)).map { _ in try StreamSocket.pair() }
    GatheredIO.enlargeBuffers(of: far, byteCount: 4 << 20)
    var descriptors: [CInt: OwnedDescriptor] = [3: far, 4: reportFar]
    for (index, pair) in extra.enumerated() { descriptors[CInt(5 + index)] = pair.1 }
    let child = try ChildProcess(
        path: "/proc/self/exe",
        arguments: [
            "destination", way.rawValue, "\(byteCount)", huge ? "2m" : "4k", measuresMemory ? "memory" : "speed",
        ], descriptors: descriptors)
    _ = receive(1, from: reportNear)
    let transport = try DescriptorTransport(name: "socket", socket: near)
    // As the tool does for `unix:`.
    if way != .socketCopy { transport.sendByReference() }
    let configuration = configuration(way)
    var channel: any MigrationTransport = transport
    var hooks: (any SourceRAMHooks)?
    if way.flips {
        hooks = PageFlipSource(
            transport: transport, guest: guest, configuration: configuration,
            splicer: way == .pipe ? refusing : .kernel)
    } else if way == .multifd {
        let multifd = MultiFDSource(
            main: transport, channels: try extra.map { try DescriptorTransport(name: "multifd", socket: $0.0) },
            configuration: configuration)
        channel = multifd.transport
        hooks = multifd
    }
    let end = MigrationSource(guest: guest, transport: channel, configuration: configuration, hooks: hooks)
    if let observer {
        send([Double(child.processIdentifier)], to: observer)
        _ = receive(1, from: observer)
    }
    let before = processorSeconds()
    guard end.run() == .guestMoved else {
        print("source failed: \(String(describing: end.progress.error))")
        exit(1)
    }
    let here = processorSeconds() - before
    if let observer {
        send([0], to: observer)
        _ = receive(1, from: observer)
    }
    let there = receive(1, from: reportNear)
    // The destination compares only when nobody measures any more.
    send([0], to: reportNear)
    let wrongWords = receive(1, from: reportNear)[0]
    _ = child.wait()
    guard wrongWords == 0 else {
        print("\(wrongWords) words are wrong")
        exit(1)
    }
    let seconds = Double(end.progress.timing.totalNanoseconds ?? 0) * 1e-9
    let gib = Double(byteCount) / Double(1 << 30)
    if measuresMemory { return }
    print(
        "sidestep-\(way.rawValue) \(huge ? "2m" : "4k") \(text(gib / seconds)) GiB/s \(text(here / gib)) "
            + "\(text(there[0] / gib)) s/GiB")
}

func text(_ value: Double) -> String { "\(Double(Int(value * 1000)) / 1000)" }

let words = CommandLine.arguments
if words.count == 6, words[1] == "destination", let way = Way(rawValue: words[2]), let byteCount = Int(words[3]) {
    try destination(way, byteCount, huge: words[4] == "2m", measuresMemory: words[5] == "memory")
} else if words.count >= 5, words[1] == "source", let way = Way(rawValue: words[2]), let byteCount = Int(words[3]) {
    try source(way, byteCount, huge: words[4] == "2m")
} else if words.count == 5, words[1] == "measured", let way = Way(rawValue: words[2]), let byteCount = Int(words[3]) {
    try source(way, byteCount, huge: words[4] == "2m", observer: OwnedDescriptor(adopting: 3))
} else if words.count >= 4, words[1] == "memory", let way = Way(rawValue: words[2]), let megabytes = Int(words[3]) {
    let size = words.count > 4 ? words[4] : "4k"
    let bytes = try mostExtraMemory(way.rawValue, megabytes << 20, size)
    print("sidestep-\(way.rawValue) \(size) memory \(text(Double(bytes) / Double(1 << 20))) MiB")
} else if words.count >= 3, let megabytes = Int(words[1]), let runs = Int(words[2]) {
    let ways = words.count > 3 ? words[3...].compactMap(Way.init) : Way.allCases
    for _ in 0..<runs {
        for size in ["4k", "2m"] {
            for way in ways {
                let child = try ChildProcess(
                    path: "/proc/self/exe", arguments: ["source", way.rawValue, "\(megabytes << 20)", size])
                guard child.wait() == .exited(status: 0) else { exit(1) }
            }
        }
    }
} else {
    print(
        "usage: stream-throughput MIB RUNS [socket|socket-copy|pipe|flip|flip-give|multifd ...]\n       stream-throughput memory WAY MIB"
    )
    exit(2)
}
