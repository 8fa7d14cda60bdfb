import ProcessTestKit
import Testing

/// What a live Debian guest has to say about itself, wherever it runs: a busy loop and a memory checker go on all the time, a
/// file system is mounted, and a shell on the console remembers.
struct LiveGuest {
    private static let preparation =
        "modules ext4; mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; (while :; do :; done) & memory-test 4 0 >/tmp/m 2>&1 & "
        + "x=kept; dd if=/dev/urandom of=/mnt/from-guest bs=64k count=8 2>/dev/null; md5sum </mnt/from-guest "
        + ">/mnt/from-guest.md5; echo prepared $((1 + 1))\n"
    private static let finish = "cd /; kill %1 %2; umount /mnt && echo unmounted $((1 + 1)); poweroff -f\n"

    /// How often it was asked.
    private(set) var count = 0
    private var last: (uptime: Double, at: ContinuousClock.Instant)?

    /// Waits for the shell of a guest that boots, and makes it busy.
    init(booting program: RunningProgram) throws {
        try program.wait(for: "~ # ", seconds: 240, partial: true)
        try program.type(Self.preparation)
        try program.wait(for: "prepared 2", seconds: 120)
    }

    /// Prints the time since boot, and that all is as it was.
    private static func question(_ round: Int) -> String {
        "echo round-\(round) >>/mnt/rounds; sync; jobs >/tmp/jobs; echo 3 >/proc/sys/vm/drop_caches; "
            + "a=$(md5sum </mnt/from-guest); b=$(cat /mnt/from-guest.md5); "
            + "[ \"$a\" = \"$b\" ] && [ $x = kept ] && [ $(wc -l </mnt/rounds) = \(round) ] "
            + "&& ! grep -qi -e bad -e wrong -e mismatch /tmp/m && [ $(grep -c Running /tmp/jobs) = 2 ] "
            + "&& echo sa''me $((\(round) + 0)) $(cut -d' ' -f1 /proc/uptime) end || echo dif''fers $a $b $x $(cat /mnt/rounds /tmp/jobs /tmp/m)\n"
    }

    /// Asks the guest, by the console of whoever has it now.
    mutating func check(_ program: RunningProgram, _ what: String) throws {
        count += 1
        let round = count
        program.output.skipToEnd()
        let asked = ContinuousClock.now
        try program.type(Self.question(round))
        let line: String
        do {
            line = try program.output.wait(seconds: 120, what: "the answer of round \(round)") { line in
                line.hasPrefix("same \(round) ") && line.hasSuffix(" end") || line.hasPrefix("differs") ? line : nil
            }
        } catch {
            throw ExpectationError.failed(command: what, end: "\(error)", output: program.errors.tail)
        }
        let words = line.split(separator: " ")
        let uptime = try #require(words.count == 4 ? Double(words[2]) : nil, "\(what): \(line)")
        // It goes on, and not by leaps: no more of its time has passed than of the host's.
        if let last {
            let passed = Double((ContinuousClock.now - last.at).components.seconds) + 1
            #expect(uptime >= last.uptime && uptime - last.uptime <= passed + 1, "\(what): \(last.uptime), \(uptime)")
        }
        last = (uptime, asked)
    }

    /// Unmounts and powers off.
    static func end(_ program: RunningProgram) throws {
        try program.type(finish)
        try program.wait(for: "unmounted 2", seconds: 120)
        try program.waitForEnd(seconds: 120)
    }
}
