/// Which field layout a saved state has. Device state of QEMU's `virt` machine exists in three; the native one is
/// QEMU 10.0's plus subsections of our own for what that layout cannot carry.
package enum StateLayout: String, Hashable, Sendable, CaseIterable {
    case native = "sidestep"
    case qemu7_2 = "qemu-7.2"
    case qemu10_0 = "qemu-10.0"
    case qemu11_1 = "qemu-11.1"
}

/// Why a state could not be taken.
package enum StateError: Error, Hashable, Sendable, CustomStringConvertible {
    /// A field holds a value the component could not have reached.
    case invalid(component: String, field: String, value: String)
    /// The state's version is outside what is understood.
    case version(component: String, found: UInt32, supported: ClosedRange<UInt32>)
    /// A subsection that nobody here knows.
    case unknownSubsection(component: String, name: String)
    /// The saved bytes end or go wrong; `offset` counts from the start of the stream.
    case malformed(component: String, reason: String, offset: UInt64)
    /// Understood, but this machine does not have it.
    case unsupported(component: String, reason: String)

    package var description: String {
        switch self {
        case .invalid(let component, let field, let value): "\(component): field \(field) cannot be \(value)"
        case .version(let component, let found, let supported):
            "\(component): version \(found) is not between \(supported.lowerBound) and \(supported.upperBound)"
        case .unknownSubsection(let component, let name): "\(component): unknown subsection \(name)"
        case .malformed(let component, let reason, let offset): "\(component): \(reason) at byte \(offset)"
        case .unsupported(let component, let reason): "\(component): \(reason)"
        }
    }
}

/// What a component calls for each field of its state, in wire order, once for both directions: an encoder reads the
/// values, a decoder replaces them. Components know neither bytes nor streams.
///
/// Widths are those on the wire; names are QEMU's, because they appear in the stream's self-description.
package protocol StateCoder {
    var layout: StateLayout { get }
    /// True when values are being replaced by what was saved.
    var isDecoding: Bool { get }
    /// Version of the component's state being read or written.
    var version: UInt32 { get }
    /// Name for errors.
    var component: String { get }

    mutating func uint8(_ name: String, _ value: inout UInt8) throws(StateError)
    mutating func uint16(_ name: String, _ value: inout UInt16) throws(StateError)
    mutating func uint32(_ name: String, _ value: inout UInt32) throws(StateError)
    mutating func uint64(_ name: String, _ value: inout UInt64) throws(StateError)
    mutating func int32(_ name: String, _ value: inout Int32) throws(StateError)
    mutating func int64(_ name: String, _ value: inout Int64) throws(StateError)
    mutating func bool(_ name: String, _ value: inout Bool) throws(StateError)
    /// Raw bytes; the count is that of `bytes` and does not change.
    mutating func buffer(_ name: String, _ bytes: inout [UInt8]) throws(StateError)
    /// Arrays of a known count; the count is that of `values` and does not change.
    mutating func uint8Array(_ name: String, _ values: inout [UInt8]) throws(StateError)
    mutating func uint16Array(_ name: String, _ values: inout [UInt16]) throws(StateError)
    mutating func uint32Array(_ name: String, _ values: inout [UInt32]) throws(StateError)
    mutating func uint64Array(_ name: String, _ values: inout [UInt64]) throws(StateError)
    /// An expiry in nanoseconds of virtual time; nil (all ones on the wire) is a timer that is not armed.
    mutating func timer(_ name: String, _ expiry: inout Int64?) throws(StateError)
    /// Bytes that mean nothing: zero when written, ignored when read.
    mutating func unused(_ byteCount: Int) throws(StateError)
    /// A nested structure: no header on the wire, a level of its own in the self-description.
    mutating func structure(
        _ name: String, type: String, version: UInt32, _ body: (inout any StateCoder) throws(StateError) -> Void
    ) throws(StateError)
    /// An array of nested structures, back to back. `count` is known to both sides from elsewhere.
    mutating func structures(
        _ name: String, type: String, version: UInt32, count: Int,
        _ body: (inout any StateCoder, _ index: Int) throws(StateError) -> Void
    ) throws(StateError)
    /// A list whose length is on the wire (QEMU's qtailq): a mark before each element, another at the end. When
    /// decoding, `body` is called once per element received, at most `countMax` times, and `count` is what was found.
    mutating func list(
        _ name: String, type: String, version: UInt32, count: inout Int, countMax: Int,
        _ body: (inout any StateCoder, _ index: Int) throws(StateError) -> Void
    ) throws(StateError)
    /// Fields whose layout only the component's code knows: one entry of the type named, without parts, in the
    /// self-description (QEMU's `virtio`, `pci config`).
    mutating func opaque(
        _ name: String, type: String, _ body: (inout any StateCoder) throws(StateError) -> Void
    ) throws(StateError)
    /// The optional parts that follow the fields. Called at most once, last. A decoder takes them in any order,
    /// refuses names not listed here, and leaves what is missing as it was.
    mutating func subsections(_ list: [Subsection]) throws(StateError)
}

