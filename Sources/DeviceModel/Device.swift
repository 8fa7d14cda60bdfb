package import GuestTime

/// Width of one access in bytes.
package enum AccessWidth: Int, Sendable { case one = 1, two = 2, four = 4, eight = 8 }

/// An input of an interrupt controller, or of a processor, as a device sees it: a level. Callable from any thread.
package struct InterruptLine: Sendable {
    private let change: @Sendable (Bool) -> Void

    package init(_ change: @escaping @Sendable (Bool) -> Void) { self.change = change }

    /// Raises or lowers the line.
    package func set(_ level: Bool) { change(level) }

    /// A line that leads nowhere.
    package static let unconnected = InterruptLine { _ in }
}

/// A device on the bus. Accesses come from any processor's thread, several at once; the device locks for itself.
package protocol BusDevice: AnyObject, Sendable {
    /// For messages: `serial`, `plic`.
    var name: String { get }
    /// Register read. `offset` counts from the device's base. Reserved offsets read as zero.
    func load(offset: UInt64, width: AccessWidth) -> UInt64
    /// Register write. Reserved offsets are ignored.
    func store(offset: UInt64, width: AccessWidth, value: UInt64)
    /// Back to the state after power-on. Called with all processors stopped.
    func reset()
    /// Finishes or parks whatever is in flight so that ``BusDevice`` state is whole and stays whole until ``resume()``.
    /// Called with all processors stopped; returns when done.
    func quiesce()
    /// Takes up work again, after ``quiesce()`` or after a state was loaded.
    func resume()
}

extension BusDevice {
    /// A device without threads or timers of its own is at rest as soon as the processors are.
    package func quiesce() {}
    package func resume() {}
}

/// Calls back at a virtual time. Implemented by the machine: one thread for all timers.
package protocol TimerScheduler: AnyObject, Sendable {
    var clock: VirtualClock { get }
    /// Makes a timer that is not armed; `action` runs on the timer thread, without any lock held.
    func makeTimer(_ action: @escaping @Sendable () -> Void) -> any DeviceTimer
}

/// A one-shot timer of a device on the guest's virtual clock.
package protocol DeviceTimer: AnyObject, Sendable {
    /// Arms it for a virtual time in nanoseconds, or disarms it with nil. A time in the past fires at once.
    func set(deadlineNanoseconds: Int64?)
}

/// The bus: finds the device at an address. Fixed before the guest runs.
package final class Bus: Sendable {
    package struct Window: Sendable {
        package let address: UInt64
        package let byteCount: UInt64
        package let device: any BusDevice

        package init(address: UInt64, byteCount: UInt64, device: any BusDevice) {
            self.address = address
            self.byteCount = byteCount
            self.device = device
        }
    }

    package let windows: [Window]

    package init(_ windows: [Window]) {
        self.windows = windows.sorted { $0.address < $1.address }
        for (lower, upper) in zip(self.windows, self.windows.dropFirst()) {
            precondition(lower.address + lower.byteCount <= upper.address, "bus windows overlap")
        }
    }

    private func window(at address: UInt64, width: AccessWidth) -> Window? {
        var low = 0
        var high = windows.count
        while low < high {
            let middle = (low + high) / 2
            if windows[middle].address + windows[middle].byteCount <= address {
                low = middle + 1
            } else {
                high = middle
            }
        }
        guard low < windows.count, windows[low].address <= address,
            address - windows[low].address + UInt64(width.rawValue) <= windows[low].byteCount
        else { return nil }
        return windows[low]
    }

    /// Nil when nothing answers there.
    package func load(_ address: UInt64, width: AccessWidth) -> UInt64? {
        guard let window = window(at: address, width: width) else { return nil }
        return window.device.load(offset: address - window.address, width: width)
    }

    /// False when nothing answers there.
    package func store(_ address: UInt64, width: AccessWidth, value: UInt64) -> Bool {
        guard let window = window(at: address, width: width) else { return false }
        window.device.store(offset: address - window.address, width: width, value: value)
        return true
    }
}
