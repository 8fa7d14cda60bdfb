package import DeviceModel

/// The test finisher: a register by which the guest ends or restarts the machine. It has no state.
///
/// Source: SiFive FU540-C000 Manual, "Test finisher"; the values are those of the device tree bindings
/// `sifive,test0` (end) and `sifive,test1` (also reset).
package final class TestFinisher: BusDevice {
    package static let byteCount: UInt64 = 0x1000

    package enum Request: Hashable, Sendable {
        /// The guest is done and all went well.
        case powerOff
        /// The guest wants to be started anew.
        case reset
        /// The guest is done and reports a failure: a code between 0 and 65535.
        case fail(code: UInt16)
    }

    package let name = "test"
    private let handler: @Sendable (Request) -> Void

    /// - Parameter handler: Called on the thread of the processor that asks; must not wait for that processor.
    package init(handler: @escaping @Sendable (Request) -> Void) { self.handler = handler }

    package func load(offset: UInt64, width: AccessWidth) -> UInt64 { 0 }

    package func store(offset: UInt64, width: AccessWidth, value: UInt64) {
        guard offset == 0, width == .two || width == .four else { return }
        switch value & 0xffff {
        case 0x5555: handler(.powerOff)
        case 0x7777: handler(.reset)
        case 0x3333: handler(.fail(code: UInt16(truncatingIfNeeded: value >> 16)))
        default: return
        }
    }

    package func reset() {}
}
