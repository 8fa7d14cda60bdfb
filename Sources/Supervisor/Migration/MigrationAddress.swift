import LinuxCalls
package import QMPProtocol

/// Where a migration goes to or comes from: a URI, or an entry of `channels`.
package enum MigrationAddress: Hashable, Sendable, CustomStringConvertible {
    case unix(String)
    case tcp(host: String, port: UInt16)
    /// A name given to `getfd`, or the number of an inherited descriptor.
    case descriptor(String)
    /// A command and its arguments; a URI's command runs in a shell.
    case exec([String])
    case file(String, offset: UInt64)

    package init(uri: String) throws(QMPError) {
        guard let colon = uri.firstIndex(of: ":") else { throw QMPError("unknown migration protocol: \(uri)") }
        let rest = String(uri[uri.index(after: colon)...])
        switch uri[..<colon] {
        case "unix":
            guard !rest.isEmpty else { throw QMPError("invalid Unix socket address") }
            self = .unix(rest)
        case "tcp":
            guard let last = rest.lastIndex(of: ":"), let port = UInt16(rest[rest.index(after: last)...]) else {
                throw QMPError("error parsing address '\(rest)'")
            }
            var host = String(rest[..<last])
            if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
            self = .tcp(host: host, port: port)
        case "fd":
            guard !rest.isEmpty else { throw QMPError("fd: needs a name or a number") }
            self = .descriptor(rest)
        case "exec": self = .exec(["/bin/sh", "-c", rest])
        case "file":
            var path = rest
            var offset: UInt64 = 0
            if let comma = rest.range(of: ",offset=") {
                path = String(rest[..<comma.lowerBound])
                guard let value = SizeText.parse(String(rest[comma.upperBound...])) else {
                    throw QMPError("file URI has bad offset \(rest[comma.upperBound...])")
                }
                offset = value
            }
            guard !path.isEmpty else { throw QMPError("file: needs a path") }
            self = .file(path, offset: offset)
        default: throw QMPError("unknown migration protocol: \(uri)")
        }
    }

    /// `addr` of a channel.
    init(address: JSONObject) throws(QMPError) {
        switch address["transport"]?.stringValue {
        case "exec":
            let words = (address["args"]?.arrayValue ?? []).compactMap(\.stringValue)
            guard !words.isEmpty else { throw .invalidValue(parameter: "args", expected: "a command") }
            self = .exec(words)
        case "file":
            self = .file(
                address["filename"]?.stringValue ?? "", offset: address["offset"]?.unsignedValue ?? 0)
        default:
            switch address["type"]?.stringValue {
            case "unix": self = .unix(address["path"]?.stringValue ?? "")
            case "inet":
                guard let port = UInt16(address["port"]?.stringValue ?? "") else {
                    throw .invalidValue(parameter: "port", expected: "a port number")
                }
                self = .tcp(host: address["host"]?.stringValue ?? "", port: port)
            case "fd": self = .descriptor(address["str"]?.stringValue ?? "")
            case let type: throw QMPError("migration over '\(type ?? "nothing")' is not supported")
            }
        }
    }

    package var description: String {
        switch self {
        case .unix(let path): "unix:\(path)"
        case .tcp(let host, let port): "tcp:\(host.contains(":") ? "[\(host)]" : host):\(port)"
        case .descriptor(let name): "fd:\(name)"
        case .exec(let words): "exec:\(words.joined(separator: " "))"
        case .file(let path, let offset): offset == 0 ? "file:\(path)" : "file:\(path),offset=\(offset)"
        }
    }

    /// `addr` of a channel.
    var json: JSONObject {
        switch self {
        case .unix(let path): ["transport": "socket", "type": "unix", "path": .string(path)]
        case .tcp(let host, let port):
            ["transport": "socket", "type": "inet", "host": .string(host), "port": .string(String(port))]
        case .descriptor(let name): ["transport": "socket", "type": "fd", "str": .string(name)]
        case .exec(let words): ["transport": "exec", "args": .array(words.map { .string($0) })]
        case .file(let path, let offset):
            ["transport": "file", "filename": .string(path), "offset": JSONValue(offset)]
        }
    }

    /// As `query-migrate` tells a listening socket.
    var socketAddress: JSONValue? {
        switch self {
        case .unix(let path): ["type": "unix", "path": .string(path)]
        case .tcp(let host, let port): ["type": "inet", "host": .string(host), "port": .string(String(port))]
        default: nil
        }
    }
}

extension String {
    /// First occurrence of a text.
    fileprivate func range(of text: String) -> Range<String.Index>? {
        var start = startIndex
        while start < endIndex {
            if self[start...].hasPrefix(text) { return start..<index(start, offsetBy: text.count) }
            start = index(after: start)
        }
        return nil
    }
}
