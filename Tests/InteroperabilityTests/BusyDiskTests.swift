import ProcessTestKit
import Testing

/// A guest that writes to its disk without a pause, from here to stock QEMU and back.
@Suite(
    "A guest with a busy disk", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"),
    .enabled(if: Requirement.firmware.isMet, "\(Requirement.firmware)"),
    .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"))
struct BusyDiskTests {
    /// What both sides have, named as each wants it.
    private static let isa = "rv64imafdc"
    private static let processor =
        "rv64,h=off,zba=off,zbb=off,zbc=off,zbs=off,sstc=off,Zihintpause=off,pmu-num=0"

    private static let becomeBusy =
        "while :; do dd if=/tmp/f of=/dev/vda bs=4k count=1024 conv=fsync 2>/dev/null; done &\n"
    /// Writes, flushes, forgets, reads back and compares; then draws from the entropy device.
    private static let check =
        "\nkill $!; wait; sync; dd if=/tmp/f of=/dev/vda bs=64k count=64 conv=fsync 2>/dev/null; "
        + "echo 3 >/proc/sys/vm/drop_caches; a=$(md5sum </tmp/f); "
        + "b=$(dd if=/dev/vda bs=64k count=64 2>/dev/null | md5sum); [ \"$a\" = \"$b\" ] && "
        + "[ $(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c) = 64 ] && echo sa''me $((1 + 1)) || echo dif''fers\n"

    @Test("goes to QEMU 7.2 and comes back; every request is done, once", arguments: ["modern", "legacy"])
    func thereAndBack(generation: String) throws {
        let run = try MonitorRun()
        let disk = run.directory.file("disk")
        try HostTools.need("truncate", ["-s", "8M", disk])
        let source = try run.debian(
            words: "quiet notick", ["--isa", Self.isa, "--virtio", generation, "--disk", "path=\(disk)"])
        try source.wait(for: "~ # ", seconds: 120, partial: true)
        try source.type("dd if=/dev/urandom of=/tmp/f bs=64k count=64; echo made $((1 + 1))\n")
        try source.wait(for: "made 2", seconds: 60)
        try source.type(Self.becomeBusy)

        // QEMU locks its images in its own way, so each process has a copy; the guest writes everything again.
        try HostTools.need("cp", [disk, "\(disk).qemu"])
        let there = run.directory.file("there")
        let stock = try RunningProgram(
            StockQEMUBuild.installed,
            [
                "-M", "virt", "-m", "256M", "-accel", "tcg", "-cpu", Self.processor, "-bios", "none", "-nic", "none",
                "-display", "none", "-serial", "mon:stdio", "-global",
                "virtio-mmio.force-legacy=\(generation == "legacy")", "-drive",
                "if=none,id=d,format=raw,file=\(disk).qemu", "-device", "virtio-blk-device,drive=d", "-device",
                "virtio-rng-device", "-incoming", "unix:\(there)",
            ])
        try waitForSocket(there)
        let move = try run.command(["migrate", "guest", "unix:\(there)", "--parameter", "x-layout=qemu-7.2"])
        #expect(move.end == .exited(status: 0), "\(move.errors)")
        try stock.type(Self.check)
        try stock.wait(for: "same 2", seconds: 120)

        try stock.type(Self.becomeBusy)
        try HostTools.need("cp", ["\(disk).qemu", "\(disk).back"])
        let back = run.directory.file("back")
        let destination = try run.start(
            [
                "--memory", "256M", "--isa", Self.isa, "--virtio", generation, "--disk", "path=\(disk).back",
                "--incoming", "unix:\(back)",
            ], name: "back")
        try waitForSocket(back)
        try stock.type("\u{01}c")
        try stock.type("migrate -d unix:\(back)\n")
        try destination.type(Self.check)
        try destination.wait(for: "same 2", seconds: 120)
        try destination.type("poweroff -f\n")
        #expect(try destination.waitForEnd(seconds: 60) == .exited(status: 0))
    }
}
