import Glibc
import LinuxCalls
import Synchronization
import Testing

@testable import Machine

@Suite("What happened to a machine, told in order") struct EventQueueTests {
    private func event(_ number: Int) -> MachineEvent { .powerOff(exitCode: Int32(number)) }

    @Test("who comes second waits for the first to be done with, and finds its own event told")
    func oneAtATime() throws {
        let log = EventLog()
        let isInside = HostSemaphore()
        let goOn = HostSemaphore()
        let queue = EventQueue { [first = event(1)] event in
            if event == first {
                isInside.signal()
                goOn.wait()
            }
            log.add(event)
        }
        queue.add(event(1))
        let first = try HostThread(name: "first") { queue.tell() }
        isInside.wait()
        queue.add(event(2))
        let isTold = Atomic<Bool>(false)
        let second = try HostThread(name: "second") {
            queue.tell()
            isTold.store(true, ordering: .sequentiallyConsistent)
        }
        for _ in 0..<1000 { sched_yield() }
        #expect(log.all.isEmpty && !isTold.load(ordering: .sequentiallyConsistent))
        goOn.signal()
        second.join()
        #expect(log.all == [event(1), event(2)])
        first.join()
    }

    @Test("an observer that makes something happen finds it told, and is not waited for by itself")
    func calledBack() {
        let log = EventLog()
        let queue = Mutex<EventQueue?>(nil)
        let made = EventQueue { [last = event(3)] event in
            log.add(event)
            guard event != last, let queue = queue.withLock({ $0 }) else { return }
            queue.add(.powerOff(exitCode: Int32(log.all.count + 1)))
            queue.tell()
            #expect(log.all.last == last)
        }
        queue.withLock { $0 = made }
        made.add(event(1))
        made.tell()
        #expect(log.all == [event(1), event(2), event(3)])
        queue.withLock { $0 = nil }
    }

    @Test("however many threads tell, each event is told once and in its turn")
    func contended() throws {
        let told = Mutex<[Int]>([])
        let queue = EventQueue { event in
            if case .powerOff(let number) = event { told.withLock { $0.append(Int(number)) } }
        }
        let next = Mutex(0)
        let threads = try (0..<4).map { _ in
            try HostThread(name: "teller") {
                for _ in 0..<500 {
                    let own = next.withLock { next -> Int in
                        queue.add(.powerOff(exitCode: Int32(next)))
                        next += 1
                        return next - 1
                    }
                    queue.tell()
                    #expect(told.withLock { $0.count > own })
                }
            }
        }
        for thread in threads { thread.join() }
        #expect(told.withLock { $0 } == Array(0..<2000))
    }
}
