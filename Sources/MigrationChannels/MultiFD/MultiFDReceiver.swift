import Glibc
import GuestMemory
import MigrationEngine
import MigrationStream

/// One channel at the destination. Lives on its thread.
final class MultiFDReceiver: Sendable {
    private let index: Int
    private let transport: MultiFDTransport
    private let state: Gate<MultiFDEnd>
    private let uuid: [UInt8]?
    private let memory: MultiFDMemory
    private static let pagesPerPacket = MultiFD.pagesPerPacket(pageSize: guestPageSize)

    init(index: Int, transport: MultiFDTransport, state: Gate<MultiFDEnd>, uuid: [UInt8]?, memory: MultiFDMemory) {
        self.index = index
        self.transport = transport
        self.state = state
        self.uuid = uuid
        self.memory = memory
    }

    func run() {
        let headerByteCount = MultiFDPacket.byteCount(pagesPerPacket: Self.pagesPerPacket)
        let header = UnsafeMutableRawBufferPointer.allocate(byteCount: headerByteCount, alignment: 16)
        defer { unsafe header.deallocate() }
        let greeting = unsafe UnsafeMutableRawBufferPointer(rebasing: header[..<MultiFDHello.byteCount])
        do throws(TransportError) {
            guard try unsafe receive(greeting) else { throw .closed }
            try judge(unsafe Array(greeting)) { (cursor: inout StreamCursor) throws(StreamError) in
                try greet(MultiFDHello.decode(from: &cursor), at: cursor.offset)
            }
            while try unsafe receive(header) {
                var packet: MultiFDPacket?
                try judge(unsafe Array(header)) { (cursor: inout StreamCursor) throws(StreamError) in
                    // QEMU 7.2 leaves the field of zero pages zero.
                    packet = try MultiFDPacket.decode(
                        from: &cursor, pageSize: UInt64(guestPageSize), pagesPerPacket: Self.pagesPerPacket,
                        blocks: memory.byteCounts, hasZeroPages: true)
                }
                try take(packet!)
                guard try waitForOthers(packet!) else { return }
            }
            state.update { $0.receiving.ended.insert(index) }
        } catch {
            if !state.read({ $0.receiving.isEnding }) { transport.channelFailed(index, error) }
        }
    }

    /// Decodes what was received; what is wrong with it ends the migration by its own words.
    private func judge(
        _ bytes: [UInt8], _ body: (inout StreamCursor) throws(StreamError) -> Void
    ) throws(TransportError) {
        var cursor = StreamCursor(bytes, isFinal: true)
        do throws(StreamError) { try body(&cursor) } catch {
            let complaint = MigrationError(
                .streamMalformed, in: .precopy, "multifd channel \(index) is malformed", cause: error)
            state.update { if $0.receiving.complaint == nil { $0.receiving.complaint = complaint } }
            throw .failed(complaint)
        }
    }

    private func greet(_ hello: MultiFDHello, at offset: UInt64) throws(StreamError) {
        guard Int(hello.channel) < transport.channels.count else {
            throw StreamError(
                .invalid(
                    "channel number \(hello.channel) of \(transport.channels.count); multifd-channels differs at the "
                        + "source"), at: offset)
        }
        guard state.update({ $0.receiving.numbers.insert(hello.channel).inserted }) else {
            throw StreamError(.invalid("channel number \(hello.channel), a second time"), at: offset)
        }
        // Zeroes are a machine without one.
        if let uuid, hello.uuid != uuid, hello.uuid.contains(where: { $0 != 0 }) {
            throw StreamError(.invalid("the uuid of another machine"), at: offset)
        }
    }

    private func take(_ packet: MultiFDPacket) throws(TransportError) {
        guard !packet.pages.isEmpty || !packet.zeroPages.isEmpty else { return }
        let isSealed = state.update { state in
            if !state.receiving.isSealed { state.receiving.busy.insert(index) }
            return state.receiving.isSealed
        }
        guard !isSealed, let block = memory.indices[packet.block] else {
            throw .failed(
                MigrationError(.streamMalformed, in: .switchover, "pages came over multifd after the end of RAM"))
        }
        let base = unsafe memory.blocks[block].base
        var pieces: [iovec] = unsafe []
        for offset in packet.pages {
            memory.mark(block, page: Int(offset) / guestPageSize)
            if let last = unsafe pieces.last, unsafe last.iov_base + last.iov_len == base + Int(offset) {
                unsafe pieces[pieces.count - 1].iov_len += guestPageSize
            } else {
                unsafe pieces.append(iovec(iov_base: base + Int(offset), iov_len: guestPageSize))
            }
        }
        unsafe try receive(&pieces)
        for offset in packet.zeroPages { memory.wipe(block, page: Int(offset) / guestPageSize) }
        state.update { state in
            state.receiving.busy.remove(index)
            state.receiving.counts.normal += UInt64(packet.pages.count)
            state.receiving.counts.zero += UInt64(packet.zeroPages.count)
        }
    }

    /// At a packet of synchronisation: until the stream has come to that point too. False when it is all over.
    private func waitForOthers(_ packet: MultiFDPacket) throws(TransportError) -> Bool {
        guard packet.flags.contains(.synchronise) else { return true }
        let own = state.update { state in
            state.receiving.synchronised[index] += 1
            return state.receiving.synchronised[index]
        }
        state.wait { $0.isOver || $0.receiving.isEnding || $0.receiving.released >= own }
        return state.read { !$0.isOver && !$0.receiving.isEnding }
    }

    /// Receives into memory until it is full.
    private func receive(_ pieces: inout [iovec]) throws(TransportError) {
        try unsafe pieces.withUnsafeMutableBufferPointer { (pieces) throws(TransportError) in
            var next = 0
            while next < pieces.count {
                let left = unsafe UnsafeMutableBufferPointer(rebasing: pieces[next...])
                let count = try unsafe transport.channels[index].receive(left)
                guard count > 0 else { throw .closed }
                unsafe DescriptorTransport.advance(pieces, &next, by: count)
                state.update { $0.receiving.byteCount += UInt64(count) }
            }
        }
    }

    /// Receives exactly so many bytes; false when the channel ended before the first.
    private func receive(_ buffer: UnsafeMutableRawBufferPointer) throws(TransportError) -> Bool {
        var done = 0
        while done < buffer.count {
            var piece = unsafe iovec(iov_base: buffer.baseAddress! + done, iov_len: buffer.count - done)
            let count = try unsafe withUnsafeMutablePointer(to: &piece) { (pointer) throws(TransportError) in
                try unsafe transport.channels[index].receive(UnsafeMutableBufferPointer(start: pointer, count: 1))
            }
            guard count > 0 else {
                if done == 0 { return false }
                throw .closed
            }
            done += count
            state.update { $0.receiving.byteCount += UInt64(count) }
        }
        return true
    }
}
