import LinuxCalls
import ProcessTestKit
import Testing

/// Debian's guest on a PC of stock QEMU: what it is started with, and what it can say about itself.
enum DebianPC {
    static let shared = ["-object", "memory-backend-memfd,id=ram,size=256M,share=on", "-m", "256M"]
    static let machineOfMemory = ",memory-backend=ram"

    /// Boots Debian's kernel to a shell.
    /// - Parameter accelerator: With more than one processor, ``turns``.
    static func boot(words: String = "", accelerator: String = "tcg") -> [String] {
        [
            "-kernel", DebianGuest.pcImage, "-initrd", DebianGuest.pcInitramfsWithDisk, "-append",
            "\(DebianGuest.words) quiet notick \(words)", "-accel", accelerator,
        ]
    }

    /// Several processors take turns on one thread. With a thread each, QEMU 7.2 now and then lets one of them run into the breakpoint with
    /// which the other changes code, and Debian's kernel ends at boot: `Oops: int3`.
    static let turns = "tcg,thread=single"

    /// A busy loop and a memory checker go on all the time, a file system is mounted, and a shell on the console remembers.
    static func prepare(_ console: Console, disk: String) throws {
        try console.output.wait(for: "~ # ", seconds: 240, partial: true)
        try console.ask(
            "modules ext4; mkdir -p /mnt; mount -t ext4 \(disk) /mnt; (while :; do :; done) & memory-test 4 0 >/tmp/m 2>&1 & "
                + "x=kept; dd if=/dev/urandom of=/mnt/from-guest bs=64k count=8 2>/dev/null; "
                + "md5sum </mnt/from-guest >/mnt/from-guest.md5", seconds: 120)
    }

    /// Memory, shell, disk and processes are as they were; answers the guest's uptime in seconds.
    static func check(_ console: Console, round: Int) throws -> Double {
        try console.type(
            "echo round-\(round) >>/mnt/rounds; sync; echo 3 >/proc/sys/vm/drop_caches; "
                + "a=$(md5sum </mnt/from-guest); b=$(cat /mnt/from-guest.md5); jobs >/tmp/j; "
                + "[ \"$a\" = \"$b\" ] && [ $x = kept ] && [ $(wc -l </mnt/rounds) = \(round) ] "
                + "&& ! grep -qi bad /tmp/m && [ $(grep -c Running /tmp/j) -ge 2 ] "
                + "&& echo sa''me \(round) $(cut -d' ' -f1 /proc/uptime) $((1 + 1)) || echo dif''fers $(jobs) $(cat /tmp/m)\n"
        )
        let line = try console.output.wait(seconds: 120, what: "the answer of round \(round)") { line in
            line.hasPrefix("same \(round) ") && line.hasSuffix(" 2") || line.hasPrefix("differs") ? line : nil
        }
        let words = line.split(separator: " ")
        return try #require(words.count == 4 ? Double(words[2]) : nil, "\(line)")
    }

    static func finish(_ console: Console) throws {
        try console.ask("cd /; kill %1 %2; umount /mnt", seconds: 60)
        try console.type("poweroff -f\n")
    }

    static let tools: [Requirement] = [.tool, .stockPC, .debianPC]
}

/// Guests whose firmware alone runs: for everything that needs a process and no system in it.
enum FirmwarePC {
    static func arguments(machine: String = "pc", memory: [String] = DebianPC.shared) -> [String] {
        ["-M", machine + (memory == DebianPC.shared ? DebianPC.machineOfMemory : ""), "-accel", "tcg"] + memory
    }
}
