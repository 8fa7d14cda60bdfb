package import ComponentState
import Synchronization

/// The `globalstate` section: whether the guest ran at the source. 104 bytes in every layout.
package final class GlobalState: StatefulComponent {
    package static let name = "globalstate"
    package let sectionName = GlobalState.name
    package let instance: UInt32 = 0
    package let readableVersions: ClosedRange<UInt32> = 1...1
    private let value: Mutex<String>
    private let loaded = Mutex<Bool>(false)

    /// - Parameter runState: QEMU's name of a run state, shorter than 32 bytes.
    package init(runState: String = "running") {
        precondition(runState.utf8.count < 32)
        value = Mutex(runState)
    }

    package var runState: String { value.withLock { $0 } }

    /// True when the guest should run at the destination.
    package var isRunning: Bool { runState == "running" }

    package func sectionVersion(for layout: StateLayout) -> UInt32? { 1 }

    /// Names a destination may be told.
    private static let known: Set<String> = [
        "debug", "inmigrate", "internal-error", "io-error", "paused", "postmigrate", "prelaunch", "finish-migrate",
        "restore-vm", "running", "save-vm", "shutdown", "suspended", "watchdog", "guest-panicked", "colo",
    ]

    package func codeState(with coder: inout any StateCoder) throws(StateError) {
        var size = UInt32(runState.utf8.count + 1)
        var text = Array(runState.utf8) + [UInt8](repeating: 0, count: 100 - runState.utf8.count)
        try coder.uint32("size", &size)
        if coder.layout == .qemu7_2 {
            try coder.buffer("runstate", &text)
        } else {
            var name = Array(text.prefix(32))
            var hasSuspended = false
            var wasSuspended = false
            try coder.buffer("runstate", &name)
            if coder.isDecoding {
                // A 7.2 source has the name's padding here; nothing else tells the two apart, and all are zero there.
                var flags: [UInt8] = [0, 0]
                try coder.buffer("flags", &flags)
            } else {
                try coder.bool("has_vm_was_suspended", &hasSuspended)
                try coder.bool("vm_was_suspended", &wasSuspended)
            }
            try coder.unused(66)
            text = name
        }
        guard coder.isDecoding else { return }
        guard size >= 1, size <= 32, text[Int(size) - 1] == 0,
            let name = String(validating: text.prefix(Int(size) - 1), as: UTF8.self), Self.known.contains(name)
        else { throw .invalid(component: coder.component, field: "runstate", value: "\(text.prefix(32))") }
        value.withLock { $0 = name }
    }
}
