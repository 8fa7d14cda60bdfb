import DeviceModel
import GuestMemory
import Machine
import Testing

private final class SilentConsole: ConsoleBackend {
    func write(_ bytes: [UInt8]) -> Int { bytes.count }
    func connect(input: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void) {}
    func inputIsWanted() {}
    func quiesce() {}
    func resume() {}
}

private final class SilentNetwork: NetworkBackend {
    func send(_ frame: UnsafeRawBufferPointer) -> Bool { true }
    func connect(
        receive: @escaping @Sendable (UnsafeRawBufferPointer) -> Bool, writable: @escaping @Sendable () -> Void
    ) {}
    func receiveIsWanted() {}
    func quiesce() {}
    func resume() {}
}

private final class EmptyDisk: BlockBackend {
    let byteCount: UInt64 = 1 << 20
    let isReadOnly = false
    let supportsDiscard = true
    func read(offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(BackendError) {
        buffer.initializeMemory(as: UInt8.self, repeating: 0)
    }
    func write(offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(BackendError) {}
    func flush() throws(BackendError) {}
    func discard(offset: UInt64, byteCount: UInt64) throws(BackendError) {}
    func writeZeroes(offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BackendError) {}
}

/// A machine like the one a captured stream came from.
func machine(for stream: CapturedStream, withDevices: Bool = true) throws -> VirtMachine {
    var configuration = MachineConfiguration()
    configuration.memoryByteCount = try #require(stream.blocks.first { $0.name == "riscv_virt_board.ram" }).byteCount
    configuration.memoryBackend = .anonymous
    configuration.hartCount = stream.sections.count { $0.header.name == "cpu" }
    if stream.layout == .qemu7_2 { configuration.queueSizeLimit = 1024 }
    // Built in the order of `capture.py`'s command line: rng, net, console, disk.
    if withDevices, stream.sections.contains(where: { $0.header.name.hasSuffix("/virtio-blk") }) {
        configuration.devices = [
            .init(kind: .entropy, identifier: "entropy"),
            .init(kind: .network, identifier: "network", macAddress: [0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            .init(kind: .console, identifier: "console"), .init(kind: .block, identifier: "disk"),
        ]
    }
    let isModern = stream.name.hasPrefix("booted-modern") || stream.name.hasPrefix("booted-plain")
    configuration.virtio = isModern ? .modern : .legacy
    let backends = MachineBackends(
        serial: SilentConsole(), blocks: ["disk": EmptyDisk()], networks: ["network": SilentNetwork()],
        consoles: ["console": SilentConsole()])
    return try VirtMachine(configuration: configuration, backends: backends)
}
