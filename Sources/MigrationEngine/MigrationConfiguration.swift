package import ComponentState
import GuestMemory
package import MigrationStream

/// How a migration's pages reach the destination.
package enum MigrationStrategy: String, Hashable, Sendable, CaseIterable {
    /// Rounds while the guest runs, then a stop for the rest.
    case precopy
    /// The guest stops first: one pass, and pages may be given away as they go.
    case stopAndCopy = "stop-and-copy"
    /// One round, then the guest runs at the destination and pages follow.
    case postcopy
}

/// What both ends are told about a migration before it begins. Capabilities must be alike at both ends, except that
/// the return path need only be on at the source.
package struct MigrationConfiguration: Sendable {
    package var capabilities: Set<MigrationCapability> = []
    package var parameters = MigrationParameters()
    package var strategy = MigrationStrategy.precopy
    /// Whose device state to write. A destination recognises all.
    package var layout = StateLayout.native
    /// COMMAND 11 before the final phase; nil is what the layout's QEMU does. 7.2 refuses it.
    package var sendsSwitchoverStart: Bool?
    /// The stream's self-description: a stock destination waits for one. `{}` is written when this is false.
    package var writesDescription = true
    /// Blocks whose memory both ends share (`x-ignore-shared`): listed, not sent.
    package var sharedBlocks: Set<String> = []
    /// RAM crosses by its descriptors, beside this stream (QEMU's mode `cpr-transfer`): its blocks are listed, not sent.
    package var handsOverMemory = false
    /// Compared with ``MigrationCapability/validateUUID``.
    package var uuid: [UInt8]?
    /// Run state to write into `globalstate`; nil is `running` or `paused`, as the guest was.
    package var runState: String?
    /// How long the destination may take, once everything was sent, to say that it has the guest; 0 waits for ever.
    package var verdictLimitMilliseconds: UInt64 = 0
    /// Source: how many more bytes of RAM that is not zero may be sent before this is asked again; throws when the host has no
    /// memory for more. For two processes that share a limit.
    package var allowance: (@Sendable () throws -> Int)?
    /// Source: after success keep what it takes to take the guest back, until ``MigrationSource/settle(_:)`` says where
    /// it is. For a hand-over that decides who runs by other means than this stream.
    package var keepsWayBack = false
    /// Destination: leave the guest paused even if it ran at the source.
    package var staysPaused = false
    /// Destination: parts of the stream's order that old machine types leave out.
    package var configurationIsOptional = false
    package var hasFooters = true
    package var limits = StreamLimits()

    package init() {}

    package func has(_ capability: MigrationCapability) -> Bool { capabilities.contains(capability) }

    /// The contents of a block do not travel in this stream.
    func ignores(_ block: RAMBlock) -> Bool { handsOverMemory || sharedBlocks.contains(block.name) }

    /// Throws when it contradicts itself.
    package func validate() throws(MigrationError) {
        try capabilities.validate()
        try parameters.validate()
        for capability in capabilities where !capability.isImplemented {
            throw MigrationError(.invalidConfiguration, in: .setup, "\(capability.rawValue) is not supported")
        }
        if strategy == .postcopy && !has(.postcopyRAM) {
            throw MigrationError(.invalidConfiguration, in: .setup, "a postcopy requires postcopy-ram")
        }
        if has(.validateUUID), uuid?.count != 16 {
            throw MigrationError(.invalidConfiguration, in: .setup, "validate-uuid requires a uuid")
        }
        if handsOverMemory {
            let names = [MigrationCapability.postcopyRAM, .multifd, .mappedRAM, .unixPageFlipping].filter { has($0) }
            guard names.isEmpty else {
                throw MigrationError(
                    .invalidConfiguration, in: .setup,
                    "mode cpr-transfer does not work with \(names[0].rawValue): no page is sent")
            }
        }
        if !sharedBlocks.isEmpty && !has(.ignoreShared) {
            throw MigrationError(.invalidConfiguration, in: .setup, "shared blocks require x-ignore-shared")
        }
    }

    /// Names for the CONFIGURATION record, in QEMU's order.
    var announcedCapabilities: [String]? {
        let names = MigrationCapability.allCases.filter { $0.isAnnounced && has($0) }.map(\.rawValue)
        return names.isEmpty ? nil : names
    }

    var writesSwitchoverStart: Bool { sendsSwitchoverStart ?? (layout == .qemu10_0 || layout == .qemu11_1) }
}

/// Who runs the guest, for two processes that share more than a stream. With a peer that has no such thing the
/// return path's last word decides alone.
package protocol GuestOwnership: Sendable {
    /// Source: everything was sent, the destination may take the guest from now on.
    func offer() throws
    /// Source: takes the guest back. False when the destination has it.
    func withdraw() -> Bool
    /// Source: the destination has taken the guest. Looked at while waiting for its last word.
    var isTaken: Bool { get }
    /// Destination: takes the guest, before its first instruction. False when the source took it back.
    func claim() -> Bool
}
