package import QMPProtocol

/// The text of one QEMU option's argument: `value,key=value,...` with commas doubled inside values, or a JSON object.
///
/// A pair without `=` is a flag (`server`, `nowait`, `readonly`), or, in the first place, the value of the option's implied key
/// (`-device virtio-rng-pci,...`). The order is kept. Source: "Invocation" of QEMU's documentation.
package struct OptionText: Hashable, Sendable {
    /// One piece between commas.
    package struct Pair: Hashable, Sendable {
        package var key: String
        /// Nil for a word that stands alone.
        package var value: String?

        package init(_ key: String, _ value: String? = nil) {
            self.key = key
            self.value = value
        }
    }

    package private(set) var pairs: [Pair]
    /// The members, when the argument was JSON.
    package private(set) var isJSON: Bool
    private var object = JSONObject()

    /// Reads an argument. A text that begins with `{` is JSON, as in QEMU.
    /// - Throws: ``JSONError`` for JSON that is none.
    package init(_ text: String) throws(JSONError) {
        if text.hasPrefix("{") {
            guard let object = try JSONValue.parse(text).objectValue else {
                throw JSONError(description: "not a JSON object")
            }
            self.object = object
            isJSON = true
            pairs = Self.flatten(object, prefix: "")
            return
        }
        isJSON = false
        pairs = Self.pieces(of: text).map { piece in
            guard let equals = piece.firstIndex(of: "=") else { return Pair(piece) }
            return Pair(String(piece[..<equals]), String(piece[piece.index(after: equals)...]))
        }
    }

    /// Builds an argument.
    package init(_ pairs: [Pair]) {
        self.pairs = pairs
        isJSON = false
    }

    /// Cuts at single commas; two of them stand for one.
    private static func pieces(of text: String) -> [String] {
        var pieces: [String] = []
        var current = ""
        var rest = Substring(text)
        while let character = rest.popFirst() {
            if character != "," {
                current.append(character)
            } else if rest.first == "," {
                current.append(",")
                rest.removeFirst()
            } else {
                pieces.append(current)
                current = ""
            }
        }
        if !current.isEmpty || pieces.isEmpty { pieces.append(current) }
        return pieces
    }

    /// `{"a": {"b": 1}}` is `a.b=1`, as in QEMU's own reading of dotted keys.
    private static func flatten(_ object: JSONObject, prefix: String) -> [Pair] {
        object.members.flatMap { member -> [Pair] in
            let key = prefix + member.key
            switch member.value {
            case .object(let inner): return flatten(inner, prefix: key + ".")
            case .array(let values):
                let keyed = values.enumerated().map { (String($0.offset), $0.element) }
                return flatten(JSONObject(keyed), prefix: key + ".")
            case .string(let text): return [Pair(key, text)]
            case .bool(let value): return [Pair(key, value ? "on" : "off")]
            default: return [Pair(key, member.value.json)]
            }
        }
    }

    /// The last value given for a key, as QEMU takes the last; a flag counts as `on`, and `noflag` as `off`.
    package subscript(_ key: String) -> String? {
        for pair in pairs.reversed() {
            if pair.key == key { return pair.value ?? "on" }
            if pair.value == nil && pair.key == "no" + key { return "off" }
        }
        return nil
    }

    /// The value of the implied key: the first word when it stands alone, else what `key` says.
    package func leading(_ key: String) -> String? {
        if !isJSON, let first = pairs.first, first.value == nil { return first.key }
        return self[key]
    }

    /// Whether a key that means yes or no says yes.
    package func isOn(_ key: String) -> Bool { ["on", "yes", "true", "y"].contains(self[key] ?? "") }

    /// The same pairs as text with `=`, whatever the form was; JSON members lose their quotes and no meaning.
    package func removing(_ keys: Set<String>) -> OptionText {
        OptionText(
            pairs.filter { pair in
                !keys.contains(pair.key)
                    && !(pair.value == nil && pair.key.hasPrefix("no") && keys.contains(String(pair.key.dropFirst(2))))
            })
    }

    /// With a pair at the end; what the key said before is gone.
    package func setting(_ key: String, _ value: String) -> OptionText {
        OptionText(removing([key]).pairs + [Pair(key, value)])
    }

    /// With the implied key's value in the first place.
    package func settingLeading(_ key: String, _ value: String) -> OptionText {
        var rest = removing([key]).pairs
        if !isJSON, let first = rest.first, first.value == nil { rest.removeFirst() }
        return OptionText([Pair(value)] + rest)
    }

    /// As it is written on a command line.
    package var text: String {
        if isJSON { return JSONValue.object(object).json }
        return pairs.map { pair in
            let key = pair.key.replacingCommas
            return pair.value.map { "\(key)=\($0.replacingCommas)" } ?? key
        }.joined(separator: ",")
    }
}

extension String {
    fileprivate var replacingCommas: String {
        split(separator: ",", omittingEmptySubsequences: false).joined(separator: ",,")
    }
}
