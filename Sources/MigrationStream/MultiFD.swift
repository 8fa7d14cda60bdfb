/// Multifd: pages on channels of their own, beside the main stream.
package enum MultiFD {
    package static let magic: UInt32 = 0x1122_3344
    package static let version: UInt32 = 1

    /// Bytes of page data in one packet.
    package static let packetDataByteCount = 512 << 10

    package static func pagesPerPacket(pageSize: Int) -> Int { packetDataByteCount / pageSize }
}

/// First on each extra channel, 64 bytes.
package struct MultiFDHello: Hashable, Sendable {
    package static let byteCount = 64

    /// 16 bytes; zeroes when the machine has none. Must match.
    package var uuid: [UInt8]
    package var channel: UInt8

    package init(uuid: [UInt8] = [UInt8](repeating: 0, count: 16), channel: UInt8) {
        precondition(uuid.count == 16)
        self.uuid = uuid
        self.channel = channel
    }

    package static func decode(from cursor: inout StreamCursor) throws(StreamError) -> MultiFDHello {
        var ahead = cursor
        let start = ahead.offset
        let magic = try ahead.readInteger(as: UInt32.self)
        guard magic == MultiFD.magic else { throw StreamError(.badMagic(magic), at: start) }
        let version = try ahead.readInteger(as: UInt32.self)
        guard version == MultiFD.version else { throw StreamError(.unsupportedVersion(version), at: start) }
        let hello = MultiFDHello(uuid: try ahead.readBytes(16), channel: try ahead.readInteger())
        try ahead.skip(39)
        cursor = ahead
        return hello
    }

    package func encode(to writer: StreamWriter) {
        writer.write(MultiFD.magic)
        writer.write(MultiFD.version)
        writer.write(uuid)
        writer.write(channel)
        writer.writeZeroes(39)
    }
}

/// Flags of a multifd packet; QEMU: `MULTIFD_FLAG_*`.
package struct MultiFDFlags: OptionSet, Hashable, Sendable {
    package let rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Every channel waits here for the others.
    package static let synchronise = MultiFDFlags(rawValue: 1)
    /// Which compression; none is taken here. 7.2 uses the lower three of the five bits.
    static let compression = MultiFDFlags(rawValue: 0x3e)
    /// A packet of a device's state, with another layout (QEMU 10 on).
    static let deviceState = MultiFDFlags(rawValue: 0x40)
}

