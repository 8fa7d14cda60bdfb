/// Low bits of a RAM record's first word, below the page size; QEMU: `RAM_SAVE_FLAG_*`.
package struct RAMFlags: OptionSet, Hashable, Sendable {
    package let rawValue: UInt64

    package init(rawValue: UInt64) { self.rawValue = rawValue }

    /// Obsolete since 2009; refused everywhere.
    package static let obsoleteFull = RAMFlags(rawValue: 0x01)
    /// All bytes of the page are one value: QEMU's ZERO.
    package static let filled = RAMFlags(rawValue: 0x02)
    /// Total size and block list.
    package static let memorySize = RAMFlags(rawValue: 0x04)
    /// The page's contents follow.
    package static let page = RAMFlags(rawValue: 0x08)
    /// QEMU's EOS.
    package static let endOfSection = RAMFlags(rawValue: 0x10)
    /// Same block as the last page on this channel, so no name: QEMU's CONTINUE.
    package static let sameBlock = RAMFlags(rawValue: 0x20)
    /// Differences to the page's last contents follow.
    package static let xbzrle = RAMFlags(rawValue: 0x40)
    /// Something beside the stream: RDMA's hook, and the page-flip pipe's.
    package static let hook = RAMFlags(rawValue: 0x80)
    /// zlib; removed in QEMU 9.1 and not taken here.
    package static let compressedPage = RAMFlags(rawValue: 0x100)
    /// The multifd channels have a synchronisation point here. QEMU 8 on.
    package static let multifdFlush = RAMFlags(rawValue: 0x200)
}
