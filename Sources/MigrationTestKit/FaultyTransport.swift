package import Glibc
package import MigrationEngine
import Synchronization

/// A channel that breaks where it is told to. Calls are counted, sends and receives together, from 1.
package final class FaultyTransport: MigrationTransport {
    package enum Fault: Hashable, Sendable {
        /// The n-th call finds the other end gone.
        case closed(atCall: Int)
        /// The n-th call sends or receives a part, then the other end is gone.
        case cut(atCall: Int)
        /// No call moves more than so many bytes.
        case short(byteCount: Int)
        /// Every call lets other threads go first, so many times.
        case delayed(yields: Int)
    }

    private let inner: any MigrationTransport
    private let fault: Fault
    private let onCall: (@Sendable (_ number: Int) -> Void)?
    private let calls = Atomic<Int>(0)
    private let isBroken = Atomic<Bool>(false)

    /// - Parameter onCall: Told the number of each call before it is made, on the thread that makes it.
    package init(
        _ inner: any MigrationTransport, _ fault: Fault, onCall: (@Sendable (_ number: Int) -> Void)? = nil
    ) {
        self.inner = inner
        self.fault = fault
        self.onCall = onCall
    }

    /// The fault has happened.
    package var hasBroken: Bool { isBroken.load(ordering: .relaxed) }
    package var name: String { "faulty " + inner.name }
    package var hasReturnPath: Bool { inner.hasReturnPath }

    private func breakDown() throws(TransportError) -> Never {
        isBroken.store(true, ordering: .relaxed)
        inner.close()
        throw .closed
    }

    /// The bytes this call may still move; nil is all of them.
    private func begin() throws(TransportError) -> Int? {
        if hasBroken { throw .closed }
        let call = calls.wrappingAdd(1, ordering: .relaxed).newValue
        onCall?(call)
        switch fault {
        case .closed(let at): if call == at { try breakDown() }
        case .cut(let at): if call == at { return 1 }
        case .short(let byteCount): return byteCount
        case .delayed(let yields): for _ in 0..<yields { sched_yield() }
        }
        return nil
    }

    private var isCutting: Bool { if case .cut = fault { true } else { false } }

    package func send(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) {
        try unsafe send(pieces) { (pieces) throws(TransportError) in try unsafe inner.send(pieces) }
    }

    package func send(
        _ pieces: UnsafeMutableBufferPointer<iovec>, records: UnsafeRawBufferPointer
    ) throws(TransportError) {
        try unsafe send(pieces) { (pieces) throws(TransportError) in try unsafe inner.send(pieces, records: records) }
    }

    private func send(
        _ pieces: UnsafeMutableBufferPointer<iovec>,
        _ whole: (UnsafeMutableBufferPointer<iovec>) throws(TransportError) -> Void
    ) throws(TransportError) {
        let limit = try begin()
        guard let limit, isCutting else { return try unsafe whole(pieces) }
        // Half of the first piece, at least the limit, then the end.
        var part = unsafe iovec(iov_base: pieces[0].iov_base, iov_len: max(limit, pieces[0].iov_len / 2))
        try unsafe withUnsafeMutablePointer(to: &part) { (pointer) throws(TransportError) in
            try unsafe inner.send(UnsafeMutableBufferPointer(start: pointer, count: 1))
        }
        try breakDown()
    }

    package func receive(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) -> Int {
        let limit = try begin()
        guard let limit else { return try unsafe inner.receive(pieces) }
        return try unsafe receive(pieces, limit) { (pieces) throws(TransportError) in
            try unsafe inner.receive(pieces)
        } ?? 0
    }

    package func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, timeoutMilliseconds: Int
    ) throws(TransportError) -> Int? {
        let limit = try begin()
        guard let limit else {
            return try unsafe inner.receive(pieces, timeoutMilliseconds: timeoutMilliseconds)
        }
        return try unsafe receive(pieces, limit) { (pieces) throws(TransportError) in
            try unsafe inner.receive(pieces, timeoutMilliseconds: timeoutMilliseconds)
        }
    }

    private func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, _ limit: Int,
        _ body: (UnsafeMutableBufferPointer<iovec>) throws(TransportError) -> Int?
    ) throws(TransportError) -> Int? {
        var part = unsafe iovec(iov_base: pieces[0].iov_base, iov_len: min(limit, pieces[0].iov_len))
        let count = try unsafe withUnsafeMutablePointer(to: &part) { (pointer) throws(TransportError) in
            try unsafe body(UnsafeMutableBufferPointer(start: pointer, count: 1))
        }
        if isCutting {
            guard let count, count > 0 else { try breakDown() }
            // These bytes still count; the next call fails.
            isBroken.store(true, ordering: .relaxed)
            inner.close()
        }
        return count
    }

    package func finishSending() throws(TransportError) { try inner.finishSending() }
    package func interrupt() { inner.interrupt() }
    package func setStallLimit(milliseconds: UInt64) { inner.setStallLimit(milliseconds: milliseconds) }
    package func close() { inner.close() }
}

/// What goes to places of a file breaks like everything else.
extension FaultyTransport: SeekableTransport {
    package var isSeekable: Bool { file != nil }
    private var file: (any SeekableTransport)? { inner.seekable }

    /// A call that moves no bytes cannot be cut: it fails.
    private func beginWhole() throws(TransportError) {
        if try begin() != nil, isCutting { try breakDown() }
    }

    package func position() throws(TransportError) -> UInt64 {
        try beginWhole()
        return try file!.position()
    }

    package func seek(to offset: UInt64) throws(TransportError) {
        try beginWhole()
        try file!.seek(to: offset)
    }

    package func send(_ pieces: UnsafeMutableBufferPointer<iovec>, at offset: UInt64) throws(TransportError) {
        let limit = try begin()
        guard isCutting, let limit else { return try unsafe file!.send(pieces, at: offset) }
        var part = unsafe iovec(iov_base: pieces[0].iov_base, iov_len: max(limit, pieces[0].iov_len / 2))
        try unsafe withUnsafeMutablePointer(to: &part) { (pointer) throws(TransportError) in
            try unsafe file!.send(UnsafeMutableBufferPointer(start: pointer, count: 1), at: offset)
        }
        try breakDown()
    }

    package func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, at offset: UInt64
    ) throws(TransportError) -> Int {
        let limit = try begin()
        guard let limit else { return try unsafe file!.receive(pieces, at: offset) }
        return try unsafe receive(pieces, limit) { (pieces) throws(TransportError) in
            try unsafe file!.receive(pieces, at: offset)
        } ?? 0
    }
}
