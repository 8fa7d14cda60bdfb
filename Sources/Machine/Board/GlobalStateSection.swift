package import ComponentState
import Synchronization

/// Section `globalstate`: whether the guest ran when its state was taken.
package final class GlobalStateSection: StatefulComponent {
    package let sectionName = "globalstate"
    package let instance: UInt32 = 0
    package let readableVersions: ClosedRange<UInt32> = 1...1

    private static let byteCount = 100
    private static let textByteCountSince10 = 32

    private let text = Mutex("running")

    /// The run state in QEMU's words: `running`, `paused`, `prelaunch`. To be set before the state is written; after it
    /// was read, what the sender said.
    package var runState: String {
        get { text.withLock { $0 } }
        set { text.withLock { $0 = newValue } }
    }

    package func sectionVersion(for layout: StateLayout) -> UInt32? { 1 }

    package func codeState(with coder: inout any StateCoder) throws(StateError) {
        var bytes = Array(runState.utf8.prefix(Self.textByteCountSince10 - 1))
        var byteCount = UInt32(bytes.count + 1)
        bytes += Array(repeating: 0, count: Self.byteCount - bytes.count)
        try coder.uint32("size", &byteCount)
        if coder.layout == .qemu7_2 {
            try coder.buffer("runstate", &bytes)
        } else {
            // The same hundred bytes, divided: text, two flags about suspension, nothing.
            var text = Array(bytes.prefix(Self.textByteCountSince10))
            var hasSuspended = true  // The next flag means something; stock senders always say so.
            var wasSuspended = false
            try coder.buffer("runstate", &text)
            try coder.bool("has_vm_was_suspended", &hasSuspended)
            try coder.bool("vm_was_suspended", &wasSuspended)
            try coder.unused(Self.byteCount - Self.textByteCountSince10 - 2)
            bytes = text
        }
        guard coder.isDecoding else { return }
        let decoded = String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        guard byteCount <= Self.byteCount, decoded.utf8.count < Self.textByteCountSince10,
            decoded.utf8.allSatisfy({ $0 >= 0x20 && $0 < 0x7f })
        else {
            throw .invalid(component: coder.component, field: "runstate", value: "\(byteCount) bytes")
        }
        runState = decoded
    }
}
