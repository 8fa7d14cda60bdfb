import ComponentState
import GuestMemory
import Machine
import MigrationStream
import Testing

@Suite("State of a machine") struct StateTests {
    private func machine(harts: Int = 1) throws -> VirtMachine {
        var configuration = smallConfiguration(harts: harts)
        configuration.devices = [.init(kind: .entropy, identifier: "rng"), .init(kind: .console, identifier: "hvc")]
        return try VirtMachine(
            configuration: configuration,
            backends: MachineBackends(serial: RecordingConsole(), consoles: ["hvc": RecordingConsole()]))
    }

    @Test("components have QEMU's names and order")
    func order() throws {
        let machine = try machine(harts: 2)
        defer { machine.shutDown() }
        #expect(
            machine.components.filter { $0.surplus == nil }.map { "\($0.sectionName) \($0.instance)" } == [
                "timer 0", "cpu_common 0", "cpu 0", "cpu_common 1", "cpu 1", "riscv_mtimer 0", "riscv_sifive_plic 0",
                "fw_cfg 0", "0000:00:00.0/gpex_root 0", "PCIHost 0", "PCIBUS 0", "serial 0", "goldfish_rtc 0",
                "pflash_cfi01 0", "pflash_cfi01 1", "virtio-mmio@0000000010008000/virtio-rng 0",
                "virtio-mmio@0000000010007000/virtio-console 0", "globalstate 0",
            ])
        #expect(
            machine.ramBlocks.map(\.name) == [
                "riscv_virt_board.ram", "virt.flash0", "virt.flash1", "riscv_virt_board.mrom",
            ])
        #expect(machine.ramBlocks.map(\.byteCount) == [16 << 20, 32 << 20, 32 << 20, 61_440])
    }

    private func encode(_ machine: VirtMachine, _ layout: StateLayout) throws -> [[UInt8]] {
        try machine.components.compactMap { component in
            guard let version = component.sectionVersion(for: layout) else { return nil }
            let writer = StreamWriter()
            var coder: any StateCoder = VMStateEncoder(
                to: writer, component: component.sectionName, version: version, layout: layout, describing: false)
            try component.codeState(with: &coder)
            return writer.withBytes { [UInt8]($0) }
        }
    }

    @Test("a whole state goes from one machine to another in every layout", arguments: StateLayout.allCases)
    func roundTrip(layout: StateLayout) throws {
        let source = try machine(harts: 2)
        let destination = try machine(harts: 2)
        defer {
            source.shutDown()
            destination.shutDown()
        }
        source.globalState.runState = "paused"
        source.clock.set(nanoseconds: 123_456_700)
        let bodies = try encode(source, layout)
        let components = destination.components.filter { $0.sectionVersion(for: layout) != nil }
        for (component, body) in zip(components, bodies) {
            let decoder = VMStateDecoder(
                from: StreamCursor(body + [0x7e, 0, 0, 0, 0], isFinal: true), component: component.sectionName,
                version: try #require(component.sectionVersion(for: layout)), layout: layout)
            var coder: any StateCoder = decoder
            try component.codeState(with: &coder)
            try decoder.finish()
            #expect(decoder.cursor.remaining == 5, "\(component.sectionName)")
        }
        try destination.finishLoading()
        #expect(destination.globalState.runState == "paused")
        #expect(destination.clock.nanoseconds == 123_456_700)
        #expect(destination.state == .paused)
        #expect(try encode(destination, layout) == bodies)
    }

    @Test("a running machine takes no state")
    func running() throws {
        let machine = try VirtMachine(
            configuration: smallConfiguration(), backends: MachineBackends(serial: RecordingConsole()),
            processors: ScriptedProcessor.factory { _ in .waiting(untilNanoseconds: nil) })
        defer { machine.shutDown() }
        try machine.start()
        #expect(throws: MachineError.self) { try machine.finishLoading() }
    }

    @Test("blank flash costs no memory until it is read")
    func flashIsNotResident() throws {
        let machine = try machine()
        defer { machine.shutDown() }
        #expect(machine.ramBlocks[1].byteCount == 32 << 20)
        #expect(machine.ramBlocks[1].dirty.count == 0)
    }
}
