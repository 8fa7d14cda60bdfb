/// One word of a RAM section and what belongs to it.
package enum RAMRecord: Hashable, Sendable {
    /// The block list follows: entries whose sizes sum up to this many bytes.
    case memorySize(UInt64)
    /// An entry of the block list.
    case block(RAMBlockEntry)
    /// A page of contents follows, and goes straight into guest memory.
    case page(BlockReference, offset: UInt64)
    /// Every byte of the page is `byte`, which is 0 unless the receiver allows others.
    case filledPage(BlockReference, offset: UInt64, byte: UInt8)
    /// `encodedByteCount` bytes follow, to be applied to the page with ``XBZRLE/decode(_:into:)``.
    case xbzrlePage(BlockReference, offset: UInt64, encodedByteCount: Int)
    /// A descriptor came with the byte just read: the read end of the page-flip pipe. Once, before any flipped page.
    case flipDescriptor
    /// The page's contents are the next in the page-flip pipe.
    case flippedPage(BlockReference, offset: UInt64)
    /// Nothing for the main channel; with multifd, wait until every channel has reached its synchronisation packet.
    case multifdFlush
    /// The section's footer comes next.
    case endOfSection
}

/// Reads the words of RAM sections and holds them to the block list. One per channel and stream: a page may continue a
/// block that was named many sections earlier.
///
/// After ``StreamError/Reason/incomplete(needed:)`` nothing has changed.
package struct RAMDecoder: Sendable {
    package let options: RAMStreamOptions
    private let limits: StreamLimits
    private let flagMask: UInt64

    /// The local blocks, or those received when any list is taken.
    package private(set) var blocks: [RAMBlockDescription]
    private let takesAnyBlock: Bool
    /// Per block: bytes in use as the source said; 0 until it was listed.
    private var receivedByteCounts: [UInt64]
    private var isIgnored: [Bool]
    private var references: [String: Int]
    private var listRemaining: UInt64 = 0
    private var hasList = false
    private var lastBlock = -1
    private var lastBlockByteCount: UInt64 = 0
    private var kind = SectionKind.start
    private var hasFlipDescriptor = false

    /// Set while pages come on a postcopy channel: then only pages, filled pages and the end are allowed.
    package var isPostcopy = false

    /// - Parameter blocks: What this machine has; every other name or size is refused.
    package init(
        blocks: [RAMBlockDescription], options: RAMStreamOptions = RAMStreamOptions(),
        limits: StreamLimits = StreamLimits()
    ) {
        self.init(blocks: blocks, takesAnyBlock: false, options: options, limits: limits)
    }

    /// A decoder that takes whatever blocks the stream lists, to look at a foreign stream.
    package init(takingAnyBlock options: RAMStreamOptions, limits: StreamLimits = StreamLimits()) {
        self.init(blocks: [], takesAnyBlock: true, options: options, limits: limits)
    }

    private init(
        blocks: [RAMBlockDescription], takesAnyBlock: Bool, options: RAMStreamOptions, limits: StreamLimits
    ) {
        precondition(options.pageSize.nonzeroBitCount == 1 && options.pageSize >= 1024, "page size is a power of two")
        self.options = options
        self.limits = limits
        flagMask = options.pageSize - 1
        self.blocks = blocks
        self.takesAnyBlock = takesAnyBlock
        receivedByteCounts = Array(repeating: 0, count: blocks.count)
        isIgnored = blocks.map(\.isIgnored)
        references = [:]
        for (index, block) in blocks.enumerated() {
            precondition(references[block.name] == nil, "two blocks of the same name")
            references[block.name] = index
        }
    }

    /// A decoder for another channel of the same stream (postcopy-preempt): same blocks, its own last block.
    package func forAnotherChannel() -> RAMDecoder {
        var other = self
        other.lastBlock = -1
        other.lastBlockByteCount = 0
        other.isPostcopy = true
        return other
    }

    /// Takes the blocks as listed already, for a channel on which no list comes (postcopy recovery).
    package mutating func assumeListed() {
        receivedByteCounts = blocks.map(\.byteCount)
        hasList = true
    }

    /// The whole block list was read.
    package var isListComplete: Bool { hasList && listRemaining == 0 }

    /// Local blocks the source did not list. Stock receivers do not look; such a block would keep its reset contents.
    package var missingBlocks: [String] {
        zip(blocks, receivedByteCounts).filter { $0.1 == 0 }.map(\.0.name)
    }

    /// Bytes in use of a block, as the source said.
    package func byteCount(of block: BlockReference) -> UInt64 { receivedByteCounts[block.index] }

    /// Says what section the following words are in.
    package mutating func beginSection(_ kind: SectionKind, version: UInt32, at offset: UInt64) throws(StreamError) {
        guard version == 4 else { throw StreamError(.unsupportedVersion(version), at: offset) }
        guard kind != .full else { throw StreamError(.unexpectedRecord("ram as a whole section"), at: offset) }
        self.kind = kind
    }

    /// The next record of the section, up to and including ``RAMRecord/endOfSection``.
    package mutating func next(_ cursor: inout StreamCursor) throws(StreamError) -> RAMRecord {
        var ahead = cursor
        let start = ahead.offset
        if listRemaining > 0 {
            let record = RAMRecord.block(try decodeEntry(&ahead))
            cursor = ahead
            return record
        }
        let word = try ahead.readInteger(as: UInt64.self)
        let flags = RAMFlags(rawValue: word & flagMask)
        let offset = word & ~flagMask
        let record: RAMRecord
        switch flags.subtracting(.sameBlock) {
        case .filled:
            let (block, byteCount) = try decodeBlock(&ahead, flags, offset, at: start)
            let byte = try ahead.readInteger(as: UInt8.self)
            guard byte == 0 || options.acceptsFill else {
                throw StreamError(.invalid("a page filled with \(byte)"), at: start)
            }
            remember(block, byteCount)
            record = .filledPage(BlockReference(block), offset: offset, byte: byte)
        case .page:
            let (block, byteCount) = try decodeBlock(&ahead, flags, offset, at: start)
            remember(block, byteCount)
            record = .page(BlockReference(block), offset: offset)
        case .endOfSection where !flags.contains(.sameBlock):
            guard offset == 0 else { throw StreamError(.invalid("end of section with an address"), at: start) }
            record = .endOfSection
        default:
            record = try decodeRare(&ahead, flags, offset, at: start)
        }
        cursor = ahead
        return record
    }

    private mutating func decodeRare(
        _ cursor: inout StreamCursor, _ flags: RAMFlags, _ offset: UInt64, at start: UInt64
    ) throws(StreamError) -> RAMRecord {
        if isPostcopy { throw StreamError(.unknownRAMFlags(flags), at: start) }
        switch flags.subtracting(.sameBlock) {
        case .xbzrle:
            let (block, byteCount) = try decodeBlock(&cursor, flags, offset, at: start)
            let method = try cursor.readInteger(as: UInt8.self)
            guard method == 1 else { throw StreamError(.invalid("XBZRLE method \(method)"), at: start) }
            let encoded = Int(try cursor.readInteger(as: UInt16.self))
            guard encoded <= options.pageSize else {
                throw StreamError(.invalid("XBZRLE of \(encoded) bytes for one page"), at: start)
            }
            remember(block, byteCount)
            return .xbzrlePage(BlockReference(block), offset: offset, encodedByteCount: encoded)
        case .memorySize where !flags.contains(.sameBlock):
            guard kind == .start, !hasList else {
                throw StreamError(.unexpectedRecord("a block list outside the first RAM section"), at: start)
            }
            guard offset > 0 else { throw StreamError(.invalid("RAM of no bytes"), at: start) }
            listRemaining = offset
            hasList = true
            return .memorySize(offset)
        case .hook where options.flipsPages && !options.isMapped:
            if hasFlipDescriptor {
                let (block, byteCount) = try decodeBlock(&cursor, flags, offset, at: start)
                remember(block, byteCount)
                return .flippedPage(BlockReference(block), offset: offset)
            }
            guard !flags.contains(.sameBlock), offset == 0 else {
                throw StreamError(.unexpectedRecord("a flipped page before the pipe"), at: start)
            }
            let carrier = try cursor.readInteger(as: UInt8.self)
            guard carrier == 1 else { throw StreamError(.invalid("carrier byte \(carrier)"), at: start) }
            hasFlipDescriptor = true
            return .flipDescriptor
        case .multifdFlush where !flags.contains(.sameBlock) && !options.isMapped:
            return .multifdFlush
        case .hook:
            throw StreamError(
                .unexpectedRecord("a RAM hook, which is RDMA's or a page flip's; neither is on"), at: start)
        case .compressedPage:
            throw StreamError(.unexpectedRecord("COMPRESS_PAGE, which is not taken"), at: start)
        default:
            throw StreamError(.unknownRAMFlags(flags), at: start)
        }
    }

    /// Behind a flipped page at `offset`: moves past the words that name the pages after it, one by one, and answers how
    /// many. A source names pages in runs.
    package func skipFollowingFlippedPages(_ cursor: inout StreamCursor, after offset: UInt64) -> Int {
        guard hasFlipDescriptor, lastBlock >= 0, listRemaining == 0, offset < lastBlockByteCount else { return 0 }
        let next = offset + options.pageSize
        guard next < lastBlockByteCount else { return 0 }
        return cursor.skipSequence(
            from: next | RAMFlags([.hook, .sameBlock]).rawValue, step: options.pageSize,
            limit: Int(clamping: (lastBlockByteCount - next) / options.pageSize))
    }

    /// The block a page record is about; judges that the page is inside it.
    @inline(__always)
    private func decodeBlock(
        _ cursor: inout StreamCursor, _ flags: RAMFlags, _ offset: UInt64, at start: UInt64
    ) throws(StreamError) -> (Int, UInt64) {
        if flags.contains(.sameBlock) {
            guard lastBlock >= 0 else { throw StreamError(.noBlockToContinue, at: start) }
            guard offset < lastBlockByteCount else { throw outside(lastBlock, offset, at: start) }
            return (lastBlock, lastBlockByteCount)
        }
        return try decodeNamedBlock(&cursor, offset, at: start)
    }

    private func decodeNamedBlock(
        _ cursor: inout StreamCursor, _ offset: UInt64, at start: UInt64
    ) throws(StreamError) -> (Int, UInt64) {
        guard !options.isMapped else {
            throw StreamError(.unexpectedRecord("a page outside the mapped-ram area"), at: start)
        }
        let name = try cursor.readShortString()
        guard let block = references[name] else { throw StreamError(.unknownBlock(name), at: start) }
        guard receivedByteCounts[block] > 0 else {
            throw StreamError(.unexpectedRecord("a page of \(name), which was not listed"), at: start)
        }
        guard !isIgnored[block] else {
            throw StreamError(.unexpectedRecord("a page of \(name), whose contents do not travel"), at: start)
        }
        guard offset < receivedByteCounts[block] else { throw outside(block, offset, at: start) }
        return (block, receivedByteCounts[block])
    }

    private func outside(_ block: Int, _ offset: UInt64, at start: UInt64) -> StreamError {
        StreamError(.addressOutsideBlock(block: blocks[block].name, address: offset), at: start)
    }

    private mutating func remember(_ block: Int, _ byteCount: UInt64) {
        lastBlock = block
        lastBlockByteCount = byteCount
    }

    private mutating func decodeEntry(_ cursor: inout StreamCursor) throws(StreamError) -> RAMBlockEntry {
        let start = cursor.offset
        let name = try cursor.readShortString()
        let byteCount = try cursor.readInteger(as: UInt64.self)
        guard byteCount > 0, byteCount <= listRemaining else {
            throw StreamError(.invalid("block \(name) of \(byteCount) bytes, with \(listRemaining) to come"), at: start)
        }
        guard byteCount & flagMask == 0 else {
            throw StreamError(.invalid("block \(name) of \(byteCount) bytes, not whole pages"), at: start)
        }
        let index: Int
        if let known = references[name] {
            index = known
            guard receivedByteCounts[index] == 0 else {
                throw StreamError(.invalid("block \(name) is listed twice"), at: start)
            }
            let local = blocks[index]
            guard
                byteCount == local.byteCount || byteCount <= local.byteCountMax && local.byteCountMax > local.byteCount
            else {
                throw StreamError(
                    .blockDiffers("block \(name) has \(byteCount) bytes at the source and \(local.byteCount) here"),
                    at: start)
            }
        } else {
            guard takesAnyBlock else { throw StreamError(.unknownBlock(name), at: start) }
            guard blocks.count < limits.blockCount else {
                throw StreamError(.limitExceeded("more than \(limits.blockCount) RAM blocks"), at: start)
            }
            index = blocks.count
        }
        var entry = RAMBlockEntry(reference: BlockReference(index), name: name, byteCount: byteCount)
        let blockPageSize = index < blocks.count ? blocks[index].pageSize : options.hostPageSize
        if options.hasPostcopy && blockPageSize != options.hostPageSize {
            entry.pageSize = try cursor.readInteger(as: UInt64.self)
            guard entry.pageSize == blockPageSize else {
                throw StreamError(.invalid("block \(name) has another page size at the source"), at: start)
            }
        }
        if options.ignoresShared {
            entry.address = try cursor.readInteger(as: UInt64.self)
            guard takesAnyBlock || !isIgnored[index] || entry.address == blocks[index].address else {
                throw StreamError(.invalid("block \(name) is at another guest address at the source"), at: start)
            }
        }
        if options.isMapped {
            entry.mapped = try MappedRAMHeader.decode(from: &cursor, byteCount: byteCount, pageSize: options.pageSize)
        }
        if index == blocks.count {
            blocks.append(RAMBlockDescription(name: name, byteCount: byteCount, address: entry.address ?? 0))
            receivedByteCounts.append(byteCount)
            isIgnored.append(false)
            references[name] = index
        } else {
            receivedByteCounts[index] = byteCount
        }
        listRemaining -= byteCount
        return entry
    }
}

