import Glibc
import LinuxCalls
import Synchronization
import Testing

@Suite("Descriptors, sockets, locks and processes") struct LinuxCallsTests {
    @Test("descriptors arrive with the byte they were sent with, close-on-exec")
    func descriptorPassing() throws {
        let (left, right) = try StreamSocket.pair()
        let (readEnd, writeEnd) = try OwnedDescriptor.pipe()
        try StreamSocket.sendAll([7], descriptors: [readEnd], to: left)
        var buffer = [UInt8](repeating: 0, count: 16)
        let message = try buffer.withUnsafeMutableBytes {
            try StreamSocket.receive(into: $0, descriptorsMax: 4, from: right)
        }
        #expect(message.byteCount == 1 && buffer[0] == 7 && message.descriptors.count == 1 && !message.isTruncated)
        let received = try #require(message.descriptors.first)
        #expect(fcntl(received.rawValue, F_GETFD) & FD_CLOEXEC != 0)
        try writeEnd.writeAll([1, 2, 3])
        #expect(try buffer.withUnsafeMutableBytes { try received.read(into: $0) } == 3)
        #expect(buffer[..<3] == [1, 2, 3])
    }

    @Test("more descriptors than there is room for are reported as truncated and none leaks")
    func surplusDescriptors() throws {
        let (left, right) = try StreamSocket.pair()
        let ends = try (0..<5).map { _ in try OwnedDescriptor.event() }
        try StreamSocket.sendAll([1], descriptors: ends, to: left)
        var buffer = [UInt8](repeating: 0, count: 16)
        let message = try buffer.withUnsafeMutableBytes {
            try StreamSocket.receive(into: $0, descriptorsMax: 2, from: right)
        }
        #expect(message.isTruncated && message.descriptors.count <= 2)
    }

    @Test("a lock belongs to the open file and travels with it")
    func lockTravels() throws {
        let path = "/tmp/sidestep-lock-\(getpid())"
        let first = try OwnedDescriptor.open(path, flags: O_RDWR | O_CREAT)
        defer { unlink(path) }
        #expect(try FileLock.take(.exclusive, on: first))
        let second = try OwnedDescriptor.open(path, flags: O_RDWR)
        #expect(try !FileLock.take(.exclusive, on: second))
        #expect(try FileLock.isExcluded(.shared, on: second))
        let (left, right) = try StreamSocket.pair()
        do {
            var travelling: OwnedDescriptor? = try first.duplicate()
            try StreamSocket.sendAll([1], descriptors: [travelling!], to: left)
            travelling = nil
        }
        var buffer = [UInt8](repeating: 0, count: 1)
        let message = try buffer.withUnsafeMutableBytes {
            try StreamSocket.receive(into: $0, descriptorsMax: 1, from: right)
        }
        try FileLock.release(first)  // the lock is one, whoever releases it
        #expect(try FileLock.take(.exclusive, on: message.descriptors[0]))
        #expect(try !FileLock.take(.shared, on: second))
    }

    @Test("what a loop is to do later is done in the order of its time, and not before what is due now")
    func timers() throws {
        let loop = try EventLoop(name: "timers")
        let order = Mutex<[Int]>([])
        let done = HostSemaphore()
        let start = monotonicNanoseconds()
        loop.perform(afterMilliseconds: 40) {
            order.withLock { $0.append(3) }
            done.signal()
        }
        loop.perform(afterMilliseconds: 10) { order.withLock { $0.append(2) } }
        loop.perform { order.withLock { $0.append(1) } }
        done.wait()
        #expect(order.withLock { $0 } == [1, 2, 3])
        #expect(monotonicNanoseconds() - start >= 40_000_000)
        loop.perform(afterMilliseconds: 100_000) { Issue.record("a stopped loop goes on") }
        loop.stop()
    }

