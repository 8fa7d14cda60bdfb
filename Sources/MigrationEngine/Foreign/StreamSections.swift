package import Glibc
package import MigrationStream
import Synchronization

/// A section as it came, its fields unread.
package struct UnreadSection: Hashable, Sendable {
    package var header: SectionHeader
    package var body: [UInt8]

    package init(header: SectionHeader, body: [UInt8]) {
        self.header = header
        self.body = body
    }

    /// For messages: `cpu 1`.
    package var name: String { header.instance == 0 ? header.name : "\(header.name) \(header.instance)" }

    package func write(to writer: StreamWriter) {
        writer.beginSection(header)
        writer.write(body)
        writer.endSection(id: header.id)
    }
}

extension StreamInput {
    /// Takes the body of a section whose fields are for somebody else to read, and its footer.
    func takeSection(
        _ header: SectionHeader, _ reader: inout StreamReader, limits: StreamLimits
    ) throws(MigrationError) -> UnreadSection {
        let known = Set(reader.knownSections.keys)
        while true {
            let cursor = buffer.cursor(isFinal: isAtEnd)
            if let distance = SectionSearch.distanceToFooter(
                of: header.id, from: cursor, knownSections: known, isFinal: isAtEnd)
            {
                let body = try decode { (cursor: inout StreamCursor) throws(StreamError) in
                    try cursor.readBytes(distance)
                }
                try decode { (cursor: inout StreamCursor) throws(StreamError) in try reader.endSection(&cursor) }
                return UnreadSection(header: header, body: body)
            }
            guard buffer.count < limits.deviceSectionByteCount else {
                throw MigrationError(
                    .limitExceeded, in: phase,
                    "section \(header.name) \(header.instance) has no end within \(limits.deviceSectionByteCount) bytes"
                )
            }
            guard !isAtEnd else {
                throw MigrationError(
                    .channelClosed, in: phase,
                    "the stream ended inside section \(header.name) \(header.instance); take it from the source again")
            }
            try fill(minimum: 1)
        }
    }

    /// The self-description behind the end of the stream.
    /// - Returns: Nil when none comes in time, or one that is cut or malformed: the state is whole without.
    func takeDescription(_ reader: inout StreamReader) throws(MigrationError) -> [UInt8]? {
        while reader.isAwaitingDescription {
            if buffer.count == 0 {
                guard try fill(timeoutMilliseconds: Self.descriptionMilliseconds), !isAtEnd else { return nil }
            }
            do throws(MigrationError) {
                let record = try decode { (cursor: inout StreamCursor) throws(StreamError) in try reader.next(&cursor) }
                if case .description(let json) = record { return json }
            } catch {
                if error.code == .cancelled { throw error }
                return nil
            }
        }
        return nil
    }

    /// How long a self-description may be late. Stock sources send one at once, but not every stream has it.
    private static let descriptionMilliseconds = 1000

    /// The block list of the RAM section that begins here, left where it is.
    func peekBlockList(
        version: UInt32, options: RAMStreamOptions, limits: StreamLimits
    ) throws(MigrationError) -> [RAMBlockDescription] {
        try decode { (cursor: inout StreamCursor) throws(StreamError) in
            var ahead = cursor
            var decoder = RAMDecoder(takingAnyBlock: options, limits: limits)
            try decoder.beginSection(.start, version: version, at: ahead.offset)
            while !decoder.isListComplete {
                if case .endOfSection = try decoder.next(&ahead) {
                    throw StreamError(.unexpectedRecord("a RAM section without a list of blocks"), at: ahead.offset)
                }
            }
            return decoder.blocks
        }
    }
}

