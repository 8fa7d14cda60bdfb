/// Pages of one block, as bits. Belongs to one thread.
package struct PageSet: Sendable {
    package let pageCount: Int
    package private(set) var words: [UInt64]
    package private(set) var count = 0

    /// No page.
    package init(pageCount: Int) {
        self.pageCount = pageCount
        words = Array(repeating: 0, count: (pageCount + 63) / 64)
    }

    package mutating func insertAll() {
        for index in words.indices { words[index] = valid(index) }
        count = pageCount
    }

    package mutating func removeAll() {
        for index in words.indices { words[index] = 0 }
        count = 0
    }

    @inline(__always)
    package func contains(_ page: Int) -> Bool { words[page >> 6] >> UInt64(page & 63) & 1 != 0 }

    package mutating func insert(_ pages: Range<Int>) { change(pages) { $0 | $1 } }
    package mutating func remove(_ pages: Range<Int>) { change(pages) { $0 & ~$1 } }

    private mutating func change(_ pages: Range<Int>, _ operation: (UInt64, UInt64) -> UInt64) {
        precondition(pages.lowerBound >= 0 && pages.upperBound <= pageCount)
        var page = pages.lowerBound
        while page < pages.upperBound {
            let index = page >> 6
            let first = page & 63
            let length = min(64 - first, pages.upperBound - page)
            let mask = (length == 64 ? UInt64.max : (1 << UInt64(length)) - 1) << UInt64(first)
            let old = words[index]
            let new = operation(old, mask)
            words[index] = new
            count += new.nonzeroBitCount - old.nonzeroBitCount
            page += length
        }
    }

    /// Adds 64 pages at a time; answers how many were new.
    @discardableResult package mutating func insert(word index: Int, bits: UInt64) -> Int {
        let new = bits & ~words[index] & valid(index)
        words[index] |= new
        count += new.nonzeroBitCount
        return new.nonzeroBitCount
    }

    /// The first run of pages at or after `page`, at most `limit` long.
    package func run(from page: Int, limit: Int) -> Range<Int>? {
        guard count > 0, page < pageCount else { return nil }
        var index = page >> 6
        var word = words[index] & (UInt64.max << UInt64(page & 63))
        while word == 0 {
            index += 1
            if index == words.count { return nil }
            word = words[index]
        }
        let start = index << 6 + word.trailingZeroBitCount
        var end = start
        while end < start + limit, end < pageCount {
            let rest = ~(words[end >> 6] >> UInt64(end & 63))
            let length = min(rest.trailingZeroBitCount, 64 - (end & 63))
            end += length
            if length == 0 || (end & 63 != 0) { break }
        }
        return start..<min(end, start + limit, pageCount)
    }

    private func valid(_ index: Int) -> UInt64 {
        let pages = pageCount - index * 64
        return pages >= 64 ? .max : (1 << UInt64(pages)) - 1
    }
}