/// Writes the words of RAM sections. One per channel and stream.
package struct RAMEncoder: Sendable {
    package let options: RAMStreamOptions
    package let blocks: [RAMBlockDescription]
    private var lastBlock = -1

    package init(blocks: [RAMBlockDescription], options: RAMStreamOptions = RAMStreamOptions()) {
        precondition(options.pageSize.nonzeroBitCount == 1, "page size is a power of two")
        self.options = options
        self.blocks = blocks
    }

    /// Names the block again in the next page record. A stock source does so when it has sent its lists of pages to
    /// discard, before the pages of postcopy.
    package mutating func forgetLastBlock() { lastBlock = -1 }

    /// The block list, as it stands in the first RAM section. With `mapped-ram` write it entry by entry instead.
    package func writeBlockList(to writer: StreamWriter) {
        precondition(!options.isMapped, "entries of a mapped-ram list are apart in the file")
        writer.write(blocks.reduce(0) { $0 + $1.byteCount } | RAMFlags.memorySize.rawValue)
        for index in blocks.indices { writeBlockEntry(BlockReference(index), to: writer) }
    }

    /// One entry of the list.
    /// - Parameter mapped: With `mapped-ram`: what stands behind it in the file.
    package func writeBlockEntry(
        _ reference: BlockReference, mapped: MappedRAMHeader? = nil, to writer: StreamWriter
    ) {
        let block = blocks[reference.index]
        writer.writeShortString(block.name)
        writer.write(block.byteCount)
        if options.hasPostcopy && block.pageSize != options.hostPageSize { writer.write(block.pageSize) }
        if options.ignoresShared { writer.write(block.address) }
        mapped?.encode(to: writer)
    }

    /// What stands before a page's contents.
    @inline(__always)
    package mutating func writePageHeader(_ block: BlockReference, offset: UInt64, to writer: StreamWriter) {
        writeWord(offset, .page, block, to: writer)
    }

    @inline(__always)
    package mutating func writeFilledPage(
        _ block: BlockReference, offset: UInt64, byte: UInt8 = 0, to writer: StreamWriter
    ) {
        writeWord(offset, .filled, block, to: writer)
        writer.write(byte)
    }

    /// The header and the encoded differences.
    package mutating func writeXBZRLEPage(
        _ block: BlockReference, offset: UInt64, encoded: RawSpan, to writer: StreamWriter
    ) {
        precondition(UInt64(encoded.byteCount) <= options.pageSize)
        writeXBZRLEHeader(block, offset: offset, encodedByteCount: encoded.byteCount, to: writer)
        writer.write(encoded)
    }

    private mutating func writeXBZRLEHeader(
        _ block: BlockReference, offset: UInt64, encodedByteCount: Int, to writer: StreamWriter
    ) {
        writeWord(offset, .xbzrle, block, to: writer)
        writer.write(UInt8(1))
        writer.write(UInt16(encodedByteCount))
    }

    /// The word and the byte that carries the page-flip pipe's descriptor. The byte is the last one written: the
    /// driver flushes all before it and sends it by itself, with the descriptor.
    package func writeFlipDescriptor(to writer: StreamWriter) {
        precondition(options.flipsPages, "page flipping was not agreed on")
        writer.write(RAMFlags.hook.rawValue)
        writer.write(UInt8(1))
    }

    /// Names a page whose contents go into the pipe.
    package mutating func writeFlippedPage(_ block: BlockReference, offset: UInt64, to writer: StreamWriter) {
        precondition(options.flipsPages, "page flipping was not agreed on")
        writeWord(offset, .hook, block, to: writer)
    }

    /// Names pages that follow each other, each by a record of its own.
    package mutating func writeFlippedPages(_ block: BlockReference, _ pages: Range<Int>, to writer: StreamWriter) {
        guard !pages.isEmpty else { return }
        let first = UInt64(pages.lowerBound) * options.pageSize
        precondition(UInt64(pages.upperBound) * options.pageSize <= blocks[block.index].byteCount, "not pages of it")
        writeFlippedPage(block, offset: first, to: writer)
        writer.writeSequence(
            from: (first + options.pageSize) | RAMFlags([.hook, .sameBlock]).rawValue, step: options.pageSize,
            count: pages.count - 1)
    }

    package func writeMultifdFlush(to writer: StreamWriter) { writer.write(RAMFlags.multifdFlush.rawValue) }

    package func writeEndOfSection(to writer: StreamWriter) { writer.write(RAMFlags.endOfSection.rawValue) }

    /// Any record as it was decoded; contents are the caller's.
    package mutating func write(_ record: RAMRecord, to writer: StreamWriter) {
        switch record {
        case .memorySize(let total): writer.write(total | RAMFlags.memorySize.rawValue)
        case .block(let entry): writeBlockEntry(entry.reference, mapped: entry.mapped, to: writer)
        case .page(let block, let offset): writePageHeader(block, offset: offset, to: writer)
        case .filledPage(let block, let offset, let byte):
            writeFilledPage(block, offset: offset, byte: byte, to: writer)
        case .xbzrlePage(let block, let offset, let encoded):
            writeXBZRLEHeader(block, offset: offset, encodedByteCount: encoded, to: writer)
        case .flipDescriptor: writeFlipDescriptor(to: writer)
        case .flippedPage(let block, let offset): writeFlippedPage(block, offset: offset, to: writer)
        case .multifdFlush: writeMultifdFlush(to: writer)
        case .endOfSection: writeEndOfSection(to: writer)
        }
    }

    @inline(__always)
    private mutating func writeWord(
        _ offset: UInt64, _ flags: RAMFlags, _ block: BlockReference, to writer: StreamWriter
    ) {
        precondition(offset & (options.pageSize - 1) == 0 && offset < blocks[block.index].byteCount, "not a page of it")
        if block.index == lastBlock {
            writer.write(offset | flags.rawValue | RAMFlags.sameBlock.rawValue)
        } else {
            writer.write(offset | flags.rawValue)
            writer.writeShortString(blocks[block.index].name)
            lastBlock = block.index
        }
    }
}
