import DeviceModel
import Foundation
import HostBackends
import LinuxCalls
import Testing

@Suite("A raw disk image") struct RawFileTests {
    let scratch: Scratch

    init() throws { scratch = try Scratch() }

    private func bytes(_ disk: RawFileBackend, _ offset: UInt64, _ count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xee, count: count)
        try bytes.withUnsafeMutableBytes { try disk.read(offset: offset, into: $0) }
        return bytes
    }

    private func message(_ body: () throws -> Void) -> String {
        do {
            try body()
            return ""
        } catch { return "\(error)" }
    }

    /// Opens an image that was closed just now: a process that another test starts has the descriptor, and so the lock, until it
    /// is another program.
    private func reopened(_ path: String) throws -> RawFileBackend {
        let deadline = ContinuousClock.now + .seconds(30)
        while message({ _ = try RawFileBackend(path: path, isReadOnly: true) }).contains("in use"),
            ContinuousClock.now < deadline
        { usleep(1000) }
        return try RawFileBackend(path: path, isReadOnly: true)
    }

    @Test("what is written is read back, also after the image is opened again")
    func roundTrip() throws {
        let path = try scratch.file("disk", byteCount: 1 << 20)
        let data = (0..<5000).map { UInt8(truncatingIfNeeded: $0) }
        do {
            let disk = try RawFileBackend(path: path)
            #expect(disk.byteCount == 1 << 20 && !disk.isReadOnly)
            try data.withUnsafeBytes { try disk.write(offset: 1000, $0) }
            try disk.flush()
            #expect(try bytes(disk, 1000, 5000) == data)
        }
        #expect(try bytes(reopened(path), 1000, 5000) == data)
    }

    @Test("an image that is missing, no file, empty or not made of sectors is refused with a sentence")
    func refusals() throws {
        #expect(message { _ = try RawFileBackend(path: scratch.path + "/none") }.contains("No such file"))
        #expect(message { _ = try RawFileBackend(path: scratch.path, isReadOnly: true) }.contains("neither a file"))
        for count in [0, 1, 511, 513] {
            let path = try scratch.file("odd", byteCount: count)
            #expect(message { _ = try RawFileBackend(path: path) }.contains("\(count) bytes"))
        }
    }

    @Test("a writable image has one user; readers share")
    func locks() throws {
        let path = try scratch.file("disk", byteCount: 4096)
        do {
            let writer = try RawFileBackend(path: path)
            #expect(message { _ = try RawFileBackend(path: path) }.contains("in use"))
            #expect(message { _ = try RawFileBackend(path: path, isReadOnly: true) }.contains("in use"))
            withExtendedLifetime(writer) {}
        }
        let readers = try [reopened(path), RawFileBackend(path: path, isReadOnly: true)]
        #expect(message { _ = try RawFileBackend(path: path) }.contains("in use"))
        withExtendedLifetime(readers) {}
    }

    @Test("the lock can be taken late, and given up before another takes the guest")
    func lateLock() throws {
        let path = try scratch.file("disk", byteCount: 4096)
        let first = try RawFileBackend(path: path)
        let second = try RawFileBackend(path: path, isLocking: false)
        #expect(message { try second.lock() }.contains("in use"))
        try first.unlock()
        try second.lock()
        try second.lock()
        #expect(message { try first.lock() }.contains("in use"))
        try second.unlock()
        try first.lock()
    }

    @Test("who holds the lock is named")
    func namesHolder() throws {
        let path = try scratch.file("disk", byteCount: 4096)
        let (readEnd, writeEnd) = try OwnedDescriptor.pipe()
        // 37 is F_OFD_SETLK; struct flock: l_type 1 (F_WRLCK), l_whence 0, whole file.
        let script = """
            import fcntl, struct, sys, time
            f = open(sys.argv[1], 'r+b')
            fcntl.fcntl(f, 37, struct.pack('hhqqi4x', 1, 0, 0, 0, 0))
            print('locked', flush=True)
            time.sleep(60)
            """
        let holder = try Companion("/usr/bin/python3", ["-c", script, path], descriptors: [1: writeEnd])
        #expect(readText(6, from: readEnd) == "locked")
        let sentence = message { _ = try RawFileBackend(path: path) }
        #expect(sentence.contains("pid \(holder.child.processIdentifier)"), "\(sentence)")
    }

    @Test("the lock crosses with the descriptor: there is no moment without it")
    func handover() throws {
        let path = try scratch.file("disk", byteCount: 4096)
        var source: RawFileBackend? = try RawFileBackend(path: path)
        var handover: BackendHandover? = try cross(source!.handOver())
        let destination = try RawFileBackend(adopting: handover!)
        #expect(message { _ = try RawFileBackend(path: path) }.contains("in use"))
        source!.relinquish()
        source = nil
        handover = nil
        #expect(message { _ = try RawFileBackend(path: path) }.contains("in use"))
        try [UInt8](repeating: 7, count: 512).withUnsafeBytes { try destination.write(offset: 0, $0) }
        #expect(try bytes(destination, 0, 512) == [UInt8](repeating: 7, count: 512))
    }

    @Test("an adopted image that changed its size is refused")
    func adoptedSize() throws {
        let path = try scratch.file("disk", byteCount: 4096)
        let handover = try RawFileBackend(path: path).handOver()
        _ = try scratch.file("disk", byteCount: 8192)
        #expect(message { _ = try RawFileBackend(adopting: handover) }.contains("8192"))
    }

    @Test("discard gives space back and reads as zero; write-zeroes reads as zero")
    func clearing() throws {
        let path = try scratch.file("disk", byteCount: 1 << 20)
        let disk = try RawFileBackend(path: path)
        try [UInt8](repeating: 9, count: 1 << 20).withUnsafeBytes { try disk.write(offset: 0, $0) }
        try disk.flush()
        func blocks() -> Int {
            var status = stat()
            stat(path, &status)
            return Int(status.st_blocks)
        }
        let before = blocks()
        try disk.discard(offset: 0, byteCount: 512 << 10)
        if disk.supportsDiscard {
            #expect(blocks() < before)
            #expect(try bytes(disk, 0, 512 << 10).allSatisfy { $0 == 0 })
        }
        try disk.writeZeroes(offset: 600 << 10, byteCount: 100 << 10, mayUnmap: false)
        try disk.writeZeroes(offset: 800 << 10, byteCount: 1024, mayUnmap: true)
        #expect(try bytes(disk, 600 << 10, 100 << 10).allSatisfy { $0 == 0 })
        #expect(try bytes(disk, 800 << 10, 1024).allSatisfy { $0 == 0 })
        #expect(try bytes(disk, 700 << 10, 512) == [UInt8](repeating: 9, count: 512))
        #expect(throws: BackendError.self) { try disk.discard(offset: 1 << 20, byteCount: 512) }
        #expect(throws: BackendError.self) { try disk.discard(offset: .max, byteCount: .max) }
    }

    @Test("a full file system is an error with its number, and what fits still works")
    func noSpace() throws {
        let directory = scratch.path + "/small"
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
        guard mount("none", directory, "tmpfs", 0, "size=64k") == 0 else {
            print("skipped: mounting a small tmpfs is not permitted here")
            return
        }
        defer { umount2(directory, Int32(MNT_DETACH)) }
        let path = try scratch.file("small/disk", byteCount: 1 << 20)
        let disk = try RawFileBackend(path: path)
        let error = #expect(throws: BackendError.self) {
            try [UInt8](repeating: 1, count: 1 << 20).withUnsafeBytes { try disk.write(offset: 0, $0) }
        }
        #expect(error?.errorNumber == ENOSPC)
        #expect(try bytes(disk, 0, 512) == [UInt8](repeating: 1, count: 512))
    }

    @Test("an image that is cut short while it is used fails reads behind its end")
    func truncated() throws {
        let path = try scratch.file("disk", byteCount: 8192)
        let disk = try RawFileBackend(path: path)
        _ = try scratch.file("disk", byteCount: 4096)
        #expect(throws: BackendError.self) { _ = try bytes(disk, 4096, 512) }
        #expect(try bytes(disk, 0, 512).count == 512)
    }
}
