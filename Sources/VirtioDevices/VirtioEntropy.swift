package import ComponentState
import GuestMemory

/// The entropy device (virtio 1.2, section 5.4): fills buffers with random bytes of the host.
package final class VirtioEntropy: VirtioDevice {
    /// Bytes per request at most; the driver asks again for more, and the work of one request stays bounded.
    private static let requestByteCountMaximum = 4096

    package let identity = VirtioIdentity(
        deviceID: 4, name: "virtio-rng", stateVersion: 1, queueSizes: [8], features: 0, featureNames: [:])

    package init() {}

    package func service(queue: Int, of core: VirtioCore) {
        while core.whileServing({ fill(&$0, core) }) != nil {}
    }

    package func drain(_ state: inout VirtioState, _ core: VirtioCore) { while fill(&state, core) != nil {} }

    private func fill(_ state: inout VirtioState, _ core: VirtioCore) -> Void? {
        guard let chain = core.next(&state, queue: 0) else { return nil }
        var generator = SystemRandomNumberGenerator()
        let count = min(chain.writableByteCount, Self.requestByteCountMaximum)
        var bytes = [UInt8]()
        bytes.reserveCapacity(count + 8)
        while bytes.count < count {
            let word = generator.next()
            for index in UInt64(0)..<8 { bytes.append(UInt8(truncatingIfNeeded: word >> (8 * index))) }
        }
        bytes.removeLast(bytes.count - count)
        let written = chain.write(core.memory, at: 0, bytes)
        core.finish(&state, queue: 0, head: chain.head, byteCount: written)
        return ()
    }

    package func codeDeviceState(with coder: inout any StateCoder, saved: VirtioSavedState) throws(StateError)
        -> @Sendable (inout VirtioState) -> Void
    { { _ in } }
}
