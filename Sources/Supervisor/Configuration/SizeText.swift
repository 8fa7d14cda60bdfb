/// Sizes as people write them: `512M`, `1G`, `4096`, `0x1000`. K, M, G and T are powers of 1024; a trailing `iB` or `B` is
/// accepted.
package enum SizeText {
    /// Bytes, or nil when the text is no size or does not fit.
    package static func parse(_ text: String) -> UInt64? {
        var digits = Substring(text)
        for suffix in ["iB", "ib", "B", "b"] where digits.hasSuffix(suffix) && digits.count > suffix.count {
            digits = digits.dropLast(suffix.count)
            break
        }
        var shift: UInt64 = 0
        switch digits.last {
        case "K", "k": shift = 10
        case "M", "m": shift = 20
        case "G", "g": shift = 30
        case "T", "t": shift = 40
        default: break
        }
        if shift > 0 { digits = digits.dropLast() }
        let isHexadecimal = shift == 0 && (text.hasPrefix("0x") || text.hasPrefix("0X"))
        let number = isHexadecimal ? UInt64(text.dropFirst(2), radix: 16) : UInt64(digits)
        guard let number, digits.first != "+" else { return nil }
        let (result, overflow) = number.multipliedReportingOverflow(by: 1 << shift)
        return overflow ? nil : result
    }

    /// The shortest exact form: `512M`, `1536K`, `1000`.
    package static func format(_ byteCount: UInt64) -> String {
        for (shift, unit) in [(UInt64(40), "T"), (30, "G"), (20, "M"), (10, "K")]
        where byteCount >= 1 << shift && byteCount % (1 << shift) == 0 {
            return "\(byteCount >> shift)\(unit)"
        }
        return "\(byteCount)"
    }
}