extension StreamInput {
    /// As ``peekBlockList(version:options:limits:)``, for a list whose entries are apart in the file.
    func peekMappedBlockList(
        version: UInt32, options: RAMStreamOptions, limits: StreamLimits
    ) throws(MigrationError) -> [RAMBlockDescription] {
        guard let file = transport.seekable else {
            throw MigrationError(.capabilityMismatch, in: phase, "mapped-ram needs a file, not \(transport.name)")
        }
        /// Longer than an entry.
        let byteCount = 1024
        var place = buffer.offset
        var decoder = RAMDecoder(takingAnyBlock: options, limits: limits)
        while !decoder.isListComplete {
            let entry = StreamBuffer(capacity: byteCount, at: place)
            do throws(TransportError) {
                let received = try unsafe entry.fill(minimum: byteCount) { (space) throws(TransportError) in
                    var piece = unsafe iovec(iov_base: space.baseAddress, iov_len: byteCount)
                    return try unsafe withUnsafeMutablePointer(to: &piece) { (pointer) throws(TransportError) in
                        try unsafe file.receive(UnsafeMutableBufferPointer(start: pointer, count: 1), at: place)
                    }
                }
                if received == 0 { throw .closed }
            } catch { throw error.migrationError(in: phase, "reading the list of RAM blocks") }
            var cursor = entry.cursor(isFinal: true)
            do throws(StreamError) {
                try decoder.beginSection(.start, version: version, at: place)
                while true {
                    switch try decoder.next(&cursor) {
                    case .memorySize: continue
                    case .block(let entry):
                        place = entry.mapped?.end(byteCount: entry.byteCount) ?? cursor.offset
                    default: throw StreamError(.unexpectedRecord("a RAM section without a list of blocks"), at: place)
                    }
                    break
                }
            } catch { throw Self.migrationError(error, in: phase, true) }
        }
        return decoder.blocks
    }
}

extension [UnreadSection] {
    mutating func add(_ section: UnreadSection) throws(MigrationError) {
        guard !contains(where: { $0.name == section.name }) else {
            throw MigrationError(
                .doubledSection, in: .switchover,
                "section \(section.name) came again; the stream is damaged, take it from the source again")
        }
        append(section)
    }

    /// Where nothing says what the machine has, the source's self-description does: what it describes must have come.
    func requireAll(of json: [UInt8]) throws(MigrationError) {
        guard let description = try? VMDescription.parse(json) else { return }
        let here = Set(map { $0.name })
        let missing = description.devices.map {
            UnreadSection(header: SectionHeader(.full, id: 0, name: $0.name, instance: $0.instance), body: []).name
        }.filter { !here.contains($0) }
        guard missing.isEmpty else {
            throw MigrationError(
                .missingSection, in: .commit,
                "the stream ended without section \(missing.joined(separator: ", ")), which the source describes; it is "
                    + "damaged, take it from the source again")
        }
    }
}

/// What is on the wire between a channel and what was read from it already: first the bytes at hand, then the channel.
package final class ReplayedTransport: MigrationTransport {
    private let base: any MigrationTransport
    private let state: Mutex<(bytes: [UInt8], position: Int)>
    private let closed: @Sendable () -> Void

    /// - Parameter closed: Called when it is closed.
    package init(
        _ bytes: [UInt8], then base: any MigrationTransport, closed: @escaping @Sendable () -> Void = {}
    ) {
        self.base = base
        self.closed = closed
        state = Mutex((bytes, 0))
    }

    package var name: String { base.name }
    package var hasReturnPath: Bool { base.hasReturnPath }

    private func take(_ pieces: UnsafeMutableBufferPointer<iovec>) -> Int {
        state.withLock { state in
            var taken = 0
            for index in 0..<pieces.count {
                let count = unsafe min(pieces[index].iov_len, state.bytes.count - state.position)
                guard count > 0 else { break }
                unsafe state.bytes.withUnsafeBytes { bytes in
                    unsafe pieces[index].iov_base.copyMemory(
                        from: bytes.baseAddress! + state.position, byteCount: count)
                }
                state.position += count
                taken += count
            }
            return taken
        }
    }

    package func send(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) {
        unsafe try base.send(pieces)
    }

    package func receive(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) -> Int {
        let taken = unsafe take(pieces)
        return taken > 0 ? taken : unsafe try base.receive(pieces)
    }

    package func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, timeoutMilliseconds: Int
    ) throws(TransportError) -> Int? {
        let taken = unsafe take(pieces)
        return taken > 0 ? taken : unsafe try base.receive(pieces, timeoutMilliseconds: timeoutMilliseconds)
    }

    package func finishSending() throws(TransportError) { try base.finishSending() }
    package func interrupt() { base.interrupt() }
    package func setStallLimit(milliseconds: UInt64) { base.setStallLimit(milliseconds: milliseconds) }
    package func close() {
        base.close()
        closed()
    }
}
