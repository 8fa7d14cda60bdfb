import QMPProtocol

extension CommandRewriter {
    /// `-chardev`.
    mutating func rewriteCharacterDevice(_ option: CommandLine.Option, _ text: OptionText) throws(JSONError) {
        guard let backend = text.leading("backend") else { return refuse(option, "it names no back end") }
        if text["id"] == Self.controlIdentifier { return }
        if let new = characterDevice(option, backend, text) { add("chardev", new) }
    }

    /// The new form of a character device; nil after a refusal.
    private mutating func characterDevice(_ option: CommandLine.Option, _ backend: String, _ text: OptionText)
        -> OptionText?
    {
        var text = text
        if text["logfile"] != nil { text = text.setting("logappend", "on") }
        let label = text["id"] ?? option.name
        switch backend {
        case "null", "vc", "ringbuf", "testdev", "msmouse", "braille", "hub": return text
        case "stdio":
            inheritStandard()
            return text
        case "file": return text.setting("append", "on")
        case "pty":
            guard text["path"] == nil else {
                refuse(option, "the path of its terminal is taken by the old process")
                return nil
            }
            result.notes.append("\(label): the new process has another pseudo-terminal; its clients must open that one")
            return text
        case "socket": return socket(option, text, label: label)
        default:
            refuse(option, "a character device of kind '\(backend)' cannot be opened twice")
            return nil
        }
    }

    private mutating func socket(_ option: CommandLine.Option, _ text: OptionText, label: String) -> OptionText? {
        let place: Set<String> = [
            "path", "host", "port", "to", "ipv4", "ipv6", "abstract", "tight", "fd", "server", "wait", "delay", "mptcp",
        ]
        let rest = text.removing(place)
        guard text.isOn("server") else {
            // Connects by itself, again and again.
            if text["reconnect"] != nil || text["reconnect-ms"] != nil {
                result.notes.append("\(label): connects to its server anew")
                return text
            }
            guard !text.isOn("websocket"), !text.isOn("telnet"), !text.isOn("tn3270"), text["tls-creds"] == nil else {
                refuse(option, "the state of its protocol is in the old process; give it a reconnect time")
                return nil
            }
            guard let open = connected(to: text) else {
                refuse(option, "its connection was not found among the process's sockets; give it a reconnect time")
                return nil
            }
            return rest.setting("fd", "\(inherit(open))")
        }
        carryClient(of: text, label: label)
        if let path = text["path"], !text.isOn("abstract") {
            return text.removing(["wait", "server"]).setting("path", privatePath(for: path)).setting("server", "on")
                .setting("wait", "off")
        }
        guard let open = listening(for: text) else {
            refuse(option, "its listening socket was not found among the process's sockets")
            return nil
        }
        result.notes.append("\(label): keeps its listening socket")
        return rest.setting("fd", "\(inherit(open))").setting("server", "on").setting("wait", "off")
    }

    /// A client that is connected keeps its connection where a new QEMU can take it in the middle (`add_client`): not where a
    /// protocol of its own has begun.
    private mutating func carryClient(of text: OptionText, label: String) {
        let connected = facts.sockets.filter { !$0.isListening && isLocal($0.local, to: text) }
        guard let client = connected.first else { return }
        let hasProtocol =
            ["telnet", "tn3270", "websocket"].contains { text.isOn($0) } || text["tls-creds"] != nil
            || monitorLabels.contains(label)
        guard !hasProtocol, strategy != .postcopy, connected.count == 1 else {
            result.notes.append("\(label): its client must connect again, under the old name")
            return
        }
        result.clients.append(
            CharacterClient(identifier: text.isOn("mux") ? "\(label)-base" : label, socket: client))
        result.notes.append("\(label): its client stays connected")
    }

    /// Whether an address is the one a server socket was given.
    private func isLocal(_ address: String, to text: OptionText) -> Bool {
        if let given = given(text, isListening: true) { return !given.local.isEmpty && address == given.local }
        guard let path = text["path"] else {
            return address.hasPrefix("tcp:") && address.hasSuffix(":\(text["port"] ?? "")")
        }
        let name = text.isOn("abstract") ? "@\(path)" : facts.absolute(path)
        return address.hasPrefix("unix:") && facts.absolute(String(address.dropFirst(5))) == name
    }

    /// Character devices behind monitors: their clients would be greeted in the middle of a session.
    private var monitorLabels: Set<String> {
        let named = facts.commandLine.arguments("mon").compactMap { (try? OptionText($0))?.leading("chardev") }
        let kinds = ["monitor", "qmp", "qmp-pretty"]
        let legacy = facts.commandLine.options.count { kinds.contains($0.name) }
        return Set(named + (0..<legacy).map { "compat_monitor\($0)" })
    }

