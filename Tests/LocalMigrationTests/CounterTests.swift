import Foundation
import Glibc
import ProcessTestKit
import Testing

@Suite("The library: the program that is shown") struct CounterTests {
    @Test(
        "README and DocC show the example as it is built",
        arguments: [
            "README.md", "Sources/LocalMigration/LocalMigration.docc/HandingOver.md",
        ])
    func shown(document: String) throws {
        let code = try String(contentsOfFile: "\(Checkout.root)/Examples/Counter/main.swift", encoding: .utf8)
        let text = try String(contentsOfFile: "\(Checkout.root)/\(document)", encoding: .utf8)
        #expect(
            text.contains("```swift\n\(code)```"), "\(document) shows something else than Examples/Counter/main.swift")
    }

    @Test("it counts on over five processes and leaves no number out")
    func counts() throws {
        let program = try RunningProgram(
            Bundle.main.bundleURL.appendingPathComponent("counter").path, [], name: "counter", limitSeconds: 60)
        var processes: [Int32] = []
        for _ in 0..<5 {
            program.output.skipToEnd()
            let line = try program.wait(for: "in process", seconds: 20)
            let process = try #require(line.split(separator: " ").last.flatMap { Int32($0) })
            processes.append(process)
            kill(process, SIGUSR2)
            _ = try program.output.wait(seconds: 20, what: "another process") { line in
                line.contains("in process") && !line.hasSuffix(" \(process)") ? line : nil
            }
        }
        #expect(Set(processes).count == 5, "\(processes)")
        let numbers = program.output.text.split(separator: "\n").compactMap { line in
            line.contains(" in process ") ? line.split(separator: " ").first.flatMap { Int($0) } : nil
        }
        #expect(numbers == Array(1...numbers.count), "a number is missing or came twice")
        #expect(!program.output.text.contains("still here"))
        if let last = program.output.text.split(separator: "\n").last?.split(separator: " ").last,
            let process = pid_t(last)
        {
            kill(process, SIGKILL)
        }
    }
}
