package import GuestMemory
package import MigrationStream

/// Around what the before and after hooks are called; the numbers are those of the field (RAM_CONTROL_*).
package enum RAMHookPhase: Int, Hashable, Sendable {
    /// The block list.
    case setup = 0
    /// One PART.
    case round = 1
    /// Value given to the load hook when a HOOK word arrives.
    case hook = 2
    /// END.
    case finish = 3
}

/// What ``SourceRAMHooks/savePage(_:_:)`` did with a run of pages, or with the first of them.
package enum SavePageAnswer: Hashable, Sendable {
    /// So many pages take the ordinary path.
    case notSupported(pageCount: Int)
    /// So many pages are on their way elsewhere and are accounted for later.
    case delayed(pageCount: Int)
    /// So many pages were sent, with so many bytes.
    case sent(pageCount: Int, byteCount: Int)
}

/// What a channel does to the pages of the source.
package enum PageDisposition: Hashable, Sendable {
    /// The source keeps its pages.
    case copies
    /// The source gives up each page once the destination has it.
    case givesAway
}

/// How a channel takes part in sending RAM. Without hooks every page takes the ordinary path through the stream.
package protocol SourceRAMHooks: AnyObject, Sendable {
    var disposition: PageDisposition { get }
    /// After the block list, before each PART's and END's first page. May write to the output.
    func beforeRAMIterate(_ output: StreamOutput, _ phase: RAMHookPhase) throws(MigrationError)
    /// Before the end mark of the block list, of each PART and of END.
    func afterRAMIterate(_ output: StreamOutput, _ phase: RAMHookPhase) throws(MigrationError)
    /// After the RAM section's START was sent, before any page: what must be settled with the other end.
    /// `exchange` sends a PING with a value and returns when its PONG is here.
    func confirmSetup(_ exchange: (UInt32) throws(MigrationError) -> Void) throws(MigrationError)
    /// Offered a run of pages of one block; asked again for what it did not take.
    /// - Parameter name: Writes the HOOK records of some of these pages into the stream.
    func savePage(_ output: StreamOutput, _ run: PageRun, name: (Range<Int>) -> Void) throws(MigrationError)
        -> SavePageAnswer
    /// The destination has everything that was sent before: pages that were given away may be freed. Only called with
    /// the guest stopped or gone, for ranges that were sent after it stopped.
    func destinationHas(_ runs: [PageRun]) throws(MigrationError)
    /// The migration failed and the source keeps the guest: make its memory whole again. Called with the guest stopped.
    func takeBack() throws(MigrationError)
    /// Bytes that crossed outside of the stream.
    var sideByteCount: UInt64 { get }
    /// Writes the block list in a way of its own; false leaves it to the sender.
    func writeBlockList(_ output: StreamOutput, _ encoder: RAMEncoder) throws(MigrationError) -> Bool
    /// Offered a run of pages that are known to be zero, which nobody needs to read; false leaves them to the sender.
    func saveZeroPages(_ run: PageRun) throws(MigrationError) -> Bool
    /// Everything that was pending has been offered: the next pages may be some of them again. Comes before
    /// ``afterRAMIterate(_:_:)``.
    func roundEnded(_ output: StreamOutput) throws(MigrationError)
    /// Of pages answered with ``SavePageAnswer/delayed(pageCount:)`` and of pages of zeroes taken: what they turned out
    /// to be, so far.
    var delayedPages: DelayedPages { get }
    /// The migration is over: let go of what only it needed.
    func end()
}

/// What pages that a channel took turned out to be.
package struct DelayedPages: Hashable, Sendable {
    package var normal: UInt64 = 0
    package var zero: UInt64 = 0

    package init(normal: UInt64 = 0, zero: UInt64 = 0) {
        self.normal = normal
        self.zero = zero
    }
}

extension SourceRAMHooks {
    package func writeBlockList(_ output: StreamOutput, _ encoder: RAMEncoder) throws(MigrationError) -> Bool { false }
    package func saveZeroPages(_ run: PageRun) throws(MigrationError) -> Bool { false }
    package func roundEnded(_ output: StreamOutput) throws(MigrationError) {}
    package var delayedPages: DelayedPages { DelayedPages() }
    package func confirmSetup(_ exchange: (UInt32) throws(MigrationError) -> Void) throws(MigrationError) {}
    package func destinationHas(_ runs: [PageRun]) throws(MigrationError) {}
    package func takeBack() throws(MigrationError) {}
}

