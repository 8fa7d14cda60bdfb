import Glibc
import LinuxCalls
import MigrationChannels
import Synchronization
import Testing

@Suite("Hand-over frames") struct HandoverFrameTests {
    let soon: Int64 = monotonicNanoseconds() + 20_000_000_000

    func receive(raw: [UInt8], descriptors: [OwnedDescriptor] = []) throws -> HandoverFrame {
        let (near, far) = try StreamSocket.pair()
        try StreamSocket.sendAll(raw, descriptors: descriptors, to: near)
        StreamSocket.shutDownWriting(near)
        return try HandoverFrame.receive(from: far, deadline: soon)
    }

    func header(kind: UInt16, descriptors: UInt16, payload: UInt64, magic: UInt32 = 0x5353_484F) -> [UInt8] {
        func bytes<V: FixedWidthInteger>(_ value: V) -> [UInt8] { withUnsafeBytes(of: value.bigEndian, Array.init) }
        return bytes(magic) + bytes(kind) + bytes(descriptors) + bytes(payload) + bytes(UInt64(0))
    }

    @Test("a frame arrives whole, with all its descriptors in order", arguments: [0, 1, 63, 64, 65, 200])
    func roundTrip(count: Int) throws {
        let (near, far) = try StreamSocket.pair()
        let files = try (0..<count).map { try MemoryFile.create(name: "f", byteCount: 4096 * ($0 + 1)) }
        let payload = (0..<100_000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        let sender = try HostThread(name: "sender") {
            try? HandoverFrame(.state, payload: payload, descriptors: files).send(to: near, deadline: .max)
        }
        let frame = try HandoverFrame.receive(from: far, deadline: soon)
        sender.join()
        #expect(frame.kind == .state && frame.payload == payload && frame.descriptors.count == count)
        for (index, file) in frame.descriptors.enumerated() {
            #expect(try file.status().byteCount == 4096 * (index + 1))
            #expect(fcntl(file.rawValue, F_GETFD) & FD_CLOEXEC != 0)
        }
    }

    @Test("what is not a frame is refused")
    func malformed() throws {
        for bytes in [
            [UInt8](repeating: 0, count: 24), header(kind: 99, descriptors: 0, payload: 0),
            header(kind: 5, descriptors: 0, payload: .max), header(kind: 5, descriptors: .max, payload: 0),
            header(kind: 5, descriptors: 0, payload: 0, magic: 1),
        ] {
            #expect { try receive(raw: bytes) } throws: { ($0 as? HandoverError)?.code == .malformed }
        }
    }

    @Test("a frame cut at any byte is the peer's end, never a trap", arguments: 0..<30)
    func cut(length: Int) throws {
        let whole = header(kind: 5, descriptors: 0, payload: 10) + [UInt8](repeating: 1, count: 10)
        #expect { try receive(raw: Array(whole.prefix(length))) } throws: { ($0 as? HandoverError)?.code == .peerGone }
    }

    @Test("descriptors that were not announced are refused and closed")
    func surplus() throws {
        let file = try MemoryFile.create(name: "f", byteCount: 4096)
        #expect { try receive(raw: header(kind: 3, descriptors: 0, payload: 0), descriptors: [file]) } throws: {
            ($0 as? HandoverError)?.code == .malformed
        }
    }

    @Test("memory files are judged: kind, size, seals")
    func judged() throws {
        let good = try MemoryFile.create(name: "ram", byteCount: 8192)
        try ReceivedMemory.judge(good, byteCount: 8192, name: "ram")
        #expect(throws: HandoverError.self) { try ReceivedMemory.judge(good, byteCount: 4096, name: "ram") }
        let pipe = try OwnedDescriptor.pipe().readEnd
        #expect(throws: HandoverError.self) { try ReceivedMemory.judge(pipe, byteCount: 8192, name: "ram") }
        let plain = try OwnedDescriptor.open("/proc/self/exe", flags: O_RDONLY)
        let size = try plain.status().byteCount
        #expect(throws: HandoverError.self) { try ReceivedMemory.judge(plain, byteCount: size, name: "ram") }
        #expect(throws: HandoverError.self) { try OwnershipWord(adopting: good) }
    }

    @Test("beside the ownership word the source says which processor it runs on, and that decides nothing")
    func place() throws {
        let source = try OwnershipWord()
        let destination = try OwnershipWord(adopting: try OwnedDescriptor.duplicate(of: source.file.rawValue))
        #expect(destination.sourceProcessor == nil)
        source.tellProcessor()
        let processor = try #require(destination.sourceProcessor)
        #expect((0..<CInt(sysconf(CInt(_SC_NPROCESSORS_CONF)))).contains(processor))
        #expect(source.owner == .source && destination.owner == .source && !destination.claim())
    }

