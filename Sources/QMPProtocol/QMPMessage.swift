/// The version that the greeting and `query-version` tell.
package struct QMPVersion: Hashable, Sendable {
    package var major: Int
    package var minor: Int
    package var micro: Int
    package var package: String

    package init(major: Int, minor: Int, micro: Int, package: String) {
        self.major = major
        self.minor = minor
        self.micro = micro
        self.package = package
    }

    package var json: JSONValue {
        [
            "qemu": ["micro": JSONValue(micro), "minor": JSONValue(minor), "major": JSONValue(major)],
            "package": .string(package),
        ]
    }
}

/// A command as it arrived, arguments not yet judged.
package struct QMPCommand: Hashable, Sendable {
    package var name: String
    package var arguments: JSONObject
    /// Echoed in the reply.
    package var identifier: JSONValue?
    /// Came as `exec-oob`.
    package var isOutOfBand = false

    package init(name: String, arguments: JSONObject = [:], identifier: JSONValue? = nil, isOutOfBand: Bool = false) {
        self.name = name
        self.arguments = arguments
        self.identifier = identifier
        self.isOutOfBand = isOutOfBand
    }

    /// The line a client sends.
    package var line: [UInt8] {
        var message: JSONObject = ["execute": .string(name)]
        if !arguments.isEmpty { message["arguments"] = .object(arguments) }
        if let identifier { message["id"] = identifier }
        return QMPMessage.line(.object(message))
    }
}

/// Something that happened, told to every client that has negotiated.
package struct QMPEvent: Hashable, Sendable {
    package var name: String
    package var data: JSONObject?
    /// Since 1970, in microseconds.
    package var microseconds: Int64

    package init(name: String, data: JSONObject? = nil, microseconds: Int64) {
        self.name = name
        self.data = data
        self.microseconds = microseconds
    }

    package var line: [UInt8] {
        var message: JSONObject = [
            "timestamp": [
                "seconds": .integer(microseconds / 1_000_000), "microseconds": .integer(microseconds % 1_000_000),
            ],
            "event": .string(name),
        ]
        if let data { message["data"] = .object(data) }
        return QMPMessage.line(.object(message))
    }
}

/// Messages of the server as lines, and what a client reads.
package enum QMPMessage: Hashable, Sendable {
    case greeting(JSONObject)
    case result(JSONValue, identifier: JSONValue?)
    case failure(QMPError, identifier: JSONValue?)
    case event(QMPEvent)

    /// One JSON value and CR LF, as QEMU ends its lines.
    package static func line(_ message: JSONValue) -> [UInt8] { message.jsonBytes + [0x0D, 0x0A] }

    package static func greetingLine(_ version: QMPVersion, capabilities: [String]) -> [UInt8] {
        line(["QMP": ["version": version.json, "capabilities": .array(capabilities.map { .string($0) })]])
    }

    package static func resultLine(_ result: JSONValue, identifier: JSONValue?) -> [UInt8] {
        var message: JSONObject = ["return": result]
        message["id"] = identifier
        return line(.object(message))
    }

    package static func failureLine(_ error: QMPError, identifier: JSONValue?) -> [UInt8] {
        var message: JSONObject = [
            "error": ["class": .string(error.errorClass.rawValue), "desc": .string(error.description)]
        ]
        message["id"] = identifier
        return line(.object(message))
    }

    /// Reads what a server sent. Nil for something that is no QMP message.
    package init?(_ value: JSONValue) {
        guard let object = value.objectValue else { return nil }
        if let greeting = object["QMP"]?.objectValue {
            self = .greeting(greeting)
        } else if let result = object["return"] {
            self = .result(result, identifier: object["id"])
        } else if let error = object["error"]?.objectValue {
            self = .failure(
                QMPError(
                    error["desc"]?.stringValue ?? "no description",
                    class: error["class"]?.stringValue.flatMap(QMPError.Class.init(rawValue:)) ?? .generic),
                identifier: object["id"])
        } else if let name = object["event"]?.stringValue {
            let stamp = object["timestamp"]
            let seconds = stamp?["seconds"]?.integerValue ?? 0
            self = .event(
                QMPEvent(
                    name: name, data: object["data"]?.objectValue,
                    microseconds: seconds &* 1_000_000 &+ (stamp?["microseconds"]?.integerValue ?? 0)))
        } else {
            return nil
        }
    }
}
