import Foundation
import LinuxCalls
import Testing

@Suite("Processes that are started to take over") struct SuccessorProcessTests {
    @Test("a child is the first to go when memory runs out, from its first instruction on; what fails is told")
    func outOfMemoryPriority() throws {
        let (readEnd, writeEnd) = try OwnedDescriptor.pipe()
        let before = OutOfMemoryPriority.current
        // Of the program itself: a shell blocks signals for moments of its own.
        let child = try ChildProcess(
            path: "/bin/grep",
            arguments: ["-h", "-e", "^[0-9-]", "-e", "^SigBlk", "/proc/self/oom_score_adj", "/proc/self/status"],
            descriptors: [1: writeEnd], outOfMemoryPriority: OutOfMemoryPriority.first)
        #expect(child.wait(timeoutMilliseconds: 30_000) == .exited(status: 0))
        let other = try ChildProcess(
            path: "/bin/sh", arguments: ["-c", "echo here >&7"], descriptors: [7: writeEnd],
            outOfMemoryPriority: OutOfMemoryPriority.first)
        #expect(other.wait(timeoutMilliseconds: 30_000) == .exited(status: 0))
        var buffer = [UInt8](repeating: 0, count: 256)
        let count = try buffer.withUnsafeMutableBytes { try readEnd.read(into: $0) }
        let text = String(decoding: buffer[..<count], as: UTF8.self)
        #expect(text == "1000\nSigBlk:\t0000000000000000\nhere\n")
        #expect(OutOfMemoryPriority.current == before, "ours is what it was")
        let failure = #expect(throws: SystemCallError.self) {
            try ChildProcess(path: "/nowhere", arguments: [], outOfMemoryPriority: OutOfMemoryPriority.first)
        }
        #expect(failure?.errno == .noSuchFileOrDirectory)
    }

    @Test("an orphan is not our child from the beginning, and its end is seen all the same; what fails is told")
    func orphan() throws {
        let orphan = try ChildProcess(
            path: "/bin/sleep", arguments: ["100"], outOfMemoryPriority: OutOfMemoryPriority.first, isOrphan: true)
        let status = try String(contentsOfFile: "/proc/\(orphan.processIdentifier)/status", encoding: .utf8)
        let parent = status.split(separator: "\n").first { $0.hasPrefix("PPid:") }?.split(separator: "\t").last
        #expect(parent != nil && parent.flatMap { Int32($0) } != getpid())
        #expect(orphan.wait(timeoutMilliseconds: 0) == nil)
        orphan.kill()
        #expect(try orphan.processDescriptor.waitUntilReady(for: Int16(POLLIN), timeoutMilliseconds: 10_000) != 0)
        #expect(orphan.wait() == nil, "how it ended is told to its parent")
        let failure = #expect(throws: SystemCallError.self) {
            try ChildProcess(
                path: "/nowhere", arguments: [], outOfMemoryPriority: OutOfMemoryPriority.first, isOrphan: true)
        }
        #expect(failure?.errno == .noSuchFileOrDirectory)
    }

    @Test("an orphan has a session, a directory and descriptors of its own, and our priority unless it is given one")
    func orphanOfItsOwn() throws {
        let (readEnd, writeEnd) = try OwnedDescriptor.pipe()
        let orphan = try ChildProcess(
            path: "/bin/sh",
            arguments: [
                "-c",
                "read -r pid name state parent group session rest </proc/self/stat; echo $pid $session; pwd; cat /proc/self/oom_score_adj",
            ],
            descriptors: [1: writeEnd], newSession: true, directory: "/usr/lib", isOrphan: true)
        #expect(try orphan.processDescriptor.waitUntilReady(for: Int16(POLLIN), timeoutMilliseconds: 30_000) != 0)
        var buffer = [UInt8](repeating: 0, count: 256)
        let count = try buffer.withUnsafeMutableBytes { try readEnd.read(into: $0) }
        let number = orphan.processIdentifier
        let priority = try #require(OutOfMemoryPriority.current)
        #expect(String(decoding: buffer[..<count], as: UTF8.self) == "\(number) \(number)\n/usr/lib\n\(priority)\n")
        let failure = #expect(throws: SystemCallError.self) {
            try ChildProcess(path: "/bin/true", arguments: [], directory: "/nowhere", isOrphan: true)
        }
        #expect(failure?.errno == .noSuchFileOrDirectory)
    }
}
