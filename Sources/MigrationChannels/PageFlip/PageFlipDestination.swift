import Glibc
package import GuestMemory
import LinuxCalls
package import MigrationEngine
import MigrationStream
import SystemPackage

/// The destination of a page flip: takes the pipe, then for each run of page addresses its contents out of it.
package final class PageFlipDestination: DestinationRAMHooks {
    /// Half of what the pipe holds: the source is woken and refills it while the other half is being taken, so that it
    /// never runs empty.
    private static let readMax = PagePipe.capacityWanted / 2

    /// Threads that copy; more gain nothing where memory's own speed is the limit.
    private static let readersMax = 4
    /// A shorter run is copied here sooner than another thread is woken.
    private static let sharedMin = 128 << 10
    /// How a sandbox says that it does not know splice(2).
    private static let refusals: Set<Errno> = [.notPermitted, .noFunction, .permissionDenied]

    private let transport: DescriptorTransport
    private struct State {
        var pipe: OwnedDescriptor?
        /// Nil where one processor has to do, or the host gives no more: then this thread copies.
        var readers: PipeReaders?
        var blocks: [RAMBlock] = []
    }
    // SAFETY: only the migration's thread calls the hooks.
    nonisolated(unsafe) private var state = State()

    private let readerCount: Int

    /// As many threads as there are processors.
    package static var readersWanted: Int { min(sysconf(CInt(_SC_NPROCESSORS_ONLN)), readersMax) }

    /// - Parameters:
    ///   - configuration: With capability `unix-page-flipping` off no descriptor is taken.
    ///   - readerCount: Threads that copy; with fewer than two the migration's own does.
    package init(
        transport: DescriptorTransport, configuration: MigrationConfiguration,
        readerCount: Int = PageFlipDestination.readersWanted
    ) {
        self.transport = transport
        self.readerCount = readerCount
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
        if readerCount > 1 { unsafe state.readers = try? PipeReaders(threadCount: readerCount) }
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

    package func end() {
        unsafe state.readers?.end()
        unsafe state.readers = nil
        unsafe state.pipe = nil
    }

    package func loadPages(_ run: PageRun) throws(MigrationError) {
        let target = unsafe UnsafeMutableRawBufferPointer(start: run.block.base + run.offset, count: run.byteCount)
        guard let readers = unsafe state.readers, run.byteCount >= Self.sharedMin, let pipe = unsafe state.pipe else {
            return try unsafe loadContents(target)
        }
        var done = 0
        do throws(TransportError) {
            while done < target.count, unsafe state.readers != nil {
                do throws(SystemCallError) {
                    let count = try unsafe readers.take(
                        into: UnsafeMutableRawBufferPointer(rebasing: target[done...]), from: pipe)
                    guard count > 0 else { throw SystemCallError("splice", .brokenPipe, subject: "page-flip pipe") }
                    done += count
                } catch {
                    if Self.refusals.contains(error.errno) {
                        // A sandbox without splice: what was moved before is in its place soon, the rest is read here.
                        readers.end()
                        unsafe state.readers = nil
                    } else if error.errno != .wouldBlock || !readers.help() {
                        try transport.wait(after: error, pipe, Int16(POLLIN))
                    }
                }
            }
        } catch {
            throw error.migrationError(in: .switchover, "taking pages from the pipe")
        }
        if done < target.count { try unsafe loadContents(UnsafeMutableRawBufferPointer(rebasing: target[done...])) }
    }

    /// A section's pages are all in place before anything that follows it: a page may come again in the next, and a
    /// PONG behind it lets the source free its own.
    package func synchronise(_ point: RAMSynchronisation, in phase: MigrationPhase) throws(MigrationError) -> Bool {
        do throws(SystemCallError) { try unsafe state.readers?.drain() } catch {
            throw MigrationError(.channelFailed, in: phase, "taking pages from the pipe", cause: error)
        }
        return false
    }

    package func loadContents(_ target: UnsafeMutableRawBufferPointer) throws(MigrationError) {
        guard let pipe = unsafe state.pipe else {
            throw MigrationError(.streamMalformed, in: .switchover, "a page is said to be in a pipe that never came")
        }
        do throws(TransportError) {
            var done = 0
            while done < target.count {
                do throws(SystemCallError) {
                    let end = min(target.count, done + Self.readMax)
                    let count = try unsafe pipe.read(
                        into: UnsafeMutableRawBufferPointer(rebasing: target[done..<end]))
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
