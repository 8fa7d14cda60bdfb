import Glibc
import LinuxCalls
import ProcessTestKit
import Testing

/// A riscv64 guest of stock QEMU, and how it changes process.
struct RISCVJourney: Sendable, CustomStringConvertible {
    let program: String
    let strategy: String
    /// For the guest's kernel: what keeps it busy.
    let load: String

    var description: String { "\(program.split(separator: "/").dropLast().last ?? ""), \(strategy)\(load)" }
}

@Suite(
    "Stock QEMU for other processors changes process", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.qemu10.isMet, "\(Requirement.qemu10)"),
    .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"),
    .enabled(if: Requirement.debian.isMet, "\(Requirement.debian)"))
struct OtherTargetTests {
    private static let seven = HostTools.path(of: StockQEMUBuild.installed) ?? ""
    static let journeys = [
        RISCVJourney(program: StockQEMUBuild.ten, strategy: "shared", load: " load=memory"),
        RISCVJourney(program: StockQEMUBuild.ten, strategy: "cpr", load: ""),
        RISCVJourney(program: seven, strategy: "precopy", load: " load=memory"),
    ]

    private func guest(_ journey: RISCVJourney, in directory: TemporaryDirectory) throws -> StockGuest {
        var board = "virt,memory-backend=ram"
        let memory: String
        switch journey.strategy {
        case "shared":
            let file = "/dev/shm/sidestep-test-\(getpid())"
            memory = "memory-backend-file,id=ram,size=256M,share=on,mem-path=\(file)"
        case "cpr":
            board += ",aux-ram-share=on"
            memory = "memory-backend-memfd,id=ram,size=256M,share=on"
        default: memory = "memory-backend-ram,id=ram,size=256M"
        }
        defer { unlink("/dev/shm/sidestep-test-\(getpid())") }
        return try StockGuest(
            journey.program,
            [
                "-M", board, "-m", "256M", "-object", memory, "-kernel", DebianGuest.image, "-initrd",
                DebianGuest.initramfs, "-append", "\(DebianGuest.words) quiet nomod\(journey.load)",
            ], in: directory)
    }

    @Test(
        "riscv64 virt ticks on by itself, on one console connection, with no line missing", arguments: journeys)
    func riscv(journey: RISCVJourney) throws {
        let guest = try guest(journey, in: TemporaryDirectory())
        func tick() throws -> Int {
            let line = try guest.console.output.wait(for: "TICK ", seconds: 120)
            // Behind a prompt, perhaps.
            let words = line.split(separator: " ").drop { !$0.hasSuffix("TICK") }
            return try #require(Int(words.dropFirst().first ?? ""), "\(line)")
        }
        var last = try tick()
        let check = try guest.check(to: journey.program)
        let timers = check.json.arrayValue?.first { $0["subject"]?.stringValue == "timers" }
        #expect(timers?["grade"]?.stringValue == "ok", "\(check.json.json)")
        // Nobody types: an interrupt from outside would have the guest set its timer itself.
        for _ in 1...4 {
            let answer = try guest.upgrade(to: journey.program, ["--strategy", journey.strategy])
            try #require(answer.isMoved, "\(answer.errors)")
            #expect(answer.notes.contains { $0.contains("serial0: its client stays connected") }, "\(answer.notes)")
            for _ in 1...3 {
                let next = try tick()
                #expect(next == last + 1, "not a line is missing")
                last = next
            }
            #expect(guest.processes().map(\.identifier) == [answer.newProcess])
        }
        #expect(!guest.console.output.text.contains("MEMORY BAD"))

        let postcopy = try guest.upgrade(to: journey.program, ["--strategy", "postcopy"])
        #expect(
            postcopy.end == .exited(status: 65) && postcopy.errors.contains("loses a riscv guest's timers"),
            "\(postcopy.errors)")
        // The state passes through the upgrade's own process: when that dies in the middle the guest stays, and ticks.
        let runner = try guest.runner()
        let upgrade = try guest.stoppedUpgrade(at: "moving", to: journey.program, ["--strategy", journey.strategy])
        upgrade.process.kill()
        try waitUntil(seconds: 60) {
            try guest.leftovers().isEmpty && guest.processes().count == 1 && (try? guest.status()) == "running"
        }
        #expect(try guest.runner() == runner)
        let next = try tick()
        #expect(next > last && guest.processes().map(\.identifier) == [runner])
    }
}
