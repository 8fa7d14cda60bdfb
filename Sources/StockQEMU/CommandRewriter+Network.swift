import QMPProtocol

extension CommandRewriter {
    /// `-netdev`, `-nic` and `-net`.
    mutating func rewriteNetwork(_ option: CommandLine.Option, _ text: OptionText) throws(JSONError) {
        let type = text.leading("type") ?? ""
        switch type {
        case "none", "nic": result.options.append(option)
        case "user":
            if text.pairs.contains(where: { $0.key == "hostfwd" || $0.key.hasPrefix("hostfwd.") }) {
                return refuse(
                    option,
                    "QEMU cannot be given the listening port of hostfwd: take it away with 'hostfwd_remove', or use passt or a tap"
                )
            }
            if text["smb"] != nil || text["guestfwd"] != nil
                || text.pairs.contains(where: { $0.key.hasPrefix("guestfwd.") })
            {
                return refuse(option, "smb and guestfwd are processes of the old process")
            }
            result.options.append(option)
        case "tap", "bridge": tap(option, text)
        case "stream": try stream(option, text)
        default:
            refuse(
                option, "a network of kind '\(type)' cannot be handed over: use a tap, or stream with a reconnect time")
        }
    }

    /// A tap is attached to by one process; its descriptors go to the next. vhost is opened anew.
    private mutating func tap(_ option: CommandLine.Option, _ text: OptionText) {
        var descriptors: [Int32] = []
        if let given = text["fd"] ?? text["fds"] {
            descriptors = given.split(separator: ":").compactMap { Int32($0) }
            let known = Set(facts.taps.values.joined())
            guard !descriptors.isEmpty, descriptors.allSatisfy(known.contains) else {
                return refuse(option, "its descriptors are no taps of the process")
            }
        } else if let name = text["ifname"] {
            descriptors = facts.taps[name] ?? []
        } else if facts.taps.count == 1 {
            descriptors = facts.taps.values.first ?? []
        }
        guard !descriptors.isEmpty else {
            return refuse(option, "its tap was not found among the process's descriptors: name it with ifname=")
        }
        var new = text.removing([
            "type", "fd", "fds", "ifname", "script", "downscript", "helper", "br", "vnet_hdr", "queues", "vhostfd",
            "vhostfds",
        ])
        // The word that stands alone in the first place.
        if !text.isJSON, let first = new.pairs.first, first.value == nil {
            new = OptionText(Array(new.pairs.dropFirst()))
        }
        let numbers = descriptors.map { inherit($0) }
        let list = numbers.map(String.init).joined(separator: ":")
        add(
            option.name,
            OptionText([.init("tap")] + new.pairs + [.init(numbers.count == 1 ? "fd" : "fds", list)]))
        if text["downscript"] != "no" && text["fd"] == nil && text["fds"] == nil {
            result.notes.append(
                "-\(option.name) \(text["id"] ?? "tap"): its downscript is not run any more when the guest ends")
        }
    }

    /// A stream of frames: who joins it in the middle of a frame understands nothing, so it is connected anew.
    private mutating func stream(_ option: CommandLine.Option, _ text: OptionText) throws(JSONError) {
        guard !text.isOn("server") else {
            return refuse(option, "a network that waits for its peer cannot be handed over: let QEMU connect to it")
        }
        if text["addr.type"] == "fd" {
            return refuse(option, "a stream is handed over by connecting again, and a descriptor does not say whereto")
        }
        guard destinationVersion >= QEMUVersion(8, 0) else {
            return refuse(
                option,
                "QEMU \(destinationVersion) does not connect a stream again; from 8.0 on it does, and taps go by descriptor"
            )
        }
        let key = destinationVersion >= QEMUVersion(9, 2) ? "reconnect-ms" : "reconnect"
        var new = text.removing(["reconnect", "reconnect-ms"]).setting(key, key == "reconnect" ? "1" : "20")
        // JSON lost its form: the type goes first, as a word of its own.
        if text.isJSON { new = new.settingLeading("type", "stream") }
        add(option.name, new)
        result.notes.append("-\(option.name) \(text["id"] ?? "stream"): connects to its peer anew")
    }
}