/// What stands before the pages of a packet: a fixed number of bytes, whatever it names.
package struct MultiFDPacket: Hashable, Sendable {
    /// Pages a packet has room for on the wire; both sides must agree.
    package static func byteCount(pagesPerPacket: Int) -> Int { 320 + 8 * pagesPerPacket }

    package var flags: MultiFDFlags
    /// Numbered over all channels.
    package var number: UInt64
    /// Empty in a packet without pages.
    package var block: String
    /// Offsets in the block of the pages whose contents follow, in this order.
    package var pages: [UInt64]
    /// Offsets of pages of zeroes. QEMU 7.2 neither writes nor reads these.
    package var zeroPages: [UInt64]
    /// What the sender claims to have room for. QEMU 10 writes 0 into packets without pages.
    package var allocatedPageCount: UInt32

    package init(
        flags: MultiFDFlags = [], number: UInt64, block: String = "", pages: [UInt64] = [], zeroPages: [UInt64] = [],
        allocatedPageCount: UInt32 = 128
    ) {
        self.flags = flags
        self.number = number
        self.block = block
        self.pages = pages
        self.zeroPages = zeroPages
        self.allocatedPageCount = allocatedPageCount
    }

    /// - Parameters:
    ///   - blocks: Sizes in bytes of the blocks, by name.
    ///   - hasZeroPages: False for a sender like 7.2, in which that field means nothing.
    package static func decode(
        from cursor: inout StreamCursor, pageSize: UInt64, pagesPerPacket: Int, blocks: [String: UInt64],
        hasZeroPages: Bool
    ) throws(StreamError) -> MultiFDPacket {
        var ahead = cursor
        let start = ahead.offset
        try ahead.require(byteCount(pagesPerPacket: pagesPerPacket))
        let magic = try ahead.readInteger(as: UInt32.self)
        guard magic == MultiFD.magic else { throw StreamError(.badMagic(magic), at: start) }
        let version = try ahead.readInteger(as: UInt32.self)
        guard version == MultiFD.version else { throw StreamError(.unsupportedVersion(version), at: start) }
        let flags = MultiFDFlags(rawValue: try ahead.readInteger())
        guard flags.isSubset(of: .synchronise) else {
            throw StreamError(.invalid("multifd flags \(hexadecimal(flags.rawValue))"), at: start)
        }
        let allocated = try ahead.readInteger(as: UInt32.self)
        let pageCount = try ahead.readInteger(as: UInt32.self)
        let dataByteCount = try ahead.readInteger(as: UInt32.self)
        let number = try ahead.readInteger(as: UInt64.self)
        let zeroField = try ahead.readInteger(as: UInt32.self)
        let zeroCount = hasZeroPages ? zeroField : 0
        try ahead.skip(28)
        guard allocated <= pagesPerPacket, pageCount <= pagesPerPacket,
            zeroCount <= UInt32(pagesPerPacket) - pageCount
        else {
            throw StreamError(.invalid("multifd packet of \(pageCount) and \(zeroCount) pages"), at: start)
        }
        let nameBytes = try ahead.readBytes(256)
        var packet = MultiFDPacket(flags: flags, number: number, allocatedPageCount: allocated)
        guard pageCount > 0 || zeroCount > 0 else {
            // Size, name and number may be those of an earlier packet: they mean nothing here.
            try ahead.skip(8 * pagesPerPacket)
            cursor = ahead
            return packet
        }
        guard pageCount == 0 || UInt64(dataByteCount) == UInt64(pageCount) * pageSize else {
            throw StreamError(.invalid("\(dataByteCount) bytes for \(pageCount) multifd pages"), at: start)
        }
        guard let nameEnd = nameBytes.firstIndex(of: 0), nameEnd > 0,
            let name = String(validating: nameBytes[..<nameEnd], as: UTF8.self)
        else { throw StreamError(.malformedName, at: start + 64) }
        guard let blockByteCount = blocks[name] else { throw StreamError(.unknownBlock(name), at: start + 64) }
        packet.block = name
        for index in 0..<pagesPerPacket {
            let offset = try ahead.readInteger(as: UInt64.self)
            guard index < pageCount + zeroCount else { continue }
            guard offset < blockByteCount, offset % pageSize == 0 else {
                throw StreamError(.addressOutsideBlock(block: name, address: offset), at: start)
            }
            if index < pageCount { packet.pages.append(offset) } else { packet.zeroPages.append(offset) }
        }
        cursor = ahead
        return packet
    }

    package func encode(to writer: StreamWriter, pageSize: UInt64, pagesPerPacket: Int) {
        precondition(pages.count + zeroPages.count <= pagesPerPacket && block.utf8.count < 256)
        writer.write(MultiFD.magic)
        writer.write(MultiFD.version)
        writer.write(flags.rawValue)
        writer.write(allocatedPageCount)
        writer.write(UInt32(pages.count))
        writer.write(UInt32(UInt64(pages.count) * pageSize))
        writer.write(number)
        writer.write(UInt32(zeroPages.count))
        writer.writeZeroes(28)
        writer.writeText(block)
        writer.writeZeroes(256 - block.utf8.count)
        for offset in pages { writer.write(offset) }
        for offset in zeroPages { writer.write(offset) }
        writer.writeZeroes(8 * (pagesPerPacket - pages.count - zeroPages.count))
    }
}
