import Foundation
import ProcessTestKit
import Testing

/// A copy of the tool that says it is another version: its stamp (see CBuildStamp) is written over. Everything it reads and
/// writes follows what the stamp says.
private func tool(in run: MonitorRun, version: String, states: ClosedRange<UInt32>) throws -> String {
    var file = try Data(contentsOf: URL(fileURLWithPath: Checkout.tool))
    let mark = Data("sidestep-stamp:".utf8) + [0]
    let place = try #require(file.range(of: mark), "the tool has no stamp")
    #expect(file.range(of: mark, in: place.upperBound..<file.endIndex) == nil, "two stamps")
    var stamp = Data()
    for value in [states.lowerBound, states.upperBound] {
        stamp += withUnsafeBytes(of: value.littleEndian) { Data($0) }
    }
    stamp += Data(version.utf8) + Data(count: 24 - version.utf8.count)
    file.replaceSubrange(place.upperBound..<(place.upperBound + stamp.count), with: stamp)
    let path = run.directory.file("sidestep-\(version)")
    #expect(FileManager.default.createFile(atPath: path, contents: file, attributes: [.posixPermissions: 0o755]))
    return path
}

/// What `sidestep inspect` tells of where a guest has been.
private struct Facts: Decodable {
    let version: String
    let moves: Int
    let startedBy: String?

    enum CodingKeys: String, CodingKey {
        case version, moves
        case startedBy = "started-by"
    }
}

@Suite(
    "sidestep upgrade to another version, and back", .serialized,
    .enabled(if: Requirement.tool.isMet, "\(Requirement.tool)"),
    .enabled(if: Requirement.heartbeat.isMet, "\(Requirement.heartbeat)"))
struct VersionTests {
    private func facts(_ run: MonitorRun) throws -> Facts {
        let answer = try run.command(["inspect", "guest", "--format", "json"])
        return try JSONDecoder().decode(Facts.self, from: Data(answer.output.utf8))
    }

    @Test(
        "a guest goes to a newer program and back, and again, with its history",
        arguments: [["--channel", "memfd"], ["--channel", "page-flip"], ["--channel", "socket"]])
    func newer(arguments: [String]) throws {
        let run = try MonitorRun()
        let next = try tool(in: run, version: "0.2.0", states: 2...3)
        #expect(try HostTools.need(next, ["--version"]).contains("0.2.0"))
        let guest = try run.heartbeat(["--cpus", "2"])
        try guest.wait(for: "tick 1 ", seconds: 60)
        let own = try facts(run)
        #expect(own.moves == 0 && own.startedBy == "sidestep \(own.version)")
        for round in 1...2 {
            _ = try run.upgrade("guest", ["--binary", next] + arguments)
            let there = try facts(run)
            #expect(there.version == "0.2.0" && there.moves == 2 * round - 1)
            #expect(there.startedBy == "sidestep \(own.version)")
            // Without --binary it stays what it is.
            if round == 1 { #expect(try run.command(["status", "guest"]).output.contains("running")) }
            _ = try run.upgrade("guest", ["--binary", Checkout.tool] + arguments)
            let back = try facts(run)
            #expect(back.version == own.version && back.moves == 2 * round && back.startedBy == own.startedBy)
        }
        try guest.endWhole()
    }

    @Test(
        "a guest goes to an older program, which gets the form of the state that it knows, and back",
        arguments: [1, 2, 3])
    func older(last: UInt32) throws {
        let run = try MonitorRun()
        let previous = try tool(in: run, version: "0.0.9", states: 1...last)
        let keepsHistory = last >= 2
        let guest = try run.heartbeat()
        try guest.wait(for: "tick 1 ", seconds: 60)
        _ = try run.upgrade()
        #expect(try facts(run).moves == 1)
        _ = try run.upgrade("guest", ["--binary", previous])
        let there = try facts(run)
        #expect(there.version == "0.0.9" && there.moves == (keepsHistory ? 2 : 1))
        #expect((there.startedBy != nil) == keepsHistory)
        _ = try run.upgrade()  // the file it was started from: still the old one
        #expect(try facts(run).version == "0.0.9")
        _ = try run.upgrade("guest", ["--binary", Checkout.tool])
        let back = try facts(run)
        #expect(back.version != "0.0.9" && (back.startedBy != nil) == keepsHistory)
        try guest.endWhole()
    }

    @Test("programs whose forms of the state have nothing in common: refused before the guest notices, in words")
    func mismatch() throws {
        let run = try MonitorRun()
        let far = try tool(in: run, version: "9.0.0", states: 7...9)
        let guest = try run.heartbeat()
        try guest.wait(for: "tick 1 ", seconds: 60)
        let own = try facts(run)
        let result = try run.command(["upgrade", "guest", "--binary", far])
        #expect(result.end == .exited(status: 80), "\(result.errors)")
        #expect(result.errors.contains("version 1 to 4, sidestep 9.0.0 in version 7 to 9"), "\(result.errors)")
        #expect(result.errors.contains("unharmed") && result.errors.split(separator: "\n").count == 1)
        #expect(try facts(run).version == own.version)
        _ = try run.upgrade()
        try guest.endWhole()
    }
}
