import ComponentState

/// A bounded queue of bytes, kept as it appears in saved state: a ring with the index of its first byte and a count.
struct ByteFIFO: Sendable {
    private(set) var data: [UInt8]
    private(set) var head: Int = 0
    private(set) var count: Int = 0

    init(capacity: Int) { data = Array(repeating: 0, count: capacity) }

    var capacity: Int { data.count }
    var isEmpty: Bool { count == 0 }
    var isFull: Bool { count == capacity }

    /// The caller has made sure that there is room.
    mutating func push(_ byte: UInt8) {
        precondition(!isFull)
        data[(head + count) % capacity] = byte
        count += 1
    }

    /// Nil when empty.
    mutating func pop() -> UInt8? {
        guard count > 0 else { return nil }
        let byte = data[head]
        head = (head + 1) % capacity
        count -= 1
        return byte
    }

    mutating func removeAll() {
        head = 0
        count = 0
    }

    /// QEMU's `Fifo8`. A decoded ring is judged before it is used.
    mutating func codeState(_ name: String, with coder: inout any StateCoder) throws(StateError) {
        var decoded = self
        try coder.structure(name, type: "Fifo8", version: 1) { coder throws(StateError) in
            var head = UInt32(decoded.head)
            var count = UInt32(decoded.count)
            try coder.buffer("data", &decoded.data)
            try coder.uint32("head", &head)
            try coder.uint32("num", &count)
            guard head < UInt32(decoded.capacity), count <= UInt32(decoded.capacity) else {
                throw .invalid(component: coder.component, field: name, value: "head \(head), \(count) bytes")
            }
            decoded.head = Int(head)
            decoded.count = Int(count)
        }
        self = decoded
    }
}
