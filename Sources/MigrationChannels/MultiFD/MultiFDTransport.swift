package import Glibc
package import MigrationEngine
import Synchronization

/// A main channel and those beside it as one: closed, interrupted and limited together, and what goes wrong on one of
/// them ends the migration with that reason.
package final class MultiFDTransport: MigrationTransport {
    package let main: any MigrationTransport
    package let channels: [any MigrationTransport]
    private let failure = Mutex<TransportError?>(nil)
    private let limitMilliseconds = Atomic<Int>(0)
    private let told: Gate<MultiFDEnd>
    /// How often a wait on the main channel looks at the others.
    private static let lookMilliseconds = 20

    init(main: any MigrationTransport, channels: [any MigrationTransport], told: Gate<MultiFDEnd>) {
        self.main = main
        self.channels = channels
        self.told = told
    }

    package var name: String { main.name }
    package var hasReturnPath: Bool { main.hasReturnPath }

    /// What broke first beside the main channel.
    var broken: TransportError? { failure.withLock { $0 } }

    /// A channel broke: whoever uses the main channel hears of it.
    func channelFailed(_ index: Int, _ error: TransportError) {
        failure.withLock { if $0 == nil { $0 = error } }
        channels[index].close()
        told.update { if $0.failure == nil { $0.failure = error } }
    }

    package func send(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) {
        // That the other end takes nothing more may be its answer to what went wrong beside it.
        do throws(TransportError) { unsafe try main.send(pieces) } catch { throw broken ?? error }
    }

    package func receive(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) -> Int {
        var waited = 0
        while true {
            if let count = try unsafe receive(pieces, timeoutMilliseconds: Self.lookMilliseconds) { return count }
            if let broken { throw broken }
            waited += Self.lookMilliseconds
            let limit = limitMilliseconds.load(ordering: .relaxed)
            if limit > 0, waited >= limit { throw .stalled }
        }
    }

    package func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, timeoutMilliseconds: Int
    ) throws(TransportError) -> Int? {
        let count: Int?
        do throws(TransportError) {
            count = try unsafe main.receive(pieces, timeoutMilliseconds: timeoutMilliseconds)
        } catch { throw broken ?? error }
        // The end may be the source's answer to what went wrong beside it.
        if count == 0, let broken { throw broken }
        return count
    }

    package func finishSending() throws(TransportError) {
        for channel in channels { try channel.finishSending() }
        try main.finishSending()
    }

    package func interrupt() {
        main.interrupt()
        for channel in channels { channel.interrupt() }
        told.update { $0.isInterrupted = true }
    }

    package func setStallLimit(milliseconds: UInt64) {
        limitMilliseconds.store(Int(clamping: milliseconds), ordering: .relaxed)
        main.setStallLimit(milliseconds: milliseconds)
        told.update { $0.limitMilliseconds = milliseconds }
    }

    package func close() {
        main.close()
        for channel in channels { channel.close() }
        told.update { $0.isInterrupted = true }
    }
}

/// What ends the work on channels beside the main one, whatever they do.
struct MultiFDEnd: Sendable {
    var isInterrupted = false
    var failure: TransportError?
    /// How long the other end may do nothing; 0 is for ever.
    var limitMilliseconds: UInt64 = 0
    /// Source.
    var sending = MultiFDSource.Work()
    /// Destination.
    var receiving = MultiFDDestination.Work()

    var isOver: Bool { isInterrupted || failure != nil }

    func check() throws(TransportError) {
        if let failure { throw failure }
        if isInterrupted { throw .interrupted }
    }
}
