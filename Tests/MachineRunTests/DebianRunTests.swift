import LinuxCalls
import ProcessTestKit
import Testing

/// The register layouts of the virtio slots.
let generations = ["modern", "legacy"]

@Suite(
    "Debian's kernel under the tool", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
    .enabled(if: Requirement.firmware.isMet, "\(Requirement.firmware)"))
struct DebianRunTests {
    static let bootSeconds = 120.0

    @Test("it boots to a shell and powers off with status 0", arguments: [1, 4], generations)
    func bootsToShell(harts: Int, generation: String) throws {
        let run = try MonitorRun()
        let guest = try run.debian(words: "quiet notick", ["--cpus", "\(harts)", "--virtio", generation])
        try guest.wait(for: "INIT UP", seconds: Self.bootSeconds)
        try guest.wait(for: "MODULES", seconds: Self.bootSeconds)
        try guest.wait(for: "~ # ", seconds: 60, partial: true)
        try guest.type("echo harts=$(grep -c ^processor /proc/cpuinfo)\n")
        try guest.wait(for: "harts=\(harts)", seconds: 60)
        try guest.type("poweroff -f\n")
        #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0))
        #expect(guest.errors.text.isEmpty)
    }

    @Test("memory holds while four harts use it")
    func memoryHolds() throws {
        let run = try MonitorRun()
        let guest = try run.debian(words: "quiet nomod notick load=memory", ["--cpus", "4"])
        try guest.wait(for: "~ # ", seconds: Self.bootSeconds, partial: true)
        try guest.type("for i in 1 2 3; do memory-test 3 5 & done; wait; echo all $((1 + 1))\n")
        try guest.wait(for: "all 2", seconds: 180)
        #expect(!guest.output.text.contains("MEMORY BAD"))
        #expect(guest.output.text.contains("MEMORY OK 5 3"))
        try guest.type("poweroff -f\n")
        #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0))
    }

    @Test("it reboots on request")
    func reboots() throws {
        let run = try MonitorRun()
        let guest = try run.debian(words: "quiet nomod notick", ["--cpus", "2"])
        try guest.wait(for: "~ # ", seconds: Self.bootSeconds, partial: true)
        try guest.type("reboot -f\n")
        try guest.wait(for: "INIT UP", seconds: Self.bootSeconds)
        try guest.wait(for: "~ # ", seconds: 60, partial: true)
        try guest.type("poweroff -f\n")
        #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0))
    }

    @Test("a file system on its disk is read and written, and the host finds it clean", arguments: generations)
    func disk(generation: String) throws {
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let guest = try run.debian(
            words: "quiet noshell ntick=1 run=disk-test+/dev/vda+2048", withDisk: true,
            ["--disk", "path=\(disk.path)", "--virtio", generation])
        let line = try guest.wait(for: "DISK ", seconds: Self.bootSeconds)
        #expect(line == "DISK OK")
        #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0))
        #expect(try disk.isClean())
        #expect(try disk.holdsWhatTheGuestWrote())
    }

    @Test("a read-only disk can be read and stays as it is")
    func readOnlyDisk() throws {
        let run = try MonitorRun()
        let disk = try TestDisk(in: run.directory)
        let before = try HostTools.need("md5sum", [disk.path])
        let guest = try run.debian(
            words: "quiet notick", withDisk: true, ["--disk", "path=\(disk.path),readonly=on"])
        try guest.wait(for: "~ # ", seconds: Self.bootSeconds, partial: true)
        try guest.type("modules ext4; mount -t ext4 -o ro,noload /dev/vda /mnt && cd /mnt && md5sum -c from-host.md5\n")
        try guest.wait(for: "from-host: OK", seconds: 60)
        try guest.type("cat /sys/block/vda/ro; dd if=/dev/zero of=/dev/vda count=1 || echo refused $((1 + 1))\n")
        try guest.wait(for: "refused 2", seconds: 60)
        try guest.type("poweroff -f\n")
        #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0))
        #expect(try HostTools.need("md5sum", [disk.path]) == before)
    }

    @Test("two disks are told apart by their place on the command line")
    func twoDisks() throws {
        let run = try MonitorRun()
        let small = try TestDisk(in: run.directory, named: "small.img", diskMiB: 16)
        let large = try TestDisk(in: run.directory, named: "large.img", diskMiB: 32)
        let guest = try run.debian(
            words: "quiet notick", ["--disk", "path=\(small.path)", "--disk", "path=\(large.path)"])
        try guest.wait(for: "~ # ", seconds: Self.bootSeconds, partial: true)
        try guest.type("echo sizes $(cat /sys/block/vda/size /sys/block/vdb/size)\n")
        try guest.wait(for: "sizes 32768 65536", seconds: 60)
        try guest.type("poweroff -f\n")
        #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0))
    }

    @Test("it reads entropy from the host", arguments: generations)
    func entropy(generation: String) throws {
        let run = try MonitorRun()
        let guest = try run.debian(
            words: "quiet noshell ntick=1 run=entropy-test+4096", ["--virtio", generation])
        #expect(try guest.wait(for: "ENTROPY ", seconds: Self.bootSeconds).hasPrefix("ENTROPY OK"))
        #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0))
    }

    @Test("its clock goes as fast as the host's, and its date is the host's")
    func clocks() throws {
        let run = try MonitorRun()
        let guest = try run.debian(words: "quiet nomod notick")
        try guest.wait(for: "~ # ", seconds: Self.bootSeconds, partial: true)
        try guest.type("echo date $(date +%s)\n")
        let date = try guest.output.wait(seconds: 60, what: "the date") { line in
            line.firstMatch(of: /^date (\d+)/).flatMap { Int($0.1) }
        }
        let host = try #require(Int(HostTools.need("date", ["+%s"]).dropLast()))
        #expect(abs(host - date) <= 60)
        try guest.type("poweroff -f\n")
        #expect(try guest.waitForEnd(seconds: 60) == .exited(status: 0))
    }
}
