import DeviceModel
import Glibc
package import LinuxCalls
package import Machine
import MigrationChannels
import MigrationEngine
import Synchronization

/// A process that runs one guest, from its configuration to its exit status.
package enum GuestProcess {
    /// Set in the environment of a guest's process that nobody waits for.
    package static let backgroundVariable = "SIDESTEP_BACKGROUND"

    /// Whether nobody waits for this very process: a service manager is told which one is the main one, and a process in
    /// the background has no parent that cares.
    package static var needsNoKeeper: Bool { unsafe ServiceManager.isPresent || getenv(backgroundVariable) != nil }

    /// Runs a guest until it ends and answers the process's exit status. On the main thread, before any other thread.
    /// - Throws: ``Refusal`` when nothing was started.
    /// - Parameter keeper: The process that stays behind for whoever waits for us, if there is one.
    package static func run(_ requested: RunConfiguration, keeper: ProcessKeeper? = nil) throws(Refusal) -> Int32 {
        var configuration = requested
        if configuration.name == nil { configuration.name = "guest-\(getpid())" }
        if configuration.console == nil { configuration.console = .stdio }
        try configuration.validate()
        do {
            let signals = try prepareProcess()
            let directory = try RunDirectory.claim(name: configuration.name ?? "")
            defer { directory.remove() }
            return try run(configuration, directory, signals, keeper)
        } catch let refusal as Refusal {
            throw refusal
        } catch {
            throw Refusal("\(error)")
        }
    }

    /// Takes a guest over from a predecessor and runs it until it ends. On the main thread, before any other thread.
    /// - Parameter number: Our end of the hand-over's socket.
    package static func adopt(socket number: CInt) throws(Refusal) -> Int32 {
        guard number > 2, fcntl(number, F_GETFD) >= 0 else {
            throw Refusal(.usage, "adopt is for the process that hands a guest over; there is none")
        }
        let socket = OwnedDescriptor(adopting: number)
        do {
            try socket.setCloseOnExec(true)
            let signals = try prepareProcess()
            let loop = try EventLoop(name: "monitor")
            let quitRequest = QuitRequest()
            let predecessor = try? OwnedDescriptor.process(StreamSocket.peerCredentials(of: socket).process)
            let successor = UpgradeDestination(
                loop: loop, program: program, predecessor: predecessor,
                quit: { quitRequest.request(bySignal: false) })
            var destination = HandoverDestination(
                socket: socket, program: "\(Product.name) \(Product.version)",
                channels: UpgradeChannel.allCases.filter { $0 != .auto }.map(\.rawValue),
                stateVersions: UpgradeStateVersion.known,
                atStep: HandoverFault.order(for: "destination"))
            switch destination.run(successor) {
            case .notOurs(let error, _):
                // The source tells its user. Nothing here may be tidied up: all of it is the source's.
                if error.code != .peerGone { Diagnostics.write("the guest was not taken over: \(error)") }
                _exit(ExitStatus.rolledBack.rawValue)
            case .lost(let error):
                Diagnostics.write("the guest is lost: \(error)")
                _exit(ExitStatus.lost.rawValue)
            case .running(let times):
                guard let supervisor = successor.supervisor, let backends = successor.backends else {
                    throw Refusal(.lost, "the guest runs nowhere")
                }
                defer { supervisor.directory.remove() }
                defer { loop.stop() }
                defer { backends.close() }
                quitRequest.connect(supervisor)
                let token = try watch(signals, for: supervisor)
                defer { loop.remove(token) }
                try successor.settle(times)
                return supervisor.waitForEnd()
            }
        } catch let refusal as Refusal {
            throw refusal
        } catch {
            throw Refusal("\(error)")
        }
    }

    /// The file this process was started from; a newer one may stand there by the time it is asked for.
    private static let program: String = {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = unsafe readlink("/proc/self/exe", &buffer, buffer.count - 1)
        guard count > 0 else { return "/proc/self/exe" }
        let path = String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let deleted = " (deleted)"
        return path.hasSuffix(deleted) ? String(path.dropLast(deleted.count)) : path
    }()

    private static func watch(_ signals: SignalDescriptor, for supervisor: Supervisor) throws(SystemCallError)
        -> EventLoop.Token
    {
        try supervisor.loop.watch(signals.descriptor, for: .readable) { _ in
            while let signal = signals.next() {
                if signal == SIGUSR2 {
                    supervisor.upgrade(UpgradeRequest()) { Diagnostics.write("upgrade: \($0)") }
                } else {
                    supervisor.requestQuit(bySignal: true)
                }
            }
        }
    }

    /// A guest whose memory is here and whose state is to be read.
    struct Arrived: Sendable {
        var files: [String: OwnedDescriptor]
        var transport: any MigrationTransport
    }

    static func run(
        _ configuration: RunConfiguration, _ directory: RunDirectory, _ signals: SignalDescriptor,
        _ keeper: ProcessKeeper?, arrived: Arrived? = nil
    ) throws -> Int32 {
        let loop = try EventLoop(name: "monitor")
        defer { loop.stop() }
        let quitRequest = QuitRequest()
        let program = program  // before anybody replaces the file
        // Beside the monitor: a backend touches guest memory, and while a guest that runs here still has pages elsewhere
        // that can take as long as their channel needs.
        let backendLoop = try EventLoop(name: "backends")
        defer { backendLoop.stop() }
        let backends = try GuestBackends(
            configuration, directory: directory, loop: backendLoop, quit: { quitRequest.request(bySignal: false) })
        defer { backends.close() }
        let memory = try configuration.incomingCPR.map { (argument) throws(Refusal) in
            try ArrivingMemory.await(argument, memoryByteCount: configuration.memory, wake: signals.descriptor)
        }
        let guest = try makeGuest(configuration, backends, adopting: arrived?.files ?? memory?.files ?? [:])
        do {
            let supervisor = try Supervisor(
                loop: loop, guest: guest, configuration: configuration, directory: directory,
                consoleDescription: backends.consoleDescription,
                runState: configuration.incoming == nil ? .prelaunch : .inmigrate)
            supervisor.upgradeEquipment = UpgradeEquipment(
                guest: guest, backends: backends, keeper: keeper, program: program)
            quitRequest.connect(supervisor)
            let token = try watch(signals, for: supervisor)
            defer { loop.remove(token) }
            if let memory {
                memory.populate(guest.ramBlocks)
                loop.sync { supervisor.migration.expect(memory) }
            }
            try serve(supervisor, configuration, directory, arrived)
            ServiceManager.tell(isReady: true)
            return supervisor.waitForEnd()
        } catch {
            guest.shutDown()
            throw error
        }
    }

    /// Signals become input of the monitor, and descriptors may be as many as the system allows.
    static func prepareProcess() throws(SystemCallError) -> SignalDescriptor {
        _ = signal(SIGPIPE, SIG_IGN)
        // A file that may not grow so far is an error of whoever writes it (RLIMIT_FSIZE), not the end of the guest.
        _ = signal(SIGXFSZ, SIG_IGN)
        var limit = rlimit()
        if unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0, limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = min(limit.rlim_max, 65_536)
            _ = unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        }
        return try SignalDescriptor(endingSignals + [SIGUSR2])
    }

    /// Ask for the guest's end.
    static let endingSignals = [SIGTERM, SIGINT, SIGHUP]

    private static func makeGuest(
        _ configuration: RunConfiguration, _ backends: GuestBackends, adopting files: [String: OwnedDescriptor]
    ) throws -> VirtGuest {
        let events = VirtGuest.EventSink()
        do {
            let machine = try VirtMachine(
                configuration: configuration.machineConfiguration, backends: backends.machineBackends, adopting: files
            ) { events.observe($0) }
            let guest = VirtGuest(machine: machine, events: events, backends: backends)
            if configuration.incoming == nil {
                if case .file(let path) = configuration.memoryBackend, guest.ramBlocks.contains(where: \.isShared) {
                    guest.shutDown()
                    throw Refusal("--memory-backend: \(path) is the memory of another guest that is here")
                }
                do { try machine.loadImages() } catch {
                    guest.shutDown()
                    throw error
                }
            }
            return guest
        } catch let error as MachineError {
            if case .configuration = error { throw Refusal(.usage, error.description) }
            throw Refusal(error.description)
        }
    }

    /// Opens the QMP sockets, says who we are, and lets the guest go.
    private static func serve(
        _ supervisor: Supervisor, _ configuration: RunConfiguration, _ directory: RunDirectory, _ arrived: Arrived?
    ) throws {
        var sockets: [(OwnedDescriptor, ListenAddress)] = []
        for address in [.unix(directory.qmpSocketPath)] + configuration.qmp {
            do throws(SystemCallError) { sockets.append(try QMPServer.bind(address)) } catch {
                throw Refusal("--qmp: cannot listen at \(address.argument): \(error.errno)")
            }
        }
        try directory.writeProcessIdentifier()
        let failure = Mutex<(any Error)?>(nil)
        let list = sockets
        supervisor.loop.perform {
            do {
                for (descriptor, address) in list { try supervisor.server.listen(descriptor, as: address) }
                if let arrived {
                    supervisor.migration.receive(over: arrived.transport)
                } else if let uri = configuration.incoming {
                    try supervisor.awaitGuest(from: uri)
                } else {
                    supervisor.start()
                }
            } catch {
                failure.withLock { $0 = error }
            }
        }
        supervisor.loop.barrier()
        if let error = failure.withLock({ $0 }) { throw error }
    }
}

/// The console's user may ask for the end before there is a supervisor to ask.
private final class QuitRequest: Sendable {
    private let supervisor = Mutex<Supervisor?>(nil)

    func connect(_ supervisor: Supervisor) { self.supervisor.withLock { $0 = supervisor } }
    func request(bySignal: Bool) { supervisor.withLock { $0 }?.requestQuit(bySignal: bySignal) }
}

extension RunConfiguration {
    /// What the machine itself is to know.
    package var machineConfiguration: MachineConfiguration {
        var result = MachineConfiguration()
        result.memoryByteCount = memory
        result.memoryBackend = memoryBackend
        result.hartCount = processorCount
        result.isa = isa ?? compatibility.flatMap { VirtMachine.isa(compatibleWith: $0) }
        // QEMU 7.2 shows a guest the same largest queue for every device.
        if compatibility == .qemu7_2 { result.queueSizeLimit = 1024 }
        result.firmwarePath = firmware
        result.kernelPath = kernel
        result.initrdPath = initrd
        result.kernelCommandLine = append ?? ""
        result.virtio = virtio == .legacy ? .legacy : .modern
        result.devices = machineDevices
        return result
    }
}