extension StateCoder {
    package mutating func structures(
        _ name: String, type: String, version: UInt32, count: Int,
        _ body: (inout any StateCoder, _ index: Int) throws(StateError) -> Void
    ) throws(StateError) {
        for index in 0..<count {
            try structure("\(name)[\(index)]", type: type, version: version) {
                (coder: inout any StateCoder) throws(StateError) in try body(&coder, index)
            }
        }
    }

    package mutating func list(
        _ name: String, type: String, version: UInt32, count: inout Int, countMax: Int,
        _ body: (inout any StateCoder, _ index: Int) throws(StateError) -> Void
    ) throws(StateError) {
        var index = 0
        while true {
            var mark: UInt8 = index < count ? 1 : 0
            try uint8("\(name).mark", &mark)
            guard mark <= 1, mark == 0 || index < countMax else {
                throw .invalid(component: component, field: name, value: "a list of more than \(countMax)")
            }
            if mark == 0 { break }
            let element = index
            try structure("\(name)[\(index)]", type: type, version: version) {
                (coder: inout any StateCoder) throws(StateError) in try body(&coder, element)
            }
            index += 1
        }
        count = index
    }

    package mutating func opaque(
        _ name: String, type: String, _ body: (inout any StateCoder) throws(StateError) -> Void
    ) throws(StateError) {
        try structure(name, type: type, version: version, body)
    }

    /// A value that must be the same on both sides, such as a number of queues.
    package mutating func uint32Equal(_ name: String, _ value: UInt32) throws(StateError) {
        var found = value
        try uint32(name, &found)
        try require(name, found, value)
    }

    package mutating func int32Equal(_ name: String, _ value: Int32) throws(StateError) {
        var found = value
        try int32(name, &found)
        try require(name, found, value)
    }

    private func require<Value: BinaryInteger>(_ name: String, _ found: Value, _ value: Value) throws(StateError) {
        guard found == value else {
            throw .invalid(component: component, field: name, value: "\(found), it is \(value) here")
        }
    }
}

/// An optional part of a component's state.
package struct Subsection {
    /// Full name, beginning with the parent's: `serial/recv_fifo`.
    package var name: String
    package var version: UInt32
    /// Whether to write it; ignored when reading.
    package var isNeeded: Bool
    package var body: (inout any StateCoder) throws(StateError) -> Void

    package init(
        _ name: String, version: UInt32 = 1, isNeeded: Bool,
        _ body: @escaping (inout any StateCoder) throws(StateError) -> Void
    ) {
        self.name = name
        self.version = version
        self.isNeeded = isNeeded
        self.body = body
    }
}

/// A component whose state travels. All methods are called with the machine paused.
package protocol StatefulComponent: AnyObject, Sendable {
    /// Section name on the wire, as QEMU's: `serial`, `virtio-mmio@0000000010008000/virtio-blk`.
    var sectionName: String { get }
    /// Tells components of the same name apart; from 0.
    var instance: UInt32 { get }
    /// Version to write for a layout; nil means that layout has no such section.
    func sectionVersion(for layout: StateLayout) -> UInt32?
    /// Versions that can be read.
    var readableVersions: ClosedRange<UInt32> { get }
    /// Runs every field through the coder. When decoding, nothing may take effect until all fields were read and judged.
    func codeState(with coder: inout any StateCoder) throws(StateError)
    /// What a section that is read and never written holds, for the user who may miss it; nil for all others.
    var surplus: String? { get }
    /// Whether the state may also be coded while the guest runs, each time as it is in one moment, and decoded whatever other
    /// components hold. Then it can go ahead to another process, and only what has changed since is part of the guest's pause.
    var canGoAhead: Bool { get }
}

extension StatefulComponent {
    package var surplus: String? { nil }
    package var canGoAhead: Bool { false }
}
