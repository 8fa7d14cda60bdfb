package import QMPProtocol

/// The channels of one migration: `uri` or `channels` of `migrate`, or what `--incoming` says.
package struct MigrationRoute: Hashable, Sendable {
    package var main: MigrationAddress
    /// Where RAM's descriptors go first, in mode `cpr-transfer`.
    package var cpr: MigrationAddress?

    /// `uri` or `channels` of `migrate` and `migrate-incoming`, of which there is one.
    init(arguments: JSONObject) throws(QMPError) {
        // No channels at all are as if there were no such argument.
        let list = arguments["channels"]?.arrayValue
        switch (arguments["uri"]?.stringValue, list?.isEmpty == true ? nil : list) {
        case (let uri?, nil): main = try MigrationAddress(uri: uri)
        case (nil, let channels?):
            var addresses: [String: MigrationAddress] = [:]
            for channel in channels {
                let type = channel["channel-type"]?.stringValue ?? ""
                guard addresses[type] == nil else { throw QMPError("Channel list has more than one \(type) entry") }
                addresses[type] = try MigrationAddress(address: channel["addr"]?.objectValue ?? [:])
            }
            guard let main = addresses.removeValue(forKey: "main") else {
                throw QMPError("Channel list has no main entry")
            }
            self.main = main
            cpr = addresses.removeValue(forKey: "cpr")
        default: throw QMPError("need either 'uri' or 'channels' argument")
        }
    }

    /// `channels` for two URIs.
    package static func channels(main: String, cpr: String) throws(QMPError) -> JSONValue {
        [
            ["channel-type": "main", "addr": .object(try MigrationAddress(uri: main).json)],
            ["channel-type": "cpr", "addr": .object(try MigrationAddress(uri: cpr).json)],
        ]
    }
}

extension RunConfiguration {
    /// What `--incoming` said, once or, with RAM by descriptor, twice: a URI, or a channel as QEMU's `-incoming` takes it.
    package mutating func setIncoming(_ texts: [String]) throws(Refusal) {
        for text in texts {
            let type: String
            do throws(QMPError) { type = try Self.channelType(text) } catch {
                throw Refusal(.usage, "--incoming: \(error)")
            }
            switch type {
            case "cpr" where incomingCPR == nil: incomingCPR = text
            case "main" where incoming == nil: incoming = text
            default: throw Refusal(.usage, "--incoming: there is more than one \(type) channel")
            }
        }
    }

    private static func channelType(_ text: String) throws(QMPError) -> String {
        guard text.hasPrefix("{") else {
            if text != "defer" { _ = try MigrationAddress(uri: text) }
            return "main"
        }
        return try MigrationAddress.channel(json: text).type
    }
}

extension MigrationAddress {
    /// A URI, or a channel in JSON.
    package init(argument text: String) throws(QMPError) {
        if text.hasPrefix("{") {
            self = try Self.channel(json: text).address
        } else {
            try self.init(uri: text)
        }
    }

    /// `{"channel-type": "cpr", "addr": {"transport": "socket", "type": "unix", "path": "..."}}`.
    static func channel(json text: String) throws(QMPError) -> (type: String, address: MigrationAddress) {
        guard let channel = try? JSONValue(json: Array(text.utf8)), let type = channel["channel-type"]?.stringValue,
            let address = channel["addr"]?.objectValue
        else { throw QMPError("'\(text)' is no channel: an object with channel-type and addr") }
        guard type == "main" || type == "cpr" else { throw QMPError("there is no channel-type '\(type)'") }
        return (type, try MigrationAddress(address: address))
    }
}
