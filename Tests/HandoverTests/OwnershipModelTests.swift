import Foundation
import Testing

/// Runs a command; answers its exit status and everything it printed.
private func run(_ command: [String], in directory: URL) throws -> (status: Int32, output: String) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = command
    process.currentDirectoryURL = directory
    let pipe = Pipe()
    process.standardOutput = pipe
    process.standardError = pipe
    try process.run()
    let output = pipe.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return (process.terminationStatus, String(decoding: output, as: UTF8.self))
}

private let hasSpin =
    (try? run(["sh", "-c", "command -v spin && command -v cc"], in: URL(fileURLWithPath: "/")))?.status == 0

@Suite(
    "The ownership protocol, model-checked",
    .enabled(if: hasSpin, "spin and a C compiler are not installed (Debian: spin, gcc)"))
struct OwnershipModelTests {
    /// Errors that spin finds in the model, after `edit` changed its text.
    func errors(editing edit: (String) -> String = { $0 }) throws -> Int {
        let model = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("../../Documentation/model/ownership.pml")
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent("model-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: directory) }
        let text = edit(try String(contentsOf: model, encoding: .utf8))
        try text.write(to: directory.appendingPathComponent("model.pml"), atomically: true, encoding: .utf8)
        // -o2: keep variables that are only written, the assertions read them.
        let made = try run(["sh", "-c", "spin -a -o2 model.pml && cc -DSAFETY -o pan pan.c"], in: directory)
        #expect(made.status == 0, "\(made.output)")
        let checked = try run(["./pan"], in: directory)
        let match = try #require(checked.output.firstMatch(of: /errors: (\d+)/))
        return try #require(Int(match.1))
    }

    @Test("never two runners, and never none while a living process could run the guest")
    func holds() throws { #expect(try errors() == 0) }

    @Test("the check can fail: a destination that does not look at the word would make two runners")
    func blindClaim() throws {
        let broken = try errors {
            $0.replacingOccurrences(of: "atomic { word == OFFERED -> word = DESTINATION }", with: "word = DESTINATION")
        }
        #expect(broken > 0)
    }

    @Test("the check can fail: a source that resumes without taking its offer back would make two runners")
    func blindResume() throws {
        let broken = try errors {
            $0.replacingOccurrences(
                of: "atomic { word == OFFERED -> word = SOURCE }; goto resume", with: "skip; goto resume")
        }
        #expect(broken > 0)
    }

    @Test("the check can fail: a destination that gives up when the source dies after its offer would lose the guest")
    func lostOffer() throws {
        let broken = try errors {
            $0.replacingOccurrences(
                of: ":: !sourceAlive || sourceDone -> skip\n", with: ":: !sourceAlive || sourceDone -> goto notOurs\n")
        }
        #expect(broken > 0)
    }
}
