import Glibc
package import LinuxCalls
package import MigrationEngine
import MigrationStream
import Synchronization

/// Takes the connections of a multifd source: one main and so many beside it, in any order, told apart by their first
/// four bytes, as QEMU does.
package final class MultiFDAcceptor: Sendable {
    /// How long the others may come after the first.
    static let limitMilliseconds = 30_000

    private let listener: OwnedDescriptor
    private let name: String
    private let channelCount: Int
    private let wake: OwnedDescriptor
    /// Connections that had said nothing when all were there. They stay open: closed, they would be the reason that the source
    /// gives.
    private let silent = Mutex<[OwnedDescriptor]>([])

    /// - Parameter listener: Is made non-blocking.
    package init(listener: OwnedDescriptor, name: String, channelCount: Int) throws(SystemCallError) {
        self.listener = listener
        self.name = name
        self.channelCount = channelCount
        wake = try .event()
        try listener.setNonBlocking(true)
    }

    /// Makes a waiting ``accept(first:)`` throw. Any thread.
    package func cancel() { wake.signal() }

    /// There is a connection more than were taken.
    package func hasAnother() -> Bool {
        !silent.withLock(\.isEmpty) || (try? StreamSocket.accept(from: listener)) != nil
    }

    /// Blocks until all are here.
    /// - Parameter first: One that was accepted already.
    package func accept(
        first: OwnedDescriptor?
    ) throws(MigrationError) -> (main: DescriptorTransport, channels: [DescriptorTransport]) {
        var main: DescriptorTransport?
        var channels: [DescriptorTransport] = []
        var unknown = first.map { [$0] } ?? []
        let start = StartTime()
        do throws(SystemCallError) {
            while main == nil || channels.count < channelCount {
                var waiting: [OwnedDescriptor] = []
                for socket in unknown {
                    guard let magic = try StreamSocket.peekInteger(from: socket) else {
                        waiting.append(socket)
                        continue
                    }
                    let transport = try DescriptorTransport(name: name, socket: socket)
                    if magic == MultiFD.magic {
                        guard channels.count < channelCount else {
                            throw SystemCallError(
                                "accept", .tooManyOpenFiles, subject: "more multifd-channels than \(channelCount)")
                        }
                        channels.append(transport)
                    } else if main == nil {
                        // Whatever else it is, the stream's reader says so.
                        main = transport
                    } else {
                        throw SystemCallError("accept", .protocolError, subject: "one connection too many at \(name)")
                    }
                }
                unknown = waiting
                if main != nil, channels.count == channelCount {
                    silent.withLock { $0 = waiting }
                    break
                }
                guard start.elapsedMilliseconds < Self.limitMilliseconds else {
                    throw SystemCallError("accept", .timedOut, subject: name)
                }
                // A connection that says nothing yet is looked at again soon.
                let ready = try GatheredIO.wait(
                    for: Int16(POLLIN), on: listener, wake: wake, timeoutMilliseconds: unknown.isEmpty ? 500 : 2)
                if ready.isWoken { throw SystemCallError("accept", .canceled, subject: name) }
                if ready.isReady, unknown.count <= channelCount {
                    do throws(SystemCallError) { unknown.append(try StreamSocket.accept(from: listener)) } catch {
                        guard error.errno == .wouldBlock else { throw error }
                    }
                }
            }
        } catch {
            let code: MigrationError.Code =
                switch error.errno {
                case .canceled: .cancelled
                case .timedOut: .timedOut
                default: .channelFailed
                }
            throw MigrationError(
                code, in: .setup,
                "\(main == nil ? "no main connection" : "the main connection") and \(channels.count) of \(channelCount) "
                    + "multifd-channels came to \(name); is multifd on at the source, with as many?", cause: error)
        }
        return (main!, channels)
    }
}

/// When something began.
private struct StartTime {
    private let start = ContinuousClock.now

    var elapsedMilliseconds: Int {
        let (seconds, attoseconds) = (ContinuousClock.now - start).components
        return Int(seconds) * 1000 + Int(attoseconds / 1_000_000_000_000_000)
    }
}
