import ComponentState
import Glibc
import GuestMemory
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationStream
import MigrationTestKit
import Synchronization
import SystemPackage
import Testing

@Suite("Page flipping") struct PageFlipTests {
    @Test(
        "a guest arrives through the pipe with every page right",
        arguments: [MigrationStrategy.precopy, .stopAndCopy], [MemoryBackend.memfd, .anonymous])
    func moves(strategy: MigrationStrategy, backend: MemoryBackend) throws {
        let rig = try Rig(backend: backend, destinationBackend: .memfd)
        defer { rig.end() }
        try rig.source.resume()
        let ends = try rig.flippingEnds(Rig.flipping(strategy), observer: rig.writesInEachRound)
        let outcome = try Rig.run(ends)
        #expect(ends.source.progress.error == nil && ends.destination.progress.error == nil)
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(rig.destination.waitForWrites(100))
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
        let progress = ends.source.progress
        #expect(progress.ram.normalPages > 0)
        // Contents crossed beside the stream, which the destination's count of stream bytes shows.
        let streamed = ends.destination.progress.ram.transferredByteCount
        #expect(streamed < progress.ram.normalPages * 64 + (64 << 10))
    }

    @Test(
        "any number of threads takes contents out of the pipe, in portions of any size", arguments: [1, 2, 5],
        [MigrationStrategy.precopy, .stopAndCopy])
    func readers(count: Int, strategy: MigrationStrategy) throws {
        // Nil is whole runs; portions that are no pages fill a pipe's places with little in each.
        for portion in [nil, 1000, 4096] as [Int?] {
            let splicer = portion.map { portion in
                PageSplicer { (pieces, pipe) throws(SystemCallError) in
                    let first = pieces[0]
                    return try pipe.write(
                        UnsafeRawBufferPointer(start: first.iov_base, count: min(first.iov_len, portion)))
                }
            }
            let rig = try Rig(pages: [2500, 3, 200])
            defer { rig.end() }
            try rig.source.resume()
            let ends = try rig.flippingEnds(
                Rig.flipping(strategy), splicer: splicer ?? .kernel, readerCount: count,
                observer: rig.writesInEachRound)
            let outcome = try Rig.run(ends)
            #expect(
                outcome.source == .guestMoved && outcome.destination == .guestMoved,
                "\(String(describing: ends.destination.progress.error))")
            #expect(rig.destination.waitForWrites(100))
            try rig.destination.pause()
            #expect(rig.destination.flaws() == [])
        }
    }

    @Test("stop-and-flip frees each piece at the source once the destination has it")
    func frees() throws {
        let rig = try Rig(pages: [9000])
        defer { rig.end() }
        try rig.source.resume()
        let ends = try rig.flippingEnds(Rig.flipping(.stopAndCopy))
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestMoved)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
        var status = stat()
        fstat(rig.source.ramBlocks[0].file!.rawValue, &status)
        #expect(status.st_blocks == 0, "the source still holds \(status.st_blocks / 8) pages")
    }

    @Test(
        "when the destination fails after pages were given away the source runs on with every byte right, and the next attempt works",
        arguments: [MemoryBackend.memfd, .anonymous])
    func wayBack(backend: MemoryBackend) throws {
        let rig = try Rig(pages: [5000, 700], backend: backend, destinationBackend: .memfd) {
            [ScriptedComponent("late", byteCount: 32)]
        }
        defer { rig.end() }
        (rig.destination.extraComponents[0] as! ScriptedComponent).fault.withLock {
            $0 = .invalid(component: "late", field: "bytes", value: "scripted")
        }
        try rig.source.resume()
        let ends = try rig.flippingEnds(Rig.flipping(.stopAndCopy))
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestStayed && outcome.destination == .guestStayed)
        #expect(ends.source.progress.error?.code == .peerRefused)
        #expect(ends.destination.progress.error?.code == .stateRejected)
        #expect(rig.source.isRunning && !rig.destination.isRunning)
        #expect(!rig.source.ramBlocks[0].isWhole)
        #expect(rig.source.waitForWrites(500))
        try rig.source.pause()
        #expect(rig.source.flaws() == [])

        // Again, with the memory partly in the first destination's file, into a fresh destination.
        try rig.source.resume()
        let second = try Rig(script: rig.script, pages: [5000, 700]) { [ScriptedComponent("late", byteCount: 32)] }
        defer { second.end() }
        let again = try rig.flippingEnds(Rig.flipping(.stopAndCopy), to: second.destination)
        let next = try Rig.run(again)
        #expect(next.source == .guestMoved && next.destination == .guestMoved)
        #expect(again.source.progress.error == nil)
        try second.destination.pause()
        #expect(second.destination.flaws() == [])
    }

    @Test("a destination whose memory was taken back cannot be given it again")
    func notTwice() throws {
        let rig = try Rig(pages: [3000]) { [ScriptedComponent("late", byteCount: 32)] }
        defer { rig.end() }
        (rig.destination.extraComponents[0] as! ScriptedComponent).fault.withLock {
            $0 = .invalid(component: "late", field: "bytes", value: "scripted")
        }
        try rig.source.resume()
        #expect(try Rig.run(try rig.flippingEnds(Rig.flipping(.stopAndCopy))).source == .guestStayed)
        let again = try rig.flippingEnds(Rig.flipping(.stopAndCopy))
        #expect(try Rig.run(again).source == .guestStayed)
        #expect(again.source.progress.error?.code == .ramMismatch)
        try rig.source.pause()
        #expect(rig.source.flaws() == [])
    }

    @Test("memory that was taken back can be made whole")
    func whole() throws {
        let rig = try Rig(pages: [3000]) { [ScriptedComponent("late", byteCount: 32)] }
        defer { rig.end() }
        (rig.destination.extraComponents[0] as! ScriptedComponent).fault.withLock {
            $0 = .invalid(component: "late", field: "bytes", value: "scripted")
        }
        let outcome = try Rig.run(try rig.flippingEnds(Rig.flipping(.stopAndCopy)))
        #expect(outcome.source == .guestStayed)
        let block = rig.source.ramBlocks[0]
        #expect(!block.isWhole)
        try block.makeWhole(pieceByteCount: 1 << 20)
        #expect(block.isWhole)
        #expect(rig.source.flaws() == [])
        let other = try OwnedMapping(byteCount: block.byteCount, descriptor: block.file)
        #expect(memcmp(other.base, block.base, block.byteCount) == 0)
    }

    @Test(
        "where vmsplice is refused the same protocol runs with writes, said once",
        arguments: [Errno.notPermitted, .noFunction, .invalidArgument])
    func refused(errno: Errno) throws {
        let rig = try Rig()
        defer { rig.end() }
        try rig.source.resume()
        let notices = Mutex<[String]>([])
        let ends = try rig.flippingEnds(
            Rig.flipping(.stopAndCopy),
            splicer: PageSplicer { (_, _) throws(SystemCallError) in throw SystemCallError("vmsplice", errno) },
            notice: { notice in notices.withLock { $0.append(notice) } })
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestMoved && outcome.destination == .guestMoved)
        #expect(notices.withLock { $0.count } == 1)
        try rig.destination.pause()
        #expect(rig.destination.flaws() == [])
    }

    @Test("with the capability on at one end only nothing moves and both ends say why")
    func oneEnd() throws {
        for sourceHasIt in [true, false] {
            let rig = try Rig()
            defer { rig.end() }
            try rig.source.resume()
            let on = Rig.flipping(.stopAndCopy)
            var off = Rig.configuration
            off.strategy = .stopAndCopy
            let ends = try rig.flippingEnds(sourceHasIt ? on : off, destination: sourceHasIt ? off : on)
            let outcome = try Rig.run(ends)
            #expect(outcome.source == .guestStayed && outcome.destination == .guestStayed)
            #expect(ends.destination.progress.error?.code == .capabilityMismatch)
            #expect(ends.destination.progress.error?.message.contains("unix-page-flipping") == true)
            #expect(ends.destination.progress.ram.normalPages == 0)
            #expect(rig.source.isRunning)
            if sourceHasIt {
                #expect(ends.source.progress.error?.message.contains("unix-page-flipping") == true)
                #expect(ends.source.progress.ram.normalPages == 0)
            }
            try rig.source.pause()
            #expect(rig.source.flaws() == [])
        }
    }

    @Test("a destination whose memory cannot be taken back is refused before a page moves")
    func noWayBack() throws {
        let rig = try Rig(destinationBackend: .anonymous)
        defer { rig.end() }
        try rig.source.resume()
        let ends = try rig.flippingEnds(Rig.flipping(.stopAndCopy))
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestStayed)
        #expect(ends.source.progress.error?.code == .capabilityMismatch)
        #expect(ends.source.progress.ram.normalPages == 0)
        #expect(rig.source.isRunning)
    }

    @Test("with the capability off the bytes are those of a plain sender")
    func offMeansOff() throws {
        let script = Rig.script()
        func stream(withHooks: Bool) throws -> [UInt8] {
            let rig = try Rig(script: script, pages: [300])
            defer { rig.end() }
            var configuration = Rig.configuration
            configuration.capabilities = []
            let transport = RecordingTransport()
            var hooks: (any SourceRAMHooks)?
            let (left, _) = try Rig.pair()
            if withHooks { hooks = PageFlipSource(transport: left, guest: rig.source, configuration: configuration) }
            let source = MigrationSource(
                guest: rig.source, transport: transport, configuration: configuration, hooks: hooks)
            #expect(source.run() == .guestMoved)
            return transport.bytes
        }
        let plain = try stream(withHooks: false)
        #expect(try stream(withHooks: true) == plain)
        #expect(plain.count > 300 * 9)
    }
}

/// Keeps what was sent.
final class RecordingTransport: MigrationTransport {
    private let sent = Mutex<[UInt8]>([])
    var bytes: [UInt8] { sent.withLock { $0 } }
    let name = "recording"
    let hasReturnPath = false

    func send(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) {
        for piece in pieces {
            sent.withLock { $0 += UnsafeRawBufferPointer(start: piece.iov_base, count: piece.iov_len) }
        }
    }
    func receive(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) -> Int { 0 }
    func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, timeoutMilliseconds: Int
    ) throws(TransportError) -> Int? { nil }
    func finishSending() throws(TransportError) {}
    func interrupt() {}
    func setStallLimit(milliseconds: UInt64) {}
    func close() {}
}
