/// Writes integers, byte strings and texts one after another, big-endian: what goes to another process beside the
/// migration stream, and fields that only a component's own code knows.
///
/// It is used while a guest stands still: everything is copied as a whole.
package struct ByteWriter {
    package private(set) var bytes: [UInt8] = []

    /// - Parameter capacity: Bytes to hold without growing.
    package init(capacity: Int = 0) { bytes.reserveCapacity(capacity) }

    package mutating func integer<Value: FixedWidthInteger & BitwiseCopyable>(_ value: Value) {
        unsafe withUnsafeBytes(of: value.bigEndian) { unsafe bytes.append(contentsOf: $0) }
    }

    /// One byte, 0 or 1.
    package mutating func flag(_ value: Bool) { bytes.append(value ? 1 : 0) }

    /// Bytes whose count the reader knows.
    package mutating func raw(_ value: some Collection<UInt8>) { bytes.append(contentsOf: value) }

    /// A count, then that many bytes.
    package mutating func blob(_ value: [UInt8]) {
        integer(UInt64(value.count))
        bytes.append(contentsOf: value)
    }

    /// A count, then a text of that many bytes of UTF-8.
    /// - Parameter Count: How the count is written; it must fit.
    package mutating func text<Count: FixedWidthInteger & BitwiseCopyable>(
        _ value: String, countedBy _: Count.Type = UInt64.self
    ) {
        integer(Count(value.utf8.count))
        bytes.append(contentsOf: value.utf8)
    }

    /// Bytes of zero, as many as are missing to `byteCount` in all.
    package mutating func pad(to byteCount: Int) {
        bytes.append(contentsOf: repeatElement(0, count: byteCount - bytes.count))
    }
}