    @Test("a memfd is sealed against shrinking and growing")
    func sealedMemory() throws {
        let file = try MemoryFile.create(name: "test", byteCount: 8192)
        #expect(ftruncate(file.rawValue, 4096) == -1)
        #expect(ftruncate(file.rawValue, 16384) == -1)
        #expect(try file.status().byteCount == 8192)
        #expect(try MemoryFile.seals(of: file) & 6 == 6)
    }

    @Test("an event loop calls back, and nothing runs after remove returns")
    func eventLoop() throws {
        let loop = try EventLoop(name: "test-loop")
        let event = try OwnedDescriptor.event()
        let seen = HostSemaphore()
        let count = Atomic<Int>(0)
        let token = try loop.watch(event, for: .readable) { _ in
            event.drain()
            count.add(1, ordering: .relaxed)
            seen.signal()
        }
        event.signal()
        #expect(seen.wait(timeoutNanoseconds: 5_000_000_000))
        loop.remove(token)
        let before = count.load(ordering: .relaxed)
        event.signal()
        loop.barrier()
        #expect(count.load(ordering: .relaxed) == before)
        loop.stop()
    }

    @Test("a child gets exactly the descriptors it is given, and its end is told")
    func childProcess() throws {
        let (readEnd, writeEnd) = try OwnedDescriptor.pipe()
        let child = try ChildProcess(
            path: "/bin/sh", arguments: ["-c", "echo $A; ls /proc/self/fd | tr '\\n' ' '; exit 3"],
            environment: ["A=b"],
            descriptors: [1: writeEnd])
        #expect(child.wait(timeoutMilliseconds: 10_000) == .exited(status: 3))
        var buffer = [UInt8](repeating: 0, count: 256)
        let count = try buffer.withUnsafeMutableBytes { try readEnd.read(into: $0) }
        #expect(String(decoding: buffer[..<count], as: UTF8.self).hasPrefix("b\n"))
        let killed = try ChildProcess(path: "/bin/sleep", arguments: ["100"])
        #expect(killed.wait(timeoutMilliseconds: 0) == nil)
        killed.kill()
        #expect(killed.wait(timeoutMilliseconds: 10_000) == .signaled(signal: SIGKILL))
    }

    @Test("a word in shared memory wakes a sleeper in another thread")
    func waitWord() throws {
        let file = try MemoryFile.create(name: "word", byteCount: hostPageSize)
        let here = WaitWord(in: try OwnedMapping(byteCount: hostPageSize, descriptor: file), offset: 64)
        let there = WaitWord(in: try OwnedMapping(byteCount: hostPageSize, descriptor: file), offset: 64)
        let thread = try HostThread(name: "waiter") {
            while there.load() == 0 { there.wait(while: 0) }
            there.store(2)
        }
        #expect(here.compareExchange(0, 1))
        while here.load() == 1 { here.wait(while: 1, timeoutNanoseconds: 10_000_000) }
        thread.join()
        #expect(here.load() == 2)
        #expect(!here.compareExchange(1, 3))
    }

