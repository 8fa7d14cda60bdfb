import GuestMemory
import Synchronization
import Testing

@Suite("Guest memory") struct GuestMemoryTests {
    func memory() throws -> GuestMemory {
        let rom = try RAMBlock(name: "rom", byteCount: 8192, backend: .anonymous)
        let ram = try RAMBlock(name: "ram", byteCount: 1 << 20, backend: .memfd)
        return GuestMemory(regions: [
            MemoryRegion(address: 0x8000_0000, block: ram), MemoryRegion(address: 0x1000, block: rom, isReadOnly: true),
        ])
    }

    @Test("accesses outside RAM, across its end, or beyond the address space are refused")
    func bounds() throws {
        let memory = try memory()
        for address: UInt64 in [0, 0xfff, 0x3000, 0x7fff_ffff, 0x8010_0000, 0x800f_fffd, .max, .max - 3] {
            #expect(throws: GuestMemoryError.self) { try memory.load(address, as: UInt32.self) }
        }
        try memory.store(0x800f_fffc, UInt32(7))
        #expect(try memory.load(0x800f_fffc, as: UInt32.self) == 7)
        #expect(throws: GuestMemoryError.self) { try memory.store(0x1000, UInt8(1)) }
        #expect(throws: GuestMemoryError.self) { try memory.bytes(at: 0x8000_0000, count: 2 << 20) }
    }

    @Test("each write marks its pages dirty and tells about code")
    func marks() throws {
        let memory = try memory()
        let block = memory.regions[1].block
        let watched = Mutex<[ClosedRange<Int>]>([])
        memory.setCodeWatch { region, pages in
            #expect(region == 1)
            watched.withLock { $0.append(pages) }
        }
        try memory.write(0x8000_0ffe, [1, 2, 3, 4])
        #expect(block.dirty.isMarked(page: 0) && block.dirty.isMarked(page: 1) && !block.dirty.isMarked(page: 2))
        #expect(watched.withLock { $0 } == [0...1])
        #expect(block.dirty.take(word: 0) == 3)
        #expect(block.dirty.count == 0)
        block.dirty.putBack(word: 0, bits: 3)
        #expect(block.dirty.count == 2)
    }

    @Test("a bitmap never shows pages it does not have")
    func lastWord() {
        let bitmap = DirtyBitmap(pageCount: 70)
        bitmap.markAll()
        #expect(bitmap.count == 70)
        bitmap.putBack(word: 1, bits: .max)
        #expect(bitmap.take(word: 1) == 0x3f)
    }

    @Test("marks from several threads are all kept")
    func concurrentMarks() async {
        let bitmap = DirtyBitmap(pageCount: 1024)
        await withTaskGroup(of: Void.self) { group in
            for lane in 0..<4 {
                group.addTask { for page in stride(from: lane, to: 1024, by: 4) { bitmap.mark(page: page) } }
            }
        }
        #expect(bitmap.count == 1024)
    }
}
