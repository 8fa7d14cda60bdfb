import Glibc
import GuestMemory
import MigrationStream

/// Receives a page and, in the same system call, the pages that probably follow it, each straight to where it belongs.
///
/// A sender walks through memory in order: behind the contents of a page most often comes the 8-byte word of the next
/// page of the same block. The call is laid out for that; the words tell afterwards whether it was right. From the
/// first other word on, what came is given back to the buffer, as if it had been received there.
///
/// Only pages that did not come before may be predicted: what is put there by mistake is to be wiped by the caller.
@safe struct PageRunReceiver: ~Copyable {
    /// Pages predicted at most: about a megabyte, and half of what one call takes in pieces.
    static let predictedMax = 255
    private static let wordBytes = 8
    private static let pieceCapacity = 2 * (predictedMax + 1)

    // SAFETY: allocated once, freed in deinit, used by the owning thread.
    private let pieces: UnsafeMutablePointer<iovec>
    private let words: UnsafeMutablePointer<UInt64>
    /// How many pages to predict; grows while predictions hold.
    private var window = 8

    init() {
        unsafe pieces = .allocate(capacity: Self.pieceCapacity)
        unsafe pieces.initialize(repeating: iovec(), count: Self.pieceCapacity)
        unsafe words = .allocate(capacity: Self.predictedMax + 1)
        unsafe words.initialize(repeating: 0, count: Self.predictedMax + 1)
    }

    deinit {
        unsafe pieces.deallocate()
        unsafe words.deallocate()
    }

    struct Outcome {
        /// Pages that are complete, from the first on.
        var pageCount = 1
        /// Pages behind them into which bytes came that do not belong there.
        var misplaced = 0..<0
    }

    /// Reads the contents of `page`, whose word was just taken from the buffer, and up to `predictable` pages behind it.
    mutating func receive(
        _ block: RAMBlock, page first: Int, predictable: Int, from input: StreamInput
    ) throws(MigrationError) -> Outcome {
        let base = unsafe block.base
        let last = first + min(predictable, Self.predictedMax * 64)
        var page = first
        // Bytes of `page` that are here; beyond its contents, bytes of the next page's word.
        var done = unsafe input.buffer.take(guestPageSize, into: base + page * guestPageSize)
        while true {
            let isInWord = done >= guestPageSize
            let ahead = min(window, last - page)
            if isInWord && ahead == 0 { return Outcome(pageCount: page - first + 1) }
            var count = 0
            if !isInWord {
                unsafe pieces[0] = iovec(
                    iov_base: base + (page * guestPageSize + done), iov_len: guestPageSize - done)
                count = 1
            }
            let wordDone = isInWord ? done - guestPageSize : 0
            for index in 0..<ahead {
                let skip = index == 0 ? wordDone : 0
                unsafe pieces[count] = iovec(
                    iov_base: UnsafeMutableRawPointer(words + index) + skip, iov_len: Self.wordBytes - skip)
                unsafe pieces[count + 1] = iovec(
                    iov_base: base + (page + 1 + index) * guestPageSize, iov_len: guestPageSize)
                count += 2
            }
            let received = try unsafe input.receive(UnsafeMutableBufferPointer(start: pieces, count: count))
            guard received > 0 else {
                if !isInWord {
                    throw MigrationError(.channelClosed, in: input.phase, "the stream ended within a page")
                }
                giveBack(input, wordBytes: wordDone)
                return Outcome(pageCount: page - first + 1)
            }
            var left = received
            if !isInWord {
                let taken = min(left, guestPageSize - done)
                input.buffer.skip(taken)
                left -= taken
                done += taken
                if done < guestPageSize { continue }
                if ahead == 0 { return Outcome(pageCount: page - first + 1) }
            }
            // Now `left` bytes stand in words and pages, the first word having had `wordDone` before.
            var index = 0
            var inWord = wordDone
            while true {
                let wordBytes = inWord + left
                if wordBytes < Self.wordBytes {
                    done = guestPageSize + wordBytes
                    if index > 0 { unsafe words[0] = words[index] }
                    break
                }
                left = wordBytes - Self.wordBytes
                inWord = 0
                let expected = UInt64((page + 1) * guestPageSize) | RAMFlags([.page, .sameBlock]).rawValue
                if unsafe UInt64(bigEndian: words[index]) != expected {
                    return misplaced(block, page, first, index, left, input)
                }
                input.buffer.skip(Self.wordBytes)
                page += 1
                let taken = min(left, guestPageSize)
                input.buffer.skip(taken)
                left -= taken
                index += 1
                if taken < guestPageSize || (left == 0 && index == ahead) {
                    done = taken
                    break
                }
            }
            if index == window { window = min(window * 2, Self.predictedMax) }
        }
    }

    private func giveBack(_ input: StreamInput, wordBytes: Int) {
        guard wordBytes > 0 else { return }
        unsafe input.buffer.append(RawSpan(_unsafeStart: UnsafeRawPointer(words), byteCount: wordBytes))
    }

    /// Word `index` is another than predicted: it and the `count` bytes behind it go where the decoder looks.
    private mutating func misplaced(
        _ block: RAMBlock, _ page: Int, _ first: Int, _ index: Int, _ count: Int, _ input: StreamInput
    ) -> Outcome {
        window = max(window / 2, 1)
        unsafe input.buffer.append(
            RawSpan(_unsafeStart: UnsafeRawPointer(words + index), byteCount: Self.wordBytes))
        var left = count
        var at = page + 1
        var next = index + 1
        while left > 0 {
            let contents = min(left, guestPageSize)
            unsafe input.buffer.append(
                RawSpan(_unsafeStart: UnsafeRawPointer(block.base + at * guestPageSize), byteCount: contents))
            left -= contents
            at += 1
            let word = min(left, Self.wordBytes)
            if word > 0 {
                unsafe input.buffer.append(
                    RawSpan(_unsafeStart: UnsafeRawPointer(words + next), byteCount: word))
            }
            left -= word
            next += 1
        }
        return Outcome(pageCount: page - first + 1, misplaced: (page + 1)..<at)
    }
}
