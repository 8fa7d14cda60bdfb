package import ComponentState
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationStream
import Synchronization

/// `sidestep bridge`: carries one guest's stream from one stock release to another that refuses it.
package final class Bridge: Sendable {
    private let relay = Mutex<StreamRelay?>(nil)
    private let target: StateLayout
    private let expected: StateLayout?

    package init(target: StateLayout, source: StateLayout?) {
        self.target = target
        expected = source
    }

    /// What has passed so far. Any thread.
    package struct Progress: Hashable, Sendable {
        /// Where the stream is, in the words of ``MigrationError``.
        package var phase = "waiting for the source"
        package var byteCount: UInt64 = 0
        package var pageCount: UInt64 = 0
        package var ramByteCount: UInt64 = 0
        /// Blocks and sections that the destination does not have.
        package var leftOut: [String] = []
    }

    package var progress: Progress {
        guard let progress = relay.withLock({ $0 })?.progress else { return Progress() }
        return Progress(
            phase: progress.phase.rawValue, byteCount: progress.receivedByteCount, pageCount: progress.pageCount,
            ramByteCount: progress.ramByteCount, leftOut: progress.leftOut)
    }

    /// Waits for the source, connects to the destination and relays until the stream's end.
    /// - Throws: ``Refusal``; a source with a return path has been told and keeps its guest.
    package func run(from: String, to: String) throws(Refusal) {
        let address: MigrationAddress
        do { address = try MigrationAddress(uri: to) } catch { throw Refusal(.usage, error.description) }
        let source = try GuestProcess.awaitSource(from).transport
        let opened: MigrationOpening.Opened
        do throws(SystemCallError) {
            opened = try MigrationOpening.outgoing(address, descriptor: try GuestProcess.inherited(address))
        } catch {
            source.close()
            throw Refusal("cannot connect to \(to): \(error)")
        }
        let relay = StreamRelay(from: source, to: opened.transport)
        self.relay.withLock { $0 = relay }
        var rewriter = BridgeRewriter(target: target, expected: expected)
        do throws(MigrationError) { try relay.run(&rewriter) } catch {
            throw Refusal(.rolledBack, "\(error)")
        }
    }
}
