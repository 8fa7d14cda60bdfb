import Glibc
import LinuxCalls
import ProcessTestKit
import Testing

@Suite(
    "Stock QEMU for other processors changes process", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.qemu10.isMet, "\(Requirement.qemu10)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct OtherTargetTests {
    @Test("riscv64 virt, 10.0 to 10.0: it ticks on, its memory holds, its RAM is not copied")
    func riscv() throws {
        let directory = try TemporaryDirectory()
        let file = "/dev/shm/sidestep-test-\(getpid())"
        defer { unlink(file) }
        let guest = try StockGuest(
            StockQEMUBuild.ten,
            [
                "-M", "virt,memory-backend=ram", "-m", "64M", "-object",
                "memory-backend-file,id=ram,size=64M,share=on,mem-path=\(file)", "-bios", Heartbeat.flat,
            ], in: directory)
        unlink(file)
        func tick() throws -> Int {
            let line = try guest.console.output.wait(for: "tick ", seconds: 60)
            return try #require(Int(line.split(separator: " ").dropFirst().first ?? ""), "\(line)")
        }
        var last = try tick()
        for _ in 1...3 {
            let answer = try guest.upgrade(to: StockQEMUBuild.ten)
            try #require(answer.isMoved, "\(answer.errors)")
            #expect(answer.json["strategy"]?.stringValue == "shared")
            let next = try tick()
            // On the one connection, not a line missing.
            #expect(next == last + 1)
            last = next
            #expect(guest.processes().map(\.identifier) == [answer.newProcess])
        }
        try guest.console.type("p")
        let line = try guest.console.output.wait(for: "stats", seconds: 30)
        #expect(HeartbeatStatistics(line).bad == 0, "\(line)")
    }
}
