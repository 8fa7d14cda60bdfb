import Foundation
import LinuxCalls
import Testing

/// Two processes and what they use: the program of `Benchmarks/run channels`.
@Suite("Memory that a move takes beyond the guest's own, in both processes together", .serialized)
struct MemoryBoundTests {
    private static func extraMiB(_ way: String, _ megabytes: Int) throws -> Double {
        let process = Process()
        process.executableURL = Bundle.main.bundleURL.appendingPathComponent("stream-throughput")
        process.arguments = ["memory", way, "\(megabytes)"]
        let pipe = Pipe()
        process.standardOutput = pipe
        try process.run()
        let text = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        #expect(process.terminationStatus == 0, "\(text)")
        let words = text.split(separator: " ")
        return try #require(words.count == 5 ? Double(words[3]) : nil, "\(text)")
    }

    @Test("pages that are given away exist twice for 32 MiB at most, at any size of RAM", arguments: [64, 192])
    func bounded(megabytes: Int) throws {
        #expect(try Self.extraMiB("flip-give", megabytes) <= 32)
    }

    @Test("what copies is seen to copy: the measure measures")
    func copied() throws { #expect(try Self.extraMiB("socket", 96) > 80) }
}
