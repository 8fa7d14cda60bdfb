import DeviceModel
import Glibc
import HostBackends
package import LinuxCalls
package import Machine
import MigrationChannels

/// Everything of the host that stands behind a guest's devices, opened from the configuration or taken over from a
/// predecessor process.
package final class GuestBackends: @unchecked Sendable {
    // SAFETY: set up by one thread before the machine starts; afterwards only read, but for `adoptState`, which is called
    // once while the machine is paused.

    private typealias Console = any ConsoleBackend & TransferableBackend
    private typealias Network = any NetworkBackend & TransferableBackend
    private typealias Disk = any BlockBackend & TransferableBackend

    private let loop: EventLoop
    private let quit: @Sendable () -> Void
    private var console: Console?
    private var disks: [(identifier: String, backend: Disk)] = []
    private var networks: [(identifier: String, backend: Network)] = []
    /// Further consoles of the guest have nobody at them.
    private let consoles: [String: any ConsoleBackend]
    private var lateConsole: LateConsole?
    private var lateNetworks: [(identifier: String, backend: LateNetwork)] = []
    /// What `query-chardev` and `inspect` say of the console.
    package private(set) var consoleDescription: String

    static func diskIdentifier(_ index: Int) -> String { "disk\(index)" }
    static func networkIdentifier(_ index: Int) -> String { "net\(index)" }
    static func consoleIdentifier(_ index: Int) -> String { "console\(index)" }

    private static func consoles(for configuration: RunConfiguration) -> [String: any ConsoleBackend] {
        let count = configuration.slots?.count { $0.kind == .console } ?? 0
        return Dictionary(uniqueKeysWithValues: (0..<count).map { (consoleIdentifier($0), NullConsole()) })
    }

    // MARK: Locks of disk images

    /// Locks every image; does nothing for those that are locked here.
    /// - Throws: When one is in use, with the name of who has it; none is locked then that was not before.
    func lockImages() throws(BackendError) {
        var taken: [RawFileBackend] = []
        // Whoever has just lost the guest, or was refused it, may still be about to let go.
        var attempts = 200
        do throws(BackendError) {
            for disk in disks {
                guard let image = disk.backend as? RawFileBackend, !image.isLocked else { continue }
                while true {
                    do throws(BackendError) {
                        try image.lock()
                        break
                    } catch {
                        attempts -= 1
                        guard error.errorNumber == EBUSY, attempts > 0 else { throw error }
                        usleep(5000)
                    }
                }
                taken.append(image)
            }
        } catch {
            for image in taken { try? image.unlock() }
            throw error
        }
    }

    /// Gives the locks up, for whoever gets the guest. It must not run until ``lockImages()``.
    func unlockImages() throws(BackendError) {
        for disk in disks { try (disk.backend as? RawFileBackend)?.unlock() }
    }

    /// Opens what the configuration names.
    /// - Parameter quit: Somebody asked at the console for the guest's end.
    package init(
        _ configuration: RunConfiguration, directory: RunDirectory, loop: EventLoop,
        quit: @escaping @Sendable () -> Void
    ) throws(Refusal) {
        // Whoever has the guest still has its images.
        let isLocking = configuration.incoming == nil
        consoles = Self.consoles(for: configuration)
        self.loop = loop
        self.quit = quit
        let wanted = configuration.console ?? .null
        consoleDescription = wanted.argument
        for (index, disk) in configuration.disks.enumerated() {
            disks.append(
                (
                    Self.diskIdentifier(index),
                    try Self.refusing("--disk") { () throws(BackendError) in
                        try RawFileBackend(
                            path: disk.path, isReadOnly: disk.isReadOnly, isLocking: isLocking)
                    }
                ))
        }
        for (index, network) in configuration.networks.enumerated() {
            networks.append(
                (
                    Self.networkIdentifier(index),
                    try Self.refusing("--net") { () throws(BackendError) -> Network in try Self.open(network.kind, loop)
                    }
                ))
        }
        // Last: from here on the terminal is in raw mode.
        console = try Self.refusing("--console") { () throws(BackendError) -> Console in
            switch wanted {
            case .null: return NullConsole()
            case .file(let path): return try FileConsole(path: path)
            case .pty:
                let console = try PseudoTerminalConsole(loop: loop)
                consoleDescription = "pty:\(console.path)"
                Diagnostics.write("the console is at \(console.path)")
                return console
            case .unix(let path):
                let place = path.isEmpty ? directory.consoleSocketPath : path
                consoleDescription = "unix:\(place)"
                return try SocketConsole(path: place, loop: loop)
            case .stdio:
                return try TerminalConsole(
                    input: try Self.duplicate(0), output: try Self.duplicate(1), loop: loop, quit: quit)
            }
        }
    }

    /// Takes over from a predecessor what does not change while the guest runs: the disks. The rest follows in
    /// ``adoptState(_:_:)``.
    init(
        adopting disks: [(String, BackendHandover)], configuration: RunConfiguration, consoleDescription: String,
        loop: EventLoop, quit: @escaping @Sendable () -> Void
    ) throws {
        consoles = Self.consoles(for: configuration)
        self.loop = loop
        self.quit = quit
        self.consoleDescription = consoleDescription
        self.disks = try disks.map { ($0.0, try AdoptedBackend.block($0.1)) }
        lateConsole = LateConsole()
        lateNetworks = configuration.networks.indices.map { (Self.networkIdentifier($0), LateNetwork()) }
    }

    /// What the machine gets.
    package var machineBackends: MachineBackends {
        var result = MachineBackends(serial: lateConsole ?? console!)
        for disk in disks { result.blocks[disk.identifier] = disk.backend }
        for network in networks { result.networks[network.identifier] = network.backend }
        result.consoles = consoles
        for network in lateNetworks { result.networks[network.identifier] = network.backend }
        return result
    }

    /// Ends everything for good: the terminal is put back, socket paths are removed.
    package func close() {
        console?.close()
        for network in networks { network.backend.close() }
        for disk in disks { disk.backend.close() }
    }

    // MARK: Hand-over

    /// The disks, for the successor to build its machine with; the guest may run.
    func handOverDisks() throws -> [(String, BackendHandover)] {
        try disks.map { ($0.identifier, try $0.backend.handOver()) }
    }

    /// Console and networks, with what is in their buffers; the machine is paused.
    func handOverState() throws -> [(String, BackendHandover)] {
        var all: [(String, BackendHandover)] = []
        if let console { all.append(("console", try console.handOver())) }
        for network in networks { all.append((network.identifier, try network.backend.handOver())) }
        return all
    }

    /// The other end of ``handOverState()``. Nothing is touched before the machine's devices resume.
    func adoptState(_ all: [(String, BackendHandover)]) throws {
        (console, networks) = try Self.adopt(all, console: lateConsole, networks: lateNetworks, loop: loop, quit: quit)
    }

    private static func adopt(
        _ all: [(String, BackendHandover)], console lateConsole: LateConsole?,
        networks lateNetworks: [(identifier: String, backend: LateNetwork)], loop: EventLoop,
        quit: @escaping @Sendable () -> Void
    ) throws -> (Console, [(identifier: String, backend: Network)]) {
        var rest = all
        func take(_ name: String) throws(Refusal) -> BackendHandover {
            guard let index = rest.firstIndex(where: { $0.0 == name }) else {
                throw Refusal("\(name) did not come along")
            }
            return rest.remove(at: index).1
        }
        let console = try AdoptedBackend.console(try take("console"), loop: loop, quit: quit)
        lateConsole?.adopt(console)
        let networks = try lateNetworks.map { late in
            let backend = try AdoptedBackend.network(try take(late.identifier), loop: loop)
            late.backend.adopt(backend)
            return (late.identifier, backend)
        }
        guard rest.isEmpty else {
            throw Refusal("\(rest.map(\.0).joined(separator: ", ")): no such device here, or it came twice")
        }
        return (console, networks)
    }

    /// Does what the hand-over of a console and a network does at both ends, with some that nobody can reach. What a process
    /// does for the first time takes it several times as long, so it does it before the guest stands still.
    func rehearseHandover() throws {
        var parcel = BackendParcel()
        parcel.add("console", try SocketConsole.unreachable(loop: loop).handOver())
        parcel.add("network", try StreamSocketBackend.unreachable(loop: loop).handOver())
        let (console, network) = (LateConsole(), LateNetwork())
        console.connect(input: { $0.count }, writable: {})
        unsafe network.connect(receive: { _ in true }, writable: {})
        _ = try Self.adopt(
            try BackendParcel(parcel.blobs.bytes, parcel.descriptors).unpack(), console: console,
            networks: [("network", network)], loop: loop, quit: {})
        console.resume()
        network.resume()
        loop.barrier()
        console.quiesce()
        network.quiesce()
    }

    // MARK: Opening

    private static func open(_ kind: NetworkConfiguration.Kind, _ loop: EventLoop) throws(BackendError) -> Network {
        switch kind {
        case .tap(let name): return try TapBackend(interface: name, loop: loop)
        case .unplugged: return UnpluggedNetwork()
        case .socket(let path): return try StreamSocketBackend(path: path, loop: loop)
        case .descriptor(let number):
            let descriptor = try duplicate(number)
            let type = (try? descriptor.status())?.type
            if type == .socket { return StreamSocketBackend(socket: descriptor, loop: loop) }
            return try TapBackend(descriptor: descriptor, loop: loop)
        }
    }

    private static func duplicate(_ number: CInt) throws(BackendError) -> OwnedDescriptor {
        do { return try OwnedDescriptor.duplicate(of: number) } catch {
            throw BackendError(errorNumber: error.errno.rawValue, "descriptor \(number): \(error.errno)")
        }
    }

    private static func refusing<Result>(_ flag: String, _ body: () throws(BackendError) -> Result) throws(Refusal)
        -> Result
    {
        do { return try body() } catch { throw Refusal("\(flag): \(error.description)") }
    }
}

extension RunConfiguration {
    /// The virtio devices; without slots of their own, in the order in which they take them.
    var machineDevices: [MachineConfiguration.Device] {
        let kinds: [(DeviceSlot.Kind, Int?)] =
            slots.map { $0.map { ($0.kind, $0.number) } }
            ?? disks.map { _ in (.disk, nil) } + networks.map { _ in (.network, nil) } + [(.entropy, nil)]
        var counts: [DeviceSlot.Kind: Int] = [:]
        return kinds.map { kind, slot in
            let index = counts[kind, default: 0]
            counts[kind] = index + 1
            switch kind {
            case .disk: return .init(kind: .block, identifier: GuestBackends.diskIdentifier(index), slot: slot)
            case .network:
                return .init(
                    kind: .network, identifier: GuestBackends.networkIdentifier(index),
                    macAddress: (networks[index].mac ?? MACAddress(card: index)).bytes, slot: slot)
            case .console: return .init(kind: .console, identifier: GuestBackends.consoleIdentifier(index), slot: slot)
            case .entropy: return .init(kind: .entropy, identifier: "entropy\(index)", slot: slot)
            }
        }
    }
}
