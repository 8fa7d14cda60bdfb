import Glibc

/// Cuts a byte stream into Ethernet frames: each is preceded by its length, four bytes, big-endian (QEMU's
/// `-netdev stream`, passt). Bytes in, frames out; no descriptor.
struct FrameStream: Sendable {
    /// Longer frames are a broken peer: 64 KiB of IP and the Ethernet header with VLAN tags.
    static let frameByteCountMaximum = 65_535 + 22
    static let headerByteCount = 4

    private var bytes: [UInt8]
    private var start = 0
    private var end: Int

    init(leftOver: [UInt8] = []) {
        bytes = leftOver + [UInt8](repeating: 0, count: max(0, 2 * Self.frameByteCountMaximum - leftOver.count))
        end = leftOver.count
    }

    /// Bytes that belong to no frame taken yet.
    var leftOver: [UInt8] { Array(bytes[start..<end]) }

    enum Next: Equatable {
        /// Where the next frame is.
        case frame(Range<Int>)
        /// More bytes are needed.
        case incomplete
        /// No frame can be that long.
        case broken(UInt32)
    }

    /// The next frame, which stays until ``consume()``.
    var next: Next {
        guard end - start >= Self.headerByteCount else { return .incomplete }
        let length = bytes[start..<start + 4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        guard length > 0, length <= UInt32(Self.frameByteCountMaximum) else { return .broken(length) }
        guard end - start - Self.headerByteCount >= Int(length) else { return .incomplete }
        return .frame(start + Self.headerByteCount..<start + Self.headerByteCount + Int(length))
    }

    /// Runs `body` with the bytes of a frame.
    func withFrame<Result>(_ range: Range<Int>, _ body: (UnsafeRawBufferPointer) -> Result) -> Result {
        unsafe bytes.withUnsafeBytes { unsafe body(UnsafeRawBufferPointer(rebasing: $0[range])) }
    }

    /// Drops the frame that ``next`` showed.
    mutating func consume() {
        guard case .frame(let range) = next else { return }
        start = range.upperBound
        if start == end {
            start = 0
            end = 0
        }
    }

    /// Lets `body` put bytes behind those that are there; it answers how many, or nil for none.
    mutating func fill(_ body: (UnsafeMutableRawBufferPointer) -> Int?) -> Int? {
        if start > 0, bytes.count - end < Self.frameByteCountMaximum {
            let count = end - start
            unsafe bytes.withUnsafeMutableBytes { unsafe _ = memmove($0.baseAddress!, $0.baseAddress! + start, count) }
            start = 0
            end = count
        }
        let position = end
        let added = unsafe bytes.withUnsafeMutableBytes {
            unsafe body(UnsafeMutableRawBufferPointer(rebasing: $0[position...]))
        }
        if let added { end += added }
        return added
    }
}
