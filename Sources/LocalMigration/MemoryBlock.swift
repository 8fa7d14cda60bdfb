import LinuxCalls
import MigrationChannels

/// A named piece of memory that can change process without being copied: a sealed memfd, mapped shared.
@safe public final class MemoryBlock: Sendable {
    public let name: String
    let mapping: OwnedMapping
    let file: OwnedDescriptor

    /// Makes a block of zeroes.
    /// - Parameters:
    ///   - name: Under which the successor finds it; unique within the program.
    ///   - byteCount: Rounded up to whole pages of the host. Memory is taken only for pages that are touched.
    /// - Throws: ``MigrationFailure`` when the kernel has no memory or no descriptor left.
    public init(name: String, byteCount: Int) throws {
        precondition(byteCount > 0, "a block has bytes")
        let rounded = (byteCount + hostPageSize - 1) / hostPageSize * hostPageSize
        self.name = name
        file = try MigrationFailure.wrapping { try MemoryFile.create(name: name, byteCount: rounded) }
        let file = file
        mapping = try MigrationFailure.wrapping { try OwnedMapping(byteCount: rounded, descriptor: file) }
    }

    /// A predecessor's block, judged already; its page tables are filled here.
    init(adopting block: HandoverDescription.Block) throws {
        guard let file = block.file, !block.isNamed else {
            throw MigrationFailure(code: .malformed, text: "\(block.name): the memory did not come with it")
        }
        name = block.name
        self.file = file
        let byteCount = block.byteCount
        mapping = try MigrationFailure.wrapping { try OwnedMapping(byteCount: byteCount, descriptor: file) }
        // What is not done after a moment is done beside whatever comes next; see decision 0004.
        PageTables.populateSoon(mapping, of: file)
    }

    /// The memory. Valid as long as the block lives; after a hand-over the successor writes to it.
    public var bytes: UnsafeMutableRawBufferPointer { unsafe mapping.bytes }

    public var byteCount: Int { mapping.byteCount }
}
