import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import ComponentState
import Synchronization

/// Throughput of the channels between two processes:
///     stream-throughput MIB RUNS [socket|flip|flip-give ...]
/// Each run is a migration of a paused guest whose memory is full of data, in 4 KiB and in 2 MiB pages; the destination
/// is a process of its own. Prints GiB/s and processor seconds per GiB of both processes together.
final class FullGuest: MigratableGuest {
    let machineName = "full"
    let ramBlocks: [RAMBlock]
    var components: [any StatefulComponent] { [] }

    init(byteCount: Int, huge: Bool, fills: Bool) throws {
        let block = try RAMBlock(name: "ram", byteCount: byteCount, backend: .memfd)
        if huge { try block.mapping.advise(offset: 0, byteCount: byteCount, 14) }  // MADV_HUGEPAGE
        if fills {
            let words = block.base.assumingMemoryBound(to: UInt64.self)
            for index in 0..<(byteCount / 8) { words[index] = UInt64(index) | 1 }
        }
        ramBlocks = [block]
    }

    func restartDirtyTracking() {}
    func setThrottle(percent: Int) {}
    func pause() {}
    func resume() {}
    var isRunning: Bool { false }
    func finishLoading() {}
}

enum Way: String, CaseIterable { case socket, flip, flipGive = "flip-give" }

func configuration(_ way: Way) -> MigrationConfiguration {
    var configuration = MigrationConfiguration()
    configuration.capabilities = way == .socket ? [.returnPath] : [.returnPath, .unixPageFlipping]
    configuration.strategy = way == .flipGive ? .stopAndCopy : .precopy
    configuration.parameters.maxBandwidthBytesPerSecond = 0
    return configuration
}

func processorSeconds(_ who: CInt) -> Double {
    var usage = rusage()
    getrusage(__rusage_who_t(who), &usage)
    return Double(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
        + Double(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6
}

func destination(_ way: Way, _ byteCount: Int, huge: Bool) throws {
    let transport = try DescriptorTransport(name: "socket", socket: OwnedDescriptor(adopting: 3))
    let guest = try FullGuest(byteCount: byteCount, huge: huge, fills: false)
    let configuration = configuration(way)
    let hooks = way == .socket ? nil : PageFlipDestination(transport: transport, configuration: configuration)
    let end = MigrationDestination(guest: guest, transport: transport, configuration: configuration, hooks: hooks)
    guard end.run() == .guestMoved else {
        print("destination failed: \(String(describing: end.progress.error))")
        exit(1)
    }
}

func source(_ way: Way, _ byteCount: Int, huge: Bool) throws {
    let guest = try FullGuest(byteCount: byteCount, huge: huge, fills: true)
    let (near, far) = try StreamSocket.pair()
    GatheredIO.enlargeBuffers(of: far, byteCount: 4 << 20)
    let before = processorSeconds(0)
    let child = try ChildProcess(
        path: "/proc/self/exe", arguments: ["destination", way.rawValue, "\(byteCount)", huge ? "2m" : "4k"],
        descriptors: [3: far])
    let transport = try DescriptorTransport(name: "socket", socket: near)
    let configuration = configuration(way)
    let hooks =
        way == .socket
        ? nil : PageFlipSource(transport: transport, guest: guest, configuration: configuration)
    let end = MigrationSource(guest: guest, transport: transport, configuration: configuration, hooks: hooks)
    guard end.run() == .guestMoved else {
        print("source failed: \(String(describing: end.progress.error))")
        exit(1)
    }
    _ = child.wait()
    let seconds = Double(end.progress.timing.totalNanoseconds ?? 0) * 1e-9
    let used = processorSeconds(0) - before + processorSeconds(-1)
    let gib = Double(byteCount) / Double(1 << 30)
    func text(_ value: Double) -> String { "\(Double(Int(value * 100)) / 100)" }
    print(
        "\(way.rawValue) \(huge ? "2m" : "4k"): \(text(gib / seconds)) GiB/s, \(text(used / gib)) s of processor per GiB"
    )
}

let words = CommandLine.arguments
if words.count == 5, words[1] == "destination", let way = Way(rawValue: words[2]), let byteCount = Int(words[3]) {
    try destination(way, byteCount, huge: words[4] == "2m")
} else if words.count == 5, words[1] == "source", let way = Way(rawValue: words[2]), let byteCount = Int(words[3]) {
    try source(way, byteCount, huge: words[4] == "2m")
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
    print("usage: stream-throughput MIB RUNS [socket|flip|flip-give ...]")
    exit(2)
}
