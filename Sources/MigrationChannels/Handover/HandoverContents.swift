import ComponentState
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

/// What goes ahead of a paused guest's state, to be loaded meanwhile.
package enum HandoverPart: Sendable {
    /// Opaque here.
    case plain([UInt8])
    /// The same with descriptors. Only where the destination's version of the state has it.
    case withDescriptors(HandoverState)
}

extension HandoverPart {
    func frame(times: HandoverTimes) -> HandoverFrame {
        switch self {
        case .plain(let bytes): HandoverFrame(.part, payload: bytes)
        case .withDescriptors(let state): state.frame(.early, times: times)
        }
    }

    /// Nil when the frame is none of them.
    static func take(_ frame: HandoverFrame) throws(HandoverError) -> HandoverPart? {
        switch frame.kind {
        case .part: return .plain(frame.payload)
        case .early:
            var times = HandoverTimes()
            return .withDescriptors(try HandoverState.take(frame, times: &times))
        default: return nil
        }
    }
}

extension ByteReader where Failure == HandoverError {
    /// What a frame holds.
    init(_ payload: [UInt8]) { self.init(payload) { HandoverError(.malformed, "a frame is damaged: \($0)") } }
}

/// How a block is described whose file has a name; 1 is one without, 0 none at all.
private let namedFile: UInt64 = 2

extension HandoverDescription {
    func frame(word: OwnershipWord) -> HandoverFrame {
        var writer = ByteWriter(capacity: configuration.count + 64 * (blocks.count + resources.count + 1))
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
        var reader = ByteReader(frame.payload)
        var descriptors = frame.descriptors[...]
        guard let wordFile = descriptors.popFirst() else {
            throw HandoverError(.malformed, "the ownership word is missing")
        }
        let word = try OwnershipWord(adopting: wordFile)
        let configuration = try reader.blob()
        var blocks: [Block] = []
        for _ in 0..<(try reader.count(of: 24)) {
            let name = try reader.text()
            let byteCount: UInt64 = try reader.integer()
            guard byteCount > 0, byteCount <= 1 << 46, byteCount % UInt64(hostPageSize) == 0 else {
                throw HandoverError(.malformed, "\(name): a block of \(byteCount) bytes cannot be")
            }
            guard !blocks.contains(where: { $0.name == name }) else {
                throw HandoverError(.malformed, "\(name): this block is described twice")
            }
            var file: OwnedDescriptor?
            let kind: UInt64 = try reader.integer()
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
        try reader.finish()
        guard descriptors.isEmpty else {
            throw HandoverError(.malformed, "\(descriptors.count) descriptors came that nothing names")
        }
        return (HandoverDescription(configuration: configuration, blocks: blocks, resources: resources), word)
    }
}

extension NamedDescriptor {
    static func take(from reader: inout ByteReader<HandoverError>, _ descriptors: inout ArraySlice<OwnedDescriptor>)
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
        var writer = ByteWriter(capacity: bytes.count + 64 * (resources.count + 2))
        for time in times.sourcePart { writer.integer(time) }
        writer.blob(bytes)
        writer.integer(UInt64(resources.count))
        for resource in resources { writer.text(resource.name) }
        return HandoverFrame(kind, payload: writer.bytes, descriptors: resources.map(\.descriptor))
    }

    static func take(_ frame: HandoverFrame, times: inout HandoverTimes) throws(HandoverError) -> HandoverState {
        var reader = ByteReader(frame.payload)
        var part: [Int64] = []
        for _ in times.sourcePart { part.append(try reader.integer()) }
        times.sourcePart = part
        var descriptors = frame.descriptors[...]
        let bytes = try reader.blob()
        let resources = try NamedDescriptor.take(from: &reader, &descriptors)
        try reader.finish()
        guard descriptors.isEmpty else {
            throw HandoverError(.malformed, "\(descriptors.count) descriptors came that nothing names")
        }
        return HandoverState(bytes: bytes, resources: resources)
    }
}
