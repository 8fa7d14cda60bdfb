import Glibc
import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationTestKit
import Synchronization
import Testing

/// Passes everything on and remembers when how many bytes went.
private final class TimedTransport: MigrationTransport {
    private let inner: any MigrationTransport
    let log: SendLog

    init(_ inner: any MigrationTransport, _ log: SendLog) {
        self.inner = inner
        self.log = log
    }

    var name: String { inner.name }
    var hasReturnPath: Bool { inner.hasReturnPath }
    var deliversBeforeEnd: Bool { inner.deliversBeforeEnd }

    func send(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) {
        log.add(pieces.reduce(0) { $0 + $1.iov_len })
        try inner.send(pieces)
    }

    func receive(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) -> Int {
        try inner.receive(pieces)
    }
    func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, timeoutMilliseconds: Int
    ) throws(TransportError) -> Int? {
        try inner.receive(pieces, timeoutMilliseconds: timeoutMilliseconds)
    }
    func finishSending() throws(TransportError) { try inner.finishSending() }
    func interrupt() { inner.interrupt() }
    func setStallLimit(milliseconds: UInt64) { inner.setStallLimit(milliseconds: milliseconds) }
    func close() { inner.close() }
}

private final class SendLog: Sendable {
    private let entries = Mutex<[(time: Int64, byteCount: Int)]>([])

    func add(_ byteCount: Int) { entries.withLock { $0.append((monotonicNanoseconds(), byteCount)) } }
    var byteCount: Int { entries.withLock { $0.reduce(0) { $0 + $1.byteCount } } }

    /// The most that went in any stretch of time so long.
    func largest(withinNanoseconds length: Int64) -> Int {
        entries.withLock { entries in
            entries.indices.map { first in
                entries[first...].prefix { $0.time < entries[first].time + length }.reduce(0) { $0 + $1.byteCount }
            }.max() ?? 0
        }
    }
}

@Suite("The bandwidth limit") struct BandwidthTests {
    /// A mebibyte, which is one run of pages.
    private static let pageCount = 256
    private static let bytesPerSecond: UInt64 = 2 << 20

    private func rig() throws -> Rig {
        var script = Rig.script()
        script.filledPercent = 100
        return try Rig(script: script, pages: [Self.pageCount])
    }

    private func isSpread(_ log: SendLog) {
        let window = Int(Self.bytesPerSecond / 10)
        #expect(log.byteCount >= Self.pageCount * 4096)
        // Between two windows what both have may go at once, and each may have begun a page with its last byte.
        #expect(log.largest(withinNanoseconds: 100_000_000) <= 2 * window + 4 * 4096)
    }

    @Test("it holds in each window of 100 ms in the first pass of a guest that is smaller than one run of pages")
    func socket() throws {
        let rig = try rig()
        defer { rig.end() }
        var configuration = Rig.configuration
        configuration.parameters.maxBandwidthBytesPerSecond = Self.bytesPerSecond
        let log = SendLog()
        let (left, right) = try Rig.pair()
        let outcome = try Rig.run(rig.ends(configuration, transports: (TimedTransport(left, log), right)))
        #expect(outcome.source == .guestMoved && rig.destination.flaws() == [])
        isSpread(log)
    }

    @Test("it holds for contents that cross in a pipe") func pageFlip() throws {
        let rig = try rig()
        defer { rig.end() }
        var configuration = Rig.flipping(.precopy)
        configuration.parameters.maxBandwidthBytesPerSecond = Self.bytesPerSecond
        let log = SendLog()
        let splicer = PageSplicer { (pieces, pipe) throws(SystemCallError) in
            let taken = try PageSplicer.kernel.splice(pieces, pipe)
            log.add(taken)
            return taken
        }
        let outcome = try Rig.run(rig.flippingEnds(configuration, splicer: splicer))
        #expect(outcome.source == .guestMoved && rig.destination.flaws() == [])
        isSpread(log)
    }

    @Test("it holds for pages that nobody asked for in a postcopy")
    func postcopy() throws {
        let rig = try rig()
        defer { rig.end() }
        var configuration = Rig.postcopy(.precopy)
        configuration.parameters.maxPostcopyBandwidthBytesPerSecond = Self.bytesPerSecond
        let log = SendLog()
        let ends = try rig.postcopyEnds(configuration, wrap: { (TimedTransport($0, log), $1) })
        // Before the first pass, of a guest that stands still: everything goes afterwards and nothing is asked for.
        ends.source.startPostcopy()
        let outcome = try Rig.run(ends)
        #expect(outcome.source == .guestMoved && rig.destination.flaws() == [])
        #expect(ends.source.progress.ram.postcopyByteCount > Self.pageCount * 4096)
        isSpread(log)
    }

    @Test("however little it allows, pages go, one after the other") func leastOfAll() throws {
        let rig = try Rig(pages: [2])
        defer { rig.end() }
        var configuration = Rig.configuration
        configuration.parameters.maxBandwidthBytesPerSecond = 30_000
        let outcome = try Rig.run(rig.ends(configuration))
        #expect(outcome.source == .guestMoved && rig.destination.flaws() == [])
    }
}
