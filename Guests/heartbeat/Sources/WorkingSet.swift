import Bare

/// Pages that are rewritten and checked. What a page must hold follows from its number and its generation: how often it has been
/// written. The generations stand in a table of their own, and their sum must be the number of writes, so that neither a
/// page nor a part of the table can fall back to an earlier state unseen.
struct WorkingSet {
    /// The table, one word per page, then the pages.
    private let table: UInt64
    private let pages: UInt64
    let pageCount: UInt64
    private(set) var writes: UInt64 = 0
    private var checkedPages: UInt64 = 0
    private var checkedGenerations: UInt64 = 0
    private var random: UInt64

    /// Lays out at most `pageCount` pages between the two addresses and writes each once.
    init(from start: UInt64, to end: UInt64, pageCount wanted: UInt64, hart: Int) {
        let fitting = end > start ? (end &- start) / (Platform.pageSize &+ 8) : 0
        // The table takes whole pages, hence one less.
        pageCount = min(wanted, fitting > 0 ? fitting &- 1 : 0)
        table = start
        pages = (start &+ pageCount &* 8 &+ Platform.pageSize &- 1) & ~(Platform.pageSize &- 1)
        random = 0x9e37_79b9_7f4a_7c15 &* UInt64(hart &+ 1)
        for page in 0..<pageCount {
            bare_store64(table &+ page &* 8, 0)
            write(page)
        }
        beginCheck()
    }

    private func seed(_ page: UInt64, _ generation: UInt64) -> UInt64 {
        ((pages &+ page) ^ generation &<< 40) &* 0xd134_2543_de82_ef95 | 1
    }

    private mutating func write(_ page: UInt64) {
        let generation = bare_load64(table &+ page &* 8) &+ 1
        bare_store64(table &+ page &* 8, generation)
        var word = seed(page, generation)
        var position = pages &+ page &* Platform.pageSize
        let end = position &+ Platform.pageSize
        while position < end {
            bare_store64(position, word)
            word = word &* 0x5851_f42d_4c95_7f2d &+ 1
            position &+= 8
        }
        writes &+= 1
        if page < checkedPages { checkedGenerations &+= 1 }
    }

    /// Rewrites some page.
    mutating func writeSome() {
        guard pageCount > 0 else { return }
        random ^= random &<< 13
        random ^= random &>> 7
        random ^= random &<< 17
        write(random % pageCount)
    }

    mutating func beginCheck() {
        checkedPages = 0
        checkedGenerations = 0
    }

    enum Check { case pageRight, pageWrong(UInt64), allRight, tableWrong }

    /// Checks the next page, or after the last one the sum of the generations.
    mutating func checkNext() -> Check {
        if checkedPages == pageCount { return checkedGenerations == writes ? .allRight : .tableWrong }
        let page = checkedPages
        let generation = bare_load64(table &+ page &* 8)
        var word = seed(page, generation)
        var position = pages &+ page &* Platform.pageSize
        let end = position &+ Platform.pageSize
        var difference: UInt64 = 0
        while position < end {
            difference |= bare_load64(position) ^ word
            word = word &* 0x5851_f42d_4c95_7f2d &+ 1
            position &+= 8
        }
        checkedPages &+= 1
        checkedGenerations &+= generation
        return difference == 0 ? .pageRight : .pageWrong(page)
    }
}