    @Test("populating fills the page tables for what holds data and leaves holes alone", arguments: PopulatedCase.all)
    func populate(_ which: PopulatedCase) throws {
        let byteCount = 64 << 20
        let file = try MemoryFile.create(name: "ram", byteCount: byteCount)
        let mapping = try OwnedMapping(byteCount: byteCount, descriptor: file)
        if let allotted = which.allotted {
            #expect(posix_fallocate(file.rawValue, 0, off_t(allotted.upperBound * 4096)) == 0)
        }
        for page in which.written { mapping.base.storeBytes(of: 1, toByteOffset: page * 4096, as: UInt8.self) }
        let before = blockCount(of: file)
        let second = try OwnedMapping(byteCount: byteCount, descriptor: file)
        #expect(PageTables.populate(second, of: file, until: 0) == 0, "no time: all is left")
        #expect(PageTables.populate(second, of: file) == nil)
        let pageMap = try OwnedDescriptor.open("/proc/self/pagemap", flags: O_RDONLY)
        for page in which.written {
            var entry: UInt64 = 0
            #expect(pread(pageMap.rawValue, &entry, 8, off_t((Int(bitPattern: second.base) / 4096 + page) * 8)) == 8)
            #expect(entry >> 63 == 1, "page \(page) is not mapped")
        }
        #expect(blockCount(of: file) == before, "holes stay holes")
    }

    @Test(
        "what fills page tables beside the guest ends when it is asked to, though others want every processor",
        .timeLimit(.minutes(1)))
    func endOfPopulation() throws {
        let byteCount = 256 << 20
        let file = try MemoryFile.create(name: "ram", byteCount: byteCount)
        let first = try OwnedMapping(byteCount: byteCount, descriptor: file)
        for page in 0..<byteCount / 4096 { first.base.storeBytes(of: 1, toByteOffset: page * 4096, as: UInt8.self) }
        let mapping = try OwnedMapping(byteCount: byteCount, descriptor: file)
        let end = End()
        let others = try (0..<2 * sysconf(CInt(_SC_NPROCESSORS_ONLN))).map { _ in
            try HostThread(name: "busy") { while !end.hasCome.load(ordering: .relaxed) {} }
        }
        defer {
            end.hasCome.store(true, ordering: .relaxed)
            for thread in others { thread.join() }
        }
        BackgroundPopulation.start([(mapping, file, start: 0)])
        while mappedPageCount(mapping) == 0 { usleep(1000) }
        BackgroundPopulation.endAll()
        let count = mappedPageCount(mapping)
        usleep(50_000)
        #expect(mappedPageCount(mapping) == count && count < byteCount / 4096, "it is over, and was not finished")
    }

    private final class End: Sendable {
        let hasCome = Atomic<Bool>(false)
    }

    private func mappedPageCount(_ mapping: OwnedMapping) -> Int {
        guard let pageMap = try? OwnedDescriptor.open("/proc/self/pagemap", flags: O_RDONLY) else { return -1 }
        var entries = [UInt64](repeating: 0, count: mapping.byteCount / 4096)
        let place = off_t(Int(bitPattern: mapping.base) / 4096 * 8)
        guard pread(pageMap.rawValue, &entries, entries.count * 8, place) == entries.count * 8 else { return -1 }
        return entries.count { $0 >> 63 == 1 }
    }

    private func blockCount(of file: OwnedDescriptor) -> Int {
        var status = stat()
        #expect(fstat(file.rawValue, &status) == 0)
        return Int(status.st_blocks)
    }

    struct PopulatedCase: Sendable, CustomTestStringConvertible {
        let testDescription: String
        let written: [Int]
        var allotted: Range<Int>?

        static let all = [
            PopulatedCase(testDescription: "a few pages", written: [0, 1, 700]),
            PopulatedCase(testDescription: "all", written: Array(0..<16384)),
            PopulatedCase(testDescription: "every other", written: Array(stride(from: 1, to: 16384, by: 2))),
            PopulatedCase(
                testDescription: "all but one in each piece", written: (0..<16384).filter { $0 % 1024 != 500 }),
            PopulatedCase(testDescription: "allotted before holes", written: [700, 1023, 5000], allotted: 0..<600),
        ]
    }
}
