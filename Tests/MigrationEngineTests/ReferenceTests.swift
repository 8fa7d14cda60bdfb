import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit
import Synchronization
import SystemPackage
import Testing

@Suite("Pages by reference") struct ReferenceTests {
    /// Counts calls, both kinds together, from 1, and lets somebody fail or shorten them.
    final class Calls: Sendable {
        private let number = Atomic<Int>(0)
        var count: Int { number.load(ordering: .relaxed) }
        let refuses: @Sendable (Int) -> Errno?
        let most: Int

        init(most: Int = .max, refuses: @escaping @Sendable (Int) -> Errno? = { _ in nil }) {
            self.most = most
            self.refuses = refuses
        }

        private func begin(_ name: String) throws(SystemCallError) {
            if let errno = refuses(number.wrappingAdd(1, ordering: .relaxed).newValue) {
                throw SystemCallError(name, errno)
            }
        }

        var calls: ReferenceCalls {
            ReferenceCalls(
                fill: { [self] (pieces, pipe) throws(SystemCallError) in
                    try begin("vmsplice")
                    guard most < pieces[0].iov_len else { return try ReferenceCalls.kernel.fill(pieces, pipe) }
                    var piece = iovec(iov_base: pieces[0].iov_base, iov_len: most)
                    return try withUnsafeMutablePointer(to: &piece) { (pointer) throws(SystemCallError) in
                        try ReferenceCalls.kernel.fill(UnsafeMutableBufferPointer(start: pointer, count: 1), pipe)
                    }
                },
                move: { [self] (byteCount, pipe, socket) throws(SystemCallError) in
                    try begin("splice")
                    return try ReferenceCalls.kernel.move(min(byteCount, most), pipe, socket)
                })
        }
    }

    /// Pages with a word before each, as a stream has them.
    final class Contents: Sendable {
        static let wordBytes = 8
        let pageCount: Int
        let memory: OwnedMapping
        let words: OwnedMapping
        let expected: [UInt8]

        init(pageCount: Int = 300) throws {
            self.pageCount = pageCount
            memory = try OwnedMapping(byteCount: pageCount * guestPageSize)
            words = try OwnedMapping(byteCount: pageCount * Self.wordBytes)
            var random = SystemRandomNumberGenerator()
            for index in 0..<(memory.byteCount / 8) {
                memory.base.storeBytes(of: random.next(), toByteOffset: index * 8, as: UInt64.self)
            }
            for page in 0..<pageCount {
                words.base.storeBytes(of: UInt64(page) << 12, toByteOffset: page * 8, as: UInt64.self)
            }
            var expected: [UInt8] = []
            for page in 0..<pageCount {
                expected += UnsafeRawBufferPointer(rebasing: words.bytes[(page * 8)..<(page * 8 + 8)])
                expected += UnsafeRawBufferPointer(
                    rebasing: memory.bytes[(page * guestPageSize)..<((page + 1) * guestPageSize)])
            }
            self.expected = expected
        }

        /// Sends it all; the words are other words at once.
        func send(over transport: DescriptorTransport) throws(TransportError) {
            defer { memset(words.base, 0xee, words.byteCount) }
            var pieces: [iovec] = []
            for page in 0..<pageCount {
                pieces.append(iovec(iov_base: words.base + page * 8, iov_len: 8))
                pieces.append(iovec(iov_base: memory.base + page * guestPageSize, iov_len: guestPageSize))
            }
            try pieces.withUnsafeMutableBufferPointer { (buffer) throws(TransportError) in
                try transport.send(buffer, records: UnsafeRawBufferPointer(words.bytes))
            }
        }
    }

    /// Receives until the end or so many bytes, on a thread of its own, never more than `portion` at once.
    static func receive(from transport: DescriptorTransport, atMost: Int = .max, portion: Int = 100_000) throws -> (
        thread: HostThread, bytes: @Sendable () -> [UInt8]
    ) {
        let result = Gate<[UInt8]>([])
        let thread = try HostThread(name: "receiver") {
            var bytes = [UInt8](repeating: 0, count: portion)
            while result.read({ $0.count }) < atMost {
                let count = bytes.withUnsafeMutableBytes { buffer in
                    var piece = iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
                    return withUnsafeMutablePointer(to: &piece) {
                        (try? transport.receive(UnsafeMutableBufferPointer(start: $0, count: 1))) ?? 0
                    }
                }
                guard count > 0 else { return }
                result.update { $0 += bytes[..<count] }
            }
        }
        return (thread, { result.read { $0 } })
    }

