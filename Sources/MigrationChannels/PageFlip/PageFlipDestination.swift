import Glibc
package import GuestMemory
import LinuxCalls
package import MigrationEngine
import MigrationStream

/// The destination of a page flip: takes the pipe, then for each run of page addresses its contents out of it.
package final class PageFlipDestination: DestinationRAMHooks {
    private let transport: DescriptorTransport
    private struct State {
        var pipe: OwnedDescriptor?
        var blocks: [RAMBlock] = []
    }
    // SAFETY: only the migration's thread calls the hooks.
    nonisolated(unsafe) private var state = State()

    /// - Parameter configuration: With capability `unix-page-flipping` off no descriptor is taken.
    package init(transport: DescriptorTransport, configuration: MigrationConfiguration) {
        self.transport = transport
        if configuration.has(.unixPageFlipping) { transport.expectDescriptors(1) }
    }

    package func blocksListed(_ blocks: [RAMBlock]) { unsafe state.blocks = blocks }

    package func loadDescriptor(_ input: StreamInput) throws(MigrationError) {
        let descriptors = transport.takeDescriptors()
        transport.expectDescriptors(0)
        guard unsafe state.pipe == nil, descriptors.count == 1 else {
            throw MigrationError(
                .streamMalformed, in: input.phase, "\(descriptors.count) descriptors came where the pipe should")
        }
        do throws(SystemCallError) {
            guard try descriptors[0].status().type == .pipe else {
                throw SystemCallError("fstat", .invalidArgument, subject: "not a pipe")
            }
            try descriptors[0].setNonBlocking(true)
        } catch {
            throw MigrationError(
                .streamMalformed, in: input.phase, "the descriptor that came is no pipe for page contents", cause: error
            )
        }
        unsafe state.pipe = descriptors[0]
    }

    package func answerPing(_ value: UInt32, _ output: StreamOutput) throws(MigrationError) -> Bool {
        guard value == setupPing, unsafe state.pipe != nil else { return false }
        let files = unsafe state.blocks.compactMap(\.file)
        let canBeTakenBack = unsafe state.blocks.allSatisfy { $0.file != nil && $0.isWhole }
        let writer = StreamWriter(capacity: 16)
        ReturnPathMessage.pong(value).encode(to: writer)
        do throws(TransportError) {
            try transport.send(writer.bytes, descriptors: canBeTakenBack ? files : [])
        } catch {
            throw error.migrationError(in: .setup, "answering the page-flip set-up")
        }
        return true
    }

    package func end() { unsafe state.pipe = nil }

    package func loadPages(_ run: PageRun) throws(MigrationError) {
        try unsafe loadContents(
            UnsafeMutableRawBufferPointer(start: run.block.base + run.offset, count: run.byteCount))
    }

    package func loadContents(_ target: UnsafeMutableRawBufferPointer) throws(MigrationError) {
        guard let pipe = unsafe state.pipe else {
            throw MigrationError(.streamMalformed, in: .switchover, "a page is said to be in a pipe that never came")
        }
        do throws(TransportError) {
            var done = 0
            while done < target.count {
                do throws(SystemCallError) {
                    let count = try unsafe pipe.read(into: UnsafeMutableRawBufferPointer(rebasing: target[done...]))
                    guard count > 0 else { throw SystemCallError("read", .brokenPipe, subject: "page-flip pipe") }
                    done += count
                } catch {
                    try transport.wait(after: error, pipe, Int16(POLLIN))
                }
            }
        } catch {
            throw error.migrationError(in: .switchover, "taking pages from the pipe")
        }
    }
}
