import Foundation
import LinuxCalls
import ProcessTestKit
import Testing

/// What `sidestep upgrade --all --format json` prints.
private struct Total: Decodable {
    struct Guest: Decodable {
        let name: String
        let result: String
        let report: Report?
        let error: String?
    }
    let guests: [Guest]
    let upgraded: Int
    let rolledBack: Int
    let lost: Int
    let failed: Int

    enum CodingKeys: String, CodingKey {
        case guests, upgraded, lost, failed
        case rolledBack = "rolled-back"
    }
}

@Suite(
    "sidestep upgrade --all", .serialized, .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct UpgradeAllTests {
    private func upgradeAll(_ run: MonitorRun, _ more: [String] = []) throws -> (end: ProcessEnd, total: Total) {
        let result = try run.command(["upgrade", "--all", "--format", "json"] + more, seconds: 120)
        return (result.end, try JSONDecoder().decode(Total.self, from: Data(result.output.utf8)))
    }

    @Test("eight guests change process by one command, three at a time, and all go on; those that cannot stay")
    func all() throws {
        let run = try MonitorRun()
        #expect(try run.command(["upgrade", "--all"]).end == .exited(status: 66), "nobody runs")
        let names = (1...8).map { "guest\($0)" }
        var guests: [RunningProgram] = []
        for name in names {
            let backend = name == "guest5" ? "anonymous" : "memfd"
            guests.append(try run.heartbeat(["--memory", "16M", "--memory-backend", backend], name: name))
        }
        for guest in guests { try guest.wait(for: "tick 1 ", seconds: 120) }
        let (end, total) = try upgradeAll(run, ["--at-most", "3"])
        #expect(end == .exited(status: 0))
        #expect(total.guests.map(\.name) == names && total.upgraded == 8)
        #expect(total.rolledBack + total.lost + total.failed == 0)
        #expect(Set(total.guests.compactMap { $0.report?.process }).count == 8)
        #expect(total.guests[4].report?.channel == "page-flip")
        for guest in guests { try guest.wait(for: "tick ", seconds: 60) }

        // One whose program cannot take over: /bin/false, for all of them.
        let (none, refused) = try upgradeAll(run, ["--binary", "/bin/false"])
        #expect(none == .exited(status: 80) && refused.rolledBack == 8)
        #expect(refused.guests.allSatisfy { $0.error?.contains("unharmed") == true })
        // Some can and some cannot: by descriptor, while guest5 came back to anonymous memory.
        _ = try run.upgrade("guest5", ["--channel", "socket"])
        let (some, mixed) = try upgradeAll(run, ["--channel", "memfd"])
        #expect(some == .exited(status: 85) && mixed.upgraded == 7 && mixed.rolledBack == 1)
        #expect(mixed.guests[4].error?.contains("--channel page-flip") == true)

        let text = try run.command(["upgrade", "--all", "--at-most", "8"], seconds: 120)
        #expect(text.output.contains("8 of 8 guests upgraded in "), "\(text.output)")
        for guest in guests { try guest.endWhole() }
    }
}
