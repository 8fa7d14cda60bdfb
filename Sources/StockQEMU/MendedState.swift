package import LinuxCalls
import Synchronization

/// Passes one stream from the old process's socket to the new one's, on the calling thread, and mends the guest's state in it.
/// Answers why it failed, nil when the new process has all. `StockQEMU` knows no stream, so somebody above does it.
package typealias StateMender =
    @Sendable (
        _ source: OwnedDescriptor, _ destination: OwnedDescriptor, _ ignoresShared: Bool
    ) -> String?

/// A guest's state that passes through us. If we die on the way both ends lose their channel, and the guest stays.
final class MendedState: Sendable {
    private let outcome = Mutex<String?>(nil)
    private let isOver: OwnedDescriptor

    /// Starts to pass what comes.
    /// - Parameter open: Opens both ends, on the new thread.
    init(
        _ mender: @escaping StateMender, ignoresShared: Bool,
        open: @escaping @Sendable () throws(SystemCallError) -> (source: OwnedDescriptor, destination: OwnedDescriptor)
    ) throws(SystemCallError) {
        isOver = try .event()
        _ = try HostThread(name: "mended state") { [self] in
            do throws(SystemCallError) {
                let (source, destination) = try open()
                let reason = mender(source, destination, ignoresShared)
                StreamSocket.shutDown(source)
                StreamSocket.shutDown(destination)
                outcome.withLock { $0 = reason }
            } catch { outcome.withLock { $0 = "\(error)" } }
            isOver.signal()
        }
    }

    /// Why the state did not pass, if that is known. The old process hears of it an instant before, and runs its guest on; so a
    /// moment is waited.
    func failure() -> String? {
        _ = try? isOver.waitUntilReady(for: 1, timeoutMilliseconds: 100)
        return outcome.withLock { $0 }
    }
}
