/// Finds the commands that a person at a terminal gives to the monitor, not to the guest: C-a and a key, as in QEMU.
/// Bytes in, bytes for the guest and commands out.
struct EscapeParser: Hashable, Sendable {
    enum Command: Hashable, Sendable { case quit, help }

    static let escape: UInt8 = 0x01  // C-a
    /// C-a was typed and its key was not.
    var isEscaped = false

    mutating func parse(_ bytes: [UInt8]) -> (input: [UInt8], commands: [Command]) {
        var input: [UInt8] = []
        var commands: [Command] = []
        for byte in bytes {
            guard isEscaped else {
                if byte == Self.escape { isEscaped = true } else { input.append(byte) }
                continue
            }
            isEscaped = false
            switch byte {
            case UInt8(ascii: "x"), UInt8(ascii: "X"): commands.append(.quit)
            case UInt8(ascii: "h"), UInt8(ascii: "H"), UInt8(ascii: "?"): commands.append(.help)
            case Self.escape: input.append(Self.escape)
            default: break  // no such command: neither the guest's nor ours
            }
        }
        return (input, commands)
    }
}
