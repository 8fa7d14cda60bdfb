import DeviceModel

/// Writes what a backend remembers: a version, then numbers and byte strings in a fixed order.
struct HandoverWriter {
    private(set) var bytes: [UInt8]

    init(version: UInt8 = 1) { bytes = [version] }

    mutating func put(_ value: UInt64) {
        for shift in stride(from: 56, through: 0, by: -8) {
            bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(shift)))
        }
    }
    mutating func put(_ value: Bool) { bytes.append(value ? 1 : 0) }
    mutating func put(_ string: [UInt8]) {
        put(UInt64(string.count))
        bytes += string
    }
    mutating func put(_ string: String) { put(Array(string.utf8)) }
}

/// Reads it. The other process may be of another version, or broken: everything is judged.
struct HandoverReader {
    private var bytes: ArraySlice<UInt8>
    private let kind: String

    init(_ handover: BackendHandover, versions: ClosedRange<UInt8> = 1...1) throws(BackendError) {
        kind = handover.kind
        bytes = handover.state[...]
        guard let version = bytes.popFirst(), versions.contains(version) else {
            throw BackendError(
                errorNumber: 0, "hand-over state of a \(kind) backend in a version that is not understood")
        }
    }

    private var failure: BackendError {
        BackendError(errorNumber: 0, "hand-over state of a \(kind) backend is damaged")
    }

    mutating func number() throws(BackendError) -> UInt64 {
        guard bytes.count >= 8 else { throw failure }
        defer { bytes = bytes.dropFirst(8) }
        return bytes.prefix(8).reduce(0) { $0 << 8 | UInt64($1) }
    }

    mutating func flag() throws(BackendError) -> Bool {
        guard let byte = bytes.popFirst(), byte <= 1 else { throw failure }
        return byte == 1
    }

    mutating func string() throws(BackendError) -> [UInt8] {
        let count = try number()
        guard count <= UInt64(bytes.count) else { throw failure }
        defer { bytes = bytes.dropFirst(Int(count)) }
        return Array(bytes.prefix(Int(count)))
    }

    mutating func text() throws(BackendError) -> String { String(decoding: try string(), as: UTF8.self) }

    /// To be called last: nothing may be left.
    func finish() throws(BackendError) { guard bytes.isEmpty else { throw failure } }
}
