package import GuestMemory
package import MigrationStream

/// The source's RAM: which pages are still to be sent, and the ordinary way to send them. Knows no channel: one that
/// takes pages itself plugs in through ``SourceRAMHooks``.
///
/// Order of dirty tracking. Bits are taken first, then tracking restarts, then pages are read: a write that
/// ``MigratableGuest/restartDirtyTracking()`` has not seen marked is in the page when it is read, and every later one
/// marks it again.
package final class RAMSender {
    /// Longest run offered to hooks: 2 MiB, so that huge pages stay whole.
    static let runPagesMax = 512

    package let guest: any MigratableGuest
    package let blocks: [RAMBlock]
    let isIgnored: [Bool]
    private var encoder: RAMEncoder
    private var pending: [PageSet]
    /// Every page whose mark was taken from the guest, to be put back after a failure.
    private var taken: [PageSet]
    private var dataMaps: [DataMap?]
    private var hooks: (any SourceRAMHooks)?
    private var position = (block: 0, page: 0)
    private var counts = RAMProgress()
    /// Pages whose contents went beside the stream, or will soon.
    private(set) var sidePageCount: UInt64 = 0
    private var differences: DifferenceSender?
    private let allowance: (@Sendable () throws -> Int)?
    private var allowedPages = 0

    package init(
        guest: any MigratableGuest, configuration: MigrationConfiguration, hooks: (any SourceRAMHooks)?
    ) {
        self.guest = guest
        self.hooks = hooks
        blocks = guest.ramBlocks
        isIgnored = blocks.map { configuration.ignores($0) }
        encoder = RAMEncoder(
            blocks: Self.descriptions(of: guest, configuration), options: Self.options(configuration))
        pending = blocks.map { PageSet(pageCount: $0.pageCount) }
        taken = blocks.map { PageSet(pageCount: $0.pageCount) }
        dataMaps = blocks.map { DataMap($0) }
        differences = DifferenceSender(configuration)
        allowance = configuration.allowance
        counts.xbzrle = differences?.progress
        for (index, block) in blocks.enumerated() where !isIgnored[index] {
            counts.totalByteCount += UInt64(block.byteCount)
        }
    }

    static func descriptions(
        of guest: any MigratableGuest, _ configuration: MigrationConfiguration
    ) -> [RAMBlockDescription] {
        guest.ramBlocks.map { block in
            RAMBlockDescription(
                name: block.name, byteCount: UInt64(block.byteCount), address: guest.guestAddress(of: block),
                isIgnored: configuration.ignores(block))
        }
    }

    static func options(_ configuration: MigrationConfiguration) -> RAMStreamOptions {
        var options = RAMStreamOptions()
        options.hasPostcopy = configuration.has(.postcopyRAM)
        options.ignoresShared = configuration.has(.ignoreShared)
        options.isMapped = configuration.has(.mappedRAM)
        options.flipsPages = configuration.has(.unixPageFlipping)
        options.acceptsFill = true
        return options
    }

    package var progress: RAMProgress {
        var result = counts
        if let delayed = hooks?.delayedPages {
            result.normalPages += delayed.normal
            result.zeroPages += delayed.zero
        }
        return result
    }

    // MARK: Which pages

    /// Everything is to be sent; marks made so far are the guest's own and are kept for a failure.
    package func begin() throws(MigrationError) {
        for index in blocks.indices where !isIgnored[index] { pending[index].insertAll() }
        try synchronise(phase: .setup)
    }

    /// Takes the pages written since the last time. Answers how many were not to be sent anyway.
    @discardableResult package func synchronise(phase: MigrationPhase) throws(MigrationError) -> Int {
        var added = 0
        for (index, block) in blocks.enumerated() {
            for word in 0..<block.dirty.wordCount {
                let bits = block.dirty.take(word: word)
                guard bits != 0 else { continue }
                taken[index].insert(word: word, bits: bits)
                if !isIgnored[index] { added += pending[index].insert(word: word, bits: bits) }
            }
            dataMaps[index]?.forget()
        }
        do { try guest.restartDirtyTracking() } catch {
            throw MigrationError(.guestFailed, in: phase, "the guest's writes cannot be tracked", cause: error)
        }
        counts.dirtySyncCount += 1
        return added
    }

    /// After a failure: whoever looks at the marks next finds all that were taken.
    package func putBack() {
        for (index, block) in blocks.enumerated() {
            for (word, bits) in taken[index].words.enumerated() where bits != 0 {
                block.dirty.putBack(word: word, bits: bits)
            }
        }
    }

    package var pendingPageCount: Int { pending.reduce(0) { $0 + $1.count } }
    package var pendingByteCount: UInt64 { UInt64(pendingPageCount) * UInt64(guestPageSize) }
    package func isPending(_ block: Int, page: Int) -> Bool { pending[block].contains(page) }
    package var pendingSets: [PageSet] { pending }

    /// Marks pages as still to be sent, as after a broken postcopy.
    package func restore(_ sets: [PageSet]) { pending = sets }

    // MARK: Sending

    /// The body of START.
    package func writeSetup(to output: StreamOutput) throws(MigrationError) {
        if try hooks?.writeBlockList(output, encoder) != true { encoder.writeBlockList(to: output.writer) }
        try hooks?.beforeRAMIterate(output, .setup)
        try hooks?.afterRAMIterate(output, .setup)
        encoder.writeEndOfSection(to: output.writer)
    }

    /// The body of a PART or of END: pages until none is left, or until there is no room for more, and the end mark.
    /// - Parameter room: How many pages may go next; 0 ends the body.
    /// - Returns: The runs sent, when the channel gives pages away.
    @discardableResult
    package func writePages(
        to output: StreamOutput, _ phase: RAMHookPhase, room: () throws(MigrationError) -> Int
    ) throws(MigrationError) -> [PageRun] {
        var sent: [PageRun] = []
        let keepsRuns = hooks?.disposition == .givesAway
        try hooks?.beforeRAMIterate(output, phase)
        while true {
            let pageCount = try room()
            guard pageCount > 0, let run = nextRun(limit: pageCount) else { break }
            try sendRun(run, to: output)
            if keepsRuns { sent.append(run) }
        }
        if pendingPageCount == 0 { try hooks?.roundEnded(output) }
        try hooks?.afterRAMIterate(output, phase)
        encoder.writeEndOfSection(to: output.writer)
        return sent
    }

    /// The next run from where the last one ended, wrapping once; it is no longer pending.
    func nextRun(limit: Int = .max) -> PageRun? {
        for _ in 0...blocks.count {
            if position.block >= blocks.count { position = (0, 0) }
            let index = position.block
            if index < blocks.count, pending[index].count > 0,
                let pages = pending[index].run(from: position.page, limit: Self.limit(at: position.page))
            {
                // Runs end at multiples of their greatest length, so that huge pages are not torn apart.
                let limit = min(Self.limit(at: pages.lowerBound), limit)
                let run = pages.lowerBound..<min(pages.upperBound, pages.lowerBound + limit)
                pending[index].remove(run)
                position.page = run.upperBound
                return PageRun(block: blocks[index], reference: BlockReference(index), pages: run)
            }
            position = (index + 1, 0)
        }
        return nil
    }

    private static func limit(at page: Int) -> Int { runPagesMax - page % runPagesMax }

    /// A range somebody waits for; only what is still to be sent of it.
    package func sendRequested(
        _ reference: BlockReference, pages: Range<Int>, to output: StreamOutput, sent: (PageRun) -> Void
    ) throws(MigrationError) {
        var page = pages.lowerBound
        while page < pages.upperBound,
            let run = pending[reference.index].run(from: page, limit: pages.upperBound - page),
            run.lowerBound < pages.upperBound
        {
            let clamped = run.clamped(to: pages)
            pending[reference.index].remove(clamped)
            let request = PageRun(block: blocks[reference.index], reference: reference, pages: clamped)
            try sendRun(request, to: output)
            sent(request)
            page = clamped.upperBound
        }
    }

    // MARK: Postcopy

    /// Where to go on with pages that nobody asked for.
    func goOn(_ reference: BlockReference, behind page: Int) { position = (reference.index, page) }
    func forgetLastBlock() { encoder.forgetLastBlock() }
    /// Pages go whole from now on: nobody reads differences in a postcopy.
    func endDifferences() { differences = nil }
    func beforeIterate(_ output: StreamOutput) throws(MigrationError) { try hooks?.beforeRAMIterate(output, .round) }

    func afterIterate(_ output: StreamOutput) throws(MigrationError) {
        try hooks?.afterRAMIterate(output, .round)
        encoder.writeEndOfSection(to: output.writer)
    }

    func writeEndOfSection(to writer: StreamWriter) { encoder.writeEndOfSection(to: writer) }

    /// Every page takes the ordinary path from now on.
    func leaveHooks() { hooks = nil }

    /// Blocks whose contents travel.
    var sentBlocks: [RAMBlock] { zip(blocks, isIgnored).filter { !$0.1 }.map(\.0) }

    func sendRun(_ whole: PageRun, to output: StreamOutput) throws(MigrationError) {
        var page = whole.pages.lowerBound
        while page < whole.pages.upperBound {
            var run = whole
            run.pages = page..<whole.pages.upperBound
            // A hole is a page of zeroes that nobody needs to touch.
            if let extent = dataMaps[whole.reference.index]?.extent(at: page) {
                run.pages = page..<min(page + extent.pageCount, run.pages.upperBound)
                if extent.isHole {
                    if try hooks?.saveZeroPages(run) == true {
                        page = run.pages.upperBound
                        continue
                    }
                    for page in run.pages {
                        encoder.writeFilledPage(
                            run.reference, offset: UInt64(page * guestPageSize), to: output.writer)
                        differences?.sentZeroes(run.reference, offset: UInt64(page * guestPageSize))
                    }
                    counts.zeroPages += UInt64(run.pages.count)
                    page = run.pages.upperBound
                    try output.flushIfLarge()
                    continue
                }
            }
            run.pages = page..<(page + (try allowed(run.pages.count, in: output.phase)))
            if let hooks {
                let answer = try hooks.savePage(output, run) { pages in
                    encoder.writeFlippedPages(run.reference, pages, to: output.writer)
                }
                switch answer {
                case .notSupported(let count):
                    run.pages = page..<min(page + max(count, 1), run.pages.upperBound)
                    try sendOrdinary(run, to: output)
                    page = run.pages.upperBound
                case .delayed(let count):
                    page += count
                    sidePageCount += UInt64(count)
                case .sent(let count, let byteCount):
                    page += count
                    if byteCount > 0 {
                        counts.normalPages += UInt64(count)
                        sidePageCount += UInt64(count)
                    } else {
                        counts.zeroPages += UInt64(count)
                    }
                }
            } else {
                try sendOrdinary(run, to: output)
                page = run.pages.upperBound
            }
        }
    }

    /// How many of so many pages may be sent now.
    private func allowed(_ pageCount: Int, in phase: MigrationPhase) throws(MigrationError) -> Int {
        guard let allowance else { return pageCount }
        if allowedPages == 0 {
            do { allowedPages = max(1, try allowance() / guestPageSize) } catch {
                throw MigrationError(.limitExceeded, in: phase, "no more of RAM may be sent", cause: error)
            }
        }
        let granted = min(pageCount, allowedPages)
        allowedPages -= granted
        return granted
    }

    /// Records and contents in the stream, as every QEMU reads them.
    private func sendOrdinary(_ run: PageRun, to output: StreamOutput) throws(MigrationError) {
        let base = unsafe run.block.base
        let writer = output.writer
        for page in run.pages {
            let offset = page &* guestPageSize
            if unsafe isZero(base + offset, byteCount: guestPageSize) {
                encoder.writeFilledPage(run.reference, offset: UInt64(offset), to: writer)
                counts.zeroPages &+= 1
                differences?.sentZeroes(run.reference, offset: UInt64(offset))
            } else if let differences, counts.dirtySyncCount > 1 {
                let sent = unsafe differences.send(
                    run.reference, page: base + offset, offset: UInt64(offset), round: counts.dirtySyncCount,
                    with: &encoder, to: writer)
                if sent == .whole { counts.normalPages &+= 1 }
                try output.flushIfLarge()
            } else {
                encoder.writePageHeader(run.reference, offset: UInt64(offset), to: writer)
                try output.appendContents(
                    of: PageRun(block: run.block, reference: run.reference, pages: page..<(page &+ 1)))
                counts.normalPages &+= 1
            }
        }
        counts.xbzrle = differences?.progress
        try output.flushIfLarge()
    }
}
