import ComponentState
import DeviceModel
import GuestMemory
import Machine
import MigrationStream
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
private func machine(for stream: CapturedStream) throws -> VirtMachine {
    var configuration = MachineConfiguration()
    configuration.memoryByteCount = try #require(stream.blocks.first { $0.name == "riscv_virt_board.ram" }).byteCount
    configuration.memoryBackend = .anonymous
    configuration.hartCount = stream.sections.count { $0.header.name == "cpu" }
    if stream.layout == .qemu7_2 { configuration.queueSizeLimit = 1024 }
    // Built in the order of `capture.py`'s command line: rng, net, console, disk.
    if stream.sections.contains(where: { $0.header.name.hasSuffix("/virtio-blk") }) {
        configuration.devices = [
            .init(kind: .entropy, identifier: "entropy"),
            .init(kind: .network, identifier: "network", macAddress: [0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            .init(kind: .console, identifier: "console"), .init(kind: .block, identifier: "disk"),
        ]
    }
    configuration.virtio = stream.name.contains("modern") ? .modern : .legacy
    let backends = MachineBackends(
        serial: SilentConsole(), blocks: ["disk": EmptyDisk()], networks: ["network": SilentNetwork()],
        consoles: ["console": SilentConsole()])
    return try VirtMachine(configuration: configuration, backends: backends)
}

/// Bytes that may come back otherwise, because nothing of the guest's depends on them.
private let meaningless: [String: [Range<Int>]] = [
    // The host's cycle counter.
    "timer": [0..<8]
]

@Suite("State that QEMU wrote")
struct ForeignStateTests {
    static let streams = [
        "virt-7.2", "virt-10.0", "virt-2-harts-7.2", "virt-devices-7.2", "virt-devices-10.0", "booted-legacy-7.2",
        "booted-legacy-10.0", "booted-modern-7.2", "booted-modern-10.0",
    ]

    @Test("every section is taken, and written again byte for byte", arguments: streams)
    func taken(name: String) throws {
        let stream = try CapturedStream(name)
        let machine = try machine(for: stream)
        let components = machine.components
        for section in stream.sections {
            let header = section.header
            // The user network of the host's; nothing of the guest's.
            if header.name == "slirp" { continue }
            // Not yet part of the machine.
            if header.name.hasPrefix("cpu") || header.name.hasPrefix("virtio-mmio") { continue }
            guard
                let component = components.first(where: {
                    $0.sectionName == header.name && $0.instance == header.instance
                })
            else {
                Issue.record("nobody takes \(header.name) \(header.instance)")
                continue
            }
            #expect(component.sectionVersion(for: stream.layout) == header.version, "\(header.name)")
            var cursor = StreamCursor(section.body + [RecordType.sectionFooter.rawValue], isFinal: true)
            do {
                try SectionDecoder.decode(component, header: header, layout: stream.layout, from: &cursor)
            } catch {
                Issue.record("\(header.name) \(header.instance): \(error), in \(section.field(at: Int(error.offset)))")
                continue
            }
            #expect(
                cursor.remaining == 1, "\(header.name): \(cursor.remaining - 1) of \(section.body.count) bytes are left"
            )
            let writer = StreamWriter()
            let encoder = VMStateEncoder(
                to: writer, component: header.name, version: header.version, layout: stream.layout)
            var coder: any StateCoder = encoder
            try component.codeState(with: &coder)
            var found = writer.bytes
            for range in meaningless[header.name] ?? [] where range.upperBound <= found.count {
                found.replaceSubrange(range, with: section.body[range])
            }
            if found != section.body {
                let same = zip(found, section.body).prefix { $0 == $1 }.count
                Issue.record(
                    """
                    \(header.name) \(header.instance): \(found.count) bytes for \(section.body.count), other from \(same) on, \
                    in \(section.field(at: same)): \(found.dropFirst(same).prefix(8)), not \(section.body.dropFirst(same).prefix(8))
                    """)
            }
        }
        let names = Set(stream.sections.map { "\($0.header.name) \($0.header.instance)" })
        for component in components where component.sectionVersion(for: stream.layout) != nil {
            #expect(
                names.contains("\(component.sectionName) \(component.instance)"),
                "QEMU has no section \(component.sectionName)")
        }
    }

    @Test("RAM blocks have QEMU's names, sizes and order", arguments: streams)
    func blocks(name: String) throws {
        let stream = try CapturedStream(name)
        let machine = try machine(for: stream)
        #expect(machine.ramBlocks.map(\.name).sorted() == stream.blocks.map(\.name).sorted())
        for block in machine.ramBlocks {
            #expect(stream.blocks.first { $0.name == block.name }?.byteCount == UInt64(block.byteCount))
        }
        #expect(stream.configuration?.machineName == VirtMachine.machineName)
    }
}
