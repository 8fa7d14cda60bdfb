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
    /// - Throws: ``Refusal`` when nothing was started; the source was told if it can be.
    package static func receive(
        _ requested: RunConfiguration, given: GivenFlags, from uri: String, keeper: ProcessKeeper? = nil
    ) throws(Refusal) -> Int32 {
        var configuration = requested
        if configuration.console == nil { configuration.console = .stdio }
        // Until the stream has said what it is; nothing is started from images of ours.
        configuration.incoming = uri
        do {
            let directory = try RunDirectory.claim(name: configuration.name ?? "")
            defer { directory.remove() }
            let transport = try awaitSource(uri)
            let given = ArrivedMachine.Given(
                memory: given.memory, processorCount: given.processorCount, isa: given.isa, virtio: given.virtio)
            let wanted = configuration
            let arrival = StreamArrival(transport: transport) {
                try ArrivedMachine.makeBlocks($0, wanted, given)
            }
            let contents: StreamArrival.Contents
            do { contents = try arrival.run() } catch {
                throw Refusal(.incomingFailed, "\(error)")
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

    /// Opens the channel and waits for the source.
    static func awaitSource(_ uri: String) throws(Refusal) -> DescriptorTransport {
        let address: MigrationAddress
        do { address = try MigrationAddress(uri: uri) } catch { throw Refusal(.usage, error.description) }
        do throws(SystemCallError) {
            if let (listener, actual) = try MigrationOpening.listen(address) {
                Diagnostics.write("waiting for the guest at \(actual)")
                defer {
                    if case .unix(let path) = actual, !path.hasPrefix("@") { FileInformation.remove(path) }
                }
                return try DescriptorTransport(
                    name: actual.description, socket: try StreamSocket.accept(from: listener))
            }
            guard let opened = try MigrationOpening.incoming(address, descriptor: try inherited(address)) else {
                throw SystemCallError("open", .invalidArgument, subject: uri)
            }
            return opened.transport
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
