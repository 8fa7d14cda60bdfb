package import GuestMemory
package import LinuxCalls
package import MigrationEngine
import MigrationStream

/// QEMU's cpr channel: before the main stream opens, the source hands over the files its RAM lies in, each by name with
/// one descriptor. It then waits until the destination hangs up, which says that its main channel is open.
///
/// Source: QEMU 10, docs/devel/migration/CPR.rst ("cpr-transfer mode").
package enum CPRChannel {
    /// A memory file that a source handed over, judged.
    package struct File: Sendable {
        package let name: String
        package let file: OwnedDescriptor
        package let byteCount: Int
        /// Nobody can shrink it under whoever maps it. QEMU seals what a memory backend made, and nothing else.
        package let isSealed: Bool
    }

    // MARK: Source

    /// Hands over the file of each block and returns when the destination has hung up.
    /// - Throws: When a block lies in no file, or the destination is gone or silent; nothing of the guest has changed.
    package static func send(_ blocks: [RAMBlock], over transport: DescriptorTransport) throws(MigrationError) {
        let writer = StreamWriter(capacity: 256)
        writer.writeCPR(.header)
        do throws(TransportError) {
            try transport.send(writer.bytes, descriptors: [])
            for block in blocks {
                guard let file = block.file, block.isWhole else {
                    throw .failed(MigrationError(.invalidConfiguration, in: .setup, obstacle(block)))
                }
                let entry = StreamWriter(capacity: 256)
                entry.writeCPR(.descriptor(name: block.name, id: 0))
                // The last byte is the one that the descriptor travels with.
                try transport.send(Array(entry.bytes.dropLast()), descriptors: [])
                try transport.send([entry.bytes[entry.bytes.count - 1]], descriptors: [file])
            }
            let end = StreamWriter(capacity: 4)
            end.writeCPR(.endOfDescriptors)
            try transport.send(end.bytes, descriptors: [])
            try transport.finishSending()
        } catch {
            throw error.migrationError(in: .setup, "handing over the descriptors of RAM")
        }
        let input = StreamInput(transport: transport, capacity: 64)
        try input.fill(minimum: 1)
        guard input.isAtEnd else {
            throw MigrationError(.streamMalformed, in: .setup, "the destination answered on the cpr channel")
        }
    }

    /// Why a block cannot be handed over; nil when it can.
    package static func obstacle(to blocks: [RAMBlock]) -> String? {
        blocks.first { $0.file == nil || !$0.isWhole }.map(obstacle)
    }

    private static func obstacle(_ block: RAMBlock) -> String {
        "RAM block \(block.name) is anonymous memory, which has no descriptor to hand over; start the guest with "
            + "--memory-backend memfd"
    }

    // MARK: Destination

    /// Takes what a source hands over, up to the end of its stream. The channel stays open: whoever closes it lets the
    /// source go on to the main channel.
    package static func receive(from transport: DescriptorTransport) throws(MigrationError) -> [File] {
        let limits = StreamLimits()
        transport.expectDescriptors(limits.cprDescriptorCount)
        let input = StreamInput(transport: transport, capacity: 1 << 14)
        var reader = CPRReader(limits: limits)
        var names: [String] = []
        var descriptors: [OwnedDescriptor] = []
        while true {
            if reader.hasAllDescriptors, input.buffer.count == 0 {
                try input.fill(minimum: 1)
                if input.isAtEnd { break }
            }
            let record = try input.decode { (cursor: inout StreamCursor) throws(StreamError) in
                try reader.next(&cursor)
            }
            if case .descriptor(let name, _) = record { names.append(name) }
            descriptors += transport.takeDescriptors()
        }
        descriptors += transport.takeDescriptors()
        guard names.count == descriptors.count else {
            throw MigrationError(
                .streamMalformed, in: .setup,
                "the cpr channel names \(names.count) memory files, \(descriptors.count) descriptors came")
        }
        var files: [File] = []
        for (name, file) in zip(names, descriptors) { files.append(try judge(file, name)) }
        return files
    }

    private static func judge(_ file: OwnedDescriptor, _ name: String) throws(MigrationError) -> File {
        let judgement: (byteCount: Int, isSealed: Bool)
        do throws(HandoverError) { judgement = try ReceivedMemory.judge(file, name: name) } catch {
            throw MigrationError(.ramMismatch, in: .setup, "\(name) cannot be taken over", cause: error)
        }
        return File(name: name, file: file, byteCount: judgement.byteCount, isSealed: judgement.isSealed)
    }
}
