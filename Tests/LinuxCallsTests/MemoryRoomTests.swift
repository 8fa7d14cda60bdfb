import Foundation
import LinuxCalls
import Testing

/// The second version's files are written here, because a machine has its memory controller in one hierarchy only; the
/// real ones of this machine are walked by `ScarcityTests`.
@Suite("How much memory is left")
struct MemoryRoomTests {
    /// A root directory with `files` in it.
    private final class Tree {
        let root = NSTemporaryDirectory() + "sidestep-room-\(UUID().uuidString)"
        init(_ files: [String: String]) throws {
            for (path, text) in files {
                let url = URL(fileURLWithPath: root + path)
                try FileManager.default.createDirectory(
                    at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
                try text.write(to: url, atomically: false, encoding: .utf8)
            }
        }
        deinit { try? FileManager.default.removeItem(atPath: root) }
    }

    private static let host = ["/proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable:  4000000 kB\nSwapFree:  0 kB\n"]
    private static let unified = host.merging([
        "/proc/self/cgroup": "0::/a b/c\n",
        "/proc/self/mountinfo":
            "25 20 0:22 / /sys/fs/c\\040g rw - cgroup2 cgroup2 rw\n26 20 0:23 / / rw - ext4 /dev/x rw\n",
        "/sys/fs/c g/a b/memory.max": "104857600\n", "/sys/fs/c g/a b/memory.current": "94371840\n",
        "/sys/fs/c g/a b/memory.stat": "inactive_file 0\n",
        "/sys/fs/c g/a b/c/memory.max": "max\n", "/sys/fs/c g/a b/c/memory.current": "94371840\n",
    ]) { $1 }

    @Test("the narrowest group above the process decides, wherever it is mounted")
    func narrowest() throws {
        let tree = try Tree(Self.unified)
        let room = MemoryRoom(root: tree.root)
        #expect(room.directories == ["/sys/fs/c g/a b/c", "/sys/fs/c g/a b", "/sys/fs/c g"])
        let answer = try #require(room.narrowest())
        #expect(answer.byteCount == 10 << 20 && answer.limitByteCount == 100 << 20 && answer.place == "/sys/fs/c g/a b")
    }

    @Test("clean pages of files and swap space count; what is mapped, dirty or shared memory does not")
    func reclaimable() throws {
        let tree = try Tree(
            Self.unified.merging([
                "/sys/fs/c g/a b/memory.stat":
                    "inactive_file 9437184\nactive_file 3145728\nfile_dirty 1048576\nfile_writeback 1048576\n"
                    + "file_mapped 6291456\nshmem 4194304\n",
                "/sys/fs/c g/a b/memory.swap.max": "5242880\n", "/sys/fs/c g/a b/memory.swap.current": "1048576\n",
                "/proc/meminfo": "MemAvailable:  4000000 kB\nSwapFree:  1000000 kB\n",
            ]) { $1 })
        let room = MemoryRoom(root: tree.root)
        #expect(room.narrowest()?.byteCount == (10 + 9 + 3 - 1 - 1 - 2 + 4) << 20)
        #expect(room.narrowest(enough: 5 << 20)?.byteCount == 10 << 20, "enough without the hard part")
    }

    @Test("the first version's hierarchy, seen from inside a container")
    func firstVersion() throws {
        let tree = try Tree(
            Self.host.merging([
                "/proc/self/cgroup": "9:cpu,cpuacct:/x\n4:hugetlb,memory:/outer/inner/deep\n0::/\n",
                "/proc/self/mountinfo":
                    "30 20 0:30 / /u rw - cgroup2 none rw\n25 20 0:22 /outer/inner /m rw shared:3 - cgroup cgroup rw,memory\n",
                "/m/deep/memory.limit_in_bytes": "9223372036854771712\n", "/m/deep/memory.usage_in_bytes": "5\n",
                "/m/memory.limit_in_bytes": "20971520\n", "/m/memory.usage_in_bytes": "31457280\n",
            ]) { $1 })
        let room = MemoryRoom(root: tree.root)
        #expect(room.directories == ["/m/deep", "/m"])
        let answer = try #require(room.narrowest())
        #expect(answer.byteCount == 0 && answer.limitByteCount == 20 << 20 && answer.place == "/m")
    }

    @Test("without groups the host decides; a group that cannot be seen is not guessed at")
    func without() throws {
        let bare = try Tree(Self.host)
        #expect(MemoryRoom(root: bare.root).narrowest()?.byteCount == 4_000_000 << 10)
        let outside = try Tree(
            Self.host.merging([
                "/proc/self/cgroup": "0::/../elsewhere\n",
                "/proc/self/mountinfo": "25 20 0:22 / /g rw - cgroup2 cgroup2 rw\nnonsense\n",
            ]) { $1 })
        #expect(MemoryRoom(root: outside.root).directories == ["/g"])
        #expect(MemoryRoom(root: "/nowhere").narrowest() == nil)
    }

    @Test("this machine's own")
    func here() throws {
        let answer = try #require(MemoryRoom().narrowest())
        #expect(answer.byteCount > 0)
    }
}
