import QMPProtocol

/// Where `cpr-transfer` crosses: both of its sockets must have names. Everything else crosses by descriptor.
struct MoveChannel {
    let token: String

    var directory: String { "/tmp/\(SourceFacts.privatePrefix)\(token)" }
    /// Device state.
    var main: String { "\(directory)/\(Self.files[0])" }
    /// Descriptors of RAM. The new process listens here before it does anything else.
    var descriptors: String { "\(directory)/\(Self.files[1])" }

    /// Device state on its way to be mended.
    var unmended: String { "\(directory)/\(Self.files[2])" }

    static let files = ["m", "c", "u"]

    private func channel(_ type: String, _ path: String) -> JSONValue {
        ["channel-type": .string(type), "addr": ["transport": "socket", "type": "unix", "path": .string(path)]]
    }

    /// The argument of a second `-incoming`.
    var descriptorsArgument: String { channel("cpr", descriptors).json }

    /// What the source's `migrate` is given.
    func outgoing(mended: Bool) -> JSONValue {
        [channel("main", mended ? unmended : main), channel("cpr", descriptors)]
    }
}
