package import DeviceModel
package import GuestMemory
package import GuestTime
package import ProcessorModel
package import ComponentState
import RISCVProcessor

/// What stands behind a machine's devices, chosen and opened by the caller.
package struct MachineBackends: Sendable {
    /// Behind the serial port.
    package var serial: any ConsoleBackend
    /// By the identifier of the device.
    package var blocks: [String: any BlockBackend]
    package var networks: [String: any NetworkBackend]
    package var consoles: [String: any ConsoleBackend]

    package init(
        serial: any ConsoleBackend, blocks: [String: any BlockBackend] = [:],
        networks: [String: any NetworkBackend] = [:], consoles: [String: any ConsoleBackend] = [:]
    ) {
        self.serial = serial
        self.blocks = blocks
        self.networks = networks
        self.consoles = consoles
    }
}

/// A processor and the sections of its state, in wire order.
package struct MachineProcessor: Sendable {
    package let processor: any Processor
    package let components: [any StatefulComponent]

    package init(processor: any Processor, components: [any StatefulComponent]) {
        self.processor = processor
        self.components = components
    }
}

/// Makes a machine's processors when its memory and bus are there.
package struct ProcessorFactory: Sendable {
    package let make:
        @Sendable (_ count: Int, _ memory: GuestMemory, _ bus: any ProcessorBus, _ clock: VirtualClock) throws ->
            [MachineProcessor]

    package init(
        _ make: @escaping @Sendable (Int, GuestMemory, any ProcessorBus, VirtualClock) throws -> [MachineProcessor]
    ) {
        self.make = make
    }

    /// The software harts, with the extensions of the configuration.
    package static func interpreter(isa: String?) throws(MachineError) -> ProcessorFactory {
        let configuration = try riscvConfiguration(isa: isa)
        return ProcessorFactory { count, memory, bus, clock in
            try RISCVHart.makeHarts(count: count, configuration: configuration, memory: memory, bus: bus, clock: clock)
                .map { MachineProcessor(processor: $0, components: $0.components) }
        }
    }

    static func riscvConfiguration(isa: String?) throws(MachineError) -> RISCVConfiguration {
        guard let isa else { return .standard }
        do { return try RISCVConfiguration(isa: isa) } catch { throw .configuration(error.description) }
    }
}

/// The bus as a processor sees it.
final class BusPort: ProcessorBus {
    private let bus: Bus

    init(_ bus: Bus) { self.bus = bus }

    func load(address: UInt64, width: Int) -> UInt64? {
        guard let width = AccessWidth(rawValue: width) else { return nil }
        return bus.load(address, width: width)
    }

    func store(address: UInt64, width: Int, value: UInt64) -> Bool {
        guard let width = AccessWidth(rawValue: width) else { return false }
        return bus.store(address, width: width, value: value)
    }
}
