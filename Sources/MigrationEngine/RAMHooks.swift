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
    /// Both ends map the same pages.
    case shares
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
    /// The migration is over: let go of what only it needed.
    func end()
}

/// How a channel takes part in receiving RAM.
package protocol DestinationRAMHooks: AnyObject, Sendable {
    /// The pipe's descriptor came with the last byte read.
    func loadDescriptor(_ input: StreamInput) throws(MigrationError)
    /// A run of pages whose contents come outside of the stream.
    func loadPages(_ run: PageRun) throws(MigrationError)
    /// A PING with a value that may be the hooks' own; true when they answered it themselves.
    func answerPing(_ value: UInt32, _ output: StreamOutput) throws(MigrationError) -> Bool
    /// The block list was received, in this order.
    func blocksListed(_ blocks: [RAMBlock])
    /// The migration is over: let go of what only it needed.
    func end()
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
