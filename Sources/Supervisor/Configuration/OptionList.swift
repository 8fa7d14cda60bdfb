/// `key=value,key=value` as in `--disk path=F,readonly=on`. A doubled comma stands for one in a value, as in QEMU.
struct OptionList {
    private(set) var options: [(key: String, value: String)] = []

    /// - Parameter flag: For errors: `--disk`.
    init(_ text: String, flag: String, keys: Set<String>) throws(Refusal) {
        for part in Self.split(text) {
            guard let equals = part.firstIndex(of: "=") else {
                throw Refusal(
                    .usage, "\(flag): '\(part)' is not KEY=VALUE (keys: \(keys.sorted().joined(separator: ", ")))")
            }
            let key = String(part[..<equals])
            guard keys.contains(key) else {
                throw Refusal(.usage, "\(flag): unknown key '\(key)' (keys: \(keys.sorted().joined(separator: ", ")))")
            }
            guard !options.contains(where: { $0.key == key }) else {
                throw Refusal(.usage, "\(flag): '\(key)' is given twice")
            }
            options.append((key, String(part[part.index(after: equals)...])))
        }
    }

    subscript(key: String) -> String? { options.first { $0.key == key }?.value }

    private static func split(_ text: String) -> [String] {
        var parts = [""]
        var characters = Array(text)[...]
        while let character = characters.popFirst() {
            if character != "," {
                parts[parts.count - 1].append(character)
            } else if characters.first == "," {
                characters.removeFirst()
                parts[parts.count - 1].append(",")
            } else {
                parts.append("")
            }
        }
        return parts
    }

    /// `on` or `off`, also `true`, `yes` and their opposites.
    static func boolean(_ text: String, flag: String, key: String) throws(Refusal) -> Bool {
        switch text {
        case "on", "true", "yes": true
        case "off", "false", "no": false
        default: throw Refusal(.usage, "\(flag): \(key) is 'on' or 'off', not '\(text)'")
        }
    }
}
