package import LinuxCalls
import MigrationChannels
import MigrationEngine
import QMPProtocol

extension GuestProcess {
    /// Takes a guest whose machine is built from what its stream says, and runs it until it ends. On the main thread,
    /// before any other thread.
    /// - Parameters:
    ///   - requested: The name, and what the user's flags say.
    ///   - uri: Where the guest comes from, or is waited for.
    ///   - multifdChannels: How many channels the source has for pages; 0 is none.
    /// - Throws: ``Refusal`` when nothing was started; the source was told if it can be.
    package static func receive(
        _ requested: RunConfiguration, given: GivenFlags, from uri: String, multifdChannels: Int = 0,
        keeper: ProcessKeeper? = nil
    ) throws(Refusal) -> Int32 {
        var configuration = requested
        if configuration.console == nil { configuration.console = .stdio }
        // Until the stream has said what it is; nothing is started from images of ours.
        configuration.incoming = uri
        do {
            let directory = try RunDirectory.claim(name: configuration.name ?? "")
            defer { directory.remove() }
            var parts = MigrationConfiguration()
            if multifdChannels > 0 {
                parts.capabilities.insert(.multifd)
                parts.parameters.multifdChannels = UInt64(multifdChannels)
            }
            parts.handsOverMemory = configuration.incomingCPR != nil
            do throws(MigrationError) { try parts.validate() } catch { throw Refusal(.usage, error.message) }
            // Its memory first, by descriptor; the source waits until we wait for its stream.
            let memory = try configuration.incomingCPR.map { (argument) throws(Refusal) in
                try ArrivingMemory.await(argument, memoryByteCount: given.memory ? configuration.memory : nil)
            }
            configuration.incomingCPR = nil
            let source = try awaitSource(uri, parts) { memory?.letSourceGoOn() }
            let transport = source.transport
            // A file says by itself where its pages are.
            if MappedRAMDestination.isAnnounced(in: transport) { parts.capabilities.insert(.mappedRAM) }
            let equipment = MigrationEquipment.destination(
                transport, channels: source.channels, acceptor: source.acceptor, parts)
            let given = ArrivedMachine.Given(
                memory: given.memory, processorCount: given.processorCount, isa: given.isa, virtio: given.virtio)
            let wanted = configuration
            let arrival = StreamArrival(
                transport: equipment.transport, configuration: parts, hooks: equipment.hooks
            ) {
                try ArrivedMachine.makeBlocks($0, wanted, given, memory?.files ?? [:])
            }
            let contents: StreamArrival.Contents
            do { contents = try arrival.run() } catch {
                throw Refusal(.incomingFailed, "\(error)")
            }
            do { try memory?.fillRest(of: contents.blocks) } catch {
                arrival.refuse()
                throw error
            }
            var machine = ArrivedMachine(contents)
            do {
                try machine.complete(&configuration, given)
                try configuration.validate()
                for notice in machine.notices { Diagnostics.write(notice) }
                let signals = try prepareProcess()
                return try run(
                    configuration, directory, signals, keeper,
                    arrived: Arrived(files: machine.files, transport: contents.replay(over: transport)))
            } catch {
                arrival.refuse()
                throw error
            }
        } catch let refusal as Refusal {
            throw refusal
        } catch {
            throw Refusal("\(error)")
        }
    }

    /// Flags that were given, not left at their default.
    package struct GivenFlags: Sendable {
        package var memory: Bool
        package var processorCount: Bool
        package var isa: Bool
        package var virtio: Bool

        package init(memory: Bool, processorCount: Bool, isa: Bool, virtio: Bool) {
            self.memory = memory
            self.processorCount = processorCount
            self.isa = isa
            self.virtio = virtio
        }
    }

    /// A source that is connected.
    struct Source {
        var transport: DescriptorTransport
        var channels: [DescriptorTransport] = []
        var acceptor: MultiFDAcceptor?
    }

    /// Opens the channel and waits for the source.
    /// - Parameter whenOpen: Called when a source can connect.
    static func awaitSource(
        _ uri: String, _ parts: MigrationConfiguration = MigrationConfiguration(), whenOpen: () -> Void = {}
    ) throws(Refusal) -> Source {
        let address: MigrationAddress
        do {
            address = try MigrationAddress(uri: uri)
            try MigrationEquipment.judge(address, parts)
        } catch { throw Refusal(.usage, error.description) }
        do {
            if let (listener, actual) = try MigrationOpening.listen(address) {
                Diagnostics.write("waiting for the guest at \(actual)")
                whenOpen()
                defer {
                    if case .unix(let path) = actual, !path.hasPrefix("@") { FileInformation.remove(path) }
                }
                let first = try StreamSocket.accept(from: listener)
                let channelCount = MigrationEquipment.channelCount(parts)
                guard channelCount > 0 else {
                    return Source(
                        transport: try DescriptorTransport(name: actual.description, socket: first))
                }
                let acceptor = try MultiFDAcceptor(
                    listener: listener, name: actual.description, channelCount: channelCount)
                let (main, channels) = try acceptor.accept(first: first)
                return Source(transport: main, channels: channels, acceptor: acceptor)
            }
            whenOpen()
            guard let opened = try MigrationOpening.incoming(address, descriptor: try inherited(address)) else {
                throw SystemCallError("open", .invalidArgument, subject: uri)
            }
            return Source(transport: opened.transport)
        } catch { throw Refusal("cannot open \(uri): \(error)") }
    }

    /// A descriptor that `fd:` names by number.
    static func inherited(_ address: MigrationAddress) throws(SystemCallError) -> OwnedDescriptor? {
        guard case .descriptor(let name) = address else { return nil }
        guard let number = CInt(name), number > 2 else {
            throw SystemCallError("fd", .badFileDescriptor, subject: name)
        }
        return try OwnedDescriptor.duplicate(of: number)
    }
}
