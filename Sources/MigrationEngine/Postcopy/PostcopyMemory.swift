import GuestMemory
import MigrationStream
import Synchronization

/// Which pages of a guest that runs already are here, and who waits for which: shared between the thread that places
/// what comes, and the one that hears of faults.
///
/// The order is what makes it safe: a page is placed first and noted afterwards. A fault on a page that is noted is
/// either over, or one on a page of zeroes that was never put there.
final class PostcopyMemory: Sendable {
    private struct State {
        /// Pages that came, zeroes among them.
        var received: [PageSet]
        /// Asked for and not here yet.
        var requested: [PageSet]
        /// False while there is no channel.
        var canAsk = true
        var requestCount: UInt64 = 0
        var failure: MigrationError?
    }

    let blocks: [RAMBlock]
    private let missing: MissingPages
    private let state: Mutex<State>
    private let writer: ReturnPathWriter
    /// Pages in use of each block, as the source said.
    private let pageCounts: [Int]

    init(
        _ missing: MissingPages, received: [PageSet], pageCounts: [Int], writer: ReturnPathWriter
    ) {
        self.missing = missing
        blocks = missing.blocks
        self.writer = writer
        self.pageCounts = pageCounts
        state = Mutex(State(received: received, requested: blocks.map { PageSet(pageCount: $0.pageCount) }))
    }

    /// Gives up what must come anew, and begins to answer faults.
    func listen() throws(MigrationError) {
        do {
            let received = state.withLock { $0.received }
            for (index, block) in blocks.enumerated() {
                var page = 0
                while page < block.pageCount {
                    // What did not come must be a fault, whatever was there before.
                    let next = received[index].run(from: page, limit: block.pageCount)
                    let end = next?.lowerBound ?? block.pageCount
                    if page < end {
                        try block.free(offset: page * guestPageSize, byteCount: (end - page) * guestPageSize)
                    }
                    page = next?.upperBound ?? block.pageCount
                }
            }
            try missing.watch { [weak self] block, page in self?.fault(block, page) }
        } catch {
            throw MigrationError(.guestFailed, in: .switchover, "page faults cannot be watched", cause: error)
        }
    }

    // MARK: Faults

    /// On the fault thread.
    private func fault(_ block: Int, _ page: Int) {
        let (isHere, isNew) = state.withLock { state in
            if state.received[block].contains(page) || page >= pageCounts[block] { return (true, false) }
            guard !state.requested[block].contains(page) else { return (false, false) }
            state.requested[block].insert(page..<(page + 1))
            guard state.canAsk else { return (false, false) }
            state.requestCount += 1
            return (false, true)
        }
        if isHere {
            do { try missing.placeZeroes(block: block, page: page) } catch { fail(error) }
        } else if isNew {
            // When it cannot be sent the channel is lost, which the receiving thread finds out; it asks again later.
            try? ask(block, page)
        }
    }

    private func ask(_ block: Int, _ page: Int) throws(MigrationError) {
        try writer.request(
            blocks[block].name, offset: UInt64(page * guestPageSize), byteCount: UInt32(guestPageSize))
    }

    private func fail(_ error: any Error) {
        let failure = MigrationError(.guestFailed, in: .postcopy, "a page cannot be placed", cause: error)
        state.withLock { if $0.failure == nil { $0.failure = failure } }
    }

    // MARK: Pages

    /// Contents of consecutive pages came. A page that is here already stays as the guest has made it.
    func place(_ bytes: UnsafeRawBufferPointer, _ block: Int, _ first: Int) throws(MigrationError) {
        var page = first
        let end = first + bytes.count / guestPageSize
        while page < end {
            let isHere = state.withLock { $0.received[block].contains(page) }
            if isHere {
                page += 1
                continue
            }
            let rest = unsafe UnsafeRawBufferPointer(rebasing: bytes[((page - first) * guestPageSize)...])
            do {
                let count = try unsafe missing.place(rest, block: block, page: page)
                // Nothing was placed: it is here and was not noted. It had been given up, so this cannot be.
                guard count > 0 else {
                    throw MigrationError(
                        .streamMalformed, in: .postcopy, "\(blocks[block].name) page \(page) was there unasked")
                }
                note(block, page..<(page + count))
                page += count
            } catch let error as MigrationError {
                throw error
            } catch {
                throw MigrationError(.guestFailed, in: .postcopy, "a page cannot be placed", cause: error)
            }
        }
    }

    private func note(_ block: Int, _ pages: Range<Int>) {
        state.withLock { state in
            state.received[block].insert(pages)
            state.requested[block].remove(pages)
        }
    }

    /// A page of zeroes came. Only put there when somebody waits for it.
    func placeZeroes(_ block: Int, _ page: Int) throws(MigrationError) {
        let isAwaited = state.withLock { state in
            let isAwaited = state.requested[block].contains(page)
            state.received[block].insert(page..<(page + 1))
            state.requested[block].remove(page..<(page + 1))
            return isAwaited
        }
        guard isAwaited else { return }
        do { try missing.placeZeroes(block: block, page: page) } catch {
            throw MigrationError(.guestFailed, in: .postcopy, "a page of zeroes cannot be placed", cause: error)
        }
    }

    /// Pages that are still elsewhere.
    var missingPageCount: Int {
        state.withLock { state in
            zip(state.received, pageCounts).reduce(0) { sum, entry in
                sum + max(0, entry.1 - entry.0.count)
            }
        }
    }

    var requestCount: UInt64 { state.withLock { $0.requestCount } }

    /// What the fault thread could not do.
    var failure: MigrationError? { state.withLock { $0.failure } }

    // MARK: The channel

    func channelLost() { state.withLock { $0.canAsk = false } }

    func bitmap(of block: Int) -> ReceivedBitmap {
        let words = state.withLock { $0.received[block].words }
        return ReceivedBitmap(words: Array(words.prefix((pageCounts[block] + 63) / 64)))
    }

    func index(of name: String) -> Int? { blocks.firstIndex { $0.name == name } }

    /// Over a new channel: whoever waits asks again.
    func channelIsBack() throws(MigrationError) {
        let wanted = state.withLock { state in
            state.canAsk = true
            return state.requested
        }
        for (block, pages) in wanted.enumerated() {
            var page = 0
            while let run = pages.run(from: page, limit: 1) {
                try ask(block, run.lowerBound)
                page = run.upperBound
            }
        }
    }

    // MARK: The end

    /// Everything is here.
    func finish() { missing.release() }

    /// The guest never ran; whoever waits goes on and must then do nothing.
    func giveUp() { missing.release() }

    /// The guest ran and its pages will not come: whoever waits for one never goes on.
    func abandon() { missing.abandon() }
}
