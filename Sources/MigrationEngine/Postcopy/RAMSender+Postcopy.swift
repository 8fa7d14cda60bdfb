import GuestMemory
import MigrationStream

/// What the source's RAM does once the guest runs elsewhere: nobody here writes it any more, and it goes in small pieces,
/// what somebody waits for first.
extension RAMSender {
    /// Pages of each block by name, to judge what the destination asks for.
    var pageCounts: [String: Int] { Dictionary(uniqueKeysWithValues: blocks.map { ($0.name, $0.pageCount) }) }

    func reference(of name: String) -> BlockReference? {
        blocks.firstIndex { $0.name == name }.map { BlockReference($0) }
    }

    /// POSTCOPY_RAM_DISCARD for every page that is still to be sent: the destination must not take its own for right.
    func writeDiscards(to writer: StreamWriter) {
        for (block, pages) in zip(blocks, pendingSets) {
            var ranges: [StreamCommand.DiscardedRange] = []
            func flush() {
                guard !ranges.isEmpty else { return }
                writer.writeCommand(.postcopyDiscard(block: block.name, ranges: ranges))
                ranges = []
            }
            var page = 0
            while let run = pages.run(from: page, limit: block.pageCount) {
                // A run may end at a word's border; what follows directly belongs to it.
                var end = run.upperBound
                while let next = pages.run(from: end, limit: block.pageCount), next.lowerBound == end {
                    end = next.upperBound
                }
                ranges.append(
                    StreamCommand.DiscardedRange(
                        offset: UInt64(run.lowerBound * guestPageSize),
                        byteCount: UInt64((end - run.lowerBound) * guestPageSize)))
                if ranges.count == StreamCommand.discardedRangesMax { flush() }
                page = end
            }
            flush()
        }
        forgetLastBlock()
        endDifferences()
    }

    /// One piece: what was asked for with what stands behind it, then, if there is room, what comes next.
    /// - Parameter pages: Pages of the piece that nobody asked for; 0 sends what was asked for alone.
    /// - Returns: The runs that went.
    func writePiece(
        to output: StreamOutput, requests: [(reference: BlockReference, pages: Range<Int>)], pages: Int
    ) throws(MigrationError) -> [PageRun] {
        var sent: [PageRun] = []
        try beforeIterate(output)
        for request in requests {
            let end = min(request.pages.upperBound + Self.pagesBehindRequest, blocks[request.reference.index].pageCount)
            try sendRequested(request.reference, pages: request.pages.lowerBound..<end, to: output) { sent.append($0) }
            // The guest works there: the rest goes on from this place.
            goOn(request.reference, behind: end)
        }
        var left = pages
        while left > 0, let run = nextRun(limit: left) {
            try sendRun(run, to: output)
            sent.append(run)
            left -= run.pages.count
        }
        try afterIterate(output)
        return sent
    }

    /// Pages sent with one that was asked for, because they will be asked for next.
    private static let pagesBehindRequest = 7

    /// What the destination has from before the switch: all that is neither to be sent nor among `others`.
    func runsSentBefore(_ others: [PageRun]) -> [PageRun] {
        var elsewhere = pendingSets
        for run in others { elsewhere[run.reference.index].insert(run.pages) }
        var result: [PageRun] = []
        for (index, block) in blocks.enumerated() where !isIgnored[index] {
            var page = 0
            while page < block.pageCount {
                let next = elsewhere[index].run(from: page, limit: block.pageCount)
                let end = next?.lowerBound ?? block.pageCount
                if page < end {
                    result.append(PageRun(block: block, reference: BlockReference(index), pages: page..<end))
                }
                page = next?.upperBound ?? block.pageCount
            }
        }
        return result
    }

    /// What the destination has not got: after a broken channel.
    /// - Throws: When something was given away that it has not got.
    func restore(received: [String: ReceivedBitmap], givenAway: [PageSet]) throws(MigrationError) {
        var sets: [PageSet] = []
        for (index, block) in blocks.enumerated() {
            var set = PageSet(pageCount: block.pageCount)
            if !isIgnored[index] {
                guard let bitmap = received[block.name] else {
                    throw MigrationError(
                        .streamMalformed, in: .postcopy, "the destination does not say what it has of \(block.name)")
                }
                for (word, bits) in bitmap.words.enumerated() {
                    set.insert(word: word, bits: ~bits)
                    if ~bits & givenAway[index].words[word] != 0 {
                        throw MigrationError(
                            .ramMismatch, in: .postcopy,
                            "pages of \(block.name) that the destination had are gone there and here: the guest is lost"
                        )
                    }
                }
            }
            sets.append(set)
        }
        restore(sets)
        forgetLastBlock()
    }
}
