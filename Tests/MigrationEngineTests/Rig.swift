import ComponentState
import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit
import Synchronization
import Testing

/// Two scripted guests with a channel between them, each end of the migration on a thread of its own.
final class Rig: Sendable {
    let source: ScriptedGuest
    let destination: ScriptedGuest
    let script: GuestScript

    init(
        script: GuestScript = Rig.script(), pages: [Int] = [1500, 3, 200], backend: MemoryBackend = .memfd,
        destinationBackend: MemoryBackend? = nil, components: () -> [any StatefulComponent] = { [] }
    ) throws {
        self.script = script
        func blocks(_ backend: MemoryBackend) throws -> [RAMBlock] {
            try pages.enumerated().map {
                try RAMBlock(name: "block\($0.offset)", byteCount: $0.element * guestPageSize, backend: backend)
            }
        }
        source = ScriptedGuest(script: script, blocks: try blocks(backend), components: components())
        destination = ScriptedGuest(
            script: script, blocks: try blocks(destinationBackend ?? backend), fills: false, components: components())
    }

    static func script(threads: Int = 2, rate: Int = 4000) -> GuestScript {
        var script = GuestScript()
        script.threadCount = threads
        script.pagesPerSecondPerThread = rate
        return script
    }

    /// Holds each round open until the guest has written something in it, however loaded the host is.
    var writesInEachRound: @Sendable (MigrationProgress) -> Void {
        { [source] progress in if progress.status == .active { _ = source.waitForWrites(20) } }
    }

    func end() {
        source.end()
        destination.end()
    }

    /// Precopy without a bandwidth limit, with a return path.
    static var configuration: MigrationConfiguration {
        var configuration = MigrationConfiguration()
        configuration.capabilities = [.returnPath]
        configuration.parameters.maxBandwidthBytesPerSecond = 0
        configuration.parameters.downtimeLimitMilliseconds = 20
        configuration.parameters.roundLimit = 8
        return configuration
    }

    static func pair() throws -> (DescriptorTransport, DescriptorTransport) {
        let (left, right) = try StreamSocket.pair()
        return (
            try DescriptorTransport(name: "source", socket: left),
            try DescriptorTransport(name: "destination", socket: right)
        )
    }

    struct Ends: Sendable {
        let source: MigrationSource
        let destination: MigrationDestination
    }

    /// Makes both ends, over a fresh socket pair unless transports are given.
    func ends(
        _ configuration: MigrationConfiguration = Rig.configuration,
        destination other: MigrationConfiguration? = nil,
        transports: (any MigrationTransport, any MigrationTransport)? = nil,
        hooks: ((any SourceRAMHooks)?, (any DestinationRAMHooks)?) = (nil, nil), to guest: ScriptedGuest? = nil,
        observer: (@Sendable (MigrationProgress) -> Void)? = nil
    ) throws -> Ends {
        let (left, right) = try transports ?? Rig.pair()
        return Ends(
            source: MigrationSource(
                guest: source, transport: left, configuration: configuration, hooks: hooks.0, observer: observer),
            destination: MigrationDestination(
                guest: guest ?? destination, transport: right, configuration: other ?? configuration, hooks: hooks.1))
    }

    /// Page flipping at both ends.
    static func flipping(_ strategy: MigrationStrategy) -> MigrationConfiguration {
        var configuration = Rig.configuration
        configuration.capabilities.insert(.unixPageFlipping)
        configuration.strategy = strategy
        return configuration
    }

    /// Both ends of a page flip over a fresh socket pair.
    func flippingEnds(
        _ configuration: MigrationConfiguration, destination other: MigrationConfiguration? = nil,
        to guest: ScriptedGuest? = nil, splicer: PageSplicer = .kernel,
        readerCount: Int = PageFlipDestination.readersWanted,
        notice: @escaping @Sendable (String) -> Void = { _ in },
        observer: (@Sendable (MigrationProgress) -> Void)? = nil
    ) throws -> Ends {
        let (left, right) = try Rig.pair()
        let hooks = PageFlipSource(
            transport: left, guest: source, configuration: configuration, splicer: splicer, notice: notice)
        return try ends(
            configuration, destination: other, transports: (left, right),
            hooks: (
                hooks,
                PageFlipDestination(
                    transport: right, configuration: other ?? configuration, readerCount: readerCount)
            ),
            to: guest,
            observer: observer)
    }

    /// Runs both ends to their end, the destination on another thread.
    static func run(
        _ ends: Ends, beside: (@Sendable () -> Void)? = nil
    ) throws -> (source: MigrationOutcome, destination: MigrationOutcome) {
        let result = Mutex<MigrationOutcome?>(nil)
        let thread = try HostThread(name: "destination") {
            let outcome = ends.destination.run()
            result.withLock { $0 = outcome }
        }
        let helper = try beside.map { beside in try HostThread(name: "beside") { beside() } }
        let outcome = ends.source.run()
        helper?.join()
        thread.join()
        return (outcome, result.withLock { $0 }!)
    }
}
