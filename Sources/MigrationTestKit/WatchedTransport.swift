package import Glibc
package import MigrationEngine
import Synchronization

/// A channel whose calls are seen before they are made, on the thread that makes them: a test can hold one there, or break
/// the channel at a moment that no clock decides.
package final class WatchedTransport: MigrationTransport {
    package enum Call: Sendable {
        /// The first bytes of what is sent: enough to tell a message's type.
        case send(start: [UInt8])
        case receive
    }

    private let inner: any MigrationTransport
    private let allows: @Sendable (Call) -> Bool
    private let isBroken = Atomic<Bool>(false)

    /// - Parameter allows: False finds the other end gone, in this call and every later one.
    package init(_ inner: any MigrationTransport, allows: @escaping @Sendable (Call) -> Bool) {
        self.inner = inner
        self.allows = allows
    }

    /// A call was not allowed.
    package var hasBroken: Bool { isBroken.load(ordering: .relaxed) }
    package var name: String { "watched " + inner.name }
    package var hasReturnPath: Bool { inner.hasReturnPath }
    package var deliversBeforeEnd: Bool { inner.deliversBeforeEnd }

    private func begin(_ call: Call) throws(TransportError) {
        if !hasBroken, allows(call) { return }
        isBroken.store(true, ordering: .relaxed)
        inner.close()
        throw .closed
    }

    package func send(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) {
        try unsafe beginSending(pieces)
        try unsafe inner.send(pieces)
    }

    package func send(
        _ pieces: UnsafeMutableBufferPointer<iovec>, records: UnsafeRawBufferPointer
    ) throws(TransportError) {
        try unsafe beginSending(pieces)
        try unsafe inner.send(pieces, records: records)
    }

    private func beginSending(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) {
        var start: [UInt8] = []
        var index = 0
        while index < pieces.count, start.count < 8 {
            let bytes = unsafe UnsafeRawBufferPointer(start: pieces[index].iov_base, count: pieces[index].iov_len)
            unsafe start.append(contentsOf: bytes.prefix(8 - start.count))
            index += 1
        }
        try begin(.send(start: start))
    }

    package func receive(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) -> Int {
        try begin(.receive)
        return try unsafe inner.receive(pieces)
    }

    package func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, timeoutMilliseconds: Int
    ) throws(TransportError) -> Int? {
        try begin(.receive)
        return try unsafe inner.receive(pieces, timeoutMilliseconds: timeoutMilliseconds)
    }

    package func finishSending() throws(TransportError) { try inner.finishSending() }
    package func interrupt() { inner.interrupt() }
    package func setStallLimit(milliseconds: UInt64) { inner.setStallLimit(milliseconds: milliseconds) }
    package func close() { inner.close() }
}
