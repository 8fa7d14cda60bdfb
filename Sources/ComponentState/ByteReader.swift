/// Reads what a ``ByteWriter`` wrote. It may come from outside: everything is judged before it is used, and what is wrong
/// is said in the words and the type of the reader's user.
package struct ByteReader<Failure: Error> {
    private let bytes: [UInt8]
    private var offset = 0
    private let failure: (_ reason: String) -> Failure

    /// - Parameter failure: Makes the error from what is wrong with the bytes: `cut short at byte 12`.
    package init(_ bytes: [UInt8], failure: @escaping (_ reason: String) -> Failure) {
        self.bytes = bytes
        self.failure = failure
    }

    package var isAtEnd: Bool { offset == bytes.count }

    package mutating func integer<Value: FixedWidthInteger & BitwiseCopyable>(
        as _: Value.Type = Value.self
    ) throws(Failure) -> Value {
        let start = offset
        try skip(MemoryLayout<Value>.size)
        return unsafe bytes.withUnsafeBytes {
            Value(bigEndian: unsafe $0.loadUnaligned(fromByteOffset: start, as: Value.self))
        }
    }

    package mutating func flag() throws(Failure) -> Bool {
        let byte = try integer(as: UInt8.self)
        guard byte <= 1 else { throw failure("byte \(offset - 1) is neither 0 nor 1") }
        return byte == 1
    }

    /// A count of things of at least `byteCountMin` bytes each, so that it cannot promise more than is there.
    package mutating func count<Count: FixedWidthInteger & BitwiseCopyable>(
        of byteCountMin: Int, countedBy _: Count.Type = UInt64.self
    ) throws(Failure) -> Int {
        let start = offset
        let value: Count = try integer()
        guard let count = Int(exactly: value), count >= 0, count <= (bytes.count - offset) / byteCountMin else {
            throw failure("a count of \(value) at byte \(start) is more than what follows")
        }
        return count
    }

    package mutating func blob() throws(Failure) -> [UInt8] {
        let start = offset
        let count = try count(of: 1)
        try skip(count)
        return Array(bytes[(start + 8)..<offset])
    }

    package mutating func text<Count: FixedWidthInteger & BitwiseCopyable>(
        countedBy width: Count.Type = UInt64.self
    ) throws(Failure) -> String {
        let count = try count(of: 1, countedBy: width)
        let start = offset
        try skip(count)
        guard let text = String(validating: bytes[start..<offset], as: UTF8.self) else {
            throw failure("the text at byte \(start) is not UTF-8")
        }
        return text
    }

    /// To be called last: nothing may be left.
    package func finish() throws(Failure) {
        guard isAtEnd else { throw failure("something follows at byte \(offset)") }
    }

    private mutating func skip(_ byteCount: Int) throws(Failure) {
        guard byteCount <= bytes.count - offset else { throw failure("cut short at byte \(bytes.count)") }
        offset += byteCount
    }
}
