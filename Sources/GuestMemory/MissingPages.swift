package import LinuxCalls
import Glibc
import Synchronization

/// How page faults come to this process; tests play a kernel that refuses.
package struct UserFaultOpener: Sendable {
    package let open: @Sendable () throws(SystemCallError) -> UserFaults

    package init(_ open: @escaping @Sendable () throws(SystemCallError) -> UserFaults) { self.open = open }

    /// userfaultfd(2).
    package static let kernel = UserFaultOpener { () throws(SystemCallError) in try UserFaults() }
}

/// Pages of RAM blocks that are still elsewhere while the guest runs: whoever touches one sleeps until it is placed.
///
/// Whole pages appear at once or not at all. System calls must not be given guest memory meanwhile (``UserFaults``).
package final class MissingPages: Sendable {
    package let blocks: [RAMBlock]
    private let faults: UserFaults
    private let wake: OwnedDescriptor
    private let thread = Mutex<HostThread?>(nil)
    private let isEnding = Atomic<Bool>(false)

    /// Finds out whether this host lets a process answer its own page faults; watches nothing yet.
    package init(blocks: [RAMBlock], opener: UserFaultOpener = .kernel) throws(SystemCallError) {
        self.blocks = blocks
        faults = try opener.open()
        wake = try .event()
        for block in blocks {
            try unsafe faults.watch(block.mapping.bytes)
            try unsafe faults.unwatch(block.mapping.bytes)
        }
    }

    /// From here on a page that is not there is a fault. `handler` is called for each, on a thread of its own, perhaps
    /// more than once for a page; it must not touch guest memory.
    package func watch(_ handler: @escaping @Sendable (_ block: Int, _ page: Int) -> Void) throws(SystemCallError) {
        for block in blocks { try unsafe faults.watch(block.mapping.bytes) }
        let started = try HostThread(name: "page faults") { [self] in
            while !isEnding.load(ordering: .acquiring) {
                guard
                    let ready = try? GatheredIO.wait(
                        for: Int16(POLLIN), on: faults.descriptor, wake: wake, timeoutMilliseconds: -1)
                else { return }
                if ready.isWoken { return }
                while let address = try? faults.next() {
                    guard let (block, page) = locate(address) else { continue }
                    handler(block, page)
                }
            }
        }
        thread.withLock { $0 = started }
    }

    private func locate(_ address: UInt) -> (block: Int, page: Int)? {
        for (index, block) in blocks.enumerated() {
            let start = unsafe UInt(bitPattern: block.base)
            if address >= start, address - start < UInt(block.byteCount) {
                return (index, Int(address - start) / guestPageSize)
            }
        }
        return nil
    }

    /// Puts the contents of consecutive pages where nothing is.
    /// - Returns: Pages placed; fewer when the next one is there already.
    package func place(_ bytes: UnsafeRawBufferPointer, block: Int, page: Int) throws(SystemCallError) -> Int {
        let address = unsafe blocks[block].base + page * guestPageSize
        return try unsafe faults.place(bytes, at: address) / guestPageSize
    }

    /// A page that somebody waits for is zero, or is there already.
    package func placeZeroes(block: Int, page: Int) throws(SystemCallError) {
        let area = unsafe UnsafeMutableRawBufferPointer(
            start: blocks[block].base + page * guestPageSize, count: guestPageSize)
        if try unsafe !faults.placeZeroes(area) { try unsafe faults.wake(area) }
    }

    /// Answers no faults any more; those who wait go on waiting.
    package func stopServing() {
        isEnding.store(true, ordering: .releasing)
        wake.signal()
        thread.withLock { $0.take() }?.join()
    }

    /// The end: what is not there now is zero, and whoever waits goes on.
    package func release() {
        stopServing()
        for block in blocks { try? unsafe faults.unwatch(block.mapping.bytes) }
    }

    /// Leaves everybody who waits asleep until the process ends: this object is never let go of.
    package func abandon() {
        stopServing()
        _ = unsafe Unmanaged.passRetained(self)
    }
}
