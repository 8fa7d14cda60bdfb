import Glibc
import GuestMemory
import MigrationEngine
import ProcessTestKit
import Testing

@Suite("Holes of memory that need not be read") struct DataMapTests {
    static let pageCount = 96

    static func block(_ backend: MemoryBackend, filled: some Sequence<Int>) throws -> RAMBlock {
        let block = try RAMBlock(name: "ram", byteCount: pageCount * guestPageSize, backend: backend)
        for page in filled { block.base.storeBytes(of: 0x5a, toByteOffset: page * guestPageSize, as: UInt8.self) }
        return block
    }

    /// Pages in holes, as a walk over the whole block finds them.
    static func holes(_ map: inout DataMap) -> Set<Int> {
        var holes: Set<Int> = []
        var page = 0
        while page < pageCount {
            let (isHole, count) = map.extent(at: page)
            #expect(count > 0)
            if isHole { holes.formUnion(page..<min(page + count, pageCount)) }
            page += count
        }
        return holes
    }

    @Test(
        "every hole is found, and nothing else taken for one",
        arguments: [[], [0], [95], Array(0..<95), Array(1..<96), [3, 4, 5, 40], Array(stride(from: 0, to: 96, by: 2))])
    func holes(filled: [Int]) throws {
        for backend in [MemoryBackend.memfd, .anonymous] {
            let block = try Self.block(backend, filled: filled)
            var map = try #require(DataMap(block))
            let expected = Set(0..<Self.pageCount).subtracting(filled)
            #expect(Self.holes(&map) == expected, "\(backend)")
            #expect(backend == .anonymous || map.searchCount > 0)
        }
    }

    @Test("a file without a hole is not searched for one") func full() throws {
        let block = try Self.block(.memfd, filled: 0..<Self.pageCount)
        var map = try #require(DataMap(block))
        #expect(Self.holes(&map).isEmpty)
        #expect(map.searchCount == 0)
        // Nor is it asked again for each run of pages.
        #expect(map.extent(at: 7) == (isHole: false, pageCount: Self.pageCount - 7))
        map.forget()
        #expect(Self.holes(&map).isEmpty && map.searchCount == 0)
    }

    @Test("a hole that is made later is found once dirty pages were taken") func madeLater() throws {
        let block = try Self.block(.memfd, filled: 0..<Self.pageCount)
        var map = try #require(DataMap(block))
        #expect(Self.holes(&map).isEmpty)
        try block.free(offset: 5 * guestPageSize, byteCount: 2 * guestPageSize)
        map.forget()
        #expect(Self.holes(&map) == [5, 6])
        block.base.storeBytes(of: 1, toByteOffset: 5 * guestPageSize, as: UInt8.self)
        block.base.storeBytes(of: 1, toByteOffset: 6 * guestPageSize, as: UInt8.self)
        map.forget()
        #expect(Self.holes(&map).isEmpty)
    }

    @Test("of a file on a disk nothing with contents is taken for a hole") func onDisk() throws {
        let directory = try TemporaryDirectory()
        for filled in [Array(0..<Self.pageCount), [0, 7, 95], []] {
            let block = try Self.block(.file(directory.path + "/\(filled.count)"), filled: filled)
            var map = try #require(DataMap(block))
            #expect(Self.holes(&map).isDisjoint(with: filled))
        }
    }
}