/// Where the stream says that what channels beside it carry must be here.
package enum RAMSynchronisation: Hashable, Sendable {
    /// MULTIFD_FLUSH.
    case flush
    /// The end mark of a section's body.
    case endOfSection(SectionKind)
}

/// How a channel takes part in receiving RAM.
package protocol DestinationRAMHooks: AnyObject, Sendable {
    /// The pipe's descriptor came with the last byte read.
    func loadDescriptor(_ input: StreamInput) throws(MigrationError)
    /// A run of pages whose contents come outside of the stream.
    func loadPages(_ run: PageRun) throws(MigrationError)
    /// As ``loadPages(_:)``, to somewhere beside guest memory.
    func loadContents(_ target: UnsafeMutableRawBufferPointer) throws(MigrationError)
    /// A PING with a value that may be the hooks' own; true when they answered it themselves.
    func answerPing(_ value: UInt32, _ output: StreamOutput) throws(MigrationError) -> Bool
    /// The block list was received, in this order.
    func blocksListed(_ blocks: [RAMBlock])
    /// Before the first byte: the memory pages may come for.
    /// - Parameter holdsData: Per block, pages that may hold something other than zeroes now.
    func prepare(_ blocks: [RAMBlock], holdsData: [PageSet])
    /// A block's entry said where its pages are in the file: takes them, and leaves the input behind them.
    /// - Parameter holdsData: Pages that may hold something other than zeroes.
    func loadMapped(_ entry: RAMBlockEntry, into block: RAMBlock, holdsData: PageSet, from input: StreamInput)
        throws(MigrationError) -> DelayedPages
    /// The stream goes on only when channels beside it have come so far. False: there are none.
    func synchronise(_ point: RAMSynchronisation, in phase: MigrationPhase) throws(MigrationError) -> Bool
    /// A channel beside the stream put something into this page.
    func holdsData(_ reference: BlockReference, page: Int) -> Bool
    /// The migration is over: let go of what only it needed.
    func end()
}

extension DestinationRAMHooks {
    package func loadContents(_ target: UnsafeMutableRawBufferPointer) throws(MigrationError) {
        throw MigrationError(.capabilityMismatch, in: .postcopy, "the channel has no pages for a postcopy")
    }

    package func loadDescriptor(_ input: StreamInput) throws(MigrationError) {
        throw MigrationError(.capabilityMismatch, in: input.phase, "the channel cannot take a page-flip pipe")
    }
    package func loadPages(_ run: PageRun) throws(MigrationError) {
        throw MigrationError(.capabilityMismatch, in: .precopy, "the channel cannot take pages beside the stream")
    }
    package func answerPing(_ value: UInt32, _ output: StreamOutput) throws(MigrationError) -> Bool { false }
    package func blocksListed(_ blocks: [RAMBlock]) {}
    package func prepare(_ blocks: [RAMBlock], holdsData: [PageSet]) {}
    package func loadMapped(
        _ entry: RAMBlockEntry, into block: RAMBlock, holdsData: PageSet, from input: StreamInput
    ) throws(MigrationError) -> DelayedPages {
        throw MigrationError(
            .capabilityMismatch, in: input.phase, "mapped-ram needs a file, not \(input.transport.name)")
    }
    package func synchronise(
        _ point: RAMSynchronisation, in phase: MigrationPhase
    ) throws(MigrationError) -> Bool { false }
    package func holdsData(_ reference: BlockReference, page: Int) -> Bool { false }
}

/// Consecutive pages of one block.
package struct PageRun: Sendable {
    package let block: RAMBlock
    /// Position of the block in the stream's list.
    package let reference: BlockReference
    package var pages: Range<Int>

    package init(block: RAMBlock, reference: BlockReference, pages: Range<Int>) {
        self.block = block
        self.reference = reference
        self.pages = pages
    }

    package var byteCount: Int { pages.count * guestPageSize }
    package var offset: Int { pages.lowerBound * guestPageSize }
}
