import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine

/// What `sidestep upgrade` asks for.
package struct UpgradeRequest: Sendable {
    /// The program that takes over; nil is the file this process was started from, as it is now.
    package var binary: String?
    package var channel = UpgradeChannel.auto
    /// Nil is the channel's own.
    package var strategy: UpgradeStrategy?
    /// Longest pause in milliseconds; when it is over, the guest is taken back. Nil is ``UpgradePlan/limitMilliseconds``.
    package var limitMilliseconds: Int?

    package init() {}
}

/// How RAM changes process.
package enum UpgradeChannel: String, Sendable, CaseIterable {
    /// The best that both sides can do.
    case auto
    /// RAM's own descriptors; nothing is copied.
    case memfd
    /// Pages through a pipe, each given up here once it is there.
    case pageFlip = "page-flip"
    /// Copies through a socket.
    case socket
}

/// When RAM crosses that has to be sent.
package enum UpgradeStrategy: String, Sendable, CaseIterable {
    /// The guest stops first. By page flip hardly a page exists twice.
    case stopAndFlip = "stop-and-flip"
    /// Rounds while the guest runs, then a stop for the rest. RAM exists twice.
    case precopy
}

/// How RAM will cross, settled when it is known what the successor can do.
struct UpgradePlan: Sendable {
    var channel: UpgradeChannel
    /// Nil: nothing is sent.
    var strategy: UpgradeStrategy?
    /// For people: why this way.
    var reason: String

    /// - Parameters:
    ///   - peerChannels: What the successor says it can do.
    ///   - splices: Whether the kernel, and a sandbox before it, lets us put pages into pipes.
    init(
        _ request: UpgradeRequest, blocks: [RAMBlock], peerChannels: [String], splices: () -> Bool
    ) throws(Refusal) {
        let anonymous = blocks.first { $0.file == nil }
        func peerTakes(_ channel: UpgradeChannel) -> Bool { peerChannels.contains(channel.rawValue) }
        switch request.channel {
        case .auto:
            if anonymous == nil {
                channel = .memfd
                reason = "RAM is in memory files, which cross by descriptor"
            } else if peerTakes(.pageFlip) && splices() {
                channel = .pageFlip
                reason = "RAM is anonymous memory, which has no descriptor; its pages change owner through a pipe"
            } else if peerTakes(.socket) {
                channel = .socket
                reason =
                    peerTakes(.pageFlip)
                    ? "RAM is anonymous memory, and the system does not allow pages to be put into a pipe"
                    : "RAM is anonymous memory, and the new program takes no pages through a pipe"
            } else {
                throw Refusal(Self.noDescriptor(anonymous!) + ", and the new program takes memory only by descriptor")
            }
        case .memfd:
            if let anonymous {
                throw Refusal(
                    Self.noDescriptor(anonymous)
                        + "; use --channel page-flip, or start the guest with --memory-backend memfd")
            }
            if let strategy = request.strategy {
                throw Refusal("--strategy \(strategy.rawValue): by memfd no memory is sent, now or later")
            }
            channel = .memfd
            reason = "asked for"
        case .pageFlip, .socket:
            // The successor is started with the same file, and would be given its own pages.
            if let named = blocks.first(where: \.isNamed) {
                throw Refusal(
                    "RAM block \(named.name) is a file with a name, which crosses by descriptor; use --channel memfd")
            }
            guard peerTakes(request.channel) else {
                throw Refusal("the new program does not take memory by \(request.channel.rawValue)")
            }
            channel = request.channel
            reason = "asked for"
        }
        switch channel {
        case .memfd, .auto: strategy = nil
        case .pageFlip: strategy = request.strategy ?? .stopAndFlip
        // RAM exists twice in any case; then the pause may as well be short.
        case .socket: strategy = request.strategy ?? .precopy
        }
    }

    /// What the predecessor decided.
    init(_ description: UpgradeDescription) throws(Refusal) {
        guard let channel = UpgradeChannel(rawValue: description.channel), channel != .auto else {
            throw Refusal("memory comes by '\(description.channel)', which is not known here")
        }
        if let word = description.strategy {
            guard let strategy = UpgradeStrategy(rawValue: word), channel != .memfd else {
                throw Refusal("memory comes by strategy '\(word)', which is not known here")
            }
            self.strategy = strategy
        }
        self.channel = channel
        reason = description.reason
    }

    private static func noDescriptor(_ block: RAMBlock) -> String {
        "RAM block \(block.name) is anonymous memory, which has no descriptor to hand over"
    }

    /// The successor's memory must be reachable from here while pages are given away: it lies in files. Everything else
    /// keeps the backend that the guest was started with.
    var needsMemoryFiles: Bool { channel == .pageFlip && strategy == .stopAndFlip }

    /// Longest pause unless the user says otherwise: five seconds, and where all RAM crosses in the pause, four more for each GiB.
    static func limitMilliseconds(_ strategy: UpgradeStrategy?, ramByteCount: Int) -> Int {
        strategy == nil ? 5_000 : 5_000 + ramByteCount >> 18
    }

    /// What both ends' engines are told.
    var configuration: MigrationConfiguration {
        var configuration = MigrationConfiguration()
        configuration.capabilities = channel == .pageFlip ? [.returnPath, .unixPageFlipping] : [.returnPath]
        configuration.strategy = strategy == .precopy ? .precopy : .stopAndCopy
        configuration.parameters.maxBandwidthBytesPerSecond = 0
        configuration.parameters.downtimeLimitMilliseconds = 10
        configuration.parameters.roundLimit = 12
        configuration.writesDescription = false
        configuration.keepsWayBack = true
        configuration.staysPaused = true
        return configuration
    }
}

extension UpgradePlan {
    /// Asks the kernel, with a page of no importance.
    static func kernelSplices() -> Bool {
        guard let pipe = try? PagePipe.make(), let page = try? OwnedMapping(byteCount: hostPageSize) else {
            return false
        }
        return PipeProbe.splices(page, into: pipe.writeEnd)
    }
}
