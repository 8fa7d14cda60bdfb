/// Bytes written as hexadecimal digits; blanks are for reading, text in quotes stands for itself.
func hex(_ text: String) -> [UInt8] {
    var bytes: [UInt8] = []
    var high: UInt8?
    var isQuoted = false
    for character in text {
        if character == "\"" {
            isQuoted.toggle()
        } else if isQuoted {
            bytes.append(contentsOf: String(character).utf8)
        } else if let digit = character.hexDigitValue {
            if let upper = high {
                bytes.append(upper << 4 | UInt8(digit))
                high = nil
            } else {
                high = UInt8(digit)
            }
        } else {
            precondition(character.isWhitespace && high == nil, "not hexadecimal: \(text)")
        }
    }
    precondition(high == nil && !isQuoted, "odd digits: \(text)")
    return bytes
}
