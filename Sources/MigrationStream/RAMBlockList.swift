/// A RAM block as one side of the stream knows it.
package struct RAMBlockDescription: Hashable, Sendable {
    /// QEMU's name: `riscv_virt_board.ram`.
    package var name: String
    /// Bytes in use; a multiple of the target page.
    package var byteCount: UInt64
    /// Up to how many bytes a receiver may resize it; equals ``byteCount`` for most blocks.
    package var byteCountMax: UInt64
    /// Bytes per page behind the block; matters for postcopy, where a size other than the host's is on the wire.
    package var pageSize: UInt64
    /// Guest-physical address; on the wire with `x-ignore-shared`.
    package var address: UInt64
    /// Contents do not travel in this stream: shared memory under `x-ignore-shared` or a hand-over by descriptor.
    package var isIgnored: Bool

    package init(
        name: String, byteCount: UInt64, byteCountMax: UInt64? = nil, pageSize: UInt64 = 4096, address: UInt64 = 0,
        isIgnored: Bool = false
    ) {
        self.name = name
        self.byteCount = byteCount
        self.byteCountMax = byteCountMax ?? byteCount
        self.pageSize = pageSize
        self.address = address
        self.isIgnored = isIgnored
    }
}

/// Position of a block in the list that a ``RAMDecoder`` or ``RAMEncoder`` was given (for a decoder that takes any
/// list: in the order received). Stands for the name in page records.
package struct BlockReference: Hashable, Sendable {
    package var index: Int

    package init(_ index: Int) { self.index = index }
}

/// One entry of the block list, as received.
package struct RAMBlockEntry: Hashable, Sendable {
    package var reference: BlockReference
    package var name: String
    /// Bytes in use at the source.
    package var byteCount: UInt64
    /// Present when postcopy is on and the block's page differs from the host's.
    package var pageSize: UInt64?
    /// Guest-physical; present with `x-ignore-shared`.
    package var address: UInt64?
    /// Present with `mapped-ram`: the next record stands at ``MappedRAMHeader/end(byteCount:)``, so the driver goes there.
    package var mapped: MappedRAMHeader?

    package init(
        reference: BlockReference, name: String, byteCount: UInt64, pageSize: UInt64? = nil, address: UInt64? = nil,
        mapped: MappedRAMHeader? = nil
    ) {
        self.reference = reference
        self.name = name
        self.byteCount = byteCount
        self.pageSize = pageSize
        self.address = address
        self.mapped = mapped
    }
}

/// What both sides agreed on before the stream; it decides what words are there.
package struct RAMStreamOptions: Hashable, Sendable {
    /// Bytes per target page, a power of two. Everything below it in a word is flags.
    package var pageSize: UInt64 = 4096
    /// Bytes per page of this host; for the block list under postcopy.
    package var hostPageSize: UInt64 = 4096
    /// Capability `postcopy-ram`.
    package var hasPostcopy = false
    /// Capability `x-ignore-shared`.
    package var ignoresShared = false
    /// Capability `mapped-ram`.
    package var isMapped = false
    /// Capability `unix-page-flipping`: contents come through a pipe. Without it a hook word is refused, where QEMU 10
    /// on lose the page in silence.
    package var flipsPages = false
    /// Takes a fill byte other than zero, as QEMU 7.2 does; later ones refuse it.
    package var acceptsFill = false

    package init() {}
}
