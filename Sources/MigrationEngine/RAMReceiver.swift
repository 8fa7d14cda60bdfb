package import GuestMemory
import Glibc
package import MigrationStream

/// The destination's RAM: judges the block list and puts pages where they belong.
package final class RAMReceiver {
    /// Bytes received ahead of their decoding: many records of pages without contents, few pages with, which are copied twice.
    private static let readAheadMax = 32 << 10
    package let blocks: [RAMBlock]
    private let isIgnored: [Bool]
    package var decoder: RAMDecoder
    private let hooks: (any DestinationRAMHooks)?
    /// Pages that may hold something other than zeroes: those with contents before, and those received.
    private var mayHoldData: [PageSet]
    /// Pages that did not come yet, whose contents therefore do not matter; empty while a page's absence has a meaning.
    private var awaited: [PageSet]
    private var runReceiver = PageRunReceiver()
    /// With a postcopy announced: pages that came and were not taken back; empty sets otherwise.
    private(set) var received: [PageSet] = []
    private var tracksReceived = false
    /// Blocks in the order of the source's list.
    package private(set) var listed: [RAMBlock] = []
    package private(set) var hasStarted = false
    package private(set) var hasEnded = false
    package private(set) var progress = RAMProgress()
    /// Blocks that were listed and are not the guest's.
    package private(set) var surplus: [String] = []
    private let surplusBlocks: [String: Int]
    /// The section whose body is being read.
    private var kind = SectionKind.start
    /// A run of flipped pages that is still growing.
    private var flipped: PageRun?

    package init(
        guest: any MigratableGuest, configuration: MigrationConfiguration, hooks: (any DestinationRAMHooks)?
    ) {
        self.hooks = hooks
        surplusBlocks = guest.surplusBlocks
        // Memory that nobody looks at: a few pages for as long as the stream lasts.
        let dropped = surplusBlocks.sorted { $0.key < $1.key }.compactMap { name, byteCount in
            try? RAMBlock(name: name, byteCount: byteCount, backend: .anonymous)
        }
        blocks = guest.ramBlocks + dropped
        isIgnored = blocks.map { configuration.ignores($0) }
        decoder = RAMDecoder(
            blocks: RAMSender.descriptions(of: guest, configuration)
                + dropped.map { block in
                    RAMBlockDescription(
                        name: block.name, byteCount: UInt64(guestPageSize), byteCountMax: UInt64(block.byteCount))
                }, options: RAMSender.options(configuration), limits: configuration.limits)
        mayHoldData = blocks.map { block in
            var set = PageSet(pageCount: block.pageCount)
            guard var map = DataMap(block) else {
                set.insertAll()
                return set
            }
            var page = 0
            while page < block.pageCount {
                let (isHole, count) = map.extent(at: page)
                let end = min(page + count, block.pageCount)
                if !isHole { set.insert(page..<end) }
                page = end
            }
            return set
        }
        awaited = blocks.map { block in
            var set = PageSet(pageCount: block.pageCount)
            // With multifd a page that is not here may come elsewhere meanwhile.
            if !configuration.has(.multifd) { set.insertAll() }
            return set
        }
        for (index, block) in guest.ramBlocks.enumerated() where !isIgnored[index] {
            progress.totalByteCount += UInt64(block.byteCount)
        }
        hooks?.prepare(blocks, holdsData: mayHoldData)
    }

    /// Reads the body of a RAM section, up to its end mark.
    package func receiveSection(_ header: SectionHeader, from input: StreamInput) throws(MigrationError) {
        do throws(StreamError) {
            try decoder.beginSection(header.kind, version: header.version, at: input.buffer.offset)
        } catch { throw StreamInput.migrationError(error, in: input.phase, false) }
        kind = header.kind
        switch header.kind {
        case .start:
            guard !hasStarted else {
                throw MigrationError(
                    .doubledSection, in: input.phase,
                    "section ram came twice; the stream is damaged, take it from the source again")
            }
            hasStarted = true
        case .end: hasEnded = true
        default: break
        }
        while try receiveRecords(from: input) {}
        if header.kind == .start {
            guard decoder.isListComplete else {
                throw MigrationError(.ramMismatch, in: input.phase, "the stream has no list of RAM blocks")
            }
            surplus = listed.map(\.name).filter { surplusBlocks[$0] != nil }
            listed.removeAll { surplusBlocks[$0.name] != nil }
            let missing = decoder.missingBlocks.filter { surplusBlocks[$0] == nil }
            guard missing.isEmpty else {
                throw MigrationError(
                    .ramMismatch, in: input.phase,
                    "the source has no RAM block \(missing.joined(separator: ", ")): it is another machine")
            }
            hooks?.blocksListed(listed)
        }
    }

    /// Takes the records at hand and receives more; false at the end mark.
    private func receiveRecords(from input: StreamInput) throws(MigrationError) -> Bool {
        var cursor = input.buffer.cursor(isFinal: input.isAtEnd)
        while true {
            let record: RAMRecord
            do throws(StreamError) {
                record = try decoder.next(&cursor)
            } catch {
                input.buffer.consume(to: cursor)
                guard let needed = error.neededByteCount else {
                    throw StreamInput.migrationError(error, in: input.phase, input.isAtEnd)
                }
                // What was named must be taken before waiting for more names: the source may wait for it.
                try takeFlipped()
                cursor = StreamCursor([])
                try input.fill(minimum: needed, atMost: Self.readAheadMax)
                return true
            }
            if flipped != nil {
                if case .flippedPage = record {} else { try takeFlipped() }
            }
            switch record {
            case .page(let reference, let offset):
                let index = reference.index
                let destination = unsafe blocks[index].base + Int(offset)
                let page = Int(offset) / guestPageSize
                if cursor.remaining >= guestPageSize {
                    took(page..<(page &+ 1), of: index)
                    progress.normalPages &+= 1
                    do throws(StreamError) {
                        _ = try unsafe cursor.withBytes(guestPageSize) { bytes in
                            unsafe memcpy(destination, bytes.baseAddress!, guestPageSize)
                        }
                    } catch { throw StreamInput.migrationError(error, in: input.phase, input.isAtEnd) }
                } else {
                    input.buffer.consume(to: cursor)
                    cursor = StreamCursor([])
                    try receivePages(reference, page, from: input)
                    cursor = input.buffer.cursor(isFinal: input.isAtEnd)
                }
            case .filledPage(let reference, let offset, let byte):
                fill(reference, Int(offset), byte)
            case .endOfSection:
                input.buffer.consume(to: cursor)
                _ = try hooks?.synchronise(.endOfSection(kind), in: input.phase)
                return false
            case .memorySize: break
            case .block(let entry):
                listed.append(blocks[entry.reference.index])
                guard entry.mapped != nil else { break }
                input.buffer.consume(to: cursor)
                cursor = StreamCursor([])
                try loadMapped(entry, from: input)
                cursor = input.buffer.cursor(isFinal: input.isAtEnd)
            case .flipDescriptor:
                input.buffer.consume(to: cursor)
                guard let hooks else {
                    throw MigrationError(
                        .capabilityMismatch, in: input.phase, "the channel cannot take a page-flip pipe")
                }
                try hooks.loadDescriptor(input)
                cursor = input.buffer.cursor(isFinal: input.isAtEnd)
            case .flippedPage(let reference, let offset):
                let first = Int(offset) / guestPageSize
                let pages = first..<(first + 1 + decoder.skipFollowingFlippedPages(&cursor, after: offset))
                took(pages, of: reference.index)
                progress.normalPages &+= UInt64(pages.count)
                if var run = flipped, run.reference == reference, run.pages.upperBound == first {
                    run.pages = run.pages.lowerBound..<pages.upperBound
                    flipped = run
                } else {
                    try takeFlipped()
                    flipped = PageRun(block: blocks[reference.index], reference: reference, pages: pages)
                }
            case .xbzrlePage(let reference, let offset, let encodedByteCount):
                input.buffer.consume(to: cursor)
                cursor = StreamCursor([])
                try receiveXBZRLE(reference, Int(offset), encodedByteCount, from: input)
                cursor = input.buffer.cursor(isFinal: input.isAtEnd)
            case .multifdFlush:
                guard try hooks?.synchronise(.flush, in: input.phase) == true else {
                    throw MigrationError(
                        .capabilityMismatch, in: input.phase,
                        "the source sends pages over channels of their own; switch multifd on at both ends or at none")
                }
            }
        }
    }

    private func took(_ pages: Range<Int>, of index: Int) {
        mayHoldData[index].insert(pages)
        awaited[index].remove(pages)
        if tracksReceived { received[index].insert(pages) }
    }

    // MARK: Postcopy

    /// From here on it is noted which pages came.
    func trackReceived() {
        tracksReceived = true
        received = blocks.map { PageSet(pageCount: $0.pageCount) }
    }

    /// Pages that must come again. False when there are no such pages.
    func discard(_ name: String, _ first: Int, _ count: Int) -> Bool {
        guard let index = blocks.firstIndex(where: { $0.name == name }), tracksReceived, first >= 0, count > 0,
            first <= blocks[index].pageCount, count <= blocks[index].pageCount - first
        else { return false }
        received[index].remove(first..<(first + count))
        return true
    }

    /// Pages in use of each block, as the source said.
    var listedPageCounts: [Int] {
        blocks.indices.map { Int(clamping: decoder.byteCount(of: BlockReference($0))) / guestPageSize }
    }

    func requireStarted() throws(MigrationError) {
        guard hasStarted else {
            throw MigrationError(.missingSection, in: .switchover, "the switch to postcopy came before section ram")
        }
    }

    /// A page whose contents are not all in the buffer, and those that follow it in one piece.
    private func receivePages(
        _ reference: BlockReference, _ page: Int, from input: StreamInput
    ) throws(MigrationError) {
        let index = reference.index
        let end = min(blocks[index].pageCount, Int(clamping: decoder.byteCount(of: reference)) / guestPageSize)
        var predictable = 0
        if let run = awaited[index].run(from: page + 1, limit: end - page), run.lowerBound == page + 1 {
            predictable = min(run.upperBound, end) - run.lowerBound
        }
        let outcome = try runReceiver.receive(blocks[index], page: page, predictable: predictable, from: input)
        took(page..<(page + outcome.pageCount), of: index)
        progress.normalPages &+= UInt64(outcome.pageCount)
        var wrong = outcome.misplaced
        while let page = wrong.popFirst() {
            let pages = page..<(page + 1)
            if mayHoldData[index].contains(page) {
                unsafe memset(blocks[index].base + page * guestPageSize, 0, guestPageSize)
            } else if (try? blocks[index].free(offset: page * guestPageSize, byteCount: guestPageSize)) == nil {
                unsafe memset(blocks[index].base + page * guestPageSize, 0, guestPageSize)
                mayHoldData[index].insert(pages)
            }
        }
    }

    private func loadMapped(_ entry: RAMBlockEntry, from input: StreamInput) throws(MigrationError) {
        let index = entry.reference.index
        guard let hooks, !isIgnored[index] else {
            throw MigrationError(
                .capabilityMismatch, in: input.phase,
                "the stream has its pages at places of a file (mapped-ram), and \(input.transport.name) is none")
        }
        let loaded = try hooks.loadMapped(entry, into: blocks[index], holdsData: mayHoldData[index], from: input)
        progress.normalPages &+= loaded.normal
        progress.zeroPages &+= loaded.zero
        mayHoldData[index].insertAll()
        awaited[index].removeAll()
    }

    private func takeFlipped() throws(MigrationError) {
        guard let run = flipped else { return }
        flipped = nil
        try hooks?.loadPages(run)
    }

    private func fill(_ reference: BlockReference, _ offset: Int, _ byte: UInt8) {
        let index = reference.index
        let page = offset / guestPageSize
        progress.zeroPages &+= 1
        if tracksReceived { received[index].insert(page..<(page + 1)) }
        let destination = unsafe blocks[index].base + offset
        if byte == 0 {
            // A page nobody ever wrote is zero; to look at it would fill it.
            let mayHold = mayHoldData[index].contains(page) || hooks?.holdsData(reference, page: page) == true
            guard mayHold, unsafe !isZero(destination, byteCount: guestPageSize) else {
                return
            }
        }
        took(page..<(page + 1), of: index)
        unsafe memset(destination, Int32(byte), guestPageSize)
    }

    private func receiveXBZRLE(
        _ reference: BlockReference, _ offset: Int, _ byteCount: Int, from input: StreamInput
    ) throws(MigrationError) {
        let encoded = try input.decode { (cursor: inout StreamCursor) throws(StreamError) in
            try cursor.readBytes(byteCount)
        }
        let block = blocks[reference.index]
        took((offset / guestPageSize)..<(offset / guestPageSize + 1), of: reference.index)
        progress.normalPages &+= 1
        let page = unsafe UnsafeMutableRawBufferPointer(start: block.base + offset, count: guestPageSize)
        var refusal: XBZRLE.DecodingError?
        unsafe encoded.withUnsafeBytes { bytes in
            do throws(XBZRLE.DecodingError) { try unsafe XBZRLE.decode(bytes, into: page) } catch { refusal = error }
        }
        if let refusal {
            throw MigrationError(
                .streamMalformed, in: input.phase, "a page's differences are malformed", cause: refusal)
        }
    }

    /// The RAM is all here as far as the stream can say.
    package func requireComplete() throws(MigrationError) {
        guard hasStarted else {
            throw MigrationError(
                .missingSection, in: .commit,
                "the stream ended without section ram; it is damaged, take it from the source again")
        }
        guard hasEnded else {
            throw MigrationError(
                .missingSection, in: .commit,
                "the stream ended before the end of section ram; it is damaged, take it from the source again")
        }
    }
}
