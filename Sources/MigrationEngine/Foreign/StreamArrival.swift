import ComponentState
package import GuestMemory
package import MigrationStream

/// Takes a stream whose machine is still to be built: RAM goes into blocks that are made as the stream lists them, the
/// state of devices is kept as it comes. When all is here, somebody builds the machine that it is for, and a
/// ``MigrationDestination`` takes ``Contents/replay(over:)`` as it would have taken the stream.
///
/// Until then nothing is answered but PINGs, so that a source with a return path keeps its guest. Blocks; one thread.
package final class StreamArrival {
    /// Everything but what the self-description repeats.
    package struct Contents: Sendable {
        package var configuration: StreamConfiguration
        package var blocks: [RAMBlock]
        package var sections: [UnreadSection]
        var hasReturnPath: Bool
        /// The self-description, when the source sent one.
        var description: [UInt8]?
        /// What was received behind it.
        var rest: [UInt8]

        /// What lies beside the stream, for the replay to end.
        fileprivate var hooks: (any DestinationRAMHooks)?

        /// The source has said what there is, and all of it has come.
        package var isDescribed: Bool { description != nil }

        /// The stream without its pages, and then what the channel still brings.
        package func replay(over transport: any MigrationTransport) -> any MigrationTransport {
            let writer = StreamWriter()
            writer.writeHeader()
            writer.writeConfiguration(configuration)
            if hasReturnPath { writer.writeCommand(.openReturnPath) }
            // Ids of the source's sections stay; one that is nobody's is RAM's.
            let used = Set(sections.map(\.header.id))
            let id = (0...UInt32.max).first { !used.contains($0) } ?? 0
            let ram = RAMEncoder(
                blocks: blocks.map { RAMBlockDescription(name: $0.name, byteCount: UInt64($0.byteCount)) })
            for kind in [SectionKind.start, .end] {
                writer.beginSection(SectionHeader(kind, id: id, name: "ram", version: 4))
                if kind == .start { ram.writeBlockList(to: writer) }
                ram.writeEndOfSection(to: writer)
                writer.endSection(id: id)
            }
            for section in sections { section.write(to: writer) }
            writer.writeEndOfStream()
            if let description { writer.writeDescription(description) }
            writer.write(rest)
            return ReplayedTransport(writer.bytes, then: transport) { [hooks] in hooks?.end() }
        }
    }

    private let transport: any MigrationTransport
    private let limits: StreamLimits
    private let configuration: MigrationConfiguration
    private let hooks: (any DestinationRAMHooks)?
    private let makeBlocks: ([RAMBlockDescription]) throws -> [RAMBlock]
    private var output: StreamOutput?

    /// - Parameters:
    ///   - configuration: Says which of the capabilities that place pages are on.
    ///   - hooks: How the channel takes part in receiving RAM; ended with the replay's transport, or when the guest is refused.
    ///   - makeBlocks: One block for each that the stream lists, in this order, of the size it says. Throws for a
    ///   list that no machine here can have.
    package init(
        transport: any MigrationTransport, limits: StreamLimits = StreamLimits(),
        configuration: MigrationConfiguration = MigrationConfiguration(), hooks: (any DestinationRAMHooks)? = nil,
        makeBlocks: @escaping ([RAMBlockDescription]) throws -> [RAMBlock]
    ) {
        self.transport = transport
        self.limits = limits
        self.configuration = configuration
        self.hooks = hooks
        self.makeBlocks = makeBlocks
    }

    /// Receives everything up to the end of the stream.
    /// - Throws: When the stream is damaged, or for no machine that can be built here; the source was told and keeps its
    ///   guest if it can still be told.
    package func run() throws(MigrationError) -> Contents {
        do throws(MigrationError) {
            var contents = try receive()
            // A source may send once more beside the stream, without a page (QEMU 7.2's multifd); a closed channel would be a failure
            // to it, while its guest runs here. So they stay until it knows that we have the guest.
            contents.hooks = hooks
            return contents
        } catch {
            refuse()
            throw error
        }
    }

    /// Tells the source that its guest was not taken, and lets go of the channel.
    package func refuse() {
        if transport.hasReturnPath {
            let output = output ?? StreamOutput(transport: transport)
            ReturnPathMessage.shut(status: 1).encode(to: output.writer)
            try? output.flush()
        }
        transport.close()
        hooks?.end()
    }

    private func receive() throws(MigrationError) -> Contents {
        let input = StreamInput(transport: transport)
        var reader = StreamReader(limits: limits)
        var stream: StreamConfiguration?
        var receiver: RAMReceiver?
        var sections: [UnreadSection] = []
        while true {
            let record = try input.decode { (cursor: inout StreamCursor) throws(StreamError) in
                try reader.next(&cursor)
            }
            switch record {
            case .header: break
            case .configuration(var received):
                let isMapped = configuration.has(.mappedRAM)
                let others = (received.capabilities ?? []).filter {
                    !isMapped || $0 != MigrationCapability.mappedRAM.rawValue
                }
                received.capabilities = nil
                if let name = others.first {
                    throw MigrationError(
                        .capabilityMismatch, in: .setup,
                        "\(name) is on at the source; use a machine that waits with it on, or switch it off there")
                }
                stream = received
            case .section(let header) where header.name == "ram":
                input.phase = .precopy
                do throws(MigrationError) { try receiveRAM(header, input, &reader, &receiver) } catch {
                    throw error.inSection("ram")
                }
            case .section(let header):
                input.phase = .switchover
                guard header.kind == .full else {
                    throw MigrationError(
                        .unknownSection, in: .switchover, "no machine here has an iterating section \(header.name)")
                }
                try sections.add(try input.takeSection(header, &reader, limits: limits))
            case .command(let command): try obey(command)
            case .endOfStream:
                guard let stream, let receiver else {
                    throw MigrationError(
                        .missingSection, in: .commit,
                        "the stream ended without section ram; it is damaged, take it from the source again")
                }
                input.phase = .commit
                try receiver.requireComplete()
                let description = try input.takeDescription(&reader)
                if let description { try sections.requireAll(of: description) }
                let rest = try input.decode { (cursor: inout StreamCursor) throws(StreamError) in
                    try cursor.readBytes(cursor.remaining)
                }
                return Contents(
                    configuration: stream, blocks: receiver.blocks, sections: sections, hasReturnPath: output != nil,
                    description: description, rest: rest)
            case .description: break
            }
        }
    }

    private func receiveRAM(
        _ header: SectionHeader, _ input: StreamInput, _ reader: inout StreamReader, _ receiver: inout RAMReceiver?
    ) throws(MigrationError) {
        if receiver == nil {
            let options = RAMSender.options(configuration)
            let list =
                options.isMapped
                ? try input.peekMappedBlockList(version: header.version, options: options, limits: limits)
                : try input.peekBlockList(version: header.version, options: options, limits: limits)
            let memory: [RAMBlock]
            do { memory = try makeBlocks(list) } catch {
                throw MigrationError(.ramMismatch, in: .setup, "RAM differs", cause: error)
            }
            receiver = RAMReceiver(guest: MemoryOnly(memory), configuration: configuration, hooks: hooks)
        }
        try receiver?.receiveSection(header, from: input)
        try input.decode { (cursor: inout StreamCursor) throws(StreamError) in try reader.endSection(&cursor) }
    }

    private func obey(_ command: StreamCommand) throws(MigrationError) {
        switch command {
        case .openReturnPath where transport.hasReturnPath: output = StreamOutput(transport: transport)
        case .ping(let value):
            guard let output else {
                throw MigrationError(.streamMalformed, in: .setup, "a PING without a return path")
            }
            ReturnPathMessage.pong(value).encode(to: output.writer)
            try output.flush()
        case .switchoverStart: break
        case .postcopyAdvise:
            throw MigrationError(
                .capabilityMismatch, in: .setup,
                "postcopy-ram is on at the source: the state of its devices, by which the machine would be built here, then comes "
                    + "only when the guest may not be able to go back; wait for it with a machine that is complete "
                    + "(--incoming), or switch postcopy-ram off there")
        default:
            throw MigrationError(
                .streamMalformed, in: .setup,
                "command \(command.number) may not come here; use a machine that waits (--incoming) for what is switched "
                    + "on at the source")
        }
    }
}

/// A guest of memory alone, to receive pages into.
private final class MemoryOnly: MigratableGuest {
    let machineName = ""
    let ramBlocks: [RAMBlock]
    let components: [any StatefulComponent] = []
    let isRunning = false

    init(_ blocks: [RAMBlock]) { ramBlocks = blocks }

    func restartDirtyTracking() {}
    func setThrottle(percent: Int) {}
    func pause() {}
    func resume() {}
    func finishLoading() {}
}
