import GuestMemory
import MigrationStream

/// Reads the RAM sections of a postcopy: each page is placed as it comes. Belongs to the migration's thread, which never
/// touches guest memory itself.
@safe final class PostcopyReceiver {
    private let memory: PostcopyMemory
    private let hooks: (any DestinationRAMHooks)?
    private var decoder: RAMDecoder
    private(set) var progress: RAMProgress
    private(set) var hasEnded = false
    /// A run of flipped pages that is still growing, and where their contents wait to be placed.
    private var flipped: (block: Int, pages: Range<Int>)?
    private static let flippedMax = 256
    // SAFETY: allocated in init, freed in deinit, used by the owning thread.
    private let staging: UnsafeMutableRawBufferPointer?

    /// - Parameter decoder: That of the stream so far: a page may continue a block named before.
    init(_ memory: PostcopyMemory, decoder: RAMDecoder, progress: RAMProgress, hooks: (any DestinationRAMHooks)?) {
        self.memory = memory
        self.decoder = decoder
        self.progress = progress
        self.hooks = hooks
        if hooks == nil {
            unsafe staging = nil
        } else {
            unsafe staging = .allocate(byteCount: Self.flippedMax * guestPageSize, alignment: guestPageSize)
        }
    }

    deinit { unsafe staging?.deallocate() }

    /// What was half received is forgotten with the channel it came on.
    func channelLost() {
        flipped = nil
        hasEnded = false
    }

    /// Reads the body of a PART or of END.
    func receiveSection(_ header: SectionHeader, from input: StreamInput) throws(MigrationError) {
        do throws(StreamError) {
            try decoder.beginSection(header.kind, version: header.version, at: input.buffer.offset)
        } catch { throw StreamInput.migrationError(error, in: input.phase, false) }
        guard header.kind != .start else { throw refused("RAM begins anew", input) }
        if header.kind == .end { hasEnded = true }
        while true {
            let record: RAMRecord
            var cursor = input.buffer.cursor(isFinal: input.isAtEnd)
            do throws(StreamError) {
                record = try decoder.next(&cursor)
                input.buffer.consume(to: cursor)
            } catch {
                guard let needed = error.neededByteCount else {
                    throw StreamInput.migrationError(error, in: input.phase, input.isAtEnd)
                }
                cursor = StreamCursor([])
                // What was named must be taken before waiting for more names: the source may wait for it.
                try takeFlipped()
                try input.fill(minimum: needed)
                continue
            }
            cursor = StreamCursor([])
            if case .flippedPage = record {} else { try takeFlipped() }
            switch record {
            case .page(let reference, let offset):
                try receivePage(reference.index, Int(offset) / guestPageSize, from: input)
            case .filledPage(let reference, let offset, let byte):
                try fill(reference.index, Int(offset) / guestPageSize, byte)
            case .flippedPage(let reference, let offset):
                try name(reference.index, Int(offset) / guestPageSize)
            case .endOfSection:
                if let failure = memory.failure { throw failure }
                return
            case .memorySize, .block, .flipDescriptor, .xbzrlePage, .multifdFlush:
                throw refused("a record that may not come in a postcopy", input)
            }
        }
    }

    private func refused(_ what: String, _ input: StreamInput) -> MigrationError {
        MigrationError(.streamMalformed, in: .postcopy, "\(what), at \(input.buffer.offset)")
    }

    private func receivePage(_ block: Int, _ page: Int, from input: StreamInput) throws(MigrationError) {
        var failure: MigrationError?
        try input.decode { (cursor: inout StreamCursor) throws(StreamError) in
            try unsafe cursor.withBytes(guestPageSize) { bytes in
                do throws(MigrationError) { try unsafe memory.place(bytes, block, page) } catch { failure = error }
            }
        }
        if let failure { throw failure }
        progress.normalPages &+= 1
    }

    private func fill(_ block: Int, _ page: Int, _ byte: UInt8) throws(MigrationError) {
        progress.zeroPages &+= 1
        if byte == 0 { return try memory.placeZeroes(block, page) }
        let contents = [UInt8](repeating: byte, count: guestPageSize)
        var failure: MigrationError?
        unsafe contents.withUnsafeBytes { bytes in
            do throws(MigrationError) { try unsafe memory.place(bytes, block, page) } catch { failure = error }
        }
        if let failure { throw failure }
    }

    private func name(_ block: Int, _ page: Int) throws(MigrationError) {
        progress.normalPages &+= 1
        if let run = flipped, run.block == block, run.pages.upperBound == page, run.pages.count < Self.flippedMax {
            flipped = (block, run.pages.lowerBound..<(page + 1))
            return
        }
        try takeFlipped()
        flipped = (block, page..<(page + 1))
    }

    private func takeFlipped() throws(MigrationError) {
        guard let run = flipped else { return }
        flipped = nil
        guard let hooks, let staging = unsafe staging else {
            throw MigrationError(.capabilityMismatch, in: .postcopy, "the channel cannot take pages from a pipe")
        }
        let contents = unsafe UnsafeMutableRawBufferPointer(rebasing: staging[..<(run.pages.count * guestPageSize)])
        try unsafe hooks.loadContents(contents)
        try unsafe memory.place(UnsafeRawBufferPointer(contents), run.block, run.pages.lowerBound)
    }
}
