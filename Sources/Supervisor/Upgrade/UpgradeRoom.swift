import LinuxCalls

/// Whether there is memory for a successor. A control group that is full costs a process its life, and which one is the kernel's
/// choice: the successor is to be first, but shared memory is not free before its process is quite gone, and until then the
/// kernel looks for another. So the limit is never reached: who would come near it is refused.
struct UpgradeRoom: Sendable {
    /// A successor without the guest's memory: its own, its threads' stacks, its page tables and the kernel's part of all
    /// of it. By `Benchmarks/run upgrade` it has 16 MiB at most, of which part is there already.
    static let successorByteCount = 12 << 20
    /// Kept free while memory is sent, for what both processes and the guest take meanwhile and what is on its way.
    static let reserveByteCount = 8 << 20
    /// Sent at most before it is looked again.
    private static let stepByteCountMax = 64 << 20
    /// Less is not worth beginning.
    private static let stepByteCountMin = 1 << 20

    private let room = MemoryRoom()

    /// Before a successor is started.
    func requireSuccessor() throws(Refusal) {
        guard let answer = room.narrowest(enough: Self.successorByteCount), answer.byteCount < Self.successorByteCount
        else { return }
        throw Refusal(
            "memory is short: \(Self.text(answer)), and a new process needs \(Self.successorByteCount >> 20) MiB besides the "
                + "guest's memory; \(Self.advice(answer))")
    }

    /// How many more bytes of RAM may come to exist twice before this is asked again.
    func allowance() throws(Refusal) -> Int {
        let enough = Self.reserveByteCount + 2 * Self.stepByteCountMax
        guard let answer = room.narrowest(enough: enough) else { return Self.stepByteCountMax }
        // Half: what was sent is not yet taken from the room when this is asked again.
        let step = min((answer.byteCount - Self.reserveByteCount) / 2, Self.stepByteCountMax)
        if step >= Self.stepByteCountMin { return step }
        throw Refusal(
            "memory is short: \(Self.text(answer)), of which \(Self.reserveByteCount >> 20) MiB are kept free; "
                + "\(Self.advice(answer)), or move the guest by memfd or stop-and-flip, which need no second copy of its memory"
        )
    }

    private static func text(_ answer: MemoryRoom.Answer) -> String {
        let limit = answer.limitByteCount.map { " of \($0 >> 20)" } ?? ""
        return "\(answer.place) has \(answer.byteCount >> 20) MiB left\(limit)"
    }

    private static func advice(_ answer: MemoryRoom.Answer) -> String {
        answer.limitByteCount == nil ? "free some" : "raise its limit"
    }
}
