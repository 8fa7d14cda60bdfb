package import Glibc
package import LinuxCalls
package import MigrationEngine
import Synchronization

/// What of a transport goes by reference.
struct References: Sendable {
    /// Set while pages may go by reference and none has gone yet.
    var calls: ReferenceCalls?
    // The sender is used by the thread that sends; others only let go of it.
    var sender: ReferenceSender?
    var refusal: SystemCallError?
    var byteCount: UInt64 = 0
}

/// Pages by reference; see ``ReferenceSender``.
extension DescriptorTransport {
    /// From now on pages may go by reference. Of no effect unless this is a unix socket, which becomes non-blocking for whoever else
    /// has it.
    package func sendByReference(_ calls: ReferenceCalls = .kernel) {
        guard deliversBeforeEnd, let writing, (try? writing.setNonBlocking(true)) != nil else { return }
        GatheredIO.ignorePipeSignal()
        references.withLock { $0.calls = calls }
    }

    /// Why pages were copied into the socket although they should have gone by reference.
    package var referenceRefusal: SystemCallError? { references.withLock { $0.refusal } }

    /// Bytes that went by reference, pages and the records between them.
    package var referencedByteCount: UInt64 { references.withLock { $0.byteCount } }

    package func send(
        _ pieces: UnsafeMutableBufferPointer<iovec>, records: UnsafeRawBufferPointer
    ) throws(TransportError) {
        guard let writing, unsafe ReferenceSender.takes(pieces, records: records), let sender = referenceSender() else {
            return try unsafe send(pieces)
        }
        unsafe sender.begin(pieces, records: records)
        var index = 0
        while index < pieces.count {
            if isInterrupted { throw .interrupted }
            do throws(SystemCallError) {
                let count = try unsafe sender.send(pieces, &index, to: writing)
                references.withLock { $0.byteCount += UInt64(count) }
            } catch {
                switch error.errno {
                case .wouldBlock, .brokenPipe, .connectionReset: try wait(after: error, writing, Int16(POLLOUT))
                default:
                    // A kernel or a sandbox without these calls: the same bytes, by a copy, from where the socket has them.
                    refuse(error)
                    return try unsafe send(UnsafeMutableBufferPointer(rebasing: pieces[index...]))
                }
            }
        }
        do throws(SystemCallError) { try sender.end() } catch { refuse(error) }
    }

    private func referenceSender() -> ReferenceSender? {
        references.withLock { references in
            if let calls = references.calls {
                references.calls = nil
                do throws(SystemCallError) { references.sender = try ReferenceSender(calls) } catch {
                    references.refusal = error
                }
            }
            return references.sender
        }
    }

    private func refuse(_ error: SystemCallError) {
        references.withLock {
            $0.sender = nil
            $0.refusal = error
        }
    }

    /// After everything was sent, to an end that will not say that it has it: what is written here from now on must not arrive.
    func awaitReferences() throws(TransportError) {
        guard referencedByteCount > 0, let socket else { return }
        var left = StreamSocket.unreceivedByteCount(of: socket)
        var waited = 0
        while left > 0 {
            try pause(milliseconds: 1)
            let now = StreamSocket.unreceivedByteCount(of: socket)
            waited = now < left ? 0 : waited + 1
            if stallLimit > 0, waited >= stallLimit { throw .stalled }
            left = now
        }
    }
}
