package import LinuxCalls

/// A descriptor with the name under which the other side looks for it: `disk:0`, `console.listener`.
package struct NamedDescriptor: Sendable {
    package var name: String
    package var descriptor: OwnedDescriptor

    package init(_ name: String, _ descriptor: OwnedDescriptor) {
        self.name = name
        self.descriptor = descriptor
    }
}

/// What the destination must build before the guest is paused.
package struct HandoverDescription: Sendable {
    package struct Block: Sendable {
        package var name: String
        package var byteCount: Int
        /// The memory itself, when it crosses by descriptor.
        package var file: OwnedDescriptor?
        /// The file has a name, and whoever knows it can change its size: the guest was started on these terms.
        package var isNamed = false

        package init(name: String, byteCount: Int, file: OwnedDescriptor?, isNamed: Bool = false) {
            self.name = name
            self.byteCount = byteCount
            self.file = file
            self.isNamed = isNamed
        }
    }

    /// The effective configuration; opaque here.
    package var configuration: [UInt8]
    package var blocks: [Block]
    /// Descriptors that last as long as the guest.
    package var resources: [NamedDescriptor]

    package init(configuration: [UInt8], blocks: [Block], resources: [NamedDescriptor]) {
        self.configuration = configuration
        self.blocks = blocks
        self.resources = resources
    }
}

/// What was written down while the guest was paused.
package struct HandoverState: Sendable {
    /// The saved state; opaque here.
    package var bytes: [UInt8]
    /// Descriptors that come and go while the guest runs: attached clients.
    package var resources: [NamedDescriptor]

    package init(bytes: [UInt8], resources: [NamedDescriptor] = []) {
        self.bytes = bytes
        self.resources = resources
    }
}

/// Length-prefixed fields, big-endian. What comes from the peer is judged as it is read.
struct ContentsWriter {
    private(set) var bytes: [UInt8] = []

    mutating func integer(_ value: UInt64) {
        for shift in stride(from: 56, through: 0, by: -8) {
            bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(shift)))
        }
    }
    mutating func blob(_ value: [UInt8]) {
        integer(UInt64(value.count))
        bytes += value
    }
    mutating func text(_ value: String) { blob(Array(value.utf8)) }
}

struct ContentsReader {
    private let bytes: [UInt8]
    private var offset = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    var isAtEnd: Bool { offset == bytes.count }

    mutating func integer() throws(HandoverError) -> UInt64 {
        guard bytes.count - offset >= 8 else { throw HandoverError(.malformed, "the contents end at byte \(offset)") }
        defer { offset += 8 }
        return bytes[offset..<(offset + 8)].reduce(0) { $0 << 8 | UInt64($1) }
    }
    /// A count of things of at least `byteCountMin` bytes each, so that it cannot promise more than is there.
    mutating func count(of byteCountMin: Int) throws(HandoverError) -> Int {
        let start = offset
        let value = try integer()
        guard value <= UInt64((bytes.count - offset) / byteCountMin) else {
            throw HandoverError(.malformed, "a count of \(value) at byte \(start) is more than what follows")
        }
        return Int(value)
    }
    mutating func blob() throws(HandoverError) -> [UInt8] {
        let count = try count(of: 1)
        defer { offset += count }
        return Array(bytes[offset..<(offset + count)])
    }
    mutating func text() throws(HandoverError) -> String {
        let start = offset
        guard let text = String(validating: try blob(), as: UTF8.self) else {
            throw HandoverError(.malformed, "the text at byte \(start) is not UTF-8")
        }
        return text
    }
}

/// How a block is described whose file has a name; 1 is one without, 0 none at all.
private let namedFile: UInt64 = 2