    @Test(
        "a running guest arrives with every page right, no page copied here",
        arguments: [MigrationStrategy.precopy, .stopAndCopy], [MemoryBackend.memfd, .anonymous])
    func moves(strategy: MigrationStrategy, backend: MemoryBackend) throws {
        let rig = try Rig(backend: backend)
        defer { rig.end() }
        try rig.source.resume()
        let (left, right) = try Rig.pair()
        left.sendByReference()
        var configuration = Rig.configuration
        configuration.strategy = strategy
        let ends = try rig.ends(configuration, transports: (left, right), observer: rig.writesInEachRound)
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(left.referencedByteCount > 1000 * UInt64(guestPageSize) && left.referenceRefusal == nil)
        #expect(rig.destination.waitForWrites(100))
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test("the bytes are those of a copy, in portions of any size", arguments: [1, 7, 4095, 4097, 70_000, Int.max])
    func sameBytes(most: Int) throws {
        let contents = try Contents(pageCount: most < 100 ? 17 : 900)
        let (left, right) = try Rig.pair()
        let calls = Calls(most: most)
        left.sendByReference(calls.calls)
        let receiver = try Self.receive(from: right)
        try contents.send(over: left)
        try left.finishSending()
        receiver.thread.join()
        #expect(receiver.bytes() == contents.expected)
        #expect(left.referencedByteCount == UInt64(contents.expected.count) && left.referenceRefusal == nil)
        #expect(calls.count > 1)
    }

    @Test(
        "whichever call is refused, the rest is copied, no byte twice and none lost, and it is said why",
        arguments: [Errno.notPermitted, .noFunction, .invalidArgument, .noMemory])
    func refused(errno: Errno) throws {
        var number = 1
        while true {
            let contents = try Contents()
            let (left, right) = try Rig.pair()
            let refusing = number
            let calls = Calls(most: 100_000) { $0 == refusing ? errno : nil }
            left.sendByReference(calls.calls)
            let receiver = try Self.receive(from: right)
            try contents.send(over: left)
            try left.finishSending()
            receiver.thread.join()
            #expect(receiver.bytes() == contents.expected, "call \(number)")
            if calls.count < refusing { break }
            #expect(left.referenceRefusal?.errno == errno, "call \(number)")
            number += 1
        }
        #expect(number > 5)
    }

    @Test("a guest arrives whole whichever call is refused in the move")
    func refusedInMove() throws {
        for number in 1...12 {
            let rig = try Rig(script: Rig.script(threads: 1), pages: [900])
            defer { rig.end() }
            try rig.source.resume()
            let (left, right) = try Rig.pair()
            left.sendByReference(Calls { $0 == number ? .notPermitted : nil }.calls)
            let outcome = try Rig.run(try rig.ends(transports: (left, right), observer: rig.writesInEachRound))
            #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved, "call \(number)")
            try rig.destination.pause()
            #expect(rig.destination.flaws() == [], "call \(number)")
        }
    }

    @Test("a receiver that goes away at any call is the end of the channel", arguments: [1, 2, 3, 4, 5, 6])
    func goesAway(number: Int) throws {
        let contents = try Contents(pageCount: 3000)
        let (left, right) = try Rig.pair()
        left.sendByReference(
            Calls {
                if $0 == number { right.close() }
                return nil
            }.calls)
        #expect(throws: TransportError.self) { try contents.send(over: left) }
        #expect(left.referenceRefusal == nil)
    }

    @Test(
        "who does not receive is waited for as long as allowed, or until somebody interrupts", arguments: [true, false])
    func waits(interrupts: Bool) throws {
        let contents = try Contents(pageCount: 5000)
        let (left, right) = try Rig.pair()
        defer { right.close() }
        left.sendByReference()
        if !interrupts { left.setStallLimit(milliseconds: 50) }
        let thread = try HostThread(name: "interrupts") {
            while left.referencedByteCount == 0 { sched_yield() }
            if interrupts { left.interrupt() }
        }
        do {
            try contents.send(over: left)
            Issue.record("20 MB fit into a socket")
        } catch {
            switch error {
            case .interrupted: #expect(interrupts)
            case .stalled: #expect(!interrupts)
            default: Issue.record("\(error)")
            }
        }
        thread.join()
    }

    @Test("what is written after the end of sending does not arrive")
    func finishes() throws {
        let contents = try Contents(pageCount: 100)
        let (left, right) = try Rig.pair()
        left.sendByReference()
        try contents.send(over: left)
        let hasFinished = Atomic<Bool>(false)
        let memory = contents.memory
        let thread = try HostThread(name: "writes") {
            try? left.finishSending()
            hasFinished.store(true, ordering: .sequentiallyConsistent)
            memset(memory.base, 0x11, memory.byteCount)
        }
        // Half of it, however long that takes: the sender is not done.
        let half = try Self.receive(from: right, atMost: contents.expected.count / 2, portion: 1000)
        half.thread.join()
        let early = hasFinished.load(ordering: .sequentiallyConsistent)
        #expect(!early)
        let rest = try Self.receive(from: right)
        rest.thread.join()
        thread.join()
        #expect(half.bytes() + rest.bytes() == contents.expected)
    }

    @Test("who has received everything may close before the end of sending is noticed")
    func closesEarly() throws {
        for _ in 0..<20 {
            let contents = try Contents(pageCount: 100)
            let (left, right) = try Rig.pair()
            left.sendByReference()
            try contents.send(over: left)
            let receiver = try HostThread(name: "receiver") {
                let bytes = try? Self.receive(from: right, atMost: contents.expected.count)
                bytes?.thread.join()
                right.close()
            }
            try left.finishSending()
            receiver.join()
        }
    }

    @Test("an end of sending that nobody receives is waited for no longer than allowed")
    func finishStalls() throws {
        for interrupts in [true, false] {
            let (left, right) = try Rig.pair()
            defer { right.close() }
            left.sendByReference()
            try Contents(pageCount: 100).send(over: left)
            if interrupts { left.interrupt() } else { left.setStallLimit(milliseconds: 30) }
            #expect(throws: TransportError.self) { try left.finishSending() }
        }
    }

    @Test("memory that is freed on its way arrives all the same", arguments: [MemoryBackend.memfd, .anonymous])
    func freed(backend: MemoryBackend) throws {
        let pageCount = 64
        let block = try RAMBlock(name: "ram", byteCount: pageCount * guestPageSize, backend: backend)
        memset(block.base, 0x5a, block.byteCount)
        let (left, right) = try Rig.pair()
        left.sendByReference()
        var piece = iovec(iov_base: block.base, iov_len: block.byteCount)
        try withUnsafeMutablePointer(to: &piece) { (pointer) throws(TransportError) in
            try left.send(
                UnsafeMutableBufferPointer(start: pointer, count: 1),
                records: UnsafeRawBufferPointer(start: nil, count: 0))
        }
        #expect(left.referencedByteCount == UInt64(block.byteCount))
        try block.free(offset: 0, byteCount: block.byteCount)
        memset(block.base, 0x77, block.byteCount)
        let receiver = try Self.receive(from: right, atMost: block.byteCount)
        receiver.thread.join()
        #expect(receiver.bytes() == [UInt8](repeating: 0x5a, count: block.byteCount))
    }

    @Test("a network socket, a pipe and few pages are copied")
    func otherChannels() throws {
        let (left, right) = try Rig.pair()
        left.sendByReference()
        let few = try Contents(pageCount: 3)
        let receiver = try Self.receive(from: right, atMost: few.expected.count)
        try few.send(over: left)
        receiver.thread.join()
        #expect(receiver.bytes() == few.expected && left.referencedByteCount == 0)
        let pipe = try OwnedDescriptor.pipe()
        let writing = try DescriptorTransport(name: "pipe", reading: nil, writing: pipe.writeEnd)
        let reading = try DescriptorTransport(name: "pipe", reading: pipe.readEnd, writing: nil)
        writing.sendByReference()
        let many = try Contents()
        let other = try Self.receive(from: reading, atMost: many.expected.count)
        try many.send(over: writing)
        other.thread.join()
        #expect(other.bytes() == many.expected && writing.referencedByteCount == 0)
    }
}
