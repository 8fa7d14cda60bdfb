import GuestMemory
import MigrationStream

/// What the destination says, at the source. Belongs to the migration's thread.
final class ReturnPathReader {
    /// A page request, in pages of one block.
    struct Request: Hashable {
        let block: String
        let pages: Range<Int>
    }

    private let input: StreamInput
    private var pongs: Set<UInt32> = []
    private(set) var shutStatus: UInt32?
    private(set) var requests: [Request] = []
    private var lastRequestedBlock: String?
    private(set) var resumeAcknowledged: UInt32?
    private(set) var isSwitchoverAcknowledged = false
    private(set) var bitmaps: [String: ReceivedBitmap] = [:]
    private var expectedBitmap: (block: String, pageCount: Int)?
    /// Pages of each block, to judge bitmaps by.
    var pageCounts: [String: Int] = [:]
    /// PINGs that may be out at once; more answers than that are the peer's mistake.
    private static let pongsMax = 1024
    private static let requestsMax = 1 << 16

    init(transport: any MigrationTransport) { input = StreamInput(transport: transport, capacity: 4096) }

    /// Takes what has come; does not wait. After SHUT an end of the channel is no error.
    func poll(in phase: MigrationPhase = .precopy) throws(MigrationError) {
        input.phase = phase
        while try input.fill(timeoutMilliseconds: 0) {
            try decodeAll(phase)
            if input.isAtEnd { return try judgeEnd(phase) }
        }
        if phase < .commit, let shutStatus, shutStatus != 0 {
            throw MigrationError(.peerRefused, in: phase, "the destination reports that it failed (\(shutStatus))")
        }
    }

    /// Waits for something to come.
    func wait(in phase: MigrationPhase, timeoutMilliseconds: Int? = nil) throws(MigrationError) {
        input.phase = phase
        if let timeoutMilliseconds {
            guard try input.fill(timeoutMilliseconds: timeoutMilliseconds) else { return }
        } else {
            try input.fill(minimum: 1)
        }
        try decodeAll(phase)
        if input.isAtEnd { try judgeEnd(phase) }
        if phase < .commit, let shutStatus, shutStatus != 0 {
            throw MigrationError(.peerRefused, in: phase, "the destination reports that it failed (\(shutStatus))")
        }
    }

    private func judgeEnd(_ phase: MigrationPhase) throws(MigrationError) {
        if let shutStatus {
            if phase >= .commit { return }
            throw MigrationError(.peerRefused, in: phase, "the destination gave up (\(shutStatus))")
        }
        throw MigrationError(.channelClosed, in: phase, "the destination closed the channel")
    }

    /// After the channel broke: the status in a SHUT that was already here.
    func lastWord() -> UInt32? {
        if shutStatus == nil, !hasEnded {
            do throws(MigrationError) {
                while try input.fill(timeoutMilliseconds: 0), !input.isAtEnd {}
            } catch { isBroken = error.code == .channelClosed }
            try? decodeAll(.setup)
        }
        return shutStatus
    }

    /// Nothing more will come.
    var hasEnded: Bool { input.isAtEnd || isBroken }
    private var isBroken = false

    func takePong(_ value: UInt32) -> Bool { pongs.remove(value) != nil }

    func takeRequests() -> [Request] {
        defer { requests = [] }
        return requests
    }

    private func decodeAll(_ phase: MigrationPhase) throws(MigrationError) {
        while input.buffer.count > 0 {
            var cursor = input.buffer.cursor()
            do throws(StreamError) {
                if let expected = expectedBitmap {
                    bitmaps[expected.block] = try ReceivedBitmap.decode(from: &cursor, pageCount: expected.pageCount)
                    expectedBitmap = nil
                } else {
                    try take(ReturnPathMessage.decode(from: &cursor), at: cursor.offset)
                }
                input.buffer.consume(to: cursor)
            } catch {
                if error.neededByteCount != nil { return }
                throw StreamInput.migrationError(error, in: phase, false)
            }
        }
    }

    private func take(_ message: ReturnPathMessage, at offset: UInt64) throws(StreamError) {
        guard shutStatus == nil else { throw StreamError(.invalid("a message after SHUT"), at: offset) }
        switch message {
        case .shut(let status): shutStatus = status
        case .pong(let value):
            guard pongs.count < Self.pongsMax else {
                throw StreamError(.limitExceeded("answers to PINGs never sent"), at: offset)
            }
            pongs.insert(value)
        case .requestPages(let block, let start, let byteCount):
            guard let name = block ?? lastRequestedBlock else {
                throw StreamError(.noBlockToContinue, at: offset)
            }
            guard let pageCount = pageCounts[name] else { throw StreamError(.unknownBlock(name), at: offset) }
            let page = UInt64(guestPageSize)
            guard start % page == 0, UInt64(byteCount) % page == 0,
                start / page + UInt64(byteCount) / page <= UInt64(pageCount)
            else { throw StreamError(.addressOutsideBlock(block: name, address: start), at: offset) }
            guard requests.count < Self.requestsMax else {
                throw StreamError(.limitExceeded("page requests"), at: offset)
            }
            lastRequestedBlock = name
            let first = Int(start / page)
            requests.append(Request(block: name, pages: first..<(first + Int(UInt64(byteCount) / page))))
        case .receivedBitmap(let block):
            guard let pageCount = pageCounts[block] else { throw StreamError(.unknownBlock(block), at: offset) }
            expectedBitmap = (block, pageCount)
        case .resumeAcknowledged(let value): resumeAcknowledged = value
        case .switchoverAcknowledged: isSwitchoverAcknowledged = true
        }
    }
}
