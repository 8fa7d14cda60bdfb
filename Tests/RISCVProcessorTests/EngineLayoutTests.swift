import Foundation
import Testing

@testable import RISCVProcessor

@Suite("Shape of the engine") struct EngineLayoutTests {
    @Test("an operation is 16 bytes, its code the first")
    func operation() {
        #expect(MemoryLayout<RISCVProcessor.Operation>.size == 16)
        #expect(MemoryLayout<RISCVProcessor.Operation>.stride == 16)
        #expect(MemoryLayout<RISCVProcessor.Operation>.offset(of: \.code) == 0)
        #expect(MemoryLayout<RISCVProcessor.Operation>.offset(of: \.imm) == 8)
        #expect(MemoryLayout<OperationCode>.size == 1)
        #expect(MemoryLayout<CodePage>.size <= CodePage.headerByteCount)
    }

    /// The disassembled run function of the release build, if there is one and `objdump` is installed.
    private static let disassembly: [Substring]? = {
        func output(_ program: String, _ arguments: [String]) -> String? {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
            process.arguments = [program] + arguments
            let pipe = Pipe()
            process.standardOutput = pipe
            process.standardError = FileHandle.nullDevice
            guard (try? process.run()) != nil else { return nil }
            let data = pipe.fileHandleForReading.readDataToEndOfFile()
            process.waitUntilExit()
            return process.terminationStatus == 0 ? String(decoding: data, as: UTF8.self) : nil
        }
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent()
        let tool = root.appendingPathComponent(".build/release/sidestep").path
        guard FileManager.default.isExecutableFile(atPath: tool),
            let symbols = output("nm", [tool]),
            let line = symbols.split(separator: "\n").first(where: { $0.contains("RISCVHartC7execute") }),
            let symbol = line.split(separator: " ").last,
            let text = output("objdump", ["-d", "--no-show-raw-insn", "--disassemble=\(symbol)", tool])
        else { return nil }
        return text.split(separator: "\n")
    }()

    @Test(
        "in the release build each operation ends in its own indirect jump, and nothing counts references",
        .enabled(if: disassembly != nil, "no release build of the tool, or no objdump"))
    func dispatch() throws {
        let lines = try #require(Self.disassembly)
        #if arch(x86_64)
            let jumps = lines.count { $0.contains("jmp ") && $0.contains("*") }
        #else
            let jumps = lines.count { $0.contains("\tbr\t") }
        #endif
        let codes = Int(OperationCode.leave.rawValue) + 1
        #expect(jumps > codes * 8 / 10, "\(jumps) indirect jumps for \(codes) codes")
        for name in ["swift_retain", "swift_release", "swift_beginAccess", "isUniquelyReferenced", "swift_alloc"] {
            #expect(!lines.contains { $0.contains(name) })
        }
    }
}