    private func connected(to text: OptionText) -> Int32? {
        if let given = given(text, isListening: false) { return given.descriptor }
        let wanted: String
        if let path = text["path"] {
            wanted = "unix:" + (text.isOn("abstract") ? "@\(path)" : facts.absolute(path))
            return facts.sockets.first { !$0.isListening && ($0.peer == wanted || $0.peer == "unix:\(path)") }?
                .descriptor
        }
        guard let port = text["port"] else { return nil }
        let found = facts.sockets.filter {
            !$0.isListening && $0.peer.hasPrefix("tcp:") && $0.peer.hasSuffix(":\(port)")
        }
        return found.count == 1 ? found[0].descriptor : nil
    }

    private func listening(for text: OptionText) -> Int32? {
        if let given = given(text, isListening: true) { return given.descriptor }
        if let path = text["path"] {
            return facts.sockets.first { $0.isListening && $0.local == "unix:@\(path)" }?.descriptor
        }
        guard let port = text["port"] else { return nil }
        let found = facts.sockets.filter {
            $0.isListening && $0.local.hasPrefix("tcp:") && $0.local.hasSuffix(":\(port)")
        }
        return found.count == 1 ? found[0].descriptor : nil
    }

    /// The socket that `fd=` names, as an earlier upgrade has it; a name from `-add-fd` or `getfd` is none.
    private func given(_ text: OptionText, isListening: Bool) -> OpenSocket? {
        guard let number = text["fd"].flatMap({ Int32($0) }) else { return nil }
        return facts.sockets.first { $0.descriptor == number && $0.isListening == isListening }
    }

    /// Standard input and output of the old process become the new one's.
    mutating func inheritStandard() {
        for number: Int32 in 0...1 { result.inherited[number] = number }
    }

    /// `-serial unix:PATH,server=on` and its like. The labels are those that QEMU gives.
    mutating func rewriteLegacyCharacter(_ option: CommandLine.Option, _ argument: String) throws(JSONError) {
        let isMonitor = ["monitor", "qmp", "qmp-pretty"].contains(option.name)
        let number = count(isMonitor ? "monitor" : option.name)
        let label = isMonitor ? "compat_monitor\(number)" : "\(option.name)\(number)"
        let colon = argument.firstIndex(of: ":")
        let scheme = String(colon.map { argument[..<$0] } ?? argument[...])
        let rest = String(colon.map { argument[argument.index(after: $0)...] } ?? "")
        var text: OptionText
        switch scheme {
        case "none", "null", "vc", "msmouse", "braille", "chardev", "testdev": return result.options.append(option)
        case "stdio":
            inheritStandard()
            return result.options.append(option)
        case "mon" where rest == "stdio":
            inheritStandard()
            return result.options.append(option)
        case "pty":
            result.notes.append("\(label): the new process has another pseudo-terminal; its clients must open that one")
            return result.options.append(option)
        case "file":
            text = OptionText([.init("file"), .init("id", label), .init("path", try OptionText(rest).whole)])
        case "unix", "tcp":
            let pieces = try OptionText(rest).pairs
            let place = pieces.first.map { $0.value.map { "\($0)" }.map { "\(pieces[0].key)=\($0)" } ?? $0.key } ?? ""
            var pairs: [OptionText.Pair] = [.init("socket"), .init("id", label)]
            if scheme == "unix" {
                pairs.append(.init("path", place))
            } else {
                guard let last = place.lastIndex(of: ":") else { return refuse(option, "it names no port") }
                pairs += [
                    .init("host", String(place[..<last])), .init("port", String(place[place.index(after: last)...])),
                ]
            }
            text = OptionText(pairs + pieces.dropFirst())
        default: return refuse(option, "a character device '\(argument)' cannot be opened twice")
        }
        guard let new = characterDevice(option, scheme == "file" ? "file" : "socket", text) else { return }
        add("chardev", new)
        switch option.name {
        case "monitor": result.options.append(.init("mon", "chardev=\(label),mode=readline"))
        case "qmp": result.options.append(.init("mon", "chardev=\(label),mode=control"))
        case "qmp-pretty": result.options.append(.init("mon", "chardev=\(label),mode=control,pretty=on"))
        default: result.options.append(.init(option.name, "chardev:\(label)"))
        }
    }
}

extension OptionText {
    /// The text as one value, commas and all.
    var whole: String {
        pairs.map { pair in pair.value.map { "\(pair.key)=\($0)" } ?? pair.key }.joined(separator: ",")
    }
}
