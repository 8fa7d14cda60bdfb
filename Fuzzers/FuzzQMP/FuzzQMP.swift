import QMPProtocol

/// A client's bytes, in two pieces: what the first byte says is where they are cut.
///
/// The answers must not depend on the cut, nor on a successor that goes on in the middle; what is a value must come back when
/// written; and a type must be able to judge any arguments.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let bytes = unsafe [UInt8](UnsafeBufferPointer(start: start, count: count))
    guard let first = bytes.first else { return 0 }
    let input = Array(bytes.dropFirst())
    let cut = min(input.count, Int(first) * max(1, input.count / 256))
    var limits = JSONLimits()
    limits.byteCount = 1 << 12
    limits.nesting = 16
    limits.tokens = 256

    func take(_ session: inout QMPSession) -> [QMPSession.Action] {
        var actions: [QMPSession.Action] = []
        while let action = session.next() { actions.append(action) }
        return actions
    }
    var whole = QMPSession(limits: limits)
    whole.append(input)
    let expected = take(&whole)

    var pieces = QMPSession(limits: limits)
    pieces.append(input[..<cut])
    var actions = take(&pieces)
    var successor = QMPSession(resuming: pieces.saved, limits: limits)
    pieces.append(input[cut...])
    let rest = take(&pieces)
    successor.append(input[cut...])
    precondition(take(&successor) == rest, "a successor answers otherwise")
    actions += rest
    precondition(actions == expected, "the answers depend on where the input is cut")

    for action in expected {
        switch action {
        case .reply(let line):
            precondition(line.suffix(2) == [0x0D, 0x0A], "a reply is no line")
            precondition((try? JSONValue.parse(line)) != nil, "a reply is no JSON")
        case .execute(let command):
            let value = JSONValue.object(command.arguments)
            precondition((try? JSONValue.parse(value.jsonBytes)) == value, "arguments do not come back")
            judge(command.arguments)
        }
    }
    return 0
}

private func judge(_ arguments: JSONObject) {
    let word = QMPType.enumeration("Word", ["a", "b"])
    let type = QMPType.object(
        "Arguments",
        [
            .optional("uri", .string), .optional("a", .unsigned(bits: 8)), .optional("b", .unsigned(bits: 64)),
            .optional(
                "list",
                .array(of: .union("Union", tag: .required("type", word), ["a": .object("A", [.required("x", .any)])]))),
            .optional("either", .alternate("Either", [.null, .string, .array(of: .integer)])),
        ])
    do throws(QMPError) { try type.check(arguments: arguments) } catch {
        precondition(!error.description.isEmpty)
    }
}
