import Glibc
import LinuxCalls
import Synchronization
import Testing

@Suite struct EventLoopTests {
    @Test func aBorrowedTurnComesBehindWhatWasToBePerformedBefore() throws {
        let loop = try EventLoop(name: "test")
        defer { loop.stop() }
        let order = Mutex<[Int]>([])
        for number in 0..<100 {
            loop.perform { order.withLock { $0.append(number) } }
        }
        let seen = loop.sync { order.withLock { $0 } }
        #expect(seen == Array(0..<100))
    }

    @Test func whoHasTheTurnIsOnTheLoopsThreadAndNobodyElseIs() throws {
        let loop = try EventLoop(name: "test")
        defer { loop.stop() }
        #expect(!loop.isLoopThread)
        loop.sync {
            #expect(loop.isLoopThread)
            loop.sync { #expect(loop.isLoopThread) }
        }
        #expect(!loop.isLoopThread)
        let answer = Mutex<Bool?>(nil)
        loop.perform { answer.withLock { $0 = loop.isLoopThread } }
        loop.barrier()
        #expect(answer.withLock { $0 } == true)
    }

    @Test func noTwoThreadsHaveTheTurnAtOnce() throws {
        let loop = try EventLoop(name: "test")
        defer { loop.stop() }
        let inside = Atomic<Int>(0)
        let clashes = Atomic<Int>(0)
        let performed = Atomic<Int>(0)
        @Sendable func visit() {
            if inside.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue != 1 {
                clashes.wrappingAdd(1, ordering: .relaxed)
            }
            sched_yield()
            inside.wrappingSubtract(1, ordering: .sequentiallyConsistent)
            performed.wrappingAdd(1, ordering: .relaxed)
        }
        let threads = try (0..<4).map { _ in
            try HostThread(name: "visitor") {
                for _ in 0..<500 {
                    loop.sync(visit)
                    loop.perform(visit)
                }
            }
        }
        for thread in threads { thread.join() }
        loop.barrier()
        let counts = (clashes.load(ordering: .relaxed), performed.load(ordering: .relaxed))
        #expect(counts == (0, 4000))
    }

    @Test func aDescriptorThatWasRemovedInABorrowedTurnIsNotCalledBack() throws {
        let loop = try EventLoop(name: "test")
        defer { loop.stop() }
        for _ in 0..<200 {
            let event = try OwnedDescriptor.event()
            let isRemoved = Atomic<Bool>(false)
            let late = Atomic<Bool>(false)
            let token = try loop.watch(event, for: .readable) { _ in
                if isRemoved.load(ordering: .sequentiallyConsistent) { late.store(true, ordering: .relaxed) }
                event.drain()
            }
            event.signal()
            loop.sync {
                loop.remove(token)
                isRemoved.store(true, ordering: .sequentiallyConsistent)
            }
            event.signal()
            loop.barrier()
            let isLate = late.load(ordering: .relaxed)
            #expect(!isLate)
        }
    }

    @Test func whatIsGatheredIsPerformedAfterwards() throws {
        let loop = try EventLoop(name: "test")
        defer { loop.stop() }
        let done = HostSemaphore()
        loop.gathering {
            loop.perform { done.signal() }
            loop.perform { done.signal() }
        }
        #expect(done.wait(timeoutNanoseconds: 10_000_000_000))
        #expect(done.wait(timeoutNanoseconds: 10_000_000_000))
    }
}
