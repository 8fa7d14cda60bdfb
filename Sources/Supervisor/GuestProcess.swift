import DeviceModel
import Glibc
import LinuxCalls
package import Machine
import Synchronization

/// A process that runs one guest, from its configuration to its exit status.
package enum GuestProcess {
    /// Runs a guest until it ends and answers the process's exit status. On the main thread, before any other thread.
    /// - Throws: ``Refusal`` when nothing was started.
    package static func run(_ requested: RunConfiguration) throws(Refusal) -> Int32 {
        var configuration = requested
        if configuration.name == nil { configuration.name = "guest-\(getpid())" }
        if configuration.console == nil { configuration.console = .stdio }
        try configuration.validate()
        do {
            let signals = try prepareProcess()
            let directory = try RunDirectory.claim(name: configuration.name ?? "")
            defer { directory.remove() }
            return try run(configuration, directory, signals)
        } catch let refusal as Refusal {
            throw refusal
        } catch {
            throw Refusal("\(error)")
        }
    }

    private static func run(_ configuration: RunConfiguration, _ directory: RunDirectory, _ signals: SignalDescriptor)
        throws -> Int32
    {
        let loop = try EventLoop(name: "monitor")
        defer { loop.stop() }
        let quitRequest = QuitRequest()
        let console = try ConsoleAttachment(
            configuration.console ?? .null, directory: directory, loop: loop,
            quit: { quitRequest.request(bySignal: false) })
        defer { console.close() }
        let guest = try makeGuest(configuration, console: console)
        do {
            let supervisor = try Supervisor(
                loop: loop, guest: guest, configuration: configuration, directory: directory,
                consoleDescription: console.description,
                runState: configuration.incoming == nil ? .prelaunch : .inmigrate)
            quitRequest.connect(supervisor)
            let token = try loop.watch(signals.descriptor, for: .readable) { _ in
                while let signal = signals.next() {
                    if signal == SIGUSR2 { continue }
                    supervisor.requestQuit(bySignal: true)
                }
            }
            defer { loop.remove(token) }
            try serve(supervisor, configuration, directory)
            return supervisor.waitForEnd()
        } catch {
            guest.shutDown()
            throw error
        }
    }

    /// Signals become input of the monitor, and descriptors may be as many as the system allows.
    private static func prepareProcess() throws(SystemCallError) -> SignalDescriptor {
        _ = signal(SIGPIPE, SIG_IGN)
        var limit = rlimit()
        if unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0, limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = min(limit.rlim_max, 65_536)
            _ = unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        }
        return try SignalDescriptor([SIGTERM, SIGINT, SIGHUP, SIGUSR2])
    }

    private static func makeGuest(_ configuration: RunConfiguration, console: ConsoleAttachment) throws -> VirtGuest {
        let events = VirtGuest.EventSink()
        do {
            let machine = try VirtMachine(
                configuration: configuration.machineConfiguration, backends: MachineBackends(serial: console.backend)
            ) { events.observe($0) }
            let guest = VirtGuest(machine: machine, events: events)
            if configuration.incoming == nil {
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
    private static func serve(_ supervisor: Supervisor, _ configuration: RunConfiguration, _ directory: RunDirectory)
        throws
    {
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
                if let uri = configuration.incoming { try supervisor.awaitGuest(from: uri) } else { supervisor.start() }
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
        result.isa = isa
        result.firmwarePath = firmware
        result.kernelPath = kernel
        result.initrdPath = initrd
        result.kernelCommandLine = append ?? ""
        result.virtio = virtio == .legacy ? .legacy : .modern
        return result
    }
}
