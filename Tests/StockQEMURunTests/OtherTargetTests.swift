import Glibc
import LinuxCalls
import ProcessTestKit
import Testing

@Suite(
    "Stock QEMU for other processors changes process", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.qemu10.isMet, "\(Requirement.qemu10)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"))
struct OtherTargetTests {
    @Test(
        "riscv64 virt, 10.0 to 10.0: it ticks on, on one console connection, and its RAM is not copied",
        .enabled(
            if: Environment.all["SIDESTEP_FULL"] != nil,
            "a known fault of QEMU 10.0: an idle guest's timer may be lost on the way; SIDESTEP_FULL=1 runs it"))
    func riscv() throws {
        let directory = try TemporaryDirectory()
        let file = "/dev/shm/sidestep-test-\(getpid())"
        defer { unlink(file) }
        let guest = try StockGuest(
            StockQEMUBuild.ten,
            [
                "-M", "virt,memory-backend=ram", "-m", "256M", "-object",
                "memory-backend-file,id=ram,size=256M,share=on,mem-path=\(file)", "-kernel", DebianGuest.image,
                "-initrd", DebianGuest.initramfs, "-append", "\(DebianGuest.words) quiet nomod load=memory",
            ], in: directory)
        unlink(file)
        func tick() throws -> Int {
            let line = try guest.console.output.wait(for: "TICK ", seconds: 120)
            // Behind a prompt, perhaps.
            let words = line.split(separator: " ").drop { !$0.hasSuffix("TICK") }
            return try #require(Int(words.dropFirst().first ?? ""), "\(line)")
        }
        var last = try tick()
        for _ in 1...3 {
            let answer = try guest.upgrade(to: StockQEMUBuild.ten)
            try #require(answer.isMoved, "\(answer.errors)")
            #expect(answer.json["strategy"]?.stringValue == "shared")
            // This QEMU does not set the timer anew when a guest arrives; the next interrupt has the guest do it.
            try guest.console.type("\n")
            for _ in 1...3 {
                let next = try tick()
                #expect(next == last + 1, "not a line is missing")
                last = next
            }
            #expect(guest.processes().map(\.identifier) == [answer.newProcess])
        }
        #expect(!guest.console.output.text.contains("MEMORY BAD"))
    }
}