    @Test("turns on a processor are short for a while, and afterwards what they were, also after an error")
    func shortTurns() throws {
        /// What proc_pid_sched(5) says of this thread, in nanoseconds; nil where the kernel has turns of one length.
        func turn() throws -> Int? {
            let text = String(decoding: try FileNames.contents(of: "/proc/thread-self/sched"), as: UTF8.self)
            return text.split(separator: "\n").first { $0.hasPrefix("se.slice") }.flatMap {
                $0.split(separator: " ").last.flatMap { Int($0) }
            }
        }
        let before = try turn()
        #expect(try HostThread.inShortTurns { try turn() } == before.map { _ in 100_000 })
        #expect(try turn() == before)
        #expect(throws: SystemCallError.self) {
            try HostThread.inShortTurns { () throws(SystemCallError) in
                throw SystemCallError("read", .badFileDescriptor)
            }
        }
        #expect(try turn() == before)
    }

    @Test("a thread is urgent for a while where that is permitted, else has short turns, and afterwards is what it was")
    func urgency() throws {
        /// What sched_getattr(2) says of this thread: policy and priority, niceness and length of turns.
        func scheduling() throws -> [String] {
            let text = String(decoding: try FileNames.contents(of: "/proc/thread-self/sched"), as: UTF8.self)
            return ["policy", "prio", "se.slice"].compactMap { name in
                text.split(separator: "\n").first { $0.hasPrefix("\(name) ") }.map {
                    String($0.split(separator: " ").last!)
                }
            }
        }
        let ordinary = "\(SCHED_OTHER)"
        let before = try scheduling()
        try #require(before.first == ordinary)
        let detour = HostThread.Detour(haste: .urgent.whereOthersHaveRoom)
        let during = try scheduling()
        let isPermitted = during.first == "\(SCHED_RR)"
        // Whoever may, is: as root that is a capability.
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(14), &limit)  // RLIMIT_RTPRIO
        let status = String(decoding: try FileNames.contents(of: "/proc/thread-self/status"), as: UTF8.self)
        let capabilities = status.split(separator: "\n").first { $0.hasPrefix("CapEff:") }.flatMap {
            UInt64($0.split(separator: "\t").last!, radix: 16)
        }
        let mayHasten = try #require(capabilities) & 1 << 23 != 0 || limit.rlim_cur > 0
        if HostThread.Haste.urgent.whereOthersHaveRoom == .urgent { #expect(isPermitted == mayHasten) }
        // Not that of threads that it makes.
        let policyOfMade = WaitWord(.max)
        let child = try HostThread(name: "made") { policyOfMade.store(UInt32(sched_getscheduler(0))) }
        child.join()
        #expect(policyOfMade.load() == SCHED_OTHER)
        if isPermitted {
            let more = HostThread.Detour(to: HostThread.currentProcessor, haste: .mostUrgent)
            #expect(try more.isMoved && scheduling()[1] == "\(99 - 3)", "above those that are only urgent")
            more.end()
        } else {
            #expect(during.first == ordinary && during.last == (before.count == 3 ? "100000" : before.last))
        }
        detour.end()
        #expect(try scheduling() == before)

        // Another thread's.
        let sleeper = try Sleeper()
        let other = sleeper.identifier
        var seen: [CInt] = []
        func look() {
            var parameters = sched_param()
            sched_getparam(other, &parameters)
            seen += [sched_getscheduler(other) & 0xffff, parameters.sched_priority]
        }
        let preferred = HostThread.Detour(hastening: other, .preferred)
        #expect((preferred != nil) == mayHasten)
        look()
        let hastened = HostThread.Detour(hastening: other, .urgent)
        #expect((hastened != nil) == mayHasten)
        look()
        #expect(HostThread.Detour(hastening: other, .preferred) == nil || !mayHasten, "it is more than that")
        hastened?.end()
        look()
        preferred?.end()
        #expect(seen == (mayHasten ? [SCHED_RR, 1, SCHED_RR, 2, SCHED_RR, 1] : [0, 0, 0, 0, 0, 0]))
        #expect(sched_getscheduler(other) == SCHED_OTHER)
        sleeper.end()

        // Whoever has one processor only would wait for those that it keeps from running.
        let alone = HostThread.keeping(to: HostThread.currentProcessor) { HostThread.Haste.urgent.whereOthersHaveRoom }
        #expect(alone == .shortTurns)
        #expect(HostThread.Haste.none.whereOthersHaveRoom == .none)
    }

    @Test("a thread keeps to a processor for a while, or away from some, and afterwards runs where it might")
    func keptToProcessor() throws {
        func list(_ status: String) throws -> String? {
            let text = String(decoding: try FileNames.contents(of: status), as: UTF8.self)
            return text.split(separator: "\n").first { $0.hasPrefix("Cpus_allowed_list:") }.map(String.init)
        }
        func allowed() throws -> String? { try list("/proc/thread-self/status") }
        func allowedElsewhere(_ thread: CInt) throws -> String? { try list("/proc/\(thread)/status") }
        let before = try allowed()
        let here = HostThread.currentProcessor
        let inside = try HostThread.keeping(to: here) { (try allowed(), HostThread.currentProcessor) }
        #expect(inside.0?.hasSuffix("\t\(here)") == true && inside.1 == here)
        #expect(try allowed() == before)
        #expect(try HostThread.keeping(to: -1) { try allowed() } == before)
        #expect(try HostThread.avoiding([]) { try allowed() } == before)
        #expect(try HostThread.avoiding(Array(0...1023)) { try allowed() } == before, "there is no other")
        // Another thread's, for a while.
        let kept = try Sleeper()
        let own = try allowedElsewhere(kept.identifier)
        let detour = HostThread.Detour(of: kept.identifier, to: here)
        #expect(try detour.isMoved && allowedElsewhere(kept.identifier)?.hasSuffix("\t\(here)") == true)
        detour.end()
        #expect(try allowedElsewhere(kept.identifier) == own && allowed() == before)
        kept.end()
        // And for good.
        let made = try HostThread.keeping(to: here) { try Sleeper() }
        HostThread.shareProcessors(withThread: made.identifier)
        let text = String(decoding: try FileNames.contents(of: "/proc/\(made.identifier)/status"), as: UTF8.self)
        #expect(before != nil && text.split(separator: "\n").contains { $0 == before! })
        made.end()
        let elsewhere = try HostThread.avoiding([here]) { (try allowed(), HostThread.currentProcessor) }
        if elsewhere.0 != before { #expect(elsewhere.1 != here) }
        #expect(try allowed() == before)
    }

    @Test("a process's state and its threads' processors are asked for in a hurry") func state() throws {
        let child = try ChildProcess(path: "/bin/sleep", arguments: ["600"])
        defer {
            child.kill()
            _ = child.wait()
        }
        let files = ProcessFiles(child.processIdentifier)
        let state = try files.openState()
        #expect(!ProcessFiles.isStopped(state))
        child.signal(SIGSTOP)
        for _ in 0..<1000 where !ProcessFiles.isStopped(state) { ProcessSignal.sleep(milliseconds: 1) }
        #expect(ProcessFiles.isStopped(state))
        let processor = try #require(try files.processor(ofThread: child.processIdentifier))
        #expect(processor >= 0)
        child.kill()
        _ = child.wait()
        #expect(!ProcessFiles.isStopped(state))
    }

    @Test("a unix socket path is private and unreachable paths say why")
    func unixListener() throws {
        let path = "/tmp/sidestep-listen-\(getpid())"
        let listener = try StreamSocket.listen(at: .unix(path: path))
        defer { unlink(path) }
        var status = stat()
        #expect(stat(path, &status) == 0 && status.st_mode & 0o077 == 0)
        let client = try StreamSocket.connect(to: .unix(path: path))
        let accepted = try StreamSocket.accept(from: listener)
        #expect(try StreamSocket.peerCredentials(of: accepted).process == getpid())
        withExtendedLifetime(client) {}
        #expect(throws: SystemCallError.self) { try StreamSocket.connect(to: .unix(path: "/nonexistent/x")) }
        #expect(throws: SystemCallError.self) { try StreamSocket.listen(at: .unix(path: path)) }
    }
}

/// A thread that sleeps until it is told to end.
private struct Sleeper {
    /// The kernel's number of it.
    let identifier: CInt
    private let thread: HostThread
    private let isToEnd = WaitWord()

    init() throws {
        let known = WaitWord()
        thread = try HostThread(name: "sleeper") { [isToEnd] in
            known.store(UInt32(HostThread.currentIdentifier))
            while isToEnd.load() == 0 { isToEnd.wait(while: 0) }
        }
        known.sleep(while: 0, nanoseconds: 10_000_000_000)
        identifier = CInt(known.load())
    }

    func end() {
        isToEnd.store(1)
        thread.join()
    }
}
