/// Looks at a whole stream while it passes, in memory that does not grow with it: sections, commands, statistics of
/// pages, and component state taken apart by the stream's own description.
///
/// The driver reads into ``input`` and calls ``run(isFinal:)``; page contents are looked at where they lie.
///
///     while try analysis.input.fill(minimum: 1, { read(file, $0) }) > 0 { try analysis.run() }
///     try analysis.run(isFinal: true)
package struct StreamAnalysis {
    package struct Options: Hashable, Sendable {
        /// Keep a digest of each page, for ``StreamDifference``: 8 bytes per page.
        package var keepsPageDigests = false
        /// Bytes of component state kept for taking apart at the end; sections beyond it are only counted.
        package var keptByteCountMax = 64 << 20
        /// Pages of blocks are told apart up to so many bytes of RAM in all; one bit each.
        package var trackedRAMByteCountMax: UInt64 = 1 << 41
        /// Digests are kept up to so many bytes of RAM in all.
        package var digestedRAMByteCountMax: UInt64 = 1 << 37
        package var limits = StreamLimits()

        package init() {}
    }

    /// Where the driver puts the bytes.
    package let input: StreamBuffer
    package private(set) var report = StreamReport()
    private let options: Options
    private var reader: StreamReader
    private var ram: RAMDecoder
    private var place = Place.records
    private var keptByteCount = 0
    private var footerSearched = 0
    private var pageSize: UInt64 = 4096
    /// One bit per page: it has come.
    private var seen: [[UInt64]] = []
    private var sectionStart: UInt64 = 0
    /// The bitmap of the mapped block at hand, where digests are kept: one bit per page.
    private var present: [UInt64] = []

    private enum Place {
        case records
        case ram
        /// Contents of a page are next.
        case page(BlockReference, UInt64)
        /// Differences are next.
        case xbzrle(BlockReference, UInt64, Int)
        case body(SectionHeader)
        case footer
        /// Bytes to pass over, then go on with RAM or with a bitmap.
        case skip(UInt64, then: Mapped?)
        /// 64-bit words of a mapped-ram bitmap.
        case bitmap(Mapped, words: UInt64)
        /// Pages of a mapped-ram file, looked at one by one where digests are kept.
        case mappedPages(Mapped)
    }

    private struct Mapped {
        var block: BlockReference
        var pagesOffset: UInt64
        var end: UInt64
        var bitmapWordCount: UInt64
    }

    package init(options: Options = Options(), inputByteCount: Int = 1 << 20) {
        self.options = options
        input = StreamBuffer(capacity: inputByteCount)
        reader = StreamReader(limits: options.limits, configurationIsOptional: true)
        ram = RAMDecoder(takingAnyBlock: Self.ramOptions(for: nil), limits: options.limits)
    }

    private static func ramOptions(for configuration: StreamConfiguration?) -> RAMStreamOptions {
        var options = RAMStreamOptions()
        options.acceptsFill = true
        let capabilities = configuration?.capabilities ?? []
        options.ignoresShared = capabilities.contains("x-ignore-shared")
        options.isMapped = capabilities.contains("mapped-ram")
        options.flipsPages = capabilities.contains("unix-page-flipping")
        if let bits = configuration?.pageBits { options.pageSize = 1 << UInt64(bits) }
        return options
    }

    /// Takes in everything at hand.
    /// - Parameter isFinal: True when nothing more will come.
    /// - Throws: ``StreamError`` when the stream is wrong or, with `isFinal`, cut; ``report`` holds what was seen so far.
    package mutating func run(isFinal: Bool = false) throws(StreamError) {
        var cursor = input.cursor(isFinal: isFinal)
        defer {
            report.byteCount = cursor.offset
            input.consume(to: cursor)
        }
        do throws(StreamError) {
            while true {
                if case .records = place, reader.isDone {
                    guard cursor.isAtEnd else {
                        throw StreamError(.unexpectedRecord("bytes behind the self-description"), at: cursor.offset)
                    }
                    break
                }
                // A source may leave the self-description out; then the stream ends here.
                if isFinal, cursor.isAtEnd, reader.isAwaitingDescription { break }
                try step(&cursor, isFinal: isFinal)
            }
        } catch {
            if error.neededByteCount == nil { throw error }
        }
        if isFinal { finish() }
    }

    private mutating func step(_ cursor: inout StreamCursor, isFinal: Bool) throws(StreamError) {
        switch place {
        case .records: try record(&cursor)
        case .ram: try words(&cursor)
        case .page(let block, let offset):
            let isZero = try unsafe cursor.withBytes(Int(pageSize)) { bytes in
                let isZero = unsafe PageDigest.isZero(bytes)
                if options.keepsPageDigests {
                    note(digest: isZero ? 0 : unsafe PageDigest.digest(bytes), block, offset)
                }
                return isZero
            }
            report.blocks[block.index].pages += 1
            if isZero { report.blocks[block.index].pagesOfZeroes += 1 }
            place = .ram
        case .xbzrle(let block, let offset, let byteCount):
            try cursor.skip(byteCount)
            note(digest: 1, block, offset)
            place = .ram
        case .body(let header): try body(header, &cursor, isFinal: isFinal)
        case .footer:
            try reader.endSection(&cursor)
            place = .records
        case .skip(let byteCount, let mapped):
            let taken = UInt64(cursor.skipAvailable(byteCount))
            guard taken == byteCount else {
                place = .skip(byteCount - taken, then: mapped)
                throw StreamError(isFinal ? .truncated : .incomplete(needed: 1), at: cursor.offset)
            }
            if let mapped { place = .bitmap(mapped, words: mapped.bitmapWordCount) } else { place = .ram }
        case .bitmap(let mapped, var words):
            while words > 0 {
                place = .bitmap(mapped, words: words)
                let word = try cursor.readInteger(as: UInt64.self)
                report.blocks[mapped.block.index].mappedPages += UInt64(word.nonzeroBitCount)
                // The bitmap is little-endian, all else is not.
                if options.keepsPageDigests { present.append(word.byteSwapped) }
                words -= 1
            }
            if options.keepsPageDigests {
                place = .mappedPages(mapped)
            } else {
                place = .skip(mapped.end - cursor.offset, then: nil)
            }
        case .mappedPages(let mapped): try mappedPages(mapped, &cursor, isFinal: isFinal)
        }
    }

    /// Pages that are present are looked at; what lies before and between them is passed over.
    private mutating func mappedPages(
        _ mapped: Mapped, _ cursor: inout StreamCursor, isFinal: Bool
    ) throws(StreamError) {
        while cursor.offset < mapped.end {
            let position = cursor.offset
            let (page, begun) =
                position < mapped.pagesOffset
                ? (0, 0) : (position - mapped.pagesOffset).quotientAndRemainder(dividingBy: pageSize)
            let isPage = position >= mapped.pagesOffset && begun == 0 && present[Int(page / 64)] >> (page % 64) & 1 != 0
            if isPage {
                let digest = try unsafe cursor.withBytes(Int(pageSize)) { bytes in
                    unsafe PageDigest.isZero(bytes) ? 0 : unsafe PageDigest.digest(bytes)
                }
                note(digest: digest, mapped.block, page * pageSize)
                continue
            }
            let distance = position < mapped.pagesOffset ? mapped.pagesOffset - position : pageSize - begun
            if cursor.skipAvailable(distance) == 0 {
                throw StreamError(isFinal ? .truncated : .incomplete(needed: 1), at: position)
            }
        }
        place = .ram
    }

    private mutating func record(_ cursor: inout StreamCursor) throws(StreamError) {
        let start = cursor.offset
        switch try reader.next(&cursor) {
        case .header: break
        case .configuration(let configuration):
            report.configuration = configuration
            ram = RAMDecoder(takingAnyBlock: Self.ramOptions(for: configuration), limits: options.limits)
            pageSize = ram.options.pageSize
        case .command(let command):
            // A package's records follow like any others, so it needs no treatment of its own.
            guard report.commands.count < 1 << 16 else {
                throw StreamError(.limitExceeded("more than 65536 commands"), at: start)
            }
            report.commands.append(.init(offset: start, command: command))
        case .endOfStream: report.isComplete = true
        case .description(let json):
            report.descriptionByteCount = UInt64(json.count)
            do throws(StreamError) {
                report.description = try VMDescription.parse(json, at: start + 5)
            } catch {
                report.remarks.append("the self-description cannot be read: \(error)")
            }
        case .section(let header):
            sectionStart = start
            if header.name == "ram" && header.kind != .full {
                try ram.beginSection(header.kind, version: header.version, at: start)
                if header.kind == .part { report.partCount += 1 }
                place = .ram
            } else {
                footerSearched = 0
                place = .body(header)
            }
        }
    }

    private mutating func words(_ cursor: inout StreamCursor) throws(StreamError) {
        while true {
            switch try ram.next(&cursor) {
            case .page(let block, let offset):
                count(block, offset)
                place = .page(block, offset)
                return
            case .filledPage(let block, let offset, let byte):
                count(block, offset)
                report.blocks[block.index].filledPages += 1
                note(digest: byte == 0 ? 0 : PageDigest.digest(ofPageFilledWith: byte), block, offset)
            case .xbzrlePage(let block, let offset, let byteCount):
                count(block, offset)
                report.blocks[block.index].xbzrlePages += 1
                report.blocks[block.index].xbzrleByteCount += UInt64(byteCount)
                place = .xbzrle(block, offset, byteCount)
                return
            case .flippedPage(let block, let offset):
                count(block, offset)
                report.blocks[block.index].flippedPages += 1
                note(digest: 1, block, offset)
            case .memorySize, .flipDescriptor, .multifdFlush: break
            case .block(let entry):
                add(entry)
                guard let mapped = entry.mapped else { continue }
                present = []
                let end = mapped.end(byteCount: entry.byteCount)
                place = .skip(
                    mapped.bitmapOffset - cursor.offset,
                    then: Mapped(
                        block: entry.reference, pagesOffset: mapped.pagesOffset, end: end,
                        bitmapWordCount: MappedRAMHeader.bitmapByteCount(byteCount: entry.byteCount, pageSize: pageSize)
                            / 8))
                return
            case .endOfSection:
                report.ramSectionByteCount += cursor.offset - sectionStart
                place = .footer
                return
            }
        }
    }

    /// A component's section: its end is where the footer stands.
    private mutating func body(
        _ header: SectionHeader, _ cursor: inout StreamCursor, isFinal: Bool
    ) throws(StreamError) {
        let start = cursor.offset
        let outcome = SectionSearch.search(
            for: header.id, from: cursor, startingAt: footerSearched, knownSections: Set(reader.knownSections.keys),
            isFinal: isFinal)
        let byteCount: Int
        switch outcome {
        case .found(let distance): byteCount = distance
        case .undecided(let distance):
            guard cursor.remaining <= options.limits.deviceSectionByteCount else {
                throw StreamError(.limitExceeded("section \(header.name)"), at: start)
            }
            if isFinal { throw StreamError(.missingFooter(section: header.id), at: start) }
            footerSearched = distance
            throw StreamError(.incomplete(needed: 1), at: start)
        }
        guard byteCount <= options.limits.deviceSectionByteCount else {
            throw StreamError(.limitExceeded("section \(header.name)"), at: start)
        }
        var section = StreamReport.Section(
            header: header, offset: start, byteCount: UInt64(byteCount), content: nil, body: [])
        if keptByteCount + byteCount <= options.keptByteCountMax {
            section.body = try cursor.readBytes(byteCount)
            keptByteCount += byteCount
        } else {
            try cursor.skip(byteCount)
        }
        guard report.sections.count < 1 << 16 else {
            throw StreamError(.limitExceeded("more than 65536 sections"), at: start)
        }
        report.sections.append(section)
        place = .footer
    }

    private mutating func add(_ entry: RAMBlockEntry) {
        var block = StreamReport.Block(name: entry.name, byteCount: entry.byteCount, address: entry.address)
        let total = report.blocks.reduce(entry.byteCount) { $0 &+ $1.byteCount }
        let pageCount = Int(clamping: entry.byteCount / pageSize)
        if total <= options.trackedRAMByteCountMax {
            seen.append(Array(repeating: 0, count: (pageCount + 63) / 64))
        } else {
            seen.append([])
            block.repeatedPages = nil
        }
        report.blocks.append(block)
        if options.keepsPageDigests {
            let isKept = total <= options.digestedRAMByteCountMax
            if !isKept { report.remarks.append("block \(entry.name) is too large for its pages to be compared") }
            report.pageDigests.append(.init(digests: isKept ? Array(repeating: 0, count: pageCount) : []))
        }
    }

    private mutating func count(_ block: BlockReference, _ offset: UInt64) {
        let page = Int(offset / pageSize)
        guard page / 64 < seen[block.index].count else { return }
        let bit: UInt64 = 1 << UInt64(page % 64)
        if seen[block.index][page / 64] & bit != 0 {
            report.blocks[block.index].repeatedPages! += 1
        } else {
            seen[block.index][page / 64] |= bit
        }
    }

    private mutating func note(digest: UInt64, _ block: BlockReference, _ offset: UInt64) {
        guard options.keepsPageDigests else { return }
        let page = Int(offset / pageSize)
        guard page < report.pageDigests[block.index].digests.count else { return }
        report.pageDigests[block.index].digests[page] = digest
    }

    /// Takes the kept sections apart.
    private mutating func finish() {
        guard let description = report.description else {
            if report.isComplete { report.remarks.append("the stream does not describe itself") }
            return
        }
        if description.pageSize != 0, description.pageSize != pageSize {
            report.remarks.append("described with pages of \(description.pageSize) bytes, read with \(pageSize)")
        }
        for index in report.sections.indices {
            let section = report.sections[index]
            let name = "\(section.header.name) \(section.header.instance)"
            guard let device = description.device(section.header.name, instance: section.header.instance) else {
                report.remarks.append("section \(name) is not described")
                continue
            }
            guard UInt64(section.body.count) == section.byteCount else { continue }
            var cursor = StreamCursor(section.body, at: section.offset, isFinal: true)
            do throws(StreamError) {
                let content = try DissectedStructure.decode(device.content, from: &cursor)
                if cursor.isAtEnd {
                    report.sections[index].content = content
                    report.sections[index].body = []
                } else {
                    report.remarks.append("section \(name) has \(cursor.remaining) bytes more than described")
                }
            } catch {
                report.remarks.append("section \(name) is not as described: \(error)")
            }
        }
        for device in description.devices
        where !report.sections.contains(where: {
            $0.header.name == device.name && $0.header.instance == device.instance
        }) {
            report.remarks.append("section \(device.name) \(device.instance) is described and did not come")
        }
    }
}
