import Glibc
import LinuxCalls
import MigrationEngine

/// Threads that copy page contents to their places side by side: one of them is the migration's own.
///
/// The kernel holds a pipe's lock while somebody copies out of it, so one pipe keeps one processor busy. Contents are
/// therefore moved on by reference, without a copy, into pipes of their own, each of which one thread empties: it holds
/// all that is to be read from it, so no thread ever waits in a read. Where it would wait for the others, the migration's
/// thread copies too: a thread that sleeps and is woken for each piece shares a processor with whoever woke it.
final class PipeReaders: Sendable {
    /// Contents in a pipe of their own, and their place.
    // SAFETY: the memory is the guest's, which outlives `end()`; each place is written by one thread.
    @safe private struct Piece: @unchecked Sendable {
        let pipe: Int
        let target: UnsafeMutableRawBufferPointer
    }
    private struct State: Sendable {
        var freePipes: [Int]
        var pieces: [Piece] = []
        var failure: SystemCallError?
        var isEnding = false

        mutating func nextPiece() -> Piece? { pieces.isEmpty ? nil : pieces.removeFirst() }
    }

    private let pipes: [(readEnd: OwnedDescriptor, writeEnd: OwnedDescriptor, capacity: Int)]
    private let state: Gate<State>
    private let threads: Gate<[HostThread]>

    /// - Parameter threadCount: Threads that copy, with the migration's own.
    /// - Throws: When descriptors or threads run out; nothing is left then.
    init(threadCount: Int) throws(SystemCallError) {
        var pipes: [(readEnd: OwnedDescriptor, writeEnd: OwnedDescriptor, capacity: Int)] = []
        // One is being emptied and one is full, for each.
        for _ in 0..<(2 * threadCount) { pipes.append(try PagePipe.make()) }
        self.pipes = pipes
        state = Gate(State(freePipes: Array(pipes.indices)))
        threads = Gate([])
        do throws(SystemCallError) {
            for index in 1..<threadCount {
                let thread = try HostThread(name: "page-flip \(index)") { [self] in run() }
                threads.update { $0.append(thread) }
            }
        } catch {
            end()
            throw error
        }
    }

    /// Moves contents on for a thread to copy; answers for how many bytes of `target`, 0 when nobody can write into the
    /// pipe any more. Belongs, like everything here, to one thread.
    /// - Throws: `EAGAIN` when the pipe is empty; what a copy failed with.
    func take(into target: UnsafeMutableRawBufferPointer, from source: OwnedDescriptor) throws(SystemCallError) -> Int {
        let index = try freePipe()
        let pipe = pipes[index]
        let wanted = min(target.count, pipe.capacity)
        var count = 0
        do throws(SystemCallError) {
            while count < wanted {
                let moved = try PagePipe.move(wanted - count, from: source, to: pipe.writeEnd)
                if moved == 0 { break }
                count += moved
            }
        } catch {
            // Empty, or full of pieces smaller than pages: what is there is worth a copy.
            if count == 0 {
                state.update { $0.freePipes.append(index) }
                throw error
            }
        }
        state.update { state in
            if count == 0 {
                state.freePipes.append(index)
            } else {
                unsafe state.pieces.append(
                    Piece(pipe: index, target: UnsafeMutableRawBufferPointer(rebasing: target[..<count])))
            }
        }
        return count
    }

    /// A pipe that holds nothing; while there is none, this thread copies.
    private func freePipe() throws(SystemCallError) -> Int {
        while true {
            try judge()
            let (index, piece) = state.update { state -> (Int?, Piece?) in
                if let index = state.freePipes.popLast() { return (index, nil) }
                return (nil, state.nextPiece())
            }
            if let index { return index }
            if let piece { finish(piece) } else { state.wait { !$0.freePipes.isEmpty } }
        }
    }

    /// Copies one of the pieces that wait, here, if more wait than the other threads take next: false when not.
    func help() -> Bool {
        let others = threads.read { $0.count }
        guard let piece = state.update({ $0.pieces.count > others ? $0.nextPiece() : nil }) else { return false }
        finish(piece)
        return true
    }

    /// Returns when everything that was taken is in its place.
    func drain() throws(SystemCallError) {
        while let piece = state.update({ $0.nextPiece() }) { finish(piece) }
        state.wait { $0.freePipes.count == pipes.count }
        try judge()
    }

    private func judge() throws(SystemCallError) {
        if let failure = state.read({ $0.failure }) { throw failure }
    }

    /// Everything that was taken is copied, then the threads end. Idempotent.
    func end() {
        state.update { $0.isEnding = true }
        let ending = threads.update { threads in
            defer { threads = [] }
            return threads
        }
        for thread in ending { thread.join() }
    }

    private func run() {
        while true {
            state.wait { !$0.pieces.isEmpty || $0.isEnding }
            let (piece, isEnding) = state.update { ($0.nextPiece(), $0.isEnding) }
            if let piece { finish(piece) } else if isEnding { return }
        }
    }

    private func finish(_ piece: Piece) {
        var failure: SystemCallError?
        do throws(SystemCallError) { try copy(piece) } catch { failure = error }
        state.update { state in
            if state.failure == nil { state.failure = failure }
            state.freePipes.append(piece.pipe)
        }
    }

    private func copy(_ piece: Piece) throws(SystemCallError) {
        var done = 0
        while unsafe done < piece.target.count {
            let count = try unsafe pipes[piece.pipe].readEnd.read(
                into: UnsafeMutableRawBufferPointer(rebasing: piece.target[done...]))
            guard count > 0 else { throw SystemCallError("read", .brokenPipe, subject: "page-flip pipe") }
            done += count
        }
    }
}
