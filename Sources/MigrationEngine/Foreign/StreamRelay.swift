import GuestMemory
import Glibc
package import MigrationStream
import Synchronization

/// Passes a live stream from one channel to another, RAM as it comes and in memory that does not grow, and the state of
/// devices through somebody who rewrites it.
///
/// Pages are not looked at, only stepped over: what was received is sent from where it lies. Messages of the return path
/// go back the same way. One thread.
package final class StreamRelay: Sendable {
    /// What is done to a stream on the way.
    package protocol Rewriter {
        /// Blocks that the destination does not have.
        func drops(block name: String) -> Bool
        /// Whether the destination knows the command that announces the final phase.
        var passesSwitchoverStart: Bool { get }
        /// Said when the destination has refused what was sent.
        var hints: [String] { get }
        /// The contents of a page that may be the first of a device tree, and of those that follow it.
        mutating func look(at page: UnsafeRawBufferPointer, block: String, offset: UInt64)
        /// The sections as the destination wants them.
        /// - Parameter description: The source's self-description, to be made one of what goes; nil when it sent none.
        /// - Throws: When the guest cannot go there; the source is told and keeps it.
        mutating func rewrite(_ sections: [UnreadSection], _ description: inout VMDescription?) throws
            -> [UnreadSection]
    }

    /// What has passed so far.
    package struct Progress: Hashable, Sendable {
        package var receivedByteCount: UInt64 = 0
        package var pageCount: UInt64 = 0
        package var ramByteCount: UInt64 = 0
        package var phase = MigrationPhase.setup
        /// Blocks and sections left out, by name.
        package var leftOut: [String] = []
    }

    private let source: any MigrationTransport
    private let destination: any MigrationTransport
    /// Shared memory may be listed and not sent (`x-ignore-shared`).
    private let ignoresShared: Bool
    private let limits = StreamLimits()
    private let current = Mutex(Progress())

    /// - Parameter ignoresShared: `x-ignore-shared` is on at both ends.
    package init(
        from source: any MigrationTransport, to destination: any MigrationTransport, ignoresShared: Bool = false
    ) {
        self.source = source
        self.destination = destination
        self.ignoresShared = ignoresShared
    }

    private var options: RAMStreamOptions {
        var options = RAMSender.options(MigrationConfiguration())
        options.ignoresShared = ignoresShared
        return options
    }

    /// Any thread.
    package var progress: Progress { current.withLock { $0 } }

    /// Relays one stream to its end.
    ///
    /// With a return path, returns when the destination has said its last word and the source has heard it.
    /// - Throws: When either channel fails, the stream is damaged, or the guest cannot go there. A source with a return path
    ///   has been told; the destination never had a whole stream.
    package func run(_ rewriter: inout some Rewriter) throws(MigrationError) {
        let flow = Flow(self)
        do throws(MigrationError) {
            try flow.run(&rewriter)
        } catch {
            flow.refuse()
            guard error.code == .peerRefused, !rewriter.hints.isEmpty else { throw error }
            var error = error
            error.message += "; \(rewriter.hints.joined(separator: "; "))"
            throw error
        }
    }

    /// The state of one run; lives on its thread.
    private final class Flow {
        let relay: StreamRelay
        let input: StreamInput
        let output: StreamOutput
        var reader: StreamReader
        var decoder: RAMDecoder
        /// Open at the source.
        var hasReturnPath = false
        /// Answered here, because the destination cannot.
        var answersItself = false
        /// What the destination says; nil without a return path that goes through.
        var back: StreamInput?
        /// The destination's last word, when the source has heard it.
        var verdict: UInt32?
        var phase = MigrationPhase.setup {
            didSet {
                input.phase = phase
                output.phase = phase
                relay.current.withLock { $0.phase = phase }
            }
        }

        init(_ relay: StreamRelay) {
            self.relay = relay
            input = StreamInput(transport: relay.source, capacity: 1 << 20)
            output = StreamOutput(transport: relay.destination)
            reader = StreamReader(limits: relay.limits)
            decoder = RAMDecoder(takingAnyBlock: relay.options, limits: relay.limits)
        }

        func refuse() {
            relay.destination.close()
            if verdict == nil, relay.source.hasReturnPath { sayToSource(.shut(status: 1)) }
            relay.source.close()
        }

        func sayToSource(_ message: ReturnPathMessage) {
            let back = StreamOutput(transport: relay.source)
            message.encode(to: back.writer)
            try? back.flush()
        }

        func run(_ rewriter: inout some Rewriter) throws(MigrationError) {
            var sections: [UnreadSection] = []
            while true {
                let record = try input.decode { (cursor: inout StreamCursor) throws(StreamError) in
                    try reader.next(&cursor)
                }
                switch record {
                case .header: output.writer.writeHeader()
                case .configuration(let configuration):
                    let passing = relay.ignoresShared ? [MigrationCapability.ignoreShared.rawValue] : []
                    if let name = configuration.capabilities?.first(where: { !passing.contains($0) }) {
                        throw MigrationError(
                            .capabilityMismatch, in: .setup,
                            "\(name) is on at the source and cannot be bridged; switch it off there")
                    }
                    output.writer.writeConfiguration(configuration)
                case .section(let header) where header.name == "ram":
                    phase = header.kind == .end ? .switchover : .precopy
                    do throws(MigrationError) { try passRAM(header, &rewriter) } catch { throw error.inSection("ram") }
                case .section(let header):
                    phase = .switchover
                    guard header.kind == .full else {
                        throw MigrationError(
                            .unknownSection, in: phase,
                            "section \(header.name) iterates, which cannot be bridged; start the source without it")
                    }
                    try sections.add(try input.takeSection(header, &reader, limits: relay.limits))
                case .command(let command): try pass(command, rewriter.passesSwitchoverStart)
                case .endOfStream:
                    phase = .commit
                    guard ramIsWhole else {
                        throw MigrationError(
                            .missingSection, in: phase,
                            "the stream ended before the end of section ram; it is damaged, take it from the source again"
                        )
                    }
                    return try finish(sections, &rewriter)
                case .description: break
                }
                relay.current.withLock { $0.receivedByteCount = input.receivedByteCount }
            }
        }

        // MARK: Commands

        private func pass(_ command: StreamCommand, _ passesSwitchoverStart: Bool) throws(MigrationError) {
            switch command {
            case .openReturnPath:
                hasReturnPath = true
                guard relay.source.hasReturnPath else {
                    throw MigrationError(
                        .invalidConfiguration, in: phase, "\(relay.source.name) has no way back for return-path")
                }
                guard relay.destination.hasReturnPath else {
                    answersItself = true
                    return
                }
                output.writer.writeCommand(command)
                try output.flush()
                back = StreamInput(transport: relay.destination, capacity: 4096)
            case .ping(let value):
                if answersItself { sayToSource(.pong(value)) } else { output.writer.writeCommand(command) }
                try output.flush()
            case .switchoverStart: if passesSwitchoverStart { output.writer.writeCommand(command) }
            default:
                throw MigrationError(
                    .streamMalformed, in: phase,
                    "command \(command.number) cannot be bridged; switch postcopy-ram and the like off at the source")
            }
        }

        /// Passes on what the destination has said.
        private func passBack(timeoutMilliseconds: Int) throws(MigrationError) {
            guard let back else { return }
            back.phase = phase
            guard try back.fill(timeoutMilliseconds: timeoutMilliseconds) else { return }
            let way = StreamOutput(transport: relay.source)
            while back.buffer.count > 0 {
                var cursor = back.buffer.cursor(isFinal: back.isAtEnd)
                do throws(StreamError) {
                    let message = try ReturnPathMessage.decode(from: &cursor)
                    back.buffer.consume(to: cursor)
                    message.encode(to: way.writer)
                    if case .shut(let status) = message { verdict = status }
                } catch {
                    guard error.neededByteCount != nil else {
                        throw StreamInput.migrationError(error, in: phase, false)
                    }
                    break
                }
            }
            try way.flush()
            if let verdict, verdict != 0 {
                throw MigrationError(.peerRefused, in: phase, "the destination reports that it failed (\(verdict))")
            }
            guard verdict != nil || !back.isAtEnd else {
                throw MigrationError(.channelClosed, in: phase, "the destination closed the channel")
            }
        }

        // MARK: RAM

        private func passRAM(_ header: SectionHeader, _ rewriter: inout some Rewriter) throws(MigrationError) {
            do throws(StreamError) {
                try decoder.beginSection(header.kind, version: header.version, at: input.buffer.offset)
            } catch { throw StreamInput.migrationError(error, in: phase, false) }
            output.writer.beginSection(header)
            if header.kind == .start { try passBlockList(&rewriter) }
            try output.flush()
            while try passRecords(&rewriter) {}
            try input.decode { (cursor: inout StreamCursor) throws(StreamError) in try reader.endSection(&cursor) }
            output.writer.endSection(id: header.id)
            try output.flush()
            ramIsWhole = header.kind == .end
        }

        private func passBlockList(_ rewriter: inout some Rewriter) throws(MigrationError) {
            while !decoder.isListComplete {
                _ = try input.decode { (cursor: inout StreamCursor) throws(StreamError) in
                    let record = try decoder.next(&cursor)
                    if case .endOfSection = record {
                        throw StreamError(
                            .unexpectedRecord("a RAM section without a list of blocks"), at: cursor.offset)
                    }
                    return record
                }
            }
            var kept: [RAMBlockDescription] = []
            for block in decoder.blocks {
                if rewriter.drops(block: block.name) {
                    relay.current.withLock { $0.leftOut.append("RAM block \(block.name)") }
                } else {
                    kept.append(block)
                }
            }
            isDropped = decoder.blocks.map { rewriter.drops(block: $0.name) }
            relay.current.withLock { $0.ramByteCount = kept.reduce(0) { $0 + $1.byteCount } }
            RAMEncoder(blocks: kept, options: relay.options).writeBlockList(to: output.writer)
        }

        private var isDropped: [Bool] = []
        /// The section's end has come.
        private var ramIsWhole = false
        /// Bytes of a page that are still to come, and whether they are to pass.
        private var pageRest = 0
        private var pagePasses = true

        /// Takes what is at hand, sends what of it is to pass, and receives more; false at the end mark.
        private func passRecords(_ rewriter: inout some Rewriter) throws(MigrationError) -> Bool {
            var cursor = input.buffer.cursor(isFinal: input.isAtEnd)
            var start = cursor
            var pages: UInt64 = 0
            var needed = 0
            while true {
                if pageRest > 0 {
                    let taken = cursor.skipAvailable(UInt64(pageRest))
                    pageRest -= taken
                    if !pagePasses { start = cursor }
                    if pageRest > 0 {
                        needed = 1
                        break
                    }
                }
                let before = cursor
                let record: RAMRecord
                do throws(StreamError) { record = try decoder.next(&cursor) } catch {
                    guard let more = error.neededByteCount else {
                        throw StreamInput.migrationError(error, in: phase, input.isAtEnd)
                    }
                    needed = more
                    break
                }
                let reference: BlockReference
                switch record {
                case .page(let block, let offset):
                    reference = block
                    pageRest = guestPageSize
                    pages += 1
                    if offset & 0x1f_ffff < UInt64(64 << 10), cursor.remaining >= guestPageSize {
                        let name = decoder.blocks[block.index].name
                        var page = cursor
                        _ = try? unsafe page.withBytes(guestPageSize) {
                            unsafe rewriter.look(at: $0, block: name, offset: offset)
                        }
                    }
                case .filledPage(let block, _, _):
                    reference = block
                    pages += 1
                case .xbzrlePage(let block, _, let byteCount):
                    reference = block
                    pageRest = byteCount
                    pages += 1
                case .endOfSection:
                    try forward(start, to: cursor)
                    input.buffer.consume(to: cursor)
                    relay.current.withLock { $0.pageCount += pages }
                    return false
                case .multifdFlush: continue
                case .memorySize, .block, .flipDescriptor, .flippedPage:
                    throw MigrationError(.streamMalformed, in: phase, "\(record) cannot be bridged")
                }
                pagePasses = !isDropped[reference.index]
                if !pagePasses {
                    try forward(start, to: before)
                    start = cursor
                }
            }
            try forward(start, to: cursor)
            input.buffer.consume(to: cursor)
            relay.current.withLock { progress in
                progress.pageCount += pages
                progress.receivedByteCount = input.receivedByteCount
            }
            start = StreamCursor([])
            cursor = StreamCursor([])
            if back != nil {
                repeat { try passBack(timeoutMilliseconds: 0) } while try !input.fill(timeoutMilliseconds: 20)
            } else {
                try input.fill(minimum: max(needed, 1))
            }
            if input.isAtEnd, input.buffer.count == 0 {
                throw MigrationError(.channelClosed, in: phase, "the stream ended inside section ram")
            }
            return true
        }

        /// Sends the bytes between two places from where they lie.
        private func forward(_ start: StreamCursor, to end: StreamCursor) throws(MigrationError) {
            let count = Int(end.offset - start.offset)
            guard count > 0 else { return }
            var piece = start
            var failure: TransportError?
            do throws(StreamError) {
                _ = try unsafe piece.withBytes(count) { bytes in
                    var part = unsafe iovec(
                        iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
                    do throws(TransportError) {
                        try unsafe withUnsafeMutablePointer(to: &part) { (pointer) throws(TransportError) in
                            try unsafe relay.destination.send(UnsafeMutableBufferPointer(start: pointer, count: 1))
                        }
                    } catch { failure = error }
                }
            } catch { preconditionFailure("the bytes are at hand") }
            if let failure { throw failure.migrationError(in: phase, "sending") }
        }

        // MARK: The end

        private func finish(
            _ sections: [UnreadSection], _ rewriter: inout some Rewriter
        ) throws(MigrationError) {
            // Before anything goes: what the source describes must have come.
            let json = try input.takeDescription(&reader)
            if let json { try sections.requireAll(of: json) }
            var description = json.flatMap { try? VMDescription.parse($0) }
            let rewritten: [UnreadSection]
            do { rewritten = try rewriter.rewrite(sections, &description) } catch {
                throw MigrationError(.stateRejected, in: .switchover, "the guest cannot go there", cause: error)
            }
            let kept = Set(rewritten.map(\.name))
            relay.current.withLock { progress in
                progress.leftOut += sections.filter { !kept.contains($0.name) }.map { "section \($0.name)" }
            }
            for section in rewritten { section.write(to: output.writer) }
            output.writer.writeEndOfStream()
            if let description {
                output.writer.writeDescription(description.json)
            } else {
                output.writer.writeDescription()
            }
            try output.flush()
            if back != nil {
                while verdict == nil { try passBack(timeoutMilliseconds: 1000) }
                relay.source.close()
                relay.destination.close()
                guard verdict == 0 else {
                    throw MigrationError(.peerRefused, in: .commit, "the destination did not take the guest")
                }
                return
            }
            do throws(TransportError) { try relay.destination.finishSending() } catch {
                throw error.migrationError(in: .commit, "finishing")
            }
            if answersItself { sayToSource(.shut(status: 0)) }
            relay.destination.close()
            relay.source.close()
        }
    }
}
