import ComponentState
import Glibc
package import LinuxCalls

/// The messages of the hand-over protocol, on a private unix stream socket.
///
/// A frame is a header of 24 bytes, all big-endian: u32 magic "SSHO", u16 type, u16 number of descriptors, u64 payload
/// length in bytes, u64 zero; then one carrier byte for each 64 descriptors or part thereof, with the descriptors attached; then
/// the payload. A reader asks for exactly the bytes that must come next, so descriptors never arrive early.
package struct HandoverFrame: Sendable {
    package enum Kind: UInt16, Sendable {
        /// Destination to source: protocol version and what the program is.
        case hello = 1
        /// Source to destination: what to build; memory and other lasting descriptors.
        case description = 2
        /// Destination to source: built, mapped, populated, parked; and again when it has taken over the control state.
        case ready = 3
        /// Destination to source, instead of anything: no, and why (UTF-8).
        case refused = 4
        /// Source to destination: the paused guest's state, and descriptors that change while it runs.
        case state = 5
        /// Source to destination: the word says `offered`.
        case offer = 6
        /// Destination to source: it runs here; the timestamps.
        case running = 7
        /// Source to destination, before the pause: what the guest does not see, suspended (clients of the monitor).
        case control = 8
        /// Source to destination, before `state`: a part of it that can be loaded by itself. Only where both know it.
        case part = 9
        /// Source to destination, before `part` and `state`: a part with descriptors. Only where both know it.
        case early = 10
    }

    package var kind: Kind
    package var payload: [UInt8]
    package var descriptors: [OwnedDescriptor]

    package init(_ kind: Kind, payload: [UInt8] = [], descriptors: [OwnedDescriptor] = []) {
        self.kind = kind
        self.payload = payload
        self.descriptors = descriptors
    }

    static let magic: UInt32 = 0x5353_484F
    static let headerByteCount = 24
    /// Largest payload taken, in bytes.
    package static let payloadByteCountMax = 256 << 20
    /// How long a receiver stays awake for a frame that is about to come. A processor of the host that sleeps takes tens of
    /// microseconds to wake up.
    static let awakeNanoseconds: Int64 = 2_000_000
    /// Largest payload that is copied behind its header, in bytes.
    private static let joinedByteCountMax = 64 << 10
    /// Most descriptors one frame may carry.
    package static let descriptorCountMax = 4096

    /// Sends the whole frame, waiting at most until `deadline` (CLOCK_MONOTONIC, nanoseconds) for the peer to take it.
    package func send(to socket: OwnedDescriptor, deadline: Int64) throws(HandoverError) {
        precondition(payload.count <= Self.payloadByteCountMax && descriptors.count <= Self.descriptorCountMax)
        var header = ByteWriter(capacity: Self.headerByteCount)
        header.integer(Self.magic)
        header.integer(kind.rawValue)
        header.integer(UInt16(descriptors.count))
        header.integer(UInt64(payload.count))
        header.integer(UInt64(0))
        // Without descriptors one call does.
        if descriptors.isEmpty, payload.count <= Self.joinedByteCountMax {
            return try Self.sendAll(header.bytes + payload, to: socket, deadline: deadline)
        }
        try Self.sendAll(header.bytes, to: socket, deadline: deadline)
        // The descriptors of a call come with its first byte: the last carrier and the payload go together.
        let isJoined = payload.count <= Self.joinedByteCountMax
        var rest = descriptors[...]
        while !rest.isEmpty {
            let group = Array(rest.prefix(StreamSocket.descriptorsMax))
            rest = rest.dropFirst(group.count)
            try Self.sendAll(
                rest.isEmpty && isJoined ? [0x2B] + payload : [0x2B], descriptors: group, to: socket, deadline: deadline
            )
        }
        if descriptors.isEmpty || !isJoined { try Self.sendAll(payload, to: socket, deadline: deadline) }
    }

    /// This frame, if it is of that kind.
    func expected(_ wanted: Kind) throws(HandoverError) -> HandoverFrame {
        guard kind == wanted else { throw HandoverError(.malformed, "\(wanted) was expected, \(kind) came") }
        return self
    }

    /// Receives one frame.
    /// - Throws: `peerGone` at end of stream, `timeout`, `malformed`.
    /// - Parameters:
    ///   - peer: The peer's process; its end counts as the end of the stream once everything it sent was read.
    ///   - isImminent: A guest stands still, or is about to, until the frame is here: stay awake for it, for a while.
    package static func receive(
        from socket: OwnedDescriptor, peer: OwnedDescriptor? = nil, isImminent: Bool = false, deadline: Int64
    ) throws(HandoverError) -> HandoverFrame {
        let awakeUntil = isImminent ? monotonicNanoseconds() + awakeNanoseconds : 0
        func receiveExactly(_ byteCount: Int, descriptorsMax: Int) throws(HandoverError) -> ([UInt8], [OwnedDescriptor])
        {
            try Self.receiveExactly(
                byteCount, descriptorsMax: descriptorsMax, from: socket, peer: peer, awakeUntil: awakeUntil,
                deadline: deadline)
        }
        let (headerBytes, stray) = try receiveExactly(headerByteCount, descriptorsMax: 0)
        var header = ByteReader(headerBytes)
        let magic: UInt32 = try header.integer()
        let type: UInt16 = try header.integer()
        let descriptorCount = Int(try header.integer(as: UInt16.self))
        let byteCount: UInt64 = try header.integer()
        guard stray.isEmpty, magic == Self.magic, try header.integer(as: UInt64.self) == 0 else {
            throw HandoverError(.malformed, "this is not a hand-over frame")
        }
        guard let kind = Kind(rawValue: type) else {
            throw HandoverError(.malformed, "frame type \(type) is unknown")
        }
        guard descriptorCount <= descriptorCountMax, byteCount <= UInt64(payloadByteCountMax) else {
            throw HandoverError(
                .malformed, "a frame of \(byteCount) bytes and \(descriptorCount) descriptors is too large")
        }
        var descriptors: [OwnedDescriptor] = []
        while descriptors.count < descriptorCount {
            let expected = min(descriptorCount - descriptors.count, StreamSocket.descriptorsMax)
            let (_, received) = try receiveExactly(1, descriptorsMax: expected)
            guard received.count == expected else {
                throw HandoverError(.malformed, "\(expected) descriptors were announced, \(received.count) came")
            }
            descriptors += received
        }
        let (payload, surplus) = try receiveExactly(Int(byteCount), descriptorsMax: 0)
        guard surplus.isEmpty else { throw HandoverError(.malformed, "descriptors came where none were announced") }
        return HandoverFrame(kind, payload: payload, descriptors: descriptors)
    }

    private static func sendAll(
        _ bytes: [UInt8], descriptors: [OwnedDescriptor] = [], to socket: OwnedDescriptor, deadline: Int64
    ) throws(HandoverError) {
        var done = 0
        while done < bytes.count {
            do throws(SystemCallError) {
                let piece = bytes[done..<min(bytes.count, done + (256 << 10))]
                done += try send(piece, descriptors: done == 0 ? descriptors : [], to: socket)
            } catch {
                switch error.errno {
                case .wouldBlock: try wait(for: socket, events: Int16(POLLOUT), deadline: deadline)
                case .brokenPipe, .connectionReset: throw HandoverError(.peerGone, "the peer closed the connection")
                default: throw HandoverError(.systemCall, "sending failed", cause: error)
                }
            }
        }
    }

    private static func send(_ bytes: ArraySlice<UInt8>, descriptors: [OwnedDescriptor], to socket: OwnedDescriptor)
        throws(SystemCallError) -> Int
    {
        var result = 0
        var failure: SystemCallError?
        unsafe bytes.withUnsafeBytes { buffer in
            do throws(SystemCallError) {
                result = try unsafe StreamSocket.send(buffer, descriptors: descriptors, to: socket, nonBlocking: true)
            } catch { failure = error }
        }
        if let failure { throw failure }
        return result
    }

    private static func receiveExactly(
        _ byteCount: Int, descriptorsMax: Int, from socket: OwnedDescriptor, peer: OwnedDescriptor?,
        awakeUntil: Int64, deadline: Int64
    ) throws(HandoverError) -> ([UInt8], [OwnedDescriptor]) {
        // Grown as the bytes come, so that a length alone costs nothing.
        var bytes: [UInt8] = []
        var descriptors: [OwnedDescriptor] = []
        var piece = [UInt8](repeating: 0, count: min(max(byteCount, 1), 256 << 10))
        while bytes.count < byteCount {
            do throws(SystemCallError) {
                let message = try receive(
                    into: &piece, byteCount: min(piece.count, byteCount - bytes.count), descriptorsMax: descriptorsMax,
                    from: socket)
                guard message.byteCount > 0 else { throw SystemCallError("recvmsg", .connectionReset) }
                if message.isTruncated { throw SystemCallError("recvmsg", .messageTooLong) }
                bytes += piece[..<message.byteCount]
                descriptors += message.descriptors
            } catch {
                switch error.errno {
                case .wouldBlock where monotonicNanoseconds() < awakeUntil:
                    sched_yield()  // whoever else wants this processor gets it
                case .wouldBlock: try wait(for: socket, events: Int16(POLLIN), peer: peer, deadline: deadline)
                case .connectionReset: throw HandoverError(.peerGone, "the peer closed the connection")
                case .messageTooLong: throw HandoverError(.malformed, "more descriptors came than were announced")
                default: throw HandoverError(.systemCall, "receiving failed", cause: error)
                }
            }
        }
        return (bytes, descriptors)
    }

    private static func receive(
        into piece: inout [UInt8], byteCount: Int, descriptorsMax: Int, from socket: OwnedDescriptor
    ) throws(SystemCallError) -> ReceivedMessage {
        var result: ReceivedMessage?
        var failure: SystemCallError?
        unsafe piece.withUnsafeMutableBytes { buffer in
            do throws(SystemCallError) {
                result = try unsafe StreamSocket.receive(
                    into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<byteCount]), descriptorsMax: descriptorsMax,
                    from: socket, nonBlocking: true)
            } catch { failure = error }
        }
        if let failure { throw failure }
        return result!
    }

    private static func wait(
        for socket: OwnedDescriptor, events: Int16, peer: OwnedDescriptor? = nil, deadline: Int64
    ) throws(HandoverError) {
        let left = deadline - monotonicNanoseconds()
        guard left > 0 else { throw HandoverError(.timeout, "the peer did not answer in time") }
        var entries = [pollfd(fd: socket.rawValue, events: events, revents: 0)]
        if let peer { entries.append(pollfd(fd: peer.rawValue, events: Int16(POLLIN), revents: 0)) }
        do {
            _ = try retrying("poll") {
                unsafe poll(&entries, nfds_t(entries.count), CInt(clamping: left / 1_000_000 + 1))
            }
        } catch { throw HandoverError(.systemCall, "waiting failed", cause: error) }
        if entries.count > 1, entries[1].revents != 0, entries[0].revents == 0 {
            throw HandoverError(.peerGone, "the peer's process ended")
        }
    }
}