extension HandoverDescription {
    func frame(word: OwnershipWord) -> HandoverFrame {
        var writer = ContentsWriter()
        var descriptors = [word.file]
        writer.blob(configuration)
        writer.integer(UInt64(blocks.count))
        for block in blocks {
            writer.text(block.name)
            writer.integer(UInt64(block.byteCount))
            writer.integer(block.file == nil ? 0 : block.isNamed ? namedFile : 1)
            if let file = block.file { descriptors.append(file) }
        }
        writer.integer(UInt64(resources.count))
        for resource in resources {
            writer.text(resource.name)
            descriptors.append(resource.descriptor)
        }
        return HandoverFrame(.description, payload: writer.bytes, descriptors: descriptors)
    }

    /// Takes a description apart; every memory file is judged.
    static func take(_ frame: HandoverFrame) throws(HandoverError) -> (HandoverDescription, OwnershipWord) {
        var reader = ContentsReader(frame.payload)
        var descriptors = frame.descriptors[...]
        guard let wordFile = descriptors.popFirst() else {
            throw HandoverError(.malformed, "the ownership word is missing")
        }
        let word = try OwnershipWord(adopting: wordFile)
        let configuration = try reader.blob()
        var blocks: [Block] = []
        for _ in 0..<(try reader.count(of: 24)) {
            let name = try reader.text()
            let byteCount = try reader.integer()
            guard byteCount > 0, byteCount <= 1 << 46, byteCount % UInt64(hostPageSize) == 0 else {
                throw HandoverError(.malformed, "\(name): a block of \(byteCount) bytes cannot be")
            }
            guard !blocks.contains(where: { $0.name == name }) else {
                throw HandoverError(.malformed, "\(name): this block is described twice")
            }
            var file: OwnedDescriptor?
            let kind = try reader.integer()
            if kind != 0 {
                guard let next = descriptors.popFirst() else {
                    throw HandoverError(.malformed, "\(name): its memory file is missing")
                }
                try ReceivedMemory.judge(next, byteCount: Int(byteCount), name: name, needsSeal: kind != namedFile)
                file = next
            }
            blocks.append(Block(name: name, byteCount: Int(byteCount), file: file, isNamed: kind == namedFile))
        }
        let resources = try NamedDescriptor.take(from: &reader, &descriptors)
        guard reader.isAtEnd, descriptors.isEmpty else {
            throw HandoverError(.malformed, "\(descriptors.count) descriptors came that nothing names")
        }
        return (HandoverDescription(configuration: configuration, blocks: blocks, resources: resources), word)
    }
}

extension NamedDescriptor {
    static func take(from reader: inout ContentsReader, _ descriptors: inout ArraySlice<OwnedDescriptor>)
        throws(HandoverError) -> [NamedDescriptor]
    {
        var resources: [NamedDescriptor] = []
        for _ in 0..<(try reader.count(of: 8)) {
            let name = try reader.text()
            guard let next = descriptors.popFirst() else {
                throw HandoverError(.malformed, "\(name): its descriptor is missing")
            }
            resources.append(NamedDescriptor(name, next))
        }
        return resources
    }
}

extension HandoverState {
    /// - Parameter times: What the source knows so far, for the destination's report.
    func frame(_ kind: HandoverFrame.Kind, times: HandoverTimes) -> HandoverFrame {
        var writer = ContentsWriter()
        for time in times.sourcePart { writer.integer(UInt64(bitPattern: time)) }
        writer.blob(bytes)
        writer.integer(UInt64(resources.count))
        for resource in resources { writer.text(resource.name) }
        return HandoverFrame(kind, payload: writer.bytes, descriptors: resources.map(\.descriptor))
    }

    static func take(_ frame: HandoverFrame, times: inout HandoverTimes) throws(HandoverError) -> HandoverState {
        var reader = ContentsReader(frame.payload)
        var part: [Int64] = []
        for _ in times.sourcePart { part.append(Int64(bitPattern: try reader.integer())) }
        times.sourcePart = part
        var descriptors = frame.descriptors[...]
        let bytes = try reader.blob()
        let resources = try NamedDescriptor.take(from: &reader, &descriptors)
        guard reader.isAtEnd, descriptors.isEmpty else {
            throw HandoverError(.malformed, "\(descriptors.count) descriptors came that nothing names")
        }
        return HandoverState(bytes: bytes, resources: resources)
    }
}
