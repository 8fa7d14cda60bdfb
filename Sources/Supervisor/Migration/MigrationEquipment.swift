import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import QMPProtocol

/// What a migration's capabilities make of a channel: the transport the engine uses, and the hooks that take pages off
/// the stream.
enum MigrationEquipment {
    struct Source: Sendable {
        var transport: any MigrationTransport
        var hooks: (any SourceRAMHooks)?
        /// The pages are the destination's once it has them.
        var givesAway: Bool { hooks?.disposition == .givesAway }
    }

    struct Destination: Sendable {
        var transport: any MigrationTransport
        var hooks: (any DestinationRAMHooks)?
    }

    /// Whether the address can carry what is switched on; QEMU's users know the first sentence.
    static func judge(_ address: MigrationAddress, _ configuration: MigrationConfiguration) throws(QMPError) {
        if configuration.has(.mappedRAM) {
            switch address {
            case .file, .descriptor: return
            default: throw QMPError("Migration requires seekable transport (e.g. file): mapped-ram is on")
            }
        }
        if configuration.has(.multifd) {
            switch address {
            case .unix, .tcp: return
            default: throw QMPError("Migration requires multi-channel URIs (e.g. tcp): multifd is on")
            }
        }
    }

    /// How many connections there are beside the main one.
    static func channelCount(_ configuration: MigrationConfiguration) -> Int {
        configuration.has(.multifd) && !configuration.has(.mappedRAM)
            ? Int(configuration.parameters.multifdChannels) : 0
    }

    static func source(
        _ opened: MigrationOpening.Opened, guest: any MigratableGuest, _ configuration: MigrationConfiguration
    ) throws(MigrationError) -> Source {
        let transport = opened.transport
        if configuration.has(.unixPageFlipping) {
            return Source(
                transport: transport,
                hooks: PageFlipSource(transport: transport, guest: guest, configuration: configuration) {
                    Diagnostics.write($0)
                })
        }
        if configuration.has(.mappedRAM) {
            return Source(
                transport: transport,
                hooks: try MappedRAMSource(transport: transport, guest: guest, configuration: configuration))
        }
        if configuration.has(.multifd) {
            let hooks = MultiFDSource(main: transport, channels: opened.channels, configuration: configuration)
            return Source(transport: hooks.transport, hooks: hooks)
        }
        return Source(transport: transport)
    }

    static func destination(
        _ transport: any MigrationTransport, channels: [DescriptorTransport], acceptor: MultiFDAcceptor?,
        _ configuration: MigrationConfiguration
    ) -> Destination {
        if configuration.has(.unixPageFlipping), let socket = transport as? DescriptorTransport {
            return Destination(
                transport: transport, hooks: PageFlipDestination(transport: socket, configuration: configuration))
        }
        if configuration.has(.mappedRAM) {
            return Destination(transport: transport, hooks: MappedRAMDestination(configuration: configuration))
        }
        if configuration.has(.multifd) {
            let hooks = MultiFDDestination(
                main: transport, channels: channels, configuration: configuration,
                tooMany: { acceptor?.hasAnother() == true })
            return Destination(transport: hooks.transport, hooks: hooks)
        }
        return Destination(transport: transport)
    }
}
