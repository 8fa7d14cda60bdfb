import ComponentState
import GuestMemory
import MigrationEngine
import Synchronization

@testable import Supervisor

/// A guest without processors whose life the test decides.
final class ScriptedSupervisedGuest: SupervisedGuest {
    struct Log: Equatable {
        var calls: [String] = []
    }

    let ramBlocks: [RAMBlock]
    let memory: GuestMemory
    let log = Mutex(Log())
    private let running = Mutex(false)
    private let handler = Mutex<(@Sendable (GuestEvent) -> Void)?>(nil)

    init() throws {
        let block = try RAMBlock(name: "riscv_virt_board.ram", byteCount: 1 << 20, backend: .memfd)
        ramBlocks = [block]
        memory = GuestMemory(regions: [MemoryRegion(address: 0x8000_0000, block: block)])
    }

    /// What the guest does as soon as it runs, before whoever resumed it goes on; once.
    let haste = Mutex<[GuestEvent]>([])

    func happen(_ event: GuestEvent) { handler.withLock { $0 }?(event) }

    var calls: [String] { log.withLock { $0.calls } }
    private func note(_ call: String) { log.withLock { $0.calls.append(call) } }

    let processors = [GuestProcessorInformation(index: 0, threadIdentifier: 1, retiredInstructions: 42)]
    func reset() throws {
        note("reset")
        happen(.wasReset)
    }
    func announceNetworks(_ names: [String]?) { note("announce \(names?.joined(separator: ",") ?? "all")") }
    func registerDump() -> String { "pc 0\r\n" }
    func shutDown() { note("shutDown") }
    func setEventHandler(_ handler: @escaping @Sendable (GuestEvent) -> Void) { self.handler.withLock { $0 = handler } }

    let machineName = "virt"
    func restartDirtyTracking() throws {}
    func setThrottle(percent: Int) {}
    func pause() throws {
        note("pause")
        running.withLock { $0 = false }
    }
    func resume() throws {
        note("resume")
        running.withLock { $0 = true }
        happen(.resumed)
        let events = haste.withLock { events in
            defer { events = [] }
            return events
        }
        for event in events { happen(event) }
    }
    var isRunning: Bool { running.withLock { $0 } }
    let components: [any StatefulComponent] = []
    func finishLoading() throws {}
}
