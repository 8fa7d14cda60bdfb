import LinuxCalls
import MigrationChannels
import MigrationEngine
import MigrationStream
import ProcessTestKit
import Testing

/// A running QEMU whose stream is damaged on the way to Sidestep, by somebody who passes the return path on.
@Suite(
    "A stock source whose stream is damaged on the way", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"),
    .enabled(if: Requirement.qemu.isMet, "\(Requirement.qemu)"))
struct DamagedSourceTests {
    private struct Damager: StreamRelay.Rewriter {
        var damage: Damage
        var index: Int
        var isComplete = false
        private(set) var section: UnreadSection?

        init(_ damage: Damage, _ index: Int) {
            self.damage = damage
            self.index = index
        }

        var passesSwitchoverStart: Bool { true }
        var hints: [String] { [] }
        func drops(block name: String) -> Bool { false }
        func look(at page: UnsafeRawBufferPointer, block: String, offset: UInt64) {}

        mutating func rewrite(_ sections: [UnreadSection], _ description: inout VMDescription?) -> [UnreadSection] {
            var sections = sections
            guard index < sections.count else {
                isComplete = true
                return sections
            }
            section = sections[index]
            switch damage {
            case .missing: sections.remove(at: index)
            case .doubled: sections.insert(sections[index], at: index)
            case .cut: sections[index].body.removeLast()
            case .tooLong: sections[index].body.append(0)
            case .otherVersion: sections[index].header.version += 90
            }
            return sections
        }
    }

    enum Damage: CaseIterable { case missing, doubled, cut, tooLong, otherVersion }

    @Test(
        "its guest runs on there each time, the refusal names the section, and the last attempt, whole, is taken",
        arguments: StockKind.releases.map { StockKind(release: $0, harts: 2) }.filter(\.isHere))
    func walked(kind: StockKind) throws {
        let run = try MonitorRun()
        let stock = try PeerMachine(kind, in: run, disk: nil, name: "stock", guest: ["-bios", Heartbeat.elf])
        try stock.program.wait(for: "tick 3 ", seconds: 60)
        var index = 0
        while true {
            // All kinds of damage for all sections with SIDESTEP_FULL; else each section is missing, and damaged in one other way.
            let others = Array(Damage.allCases.dropFirst())
            let kinds = StockPeerTests.isFull ? Damage.allCases : [.missing, others[index % others.count]]
            for damage in kinds {
                let what = "\(kind): section \(index) \(damage)"
                let place = run.directory.file("in")
                let receiver = try RunningProgram(
                    Checkout.tool, ["receive", "guest", "unix:\(place)", "--console", "stdio"], name: "sidestep",
                    environment: run.environment)
                try waitForSocket(place)
                let middle = run.directory.file("middle")
                let listener = try StreamSocket.listen(at: .unix(path: middle))
                defer { _ = try? HostTools.run("rm", ["-f", middle]) }
                try stock.startMigration(to: "unix:\(middle)", returnPath: true)
                let relay = StreamRelay(
                    from: try DescriptorTransport(name: "source", socket: try StreamSocket.accept(from: listener)),
                    to: try DescriptorTransport(
                        name: "destination", socket: try StreamSocket.connect(to: .unix(path: place))))
                var damager = Damager(damage, index)
                do {
                    try relay.run(&damager)
                    #expect(damager.isComplete, "\(what) was taken")
                } catch { #expect(!damager.isComplete, "the whole stream was not taken: \(error)") }
                let answer = try stock.waitForMigration()
                if damager.isComplete {
                    #expect(index > 8 && answer.hasLeft, "\(answer)")
                    try receiver.wait(for: "tick ", seconds: 60)
                    try receiver.type("p")
                    let statistics = try HeartbeatStatistics(receiver.wait(for: "stats ", seconds: 60))
                    #expect(statistics.bad == 0 && statistics.rounds > 0)
                    return
                }
                let name = damager.section?.header.name ?? "?"
                #expect(answer.status == "failed" && answer.runState == "running", "\(what), \(name): \(answer)")
                let end = try receiver.waitForEnd(seconds: 60)
                #expect([.exited(status: 65), .exited(status: 84)].contains(end), "\(what), \(name): \(end)")
                try? receiver.errors.wait(seconds: 30, what: "its end") { _ in nil as Void? }
                #expect(receiver.errors.text.contains(name), "\(what), \(name): \(receiver.errors.text)")
                #expect(!receiver.output.text.contains("tick"), "\(what), \(name)")
                stock.program.output.skipToEnd()
                try stock.program.wait(for: "tick ", seconds: 60)
            }
            index += 1
        }
    }
}
