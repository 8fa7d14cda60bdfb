import Glibc
package import LinuxCalls
import Synchronization

/// Everything a process (or a socket) has written so far, read all the time by a thread of its own, so that the writer never
/// waits for the test. Tests wait for lines to appear; what was waited for is behind the reading position.
package final class Transcript: Sendable {
    private struct State {
        var bytes: [UInt8] = []
        /// Where the next wait starts to look.
        var position = 0
        var isEnded = false
    }

    private let state = Mutex(State())
    private let changed: OwnedDescriptor
    private let name: String

    /// Most bytes kept; a writer beyond is a fault of the test.
    private static let bytesMax = 256 << 20

    /// - Parameters:
    ///   - name: For messages: "console of web".
    ///   - source: Read until its end.
    package init(name: String, reading source: OwnedDescriptor) throws {
        self.name = name
        changed = try .event()
        _ = try HostThread(name: "transcript") { [self] in
            let piece = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 << 10, alignment: 16)
            defer { unsafe piece.deallocate() }
            while let count = try? unsafe source.read(into: piece), count > 0 {
                state.withLock { state in
                    precondition(state.bytes.count + count <= Self.bytesMax, "\(name) writes without end")
                    unsafe state.bytes.append(contentsOf: piece[..<count])
                }
                changed.signal()
            }
            state.withLock { $0.isEnded = true }
            changed.signal()
        }
    }

    /// All that was written.
    package var text: String { state.withLock { String(decoding: $0.bytes, as: UTF8.self) } }

    /// Whether the writer has closed its end.
    package var hasEnded: Bool { state.withLock { $0.isEnded } }

    /// Waits until the writer has closed its end and everything was read, but not for long: others may have it open still.
    package func catchUp(seconds: Double) {
        let deadline = ContinuousClock.now + .seconds(seconds)
        while !hasEnded, ContinuousClock.now < deadline { usleep(1000) }
    }

    /// The last part, for messages.
    package var tail: String { state.withLock { String(decoding: $0.bytes.suffix(3000), as: UTF8.self) } }

    /// All that has come is behind the reading position from now on.
    package func skipToEnd() { state.withLock { $0.position = $0.bytes.count } }

    /// Waits until a line contains `text`, and answers the whole line.
    ///
    /// A last line that has no end yet counts when `partial`, as a prompt does not end.
    @discardableResult
    package func wait(for text: String, seconds: Double, partial: Bool = false) throws -> String {
        try wait(seconds: seconds, partial: partial, what: "\"\(text)\"") { $0.contains(text) ? $0 : nil }
    }

    /// Waits until `match` answers something for a line.
    package func wait<Match>(
        seconds: Double, partial: Bool = false, what: String, match: (String) -> Match?
    ) throws -> Match {
        let deadline = ContinuousClock.now + .seconds(seconds)
        while true {
            // Read before the look: what comes between is signalled again.
            changed.drain()
            var isEnded = false
            let found: Match? = state.withLock { state in
                isEnded = state.isEnded
                while let line = Self.nextLine(in: state.bytes, from: state.position) {
                    guard line.isComplete || partial || state.isEnded else { return nil }
                    let isOver = !line.isComplete
                    if let match = match(line.text) {
                        state.position = line.end
                        return match
                    }
                    if isOver { return nil }
                    state.position = line.end
                }
                return nil
            }
            if let found { return found }
            let left = deadline - ContinuousClock.now
            if isEnded { throw ExpectationError.ended(name: name, what: what, tail: tail) }
            if left <= .zero { throw ExpectationError.late(name: name, what: what, seconds: seconds, tail: tail) }
            let milliseconds = left.components.seconds * 1000 + left.components.attoseconds / 1_000_000_000_000_000 + 1
            _ = try changed.waitUntilReady(
                for: Int16(POLLIN), timeoutMilliseconds: CInt(clamping: milliseconds))
        }
    }

    private static func nextLine(in bytes: [UInt8], from start: Int) -> (text: String, end: Int, isComplete: Bool)? {
        guard start < bytes.count else { return nil }
        let newline = bytes[start...].firstIndex(of: 10)
        let end = newline ?? bytes.count
        let text = String(decoding: bytes[start..<end].filter { $0 != 13 }, as: UTF8.self)
        return (text, newline.map { $0 + 1 } ?? end, newline != nil)
    }
}

/// Something a test waited for did not come.
package enum ExpectationError: Error, CustomStringConvertible {
    case late(name: String, what: String, seconds: Double, tail: String)
    case ended(name: String, what: String, tail: String)
    case stillRunning(name: String, seconds: Double, tail: String)
    case failed(command: String, end: String, output: String)

    package var description: String {
        switch self {
        case .late(let name, let what, let seconds, let tail):
            "no \(what) on \(name) within \(seconds) s; it ends with:\n\(tail)"
        case .ended(let name, let what, let tail): "\(name) ended without \(what); it ends with:\n\(tail)"
        case .stillRunning(let name, let seconds, let tail):
            "\(name) still runs after \(seconds) s; its output ends with:\n\(tail)"
        case .failed(let command, let end, let output): "\(command): \(end)\n\(output)"
        }
    }
}
