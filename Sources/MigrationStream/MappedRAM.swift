/// What stands behind a block's entry in a `mapped-ram` file (QEMU 9 on): where its bitmap and its pages are. All
/// offsets are absolute in the file.
package struct MappedRAMHeader: Hashable, Sendable {
    package static let byteCount = 28
    /// QEMU aligns pages to this; a reader may only count on whole pages.
    package static let pagesAlignment: UInt64 = 1 << 20

    package var pageSize: UInt64
    package var bitmapOffset: UInt64
    package var pagesOffset: UInt64

    package init(pageSize: UInt64, bitmapOffset: UInt64, pagesOffset: UInt64) {
        self.pageSize = pageSize
        self.bitmapOffset = bitmapOffset
        self.pagesOffset = pagesOffset
    }

    /// The layout QEMU gives a block whose header begins at `offset`.
    package init(headerAt offset: UInt64, byteCount: UInt64, pageSize: UInt64 = 4096) {
        self.pageSize = pageSize
        bitmapOffset = offset + UInt64(Self.byteCount)
        let end = bitmapOffset + Self.bitmapByteCount(byteCount: byteCount, pageSize: pageSize)
        pagesOffset = (end + Self.pagesAlignment - 1) & ~(Self.pagesAlignment - 1)
    }

    /// Bytes of the bitmap of a block: whole 64-bit words.
    package static func bitmapByteCount(byteCount: UInt64, pageSize: UInt64) -> UInt64 {
        let pages = byteCount / pageSize
        return (pages / 64 + (pages % 64 == 0 ? 0 : 1)) * 8
    }

    /// Where the next entry or word stands.
    package func end(byteCount: UInt64) -> UInt64 { pagesOffset + byteCount }

    /// - Parameters:
    ///   - byteCount: The block's, which was judged before.
    ///   - pageSize: What this side has; another one is refused.
    package static func decode(
        from cursor: inout StreamCursor, byteCount: UInt64, pageSize: UInt64
    ) throws(StreamError) -> MappedRAMHeader {
        var ahead = cursor
        let start = ahead.offset
        let version = try ahead.readInteger(as: UInt32.self)
        guard version == 1 else { throw StreamError(.unsupportedVersion(version), at: start) }
        let header = MappedRAMHeader(
            pageSize: try ahead.readInteger(), bitmapOffset: try ahead.readInteger(),
            pagesOffset: try ahead.readInteger())
        guard header.pageSize == pageSize else {
            throw StreamError(.invalid("mapped-ram page of \(header.pageSize) bytes"), at: start)
        }
        let bitmapEnd = header.bitmapOffset.addingReportingOverflow(
            bitmapByteCount(byteCount: byteCount, pageSize: pageSize))
        let pagesEnd = header.pagesOffset.addingReportingOverflow(byteCount)
        guard header.bitmapOffset >= ahead.offset, !bitmapEnd.overflow, bitmapEnd.partialValue <= header.pagesOffset,
            header.pagesOffset % pageSize == 0, !pagesEnd.overflow, pagesEnd.partialValue <= UInt64(Int64.max)
        else {
            throw StreamError(
                .invalid("mapped-ram areas at \(header.bitmapOffset) and \(header.pagesOffset)"), at: start)
        }
        cursor = ahead
        return header
    }

    func encode(to writer: StreamWriter) {
        writer.write(UInt32(1))
        writer.write(pageSize)
        writer.write(bitmapOffset)
        writer.write(pagesOffset)
    }
}

/// Which pages of a block a `mapped-ram` file holds; the others are zero. The only little-endian part of the format.
package struct MappedRAMBitmap: Hashable, Sendable {
    /// 64 pages each, bit 0 first.
    package var words: [UInt64]
    package let pageCount: Int

    /// No page present.
    package init(pageCount: Int) {
        precondition(pageCount >= 0)
        self.pageCount = pageCount
        words = Array(repeating: 0, count: (pageCount + 63) / 64)
    }

    /// - Throws: ``StreamError``, also when a page beyond the block is marked.
    package static func decode(
        from cursor: inout StreamCursor, pageCount: Int
    ) throws(StreamError) -> MappedRAMBitmap {
        let start = cursor.offset
        var ahead = cursor
        try ahead.require(pageCount / 8)
        var bitmap = MappedRAMBitmap(pageCount: pageCount)
        for index in bitmap.words.indices {
            bitmap.words[index] = try ahead.readInteger(as: UInt64.self).byteSwapped
        }
        if pageCount % 64 != 0, let last = bitmap.words.last, last >> UInt64(pageCount % 64) != 0 {
            throw StreamError(.invalid("mapped-ram bitmap marks pages beyond the block"), at: start)
        }
        cursor = ahead
        return bitmap
    }

    package func encode(to writer: StreamWriter) {
        for word in words { writer.write(word.byteSwapped) }
    }

    package subscript(page: Int) -> Bool {
        get { words[page >> 6] >> UInt64(page & 63) & 1 != 0 }
        set {
            precondition(page < pageCount)
            if newValue {
                words[page >> 6] |= 1 << UInt64(page & 63)
            } else {
                words[page >> 6] &= ~(1 << UInt64(page & 63))
            }
        }
    }
}
