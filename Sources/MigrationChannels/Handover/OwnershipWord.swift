package import LinuxCalls

/// Who may run the guest.
package enum GuestOwner: UInt32, Sendable {
    /// The source runs it, or may resume it.
    case source = 0x5352_4301
    /// Everything was sent: whoever swaps the word first runs the guest.
    case offered = 0x4F46_4602
    /// The destination runs it.
    case destination = 0x4453_5403
}

/// The word in shared memory that decides who runs the guest; the only thing that does.
///
/// It goes `source` to `offered` (by the source), then either to `destination` (by the destination) or back to `source`
/// (by the source), each by one compare-and-swap. Modelled in `Documentation/model/ownership.pml`.
package final class OwnershipWord: Sendable {
    /// The memory both processes map; crosses by SCM_RIGHTS.
    package let file: OwnedDescriptor
    private let word: WaitWord
    /// Decides nothing: the processor of the host that the source runs on, from 1; 0 until it says so, and of early programs for ever.
    private let place: WaitWord
    /// Decides nothing: 1 when the destination's threads are where they wait for the state.
    private let readiness: WaitWord

    /// A new word that says `source`.
    package convenience init() throws(SystemCallError) {
        let file = try MemoryFile.create(name: "sidestep-ownership", byteCount: hostPageSize)
        self.init(file, in: try OwnedMapping(byteCount: hostPageSize, descriptor: file))
        word.store(GuestOwner.source.rawValue)
    }

    /// The peer's word.
    /// - Throws: ``HandoverError`` when the descriptor is not a sealed memory file of one page.
    package convenience init(adopting file: OwnedDescriptor) throws(HandoverError) {
        try ReceivedMemory.judge(file, byteCount: hostPageSize, name: "ownership word")
        do { self.init(file, in: try OwnedMapping(byteCount: hostPageSize, descriptor: file)) } catch {
            throw HandoverError(.systemCall, "the ownership word cannot be mapped", cause: error)
        }
    }

    private init(_ file: OwnedDescriptor, in page: OwnedMapping) {
        self.file = file
        word = WaitWord(in: page, offset: 0)
        place = WaitWord(in: page, offset: Self.placeOffset)
        readiness = WaitWord(in: page, offset: Self.readinessOffset)
    }

    /// Cache lines of their own.
    private static let placeOffset = 64
    private static let readinessOffset = 128
    /// Longest that either side waits for the other to be in its place.
    package static let placeNanosecondsMax: Int64 = 20_000_000

    /// The processor of the host that the source says it runs on; nil until it has.
    package var sourceProcessor: CInt? {
        let number = place.load()
        return number == 0 ? nil : CInt(clamping: number - 1)
    }

    /// The source says which processor of the host the caller runs on, and keeps to.
    package func tellProcessor() { place.store(UInt32(clamping: HostThread.currentProcessor) + 1) }

    /// The destination waits until the source says that, but not long: early programs never do.
    package func awaitSourceProcessor(nanoseconds: Int64) { place.sleep(while: 0, nanoseconds: nanoseconds) }

    /// The destination has nothing more to do before the state comes.
    package func tellReadiness() { readiness.store(1) }

    /// The source waits until the destination has nothing more to do, but not long: early programs never say so.
    package func awaitReadiness() {
        // The guest runs: to stay awake for this would cost it more than it gains.
        readiness.sleep(while: 0, nanoseconds: Self.placeNanosecondsMax)
    }

    /// What the word says; nil for a value that no side ever writes.
    package var owner: GuestOwner? { GuestOwner(rawValue: word.load()) }

    /// The source offers the guest. False if the word did not say `source`.
    package func offer() -> Bool { word.compareExchange(GuestOwner.source.rawValue, GuestOwner.offered.rawValue) }

    /// The source takes its offer back; true: the source runs the guest. False: the destination was first.
    package func takeBack() -> Bool { word.compareExchange(GuestOwner.offered.rawValue, GuestOwner.source.rawValue) }

    /// The destination takes the guest; true: the destination runs it. False: it was not, or is no longer, offered.
    package func claim() -> Bool { word.compareExchange(GuestOwner.offered.rawValue, GuestOwner.destination.rawValue) }
}
