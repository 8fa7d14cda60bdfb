import ComponentState
import Glibc
import GuestMemory
import MigrationEngine
import MigrationStream
import Testing

@Suite("Pages that are received ahead of their words")
struct ReceivedPagesTests {
    @Test(
        "every page is right and none is touched by mistake, wherever the bytes are cut and whatever order they come in",
        arguments: [MemoryBackend.memfd, .anonymous], [0, 3, 100] as [UInt64])
    func everyPageIsRight(backend: MemoryBackend, disorder: UInt64) throws {
        for seed in 0..<12 as Range<UInt64> {
            var random = Seeded(state: seed)
            let guest = try BareGuest(backend: backend)
            var expected = guest.ramBlocks.map { [UInt8](repeating: 0, count: $0.pageCount) }
            let writer = StreamWriter(capacity: 1 << 20)
            var encoder = RAMEncoder(blocks: guest.descriptions)
            encoder.writeBlockList(to: writer)
            encoder.writeEndOfSection(to: writer)
            var order: [(block: Int, page: Int)] = []
            for round in 0..<3 {
                for (block, pages) in expected.enumerated() {
                    for page in pages.indices {
                        let jumps = random.below(100) < disorder
                        // Some pages never come in the first round, and a few come in later ones.
                        if round == 0 ? !jumps : random.below(4) == 0 { order.append((block, page)) }
                        if jumps, !order.isEmpty { order.append(order[Int(random.below(UInt64(order.count)))]) }
                    }
                }
                for (block, page) in order {
                    let value = random.below(100) < disorder ? 0 : UInt8(random.below(255) + 1)
                    expected[block][page] = value
                    let offset = UInt64(page * guestPageSize)
                    if value == 0 {
                        encoder.writeFilledPage(BlockReference(block), offset: offset, to: writer)
                    } else {
                        encoder.writePageHeader(BlockReference(block), offset: offset, to: writer)
                        writer.write(Array(repeating: value, count: guestPageSize))
                    }
                }
                encoder.writeEndOfSection(to: writer)
                order = []
            }
            let transport = CutTransport(bytes: writer.bytes, seed: seed)
            let input = StreamInput(transport: transport, capacity: 1 << 14)
            let receiver = RAMReceiver(guest: guest, configuration: MigrationConfiguration(), hooks: nil)
            for kind in [SectionKind.start, .part, .part, .end] {
                try receiver.receiveSection(SectionHeader(kind, id: 1, name: "ram", version: 4), from: input)
            }
            #expect(transport.left == 0 && input.buffer.count == 0)
            #expect(input.buffer.offset == UInt64(writer.count) && input.receivedByteCount == UInt64(writer.count))
            for (block, pages) in zip(guest.ramBlocks, expected) {
                let wrong = pages.indices.filter { page in
                    (0..<guestPageSize).contains {
                        block.base.load(fromByteOffset: page * guestPageSize + $0, as: UInt8.self) != pages[page]
                    }
                }
                #expect(wrong.isEmpty, "seed \(seed), \(block.name): pages \(wrong.prefix(8))")
            }
        }
    }

    @Test("a stream that ends within a page or a word is refused")
    func endsWithin() throws {
        let guest = try BareGuest(backend: .memfd)
        let writer = StreamWriter(capacity: 1 << 16)
        var encoder = RAMEncoder(blocks: guest.descriptions)
        encoder.writeBlockList(to: writer)
        encoder.writeEndOfSection(to: writer)
        let start = writer.count
        for page in 0..<6 {
            encoder.writePageHeader(BlockReference(0), offset: UInt64(page * guestPageSize), to: writer)
            writer.write(Array(repeating: 7, count: guestPageSize))
        }
        for cut in stride(from: start + 1, to: writer.count, by: 501) {
            let transport = CutTransport(bytes: Array(writer.bytes[..<cut]), seed: UInt64(cut))
            let input = StreamInput(transport: transport, capacity: 1 << 12)
            let receiver = RAMReceiver(guest: guest, configuration: MigrationConfiguration(), hooks: nil)
            try receiver.receiveSection(SectionHeader(.start, id: 1, name: "ram", version: 4), from: input)
            let error = #expect(throws: MigrationError.self) {
                try receiver.receiveSection(SectionHeader(.part, id: 1, name: "ram", version: 4), from: input)
            }
            #expect(error?.code == .channelClosed)
        }
    }
}

private struct Seeded {
    var state: UInt64
    mutating func below(_ limit: UInt64) -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return (z ^ (z >> 31)) % limit
    }
}

private final class BareGuest: MigratableGuest {
    let machineName = "bare"
    let ramBlocks: [RAMBlock]
    var components: [any StatefulComponent] { [] }
    var isRunning: Bool { false }
    init(backend: MemoryBackend) throws {
        ramBlocks = [
            try RAMBlock(name: "a", byteCount: 700 * guestPageSize, backend: backend),
            try RAMBlock(name: "b", byteCount: 33 * guestPageSize, backend: backend),
        ]
    }
    var descriptions: [RAMBlockDescription] {
        ramBlocks.map { RAMBlockDescription(name: $0.name, byteCount: UInt64($0.byteCount)) }
    }
    func restartDirtyTracking() {}
    func setThrottle(percent: Int) {}
    func pause() {}
    func resume() {}
    func finishLoading() {}
}

/// Gives the bytes in pieces of random lengths.
// SAFETY: used by one thread.
private final class CutTransport: MigrationTransport, @unchecked Sendable {
    let name = "cut"
    let hasReturnPath = false
    private let bytes: [UInt8]
    private var position = 0
    private var random: Seeded

    init(bytes: [UInt8], seed: UInt64) {
        self.bytes = bytes
        random = Seeded(state: ~seed)
    }

    var left: Int { bytes.count - position }

    func send(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) { throw .closed }
    func receive(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) -> Int {
        // Now a few bytes, now many pages.
        var budget = Int(random.below(random.below(2) == 0 ? 40 : 400_000)) + 1
        var count = 0
        for piece in pieces {
            let taken = min(piece.iov_len, budget, left)
            if taken > 0 {
                bytes[position..<(position + taken)].withUnsafeBytes {
                    piece.iov_base.copyMemory(from: $0.baseAddress!, byteCount: taken)
                }
            }
            position += taken
            budget -= taken
            count += taken
        }
        return count
    }
    func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, timeoutMilliseconds: Int
    ) throws(TransportError) -> Int? { try receive(pieces) }
    func finishSending() {}
    func interrupt() {}
    func setStallLimit(milliseconds: UInt64) {}
    func close() {}
}
