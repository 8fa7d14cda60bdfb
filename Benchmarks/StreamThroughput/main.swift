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
/// is a process of its own, and afterwards compares every word. Prints GiB/s, and processor seconds per GiB of the source
/// and of the destination.
final class FullGuest: MigratableGuest {
    let machineName = "full"
    let ramBlocks: [RAMBlock]
    var components: [any StatefulComponent] { [] }

    init(byteCount: Int, huge: Bool, fills: Bool) throws {
        let block = try RAMBlock(name: "ram", byteCount: byteCount, backend: .memfd)
        if huge { try block.mapping.advise(offset: 0, byteCount: byteCount, 14) }  // MADV_HUGEPAGE
        // Touched at both ends, so that the host's page supply is not what is measured.
        let words = block.base.assumingMemoryBound(to: UInt64.self)
        if fills {
            for index in 0..<(byteCount / 8) { words[index] = Self.word(index) }
        } else {
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

enum Way: String, CaseIterable { case socket, flip, flipGive = "flip-give" }

func configuration(_ way: Way) -> MigrationConfiguration {
    var configuration = MigrationConfiguration()
    configuration.capabilities = way == .socket ? [.returnPath] : [.returnPath, .unixPageFlipping]
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

func destination(_ way: Way, _ byteCount: Int, huge: Bool) throws {
    let transport = try DescriptorTransport(name: "socket", socket: OwnedDescriptor(adopting: 3))
    let report = OwnedDescriptor(adopting: 4)
    let guest = try FullGuest(byteCount: byteCount, huge: huge, fills: false)
    let configuration = configuration(way)
    let hooks = way == .socket ? nil : PageFlipDestination(transport: transport, configuration: configuration)
    let end = MigrationDestination(guest: guest, transport: transport, configuration: configuration, hooks: hooks)
    let before = processorSeconds()
    send([before], to: report)
    guard end.run() == .guestMoved else {
        print("destination failed: \(String(describing: end.progress.error))")
        exit(1)
    }
    send([processorSeconds() - before, Double(guest.wrongWords)], to: report)
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

func source(_ way: Way, _ byteCount: Int, huge: Bool) throws {
    let guest = try FullGuest(byteCount: byteCount, huge: huge, fills: true)
    let (near, far) = try StreamSocket.pair()
    let (reportNear, reportFar) = try StreamSocket.pair()
    GatheredIO.enlargeBuffers(of: far, byteCount: 4 << 20)
    let child = try ChildProcess(
        path: "/proc/self/exe", arguments: ["destination", way.rawValue, "\(byteCount)", huge ? "2m" : "4k"],
        descriptors: [3: far, 4: reportFar])
    _ = receive(1, from: reportNear)
    let transport = try DescriptorTransport(name: "socket", socket: near)
    let configuration = configuration(way)
    let hooks =
        way == .socket
        ? nil : PageFlipSource(transport: transport, guest: guest, configuration: configuration)
    let end = MigrationSource(guest: guest, transport: transport, configuration: configuration, hooks: hooks)
    let before = processorSeconds()
    guard end.run() == .guestMoved else {
        print("source failed: \(String(describing: end.progress.error))")
        exit(1)
    }
    let here = processorSeconds() - before
    let there = receive(2, from: reportNear)
    _ = child.wait()
    guard there[1] == 0 else {
        print("\(there[1]) words are wrong")
        exit(1)
    }
    let seconds = Double(end.progress.timing.totalNanoseconds ?? 0) * 1e-9
    let gib = Double(byteCount) / Double(1 << 30)
    func text(_ value: Double) -> String { "\(Double(Int(value * 1000)) / 1000)" }
    print(
        "sidestep-\(way.rawValue) \(huge ? "2m" : "4k") \(text(gib / seconds)) GiB/s \(text(here / gib)) \(text(there[0] / gib)) s/GiB"
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
